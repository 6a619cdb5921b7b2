"""The picture of a simulated run: who has the probability, how much spread is left, who is found.

Legend: S steps, R runs, K answers.
"""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure
from torch import Tensor

from rlvr_decode.training.stages.simulate import Bandit, MeanField, entropy, milestones, reach

_REACHES = (1, 8, 64)


def draw(bandit: Bandit, path: MeanField, runs_SRK: Tensor | None, png: Path) -> None:
    """Write a PNG of three panels; sampled runs, if given, are thin lines of the best answer."""
    figure = Figure(figsize=(8, 9), layout="constrained")
    top, middle, bottom = figure.subplots(3, 1, sharex=True)
    for k, reward in enumerate(bandit.rewards):
        top.plot(path.probs_SK[:, k].numpy(), label=f"answer worth {reward:g}")
    if runs_SRK is not None:
        top.plot(runs_SRK[:, :, bandit.best].numpy(), color="grey", linewidth=0.5, alpha=0.5)
    top.set_ylabel("probability")
    middle.plot(entropy(path.probs_SK).numpy(), color="black")
    middle.set_ylabel("entropy (nats)")
    for k in _REACHES:
        found_S = reach(path.probs_SK[:, bandit.best], k)
        bottom.plot(found_S.numpy(), label=f"k = {k}")
    bottom.set_ylabel("best answer found in k draws")
    bottom.set_xlabel("update")
    top.legend()
    bottom.legend()
    found = milestones(bandit, path)
    if found.good_negative_at is not None:
        top.set_title("dotted: entropy turns; dashed: the good answer's advantage turns negative")
        for axes in (top, middle, bottom):
            axes.axvline(found.entropy_least_at, color="black", linestyle=":", linewidth=1)
            axes.axvline(found.good_negative_at, color="black", linestyle="--", linewidth=1)
    figure.savefig(png, dpi=150)
