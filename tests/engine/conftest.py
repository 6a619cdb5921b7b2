"""Real vLLM engines on small random pairs, and the exact answers to compare them with.

Imports wait for the fixtures: pytest loads this file before it knows the runner, and whoever
imports torch imports Triton, which looks for its backends once.
"""

import gc

import pytest


@pytest.fixture(scope="session", autouse=True)
def v2_runner(request):
    """Whether this session runs model runner V2."""
    chosen = request.config.getoption("--runner") == "v2"
    if chosen:
        repair_interpreter()
    return chosen


def repair_interpreter():
    """Triton 3.9's interpreter refuses masks that mix a scalar bool with a vector of bools."""
    import triton.language as tl
    import vllm  # noqa: F401  vLLM chooses its kernels while it is imported
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    def with_bool_mask(method, place):
        def repaired(self, *args, **kwargs):
            mask = args[place]
            if mask is not None:
                mask = TensorHandle(mask.data.astype(bool), tl.int1)
            return method(self, *args[:place], mask, *args[place + 1 :], **kwargs)

        return repaired

    for name, place in (("create_masked_load", 1), ("create_masked_store", 2)):
        setattr(InterpreterBuilder, name, with_bool_mask(getattr(InterpreterBuilder, name), place))


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
        }
        engines.append(LLM(**engine_args(pair, **(defaults | arguments))))
        return engines[-1]

    yield start_engine
    while engines:
        engines.pop().llm_engine.engine_core.shutdown()
    gc.collect()


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
    """Exact log-probs [T, V] of the tokens that follow a prompt, at a strength."""
    import torch

    base, rlvr = pair_and_models[1]

    @torch.no_grad()
    def logprobs(prompt, response, strength):
        tokens = torch.tensor([list(prompt) + list(response)])
        log_base, log_rlvr = (m(tokens).logits[0].double().log_softmax(-1) for m in (base, rlvr))
        mixed = (1 + strength) * log_rlvr - strength * log_base
        return mixed.log_softmax(-1)[len(prompt) - 1 : -1]

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
