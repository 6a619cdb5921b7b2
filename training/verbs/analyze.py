"""`rlvr-decode analyze PAIR --task …`."""

from __future__ import annotations

from collections.abc import Sequence

from rlvr_decode.analyze import command, geometry
from rlvr_decode.training.verbs.tasks import run_verb


def main(argv: Sequence[str]) -> int:
    """Show where and why the two models differ, as JSON, PNG and one HTML page."""
    flags = {word.partition("=")[0] for word in argv}
    if "--geometry" in flags and not flags & {"--task", "--data"}:
        return geometry.main(argv)
    return run_verb(
        "analyze", main.__doc__, argv, add_arguments=command.add_arguments, run=command.command
    )
