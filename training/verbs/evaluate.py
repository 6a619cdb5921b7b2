"""`rlvr-decode evaluate PAIR --task …`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from rlvr_decode.evaluate.command import add_arguments, command
from rlvr_decode.training.judging import RewardError
from rlvr_decode.training.verbs import tasks


def main(argv: Sequence[str]) -> int:
    """Measure settings against plain rlvr, suggest one, and confirm it on fresh prompts."""
    parser = argparse.ArgumentParser(prog="rlvr-decode evaluate", description=main.__doc__)
    add_arguments(parser)
    tasks.add_arguments(parser)
    args = parser.parse_args(argv)
    try:
        command(args, tasks.read_task(args))
    except (ValueError, RewardError, OSError) as error:
        parser.error(str(error))
    return 0
