"""Real vLLM engines on small random pairs, and the exact answers to compare them with.

Imports wait for the fixtures: pytest loads this file before it knows the runner, and whoever
imports torch imports Triton, which looks for its backends once.
"""

import gc
import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

KV_BYTES = 2**27  # to allocate a gigabyte takes longer than the rest of an engine's start


@pytest.fixture(scope="session", autouse=True)
def v2_runner(request):
    """Whether this session runs model runner V2."""
    chosen = request.config.getoption("--runner") == "v2"
    if chosen:
        from interpreter_repair import repair_interpreter

        repair_interpreter()
    return chosen


@pytest.fixture(scope="module")
def start(v2_runner):
    """Starts an engine on a pair; it is shut down with the module's tests."""
    from vllm import LLM

    from rlvr_decode.engine.launch import engine_args

    engines = []

    def start_engine(pair, **arguments):
        defaults = {
            "enforce_eager": True,
            "max_model_len": 1024,
            "max_num_seqs": 16,
            "block_size": 32,
            "disable_log_stats": False,
            "kv_cache_memory_bytes": KV_BYTES,
        }
        with pytest.MonkeyPatch.context() as environment:
            environment.delenv("VLLM_CPU_KVCACHE_SPACE")  # it would win
            engines.append(LLM(**engine_args(pair, **(defaults | arguments))))
        return engines[-1]

    yield start_engine
    while engines:
        engines.pop().llm_engine.engine_core.shutdown()
    gc.collect()


@pytest.fixture
def methods_of():
    """The classes that compute an engine's layers."""

    def look(engine):
        (found,) = engine.apply_model(
            lambda model: {type(getattr(each, "quant_method", None)) for each in model.modules()}
        )
        return found

    return look


@pytest.fixture
def check_greedy(exact, prompts):
    """Fails unless an engine's greedy answers at eight strengths are the exact ones."""
    from vllm import TokensPrompt

    from rlvr_decode import Extrapolation

    def check(engine, seed):
        asked, strengths = prompts(8, seed=seed), [-1, 0, 0.5, 1, 1.5, 2, 3, 4]
        params = [
            Extrapolation(strength=s).sampling_params(temperature=0, max_tokens=6, ignore_eos=True)
            for s in strengths
        ]
        inputs = [TokensPrompt(prompt_token_ids=prompt) for prompt in asked]
        answers = engine.generate(inputs, params, use_tqdm=False)
        for prompt, strength, answer in zip(asked, strengths, answers, strict=True):
            tokens = answer.outputs[0].token_ids
            assert exact(prompt, tokens, strength).argmax(-1).tolist() == list(tokens)

    return check


@pytest.fixture
def child_engine():
    """Runs an engine in another process: greedy answers {"tokens", "metrics"}, or its error.

    settings  of each prompt: a strength, or an Extrapolation.
    """

    def run(pair, prompts, settings, environment=None, sampling=None, **arguments):
        defaults = {
            "enforce_eager": True,
            "max_model_len": 512,
            "max_num_seqs": 8,
            "block_size": 32,
            "disable_log_stats": False,
            "kv_cache_memory_bytes": KV_BYTES,
        }
        inherited = {k: v for k, v in os.environ.items() if k != "VLLM_CPU_KVCACHE_SPACE"}
        job = {
            "pair": str(pair.directory),
            "prompts": prompts,
            "settings": [
                {"strength": each} if isinstance(each, int | float) else asdict(each)
                for each in settings
            ],
            "sampling": {"temperature": 0, "max_tokens": 8, "ignore_eos": True} | (sampling or {}),
            "arguments": defaults | arguments,
        }
        done = subprocess.run(
            [sys.executable, Path(__file__).with_name("child_engine.py")],
            input=json.dumps(job),
            env=inherited | (environment or {}),
            capture_output=True,
            text=True,
            timeout=900,
        )
        answers = [line for line in done.stdout.splitlines() if line.startswith("ANSWER")]
        if not answers:
            raise RuntimeError(done.stdout[-4000:] + done.stderr[-4000:])
        return json.loads(answers[0].removeprefix("ANSWER"))

    return run


@pytest.fixture(scope="module")
def make_pair(tmp_path_factory):
    """Makes a random pair of an architecture: (the opened pair, its two transformers models)."""

    from transformers import AutoModelForCausalLM

    from rlvr_decode.pair import write_pair
    from rlvr_decode.testing import make_checkpoints

    def make(**options):
        directory = tmp_path_factory.mktemp("pair")
        base, rlvr = make_checkpoints(directory, **options)
        pair = write_pair(directory, name="random", base=base, rlvr=rlvr)
        models = [AutoModelForCausalLM.from_pretrained(path).eval() for path in (base, rlvr)]
        return pair, models

    return make


@pytest.fixture(scope="module")
def pair_and_models(make_pair):
    return make_pair(tied=False)


@pytest.fixture(scope="module")
def pair(pair_and_models):
    return pair_and_models[0]


@pytest.fixture(scope="module")
def exact(pair_and_models):
    """Exact log-probs [T, V] of the tokens that follow a prompt, at a strength.

    For an Extrapolation with a gate, those that the rule has greedily: 0 and −inf.
    """
    import torch

    from rlvr_decode.kernels.gated_reference import gated_extrapolate
    from rlvr_decode.rules import rule_numbers, rule_of_rows
    from rlvr_decode.sampling import Sampling

    base, rlvr = pair_and_models[1]

    @torch.no_grad()
    def logprobs(prompt, response, setting):
        tokens = torch.tensor([list(prompt) + list(response)])
        log_base, log_rlvr = (m(tokens).logits[0].double().log_softmax(-1) for m in (base, rlvr))
        if isinstance(setting, int | float):
            mixed = (1 + setting) * log_rlvr - setting * log_base
            return mixed.log_softmax(-1)[len(prompt) - 1 : -1]
        greedy = torch.tensor(rule_numbers(setting, Sampling(temperature=0.0)))
        rule = rule_of_rows(greedy[:, None].expand(-1, tokens.shape[1]))
        return gated_extrapolate(log_rlvr, log_base, rule).logprobs[len(prompt) - 1 : -1]

    return logprobs


@pytest.fixture
def prompts():
    """n prompts of different lengths; half of them share a prefix of 100 tokens."""

    import torch

    def make(n, seed=0):
        generator = torch.Generator().manual_seed(seed)

        def tokens(length):
            return torch.randint(3, 509, (length,), generator=generator).tolist()

        prefix = tokens(100)
        return [(prefix if i % 2 else []) + tokens(1 + (37 * i) % 120) for i in range(n)]

    return make
