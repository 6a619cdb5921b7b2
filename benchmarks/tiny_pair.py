"""Accuracy of the bundled pair against strength, beside the arms an honest reader asks for.

    python benchmarks/tiny_pair.py [--prompts 600] [--confirm 800] [--more-rl-steps 8]

Writes one JSON line per measurement to benchmarks/results/tiny_pair.jsonl and prints Markdown
tables. Every accuracy is a mean over prompts nobody trained on, with its standard error over
prompts. The strengths of the sweep share their prompts, so quoting the best of them flatters;
the confirmatory comparison fixes strength 1 beforehand and asks fresh prompts, paired.

N rows of logits, V vocabulary.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import platform
import statistics
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from rlvr_decode.ops import extrapolate
from rlvr_decode.pair import Pair
from rlvr_decode.training.config import Checkpoint, load
from rlvr_decode.training.policy.model import open_model
from rlvr_decode.training.rollout.rollout import draw
from rlvr_decode.training.tasks.addition import Addition, is_shortcut
from rlvr_decode.training.tasks.task import Prompt
from rlvr_decode.training.trainer import train_recipe

RESULTS = Path(__file__).parent / "results"
STRENGTHS = (-1.0, -0.5, 0.0, 0.25, 0.5, 1.0, 1.5, 2.0, 3.0)
MAX_NEW_TOKENS = 40
SWEEP_SEED, CONFIRM_SEED = 1001, 2002


@dataclass(frozen=True, kw_only=True, slots=True)
class Arm:
    """One way to decode: the two models, how far to go, and how to draw."""

    name: str
    strength: float = 0.0
    plausibility: float = 0.0
    min_p: float = 0.0
    temperature: float = 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    """What an arm gave: per-prompt accuracies, share of shortcuts, mean length in tokens."""

    arm: Arm
    accuracies: list[float]
    shortcuts: float
    length: float

    @property
    def accuracy(self) -> float:
        return statistics.fmean(self.accuracies)

    @property
    def standard_error(self) -> float:
        return statistics.stdev(self.accuracies) / math.sqrt(len(self.accuracies))

    def __str__(self) -> str:
        return f"{self.accuracy:.3f} ± {self.standard_error:.3f}"


@torch.no_grad()
def respond(
    rlvr: PreTrainedModel,
    base: PreTrainedModel,
    prompt_NP: Tensor,
    arm: Arm,
    *,
    stop: int,
    seed: int,
) -> list[list[int]]:
    """One response per row, drawn as the arm says; the prompts have equal lengths."""
    generator = torch.Generator().manual_seed(seed)
    models = [rlvr] if arm.strength == 0 else [rlvr, base]
    caches = [DynamicCache(config=model.config) for model in models]
    responses: list[list[int]] = [[] for _ in prompt_NP]
    running, tokens = torch.arange(len(prompt_NP)), prompt_NP
    for _ in range(MAX_NEW_TOKENS):
        logits = [
            model(input_ids=tokens, past_key_values=cache, use_cache=True, logits_to_keep=1)
            .logits[:, -1]
            .float()
            for model, cache in zip(models, caches, strict=True)
        ]
        token_N, _ = draw(combine(logits, arm), arm.temperature, [(generator, len(running))])
        for row, token in zip(running.tolist(), token_N.tolist(), strict=True):
            responses[row].append(token)
        alive_N = token_N != stop
        if not alive_N.any():
            break
        for cache in caches:
            cache.batch_select_indices(alive_N)
        running, tokens = running[alive_N], token_N[alive_N].unsqueeze(1)
    return responses


def combine(logits: Sequence[Tensor], arm: Arm) -> Tensor:
    """The logits an arm draws from, [N, V]."""
    rlvr_NV = logits[0]
    if arm.min_p:
        p_NV = rlvr_NV.softmax(-1)
        implausible_NV = p_NV < arm.min_p * p_NV.amax(-1, keepdim=True)
        return rlvr_NV.masked_fill(implausible_NV, -math.inf)
    if arm.strength == 0:
        return rlvr_NV
    strength_N = torch.full((len(rlvr_NV),), float(arm.strength))
    return extrapolate(rlvr_NV, logits[1], strength_N, arm.plausibility)


class Bench:
    """The pair, its task, and the file every measurement goes to."""

    def __init__(self, results: Path) -> None:
        self.pair = Pair.open("tiny")
        self.base, _ = open_model(self.pair.base.fetch())
        self.rlvr, self.tokenizer = open_model(self.pair.rlvr.fetch())
        self.task = Addition()
        self.file = results
        self.about = {
            "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "commit": _commit(),
            "device": f"CPU {platform.machine()}, {torch.get_num_threads()} threads",
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        }

    def prompts(self, count: int, seed: int) -> list[Prompt]:
        return [self.task.prompt(i, seed=seed, split="held_out") for i in range(count)]

    def run(
        self,
        arm: Arm,
        prompts: list[Prompt],
        *,
        seed: int,
        rlvr: PreTrainedModel | None = None,
        base: PreTrainedModel | None = None,
    ) -> Result:
        """Two samples of each prompt (one if greedy), judged and written down."""
        samples = 1 if arm.temperature == 0 else 2
        asked = [prompt for prompt in prompts for _ in range(samples)]
        prompt_NP = torch.tensor([self.tokenizer.encode(prompt.text) for prompt in asked])
        stop = self.tokenizer.eos_token_id
        responses = respond(
            rlvr or self.rlvr, base or self.base, prompt_NP, arm, stop=stop, seed=seed
        )
        texts = self.tokenizer.batch_decode(responses, skip_special_tokens=True)
        rewards = [self.task.reward(*each) for each in zip(asked, texts, strict=True)]
        result = Result(
            arm=arm,
            accuracies=[
                statistics.fmean(rewards[i : i + samples]) for i in range(0, len(rewards), samples)
            ],
            shortcuts=statistics.fmean(map(is_shortcut, texts)),
            length=statistics.fmean(map(len, responses)),
        )
        line = {
            **asdict(arm),
            "accuracy": result.accuracy,
            "standard_error": result.standard_error,
            "shortcuts": result.shortcuts,
            "length": result.length,
            "prompts": len(prompts),
            "samples": samples,
            "seed": seed,
            **self.about,
        }
        with self.file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        return result


def sweep(bench: Bench, prompts: list[Prompt]) -> str:
    """Accuracy against strength at T = 1, T = 0.3 and greedy, with and without plausibility."""
    rows = []
    for strength in STRENGTHS:
        cells = []
        for temperature in (1.0, 0.3, 0.0):
            for plausibility in (0.0, 0.05):
                # At strength ≤ 0 nothing is cut, so the two columns are one measurement.
                if strength <= 0 and plausibility:
                    cells.append("same")
                    continue
                arm = Arm(
                    name="sweep",
                    strength=strength,
                    plausibility=plausibility,
                    temperature=temperature,
                )
                result = bench.run(arm, prompts, seed=SWEEP_SEED)
                cells.append(str(result))
                if temperature == 1.0 and (plausibility or strength <= 0):
                    habits = [f"{result.shortcuts:.3f}", f"{result.length:.1f}"]
        rows.append([f"{strength:g}", *cells, *habits])
    head = ["strength"]
    head += [f"{t}{p}" for t in ("T=1", "T=0.3", "greedy") for p in ("", ", pl. 0.05")]
    return table([*head, "shortcuts (T=1, pl. 0.05)", "tokens"], rows)


def others(bench: Bench, prompts: list[Prompt], more_steps: int) -> str:
    """What else raises accuracy, and a control, at T = 1, T = 0.3 and greedy."""
    permuted = permuted_base(bench)
    arms: list[tuple[str, Arm, dict[str, PreTrainedModel]]] = [
        ("base", Arm(name="base", strength=-1.0), {}),
        ("rlvr", Arm(name="rlvr"), {}),
        ("rlvr, min-p 0.05", Arm(name="min_p", min_p=0.05), {}),
        ("strength 1, plausibility 0.05", Arm(name="default", strength=1, plausibility=0.05), {}),
        (
            "strength 1 along a permuted update",
            Arm(name="permuted", strength=1, plausibility=0.05),
            {"base": permuted},
        ),
    ]
    for factor in (0.5, 1.0, 2.0):
        moved = moved_weights(bench, factor)
        name = f"weights moved on by {factor:g} updates"
        arms.append((name, Arm(name=f"weights_{factor:g}"), {"rlvr": moved}))
    for steps, model in longer_rl(bench, more_steps):
        arms.append((f"rlvr after {steps} steps", Arm(name=f"rl_{steps}"), {"rlvr": model}))
    rows = [
        [
            name,
            *(
                str(bench.run(replace(arm, temperature=t), prompts, seed=SWEEP_SEED, **models))
                for t in (1.0, 0.7, 0.3, 0.0)
            ),
        ]
        for name, arm, models in arms
    ]
    return table(["arm", "T=1", "T=0.7", "T=0.3", "greedy"], rows)


def moved_weights(bench: Bench, factor: float) -> PreTrainedModel:
    """One model at θ + factor · (θ − θ_base): extrapolation of weights, not of log-probs."""
    model = copy.deepcopy(bench.rlvr)
    with torch.no_grad():
        for weight, old in zip(model.parameters(), bench.base.parameters(), strict=True):
            weight.add_(weight - old, alpha=factor)
    return model


def permuted_base(bench: Bench) -> PreTrainedModel:
    """A base as far away as the real one, tensor by tensor, in a direction that means nothing."""
    model = copy.deepcopy(bench.rlvr)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight, old in zip(model.parameters(), bench.base.parameters(), strict=True):
            update = (weight - old).flatten()
            order = torch.randperm(update.numel(), generator=generator)
            weight.sub_(update[order].view_as(weight))
    return model


def longer_rl(bench: Bench, more_steps: int) -> list[tuple[int, PreTrainedModel]]:
    """The recipe's RL from the same base, run on past the shipped step."""
    if more_steps == 0:
        return []
    shipped, recipe = bench.pair.provenance["steps"], load("tiny")
    last = shipped + more_steps
    models = []
    with tempfile.TemporaryDirectory() as scratch:
        config = replace(
            recipe,
            pretrain=None,
            base=str(bench.pair.base.fetch()),
            out=scratch,
            kl_to_base=False,
            optim=replace(recipe.optim, steps=last),
            evaluation=replace(recipe.evaluation, every=0),
            checkpoint=Checkpoint(every=1, keep=0),
        )
        checkpoints = train_recipe(config).parent / "checkpoints"
        for step in (shipped + more_steps // 2, last):
            model = copy.deepcopy(bench.rlvr)
            weights = load_file(checkpoints / f"step-{step:06d}" / "weights.safetensors")
            with torch.no_grad():
                for name, weight in model.named_parameters():
                    weight.copy_(weights[name])
            models.append((step, model))
    return models


def confirm(bench: Bench, count: int) -> str:
    """Strength 1, fixed beforehand, against strength 0 on fresh prompts, paired by prompt."""
    prompts = bench.prompts(count, CONFIRM_SEED)
    permuted = {"base": permuted_base(bench)}
    rows = []
    for temperature in (1.0, 0.3, 0.0):
        arm = Arm(name="confirm", temperature=temperature)
        rlvr = bench.run(arm, prompts, seed=CONFIRM_SEED)
        masked = bench.run(replace(arm, min_p=0.05), prompts, seed=CONFIRM_SEED)
        far = replace(arm, strength=1.0, plausibility=0.05)
        pushed = bench.run(far, prompts, seed=CONFIRM_SEED + 1)
        bare = bench.run(replace(far, plausibility=0.0), prompts, seed=CONFIRM_SEED + 1)
        control = bench.run(
            replace(far, name="confirm_permuted"), prompts, seed=CONFIRM_SEED + 1, **permuted
        )
        rows.append(
            [
                f"T={temperature:g}" if temperature else "greedy",
                str(rlvr),
                str(pushed),
                difference(pushed, rlvr),
                difference(bare, rlvr),
                difference(pushed, masked),
                difference(control, masked),
            ]
        )
    head = ["", "strength 0", "strength 1, pl. 0.05", "difference"]
    head += ["without plausibility", "against min-p 0.05", "permuted update against min-p 0.05"]
    return table(head, rows)


def difference(one: Result, other: Result) -> str:
    """Mean of the per-prompt differences in points, with its 95 % interval."""
    gaps = [100 * (a - b) for a, b in zip(one.accuracies, other.accuracies, strict=True)]
    error = 1.96 * statistics.stdev(gaps) / math.sqrt(len(gaps))
    return f"{statistics.fmean(gaps):+.1f} ± {error:.1f}"


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _commit() -> str:
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prompts", type=int, default=600, help="of the sweep and the arms")
    parser.add_argument("--confirm", type=int, default=800, help="fresh prompts, paired")
    parser.add_argument("--more-rl-steps", type=int, default=8, help="0 leaves that arm out")
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    arguments.results.mkdir(exist_ok=True)
    bench = Bench(arguments.results / "tiny_pair.jsonl")
    prompts = bench.prompts(arguments.prompts, SWEEP_SEED)
    sections = [
        f"## Strength against strength 0, {arguments.confirm} fresh prompts, paired\n\n"
        "Strength 1 was fixed beforehand. Points of accuracy, with 95 % intervals over prompts.\n\n"
        + confirm(bench, arguments.confirm),
        f"## Accuracy against strength, {arguments.prompts} held-out prompts\n\n"
        "Mean ± standard error over prompts; pl. is the plausibility.\n\n" + sweep(bench, prompts),
        "## Other ways to be more accurate, and a control\n\n"
        + others(bench, prompts, arguments.more_rl_steps),
    ]
    text = "# The pair `tiny`, measured\n\n" + "\n\n".join(sections) + "\n"
    (arguments.results / "tiny_pair.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
