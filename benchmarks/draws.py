"""Whether what is drawn follows the distribution it should: chi-squared tests, and seeds.

    python benchmarks/draws.py [--draws 3000]

The first token after a prompt, drawn many times by the engine from a small random pair, against the
exact distribution from transformers in float64, with temperature, top-k, top-p, a plausibility and
gates (arXiv 2603.15854 tests its sampler so). Cells that expect fewer than five draws are put
together. A smallest p-value of k right samplers below 0.001 / k happens once in a thousand runs. So
that the test is known to see something, the same draws are held against the distribution at half
their strength too. What is found here is right or wrong, so no gate comes first.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

from findings import Finding, add_argument, tell

PROMPTS = ([5, 17, 48, 61, 200], [28, 96, 43])
SAMPLINGS: tuple[dict[str, Any], ...] = (
    {"temperature": 1.0},
    {"temperature": 1.3, "top_k": 8},
    {"temperature": 1.0, "top_p": 0.9},
)
LEVEL = 1e-3


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--draws", type=int, default=3000, help="of each setting and prompt")
    add_argument(parser)
    args = parser.parse_args()
    os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_KVCACHE_SPACE": "1"}
    from rlvr_decode import Extrapolation

    kinds = {
        "everywhere": Extrapolation(strength=1.5),
        "with a plausibility": Extrapolation(strength=1.5, plausibility=0.05),
        "gate delta": Extrapolation(strength=1.5, gate="delta", threshold=-0.3, primary="base"),
        "gate random": Extrapolation(strength=1.5, gate="random", threshold=0.5, primary="base"),
    }
    with tempfile.TemporaryDirectory() as directory:
        os.environ.setdefault("VLLM_CACHE_ROOT", directory)
        tell(measure(Path(directory), kinds, args.draws), args.findings)


def measure(directory: Path, kinds: dict[str, Any], draws: int) -> list[Finding]:
    from rlvr_decode.pair import write_pair
    from rlvr_decode.testing import make_checkpoints

    base, rlvr = make_checkpoints(directory, tied=False)
    pair = write_pair(directory / "pair", name="random", base=base, rlvr=rlvr)
    engine = start(pair)
    exact = Exact(pair)
    found, blind = [], []
    tests = len(kinds) * len(SAMPLINGS) * len(PROMPTS)
    for name, setting in kinds.items():
        p_values = []
        for sampling in SAMPLINGS:
            for prompt in PROMPTS:
                counts = draw(engine, prompt, setting, sampling, draws)
                p_values.append(p_value(counts, exact(prompt, setting, sampling)))
                other = exact(prompt, replace(setting, strength=setting.strength / 2), sampling)
                blind.append(p_value(counts, other))
        found.append(
            Finding(
                what=f"{len(p_values)} chi-squared tests of {draws} draws, {name}: smallest p",
                rival="exact distribution",
                values=[min(p_values)],
                unit="",
                at_least=LEVEL / tests,
            )
        )
    found.append(
        Finding(
            what="the same draws against half the strength: tests that notice",
            rival="wrong distribution",
            values=[100 * sum(p < LEVEL / tests for p in blind) / tests],
            unit=f"% of {tests}",
            at_least=50,
        )
    )
    return [*found, seeds(engine, kinds)]


def start(pair: Any) -> Any:
    from vllm import LLM

    from rlvr_decode.engine.launch import engine_args

    flags = {"max_model_len": 128, "max_num_seqs": 256, "enforce_eager": True}
    return LLM(**engine_args(pair, **flags))


def draw(
    engine: Any, prompt: list[int], setting: Any, sampling: dict[str, Any], n: int
) -> Counter[int]:
    """How often each token came first."""
    from vllm import TokensPrompt

    params = setting.sampling_params(**sampling, max_tokens=1, n=n, detokenize=False)
    inputs = [TokensPrompt(prompt_token_ids=prompt)]
    (answer,) = engine.generate(inputs, params, use_tqdm=False)
    return Counter(output.token_ids[0] for output in answer.outputs)


class Exact:
    """The distributions of the first token, by the rule's definition in float64."""

    def __init__(self, pair: Any) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        self._models: list[Any] = [
            AutoModelForCausalLM.from_pretrained(checkpoint.fetch(), dtype=torch.float64)
            for checkpoint in (pair.rlvr, pair.base)
        ]

    def __call__(self, prompt: list[int], setting: Any, sampling: dict[str, Any]) -> list[float]:
        import torch

        from rlvr_decode.kernels.gated_reference import gated_extrapolate
        from rlvr_decode.rules import rule_numbers, rule_of_rows
        from rlvr_decode.sampling import Sampling

        ids = torch.tensor([prompt])
        with torch.no_grad():
            rlvr, base = (model(ids).logits[:, -1] for model in self._models)
        numbers = torch.tensor(rule_numbers(setting, Sampling(**sampling)))
        exact = gated_extrapolate(rlvr, base, rule_of_rows(numbers[:, None])).logprobs[0].exp()
        probs: list[float] = exact.tolist()
        return probs


def p_value(counts: Counter[int], probs: list[float]) -> float:
    """Of Pearson's test; a token that cannot be drawn, drawn once, makes it 0."""
    from scipy.stats import chi2

    draws = counts.total()
    if any(probs[token] == 0 for token in counts):
        return 0.0
    cells = [(counts[token], draws * p) for token, p in enumerate(probs) if draws * p >= 5]
    rest = draws - sum(seen for seen, _ in cells), draws - sum(wanted for _, wanted in cells)
    cells += [rest] if rest[1] >= 5 else []
    if len(cells) < 2:
        return 1.0
    statistic = sum((seen - wanted) ** 2 / wanted for seen, wanted in cells)
    return float(chi2.sf(statistic, len(cells) - 1))


def seeds(engine: Any, kinds: dict[str, Any]) -> Finding:
    """The same seeds give the same answers, alone and among others, and other seeds give others."""

    from vllm import TokensPrompt

    def answers(first: int, size: int) -> list[list[int]]:
        texts, params = [], []
        for seed in range(first, first + 48):
            setting = list(kinds.values())[seed % len(kinds)]
            options = {"temperature": 1.0, "max_tokens": 12, "ignore_eos": True, "seed": seed}
            texts.append(TokensPrompt(prompt_token_ids=PROMPTS[0]))
            params.append(setting.sampling_params(**options))
        done: list[Any] = []
        for at in range(0, len(texts), size):
            some = slice(at, at + size)
            done += engine.generate(texts[some], params[some], use_tqdm=False)
        return [list(each.outputs[0].token_ids) for each in done]

    once, again, others = answers(0, 48), answers(0, 5), answers(48, 48)
    same = sum(a == b for a, b in zip(once, again, strict=True))
    if once == others:
        raise SystemExit("another seed changes no answer: the test of seeds sees nothing")
    return Finding(
        what="seeded answers that repeat in batches of another size",
        rival="themselves",
        values=[100 * same / len(once)],
        unit=f"% of {len(once)}",
        at_least=100,
    )


if __name__ == "__main__":
    main()
