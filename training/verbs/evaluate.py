"""`rlvr-decode evaluate PAIR --task …`."""

from __future__ import annotations

from collections.abc import Sequence

from rlvr_decode.evaluate import command
from rlvr_decode.training.verbs.tasks import run_verb


def main(argv: Sequence[str]) -> int:
    """Measure settings against plain rlvr, suggest one, and confirm it on fresh prompts."""
    return run_verb(
        "evaluate", main.__doc__, argv, add_arguments=command.add_arguments, run=command.command
    )
