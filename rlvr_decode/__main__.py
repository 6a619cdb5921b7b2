"""The one command, `rlvr-decode VERB …`; a part is imported only when its verb is called."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib import import_module

from rlvr_decode import __version__

VERBS = {
    "serve": ("rlvr_decode.server.app", "serve a pair behind the OpenAI API"),
    "generate": ("rlvr_decode.generate", "answer one prompt at several strengths, side by side"),
    "evaluate": ("rlvr_decode.training.verbs.evaluate", "does a strength help? with intervals"),
    "analyze": ("rlvr_decode.training.verbs.analyze", "where and why the two models differ"),
    "pair": ("rlvr_decode.pair_cli", "make, check and show pairs"),
    "train": ("rlvr_decode.training.cli", "train a pair from a recipe"),
    "soe": ("rlvr_decode.training.soe.run", "collect traces of solutions a model does not find"),
    "sft": ("rlvr_decode.training.sft", "a cold start: one epoch on collected traces"),
    "simulate": ("rlvr_decode.training.stages.simulate", "the two stages of RLVR, on a bandit"),
}
# What a verb needs beyond the core, and the extras that bring it.
EXTRAS = {
    "vllm": "pip install 'rlvr-decode[cpu]', or [cuda] on an NVIDIA machine",
    "accelerate": "pip install 'rlvr-decode[train]'",
    "datasets": "pip install 'rlvr-decode[train]'",
    "math_verify": "pip install 'rlvr-decode[train]'",
    "reasoning_gym": "pip install 'rlvr-decode[train]'",
    "matplotlib": "pip install 'rlvr-decode[train]'",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; its exit status."""
    verb, *rest = (sys.argv[1:] if argv is None else list(argv)) or ["--help"]
    if verb in ("-h", "--help"):
        print(usage())
        return 0
    if verb == "--version":
        print(f"rlvr-decode {__version__}")
        return 0
    if verb not in VERBS:
        print(f"rlvr-decode: no verb {verb!r}\n\n{usage()}", file=sys.stderr)
        return 2
    module, _ = VERBS[verb]
    try:
        run: Callable[[Sequence[str]], int] = import_module(module).main
        return run(rest)
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in EXTRAS:
            raise
        print(f"rlvr-decode {verb} needs {missing}: {EXTRAS[missing]}", file=sys.stderr)
        return 1


def usage() -> str:
    """What the command can do."""
    verbs = "\n".join(f"  {verb:<10}{summary}" for verb, (_, summary) in VERBS.items())
    return f"usage: rlvr-decode VERB …\n\n{verbs}\n\nrlvr-decode VERB --help says more."


if __name__ == "__main__":
    sys.exit(main())
