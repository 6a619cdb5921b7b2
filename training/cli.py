"""`rlvr-decode train RECIPE.toml [key=value …]`."""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from rlvr_decode.training.config import load
from rlvr_decode.training.processes.distributed import LostProcess, is_first
from rlvr_decode.training.rewards.judging import RewardError
from rlvr_decode.training.rollout.rollout import RolloutError
from rlvr_decode.training.run.checkpoint import appearing_whole
from rlvr_decode.training.run.disk import SaveError
from rlvr_decode.training.run.interrupt import EXIT_CODE, Stopped

_EXPECTED = (ValueError, FloatingPointError, LostProcess, RewardError, RolloutError, SaveError)


def main(argv: Sequence[str] | None = None) -> int:
    """Train a pair and print where it is; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="rlvr-decode train",
        description="Train a pair by reinforcement learning with verifiable rewards.",
        epilog="A run that was stopped goes on where it was when the same command is given again. "
        "The exit status is 0 when the pair is finished, 75 when SIGTERM or Ctrl-C has stopped the "
        "run after a step that has its checkpoint, and 2 for an error. `torchrun` and `accelerate "
        "launch` start several processes: -m rlvr_decode train RECIPE.",
    )
    parser.add_argument("recipe", help="a TOML file, or the name of a bundled recipe (tiny)")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="set a recipe's key, e.g. optim.lr=1e-5"
    )
    parser.add_argument(
        "--install", type=Path, metavar="DIR", help="also copy the finished pair to DIR"
    )
    arguments = parser.parse_intermixed_args(argv)
    try:
        config = load(arguments.recipe, arguments.overrides)
        # Imported late, so that a misspelt recipe is told at once.
        from transformers.utils import logging

        from rlvr_decode.training.trainer import train_recipe

        # Its bars for loading 3 MB would come between ours.
        logging.set_verbosity_error()  # type: ignore[no-untyped-call]
        logging.disable_progress_bar()  # type: ignore[no-untyped-call]
        pair = train_recipe(config)
        if not is_first():
            return 0
        if arguments.install is not None:
            install(pair, arguments.install)
            pair = arguments.install / pair.name
    except Stopped as stopped:
        print(f"rlvr-decode train: {stopped}", file=sys.stderr)
        return EXIT_CODE
    except _EXPECTED as error:
        print(f"rlvr-decode train: {error}", file=sys.stderr)
        return 2
    print(pair)
    return 0


def install(pair: Path, target: Path) -> None:
    """Copy a finished run's pair, and nothing else of the run, to `target`.

    A pair that is there already is replaced; anything else is not.
    """
    halves = ("base", "rlvr")
    if target.exists() and {path.name for path in target.iterdir()} - {pair.name, *halves}:
        raise ValueError(f"--install {target}: holds more than a pair; name a new directory")
    with appearing_whole(target) as scratch:
        shutil.copy2(pair, scratch)
        for half in halves:
            if (pair.parent / half).is_dir():
                shutil.copytree(pair.parent / half, scratch / half)
