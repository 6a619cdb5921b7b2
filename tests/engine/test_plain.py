"""Plain requests run without base, and no request that needs base reads what they left out."""

from types import SimpleNamespace

import pytest
import torch
from vllm import SamplingParams, TokensPrompt

from rlvr_decode import Extrapolation
from rlvr_decode.engine.plain import MARK, is_marked, is_plain, mark, salted
from rlvr_decode.engine.scheduler import separate
from rlvr_decode.pair import write_pair
from rlvr_decode.testing import make_adapter, make_checkpoints

PROMPT = list(range(40, 160))  # several blocks of 32


@pytest.fixture(scope="module", params=["full", "adapter"])
def engine_and_models(request, start, tmp_path_factory):
    from transformers import AutoModelForCausalLM

    directory = tmp_path_factory.mktemp("plain")
    base, rlvr = make_checkpoints(directory, tied=True)
    update = rlvr
    if request.param == "adapter":
        update, rlvr = make_adapter(directory, base)
    pair = write_pair(directory, name="plain", base=base, rlvr=update)
    models = [AutoModelForCausalLM.from_pretrained(path).eval() for path in (base, rlvr)]
    return start(pair), models


@torch.no_grad()
def check_greedy(models, prompt, answer, strength):
    tokens = list(answer.outputs[0].token_ids)
    sequence = torch.tensor([prompt + tokens])
    log_base, log_rlvr = (m(sequence).logits[0].double().log_softmax(-1) for m in models)
    mixed = ((1 + strength) * log_rlvr - strength * log_base).log_softmax(-1)
    rows = mixed[len(prompt) - 1 : -1]
    assert rows.argmax(-1).tolist() == tokens
    for row, logprobs in zip(rows, answer.outputs[0].logprobs, strict=True):
        for token, logprob in logprobs.items():
            assert abs(logprob.logprob - row[token].item()) < 1e-3


def ask(engine, prompts, strengths, *, salt=None, **extra_args):
    params = [
        Extrapolation(strength=strength).sampling_params(
            temperature=0, max_tokens=6, ignore_eos=True, logprobs=2, extra_args=extra_args
        )
        for strength in strengths
    ]
    salts = {} if salt is None else {"cache_salt": salt}
    inputs = [TokensPrompt(prompt_token_ids=prompt, **salts) for prompt in prompts]
    return engine.generate(inputs, params, use_tqdm=False)


def cached_tokens(engine):
    return sum(m.value for m in engine.get_metrics() if m.name == "vllm:prefix_cache_hits")


def forbid_base(model):
    def both_hidden(*args):
        raise AssertionError("base was run")

    model.both_hidden = both_hidden


def allow_base(model):
    del model.both_hidden


def test_base_is_not_run_for_plain_requests_alone(engine_and_models):
    engine, models = engine_and_models
    prompts = [[3, *PROMPT], [4, *PROMPT[:50]]]
    engine.apply_model(forbid_base)
    try:
        answers = ask(engine, prompts, [0, 0])
    finally:
        engine.apply_model(allow_base)
    for prompt, answer in zip(prompts, answers, strict=True):
        check_greedy(models, prompt, answer, 0)


def test_a_block_that_base_did_not_fill_is_never_read(engine_and_models):
    engine, models = engine_and_models
    for strength in (0, 0, 2, 2, 0, -1):
        before = cached_tokens(engine)
        (answer,) = ask(engine, [[5, *PROMPT]], [strength])
        check_greedy(models, [5, *PROMPT], answer, strength)
    assert cached_tokens(engine) > before  # each kind does reuse its own


@pytest.mark.parametrize("salt", ["plain:", "plain:mine", "mine", "pair:mine"])
def test_no_salt_of_a_client_mixes_the_kinds(engine_and_models, salt):
    engine, models = engine_and_models
    prompt = [6, len(salt), *PROMPT]
    ask(engine, [prompt], [0])
    ask(engine, [prompt], [0], salt="mine")
    (answer,) = ask(engine, [prompt], [2], salt=salt)
    check_greedy(models, prompt, answer, 2)


def test_a_client_cannot_mark_a_request(engine_and_models):
    engine, models = engine_and_models
    (answer,) = ask(engine, [[7, *PROMPT]], [2], **{MARK: True})
    check_greedy(models, [7, *PROMPT], answer, 2)


def test_plain_requests_join_and_leave_steps_with_base(engine_and_models):
    engine, models = engine_and_models
    prompts = [[8 + i, *PROMPT[: 20 + 9 * i]] for i in range(9)]
    strengths = [0, 1, 0, 0, -1, 0, 0, 3, 0]
    # The requests that use base end first: the others go on without it.
    params = [
        Extrapolation(strength=s).sampling_params(
            temperature=0, max_tokens=3 if s else 9, ignore_eos=True, logprobs=2
        )
        for s in strengths
    ]
    inputs = [TokensPrompt(prompt_token_ids=prompt) for prompt in prompts]
    answers = engine.generate(inputs, params, use_tqdm=False)
    for prompt, answer, strength in zip(prompts, answers, strengths, strict=True):
        check_greedy(models, prompt, answer, strength)


def test_under_another_scheduler_base_always_runs(start, pair):
    engine = start(pair, scheduler_cls="vllm.v1.core.sched.scheduler.Scheduler")
    engine.apply_model(forbid_base)
    with pytest.raises(AssertionError, match="base was run"):
        ask(engine, [PROMPT], [0], **{MARK: True})


def params_of(strength, **settings):
    return Extrapolation(strength=strength).sampling_params(**settings)


@pytest.mark.parametrize(
    "params, plain",
    [
        (SamplingParams(), True),
        (params_of(0), True),
        (params_of(1), False),
        (params_of(-1), False),
        (SamplingParams(prompt_logprobs=0), False),  # base may be asked to score it too
        (Extrapolation(gate="all", strength=0).sampling_params(), False),
    ],
)
def test_what_is_plain(params, plain):
    assert is_plain(params) is plain


def test_marks_are_overwritten():
    params = SamplingParams(extra_args={MARK: True, "other": 1})
    mark(params, False)
    assert params.extra_args == {"other": 1} and not is_marked(params)
    mark(params, True)
    assert params.extra_args["other"] == 1 and is_marked(params)


def test_salts_of_the_two_kinds_never_meet():
    chosen = [None, "", "mine", "plain:", "plain:mine", "pair:", "pair:mine"]
    plain, paired = ({salted(salt, kind) for salt in chosen} for kind in (True, False))
    assert not plain & paired
    assert len(plain) == len(paired) == len(chosen) - 1  # none and empty are the same to vLLM


def request(strength, **options):
    """As much of vLLM's request as `separate` deals with."""
    hashed = []
    return SimpleNamespace(
        sampling_params=params_of(strength),
        cache_salt=None,
        block_hashes=["unsalted"],
        update_block_hashes=lambda: hashed.append(True),
        hashed=hashed,
        **({"resumable": False} | options),
    )


def test_a_session_is_not_plain_because_its_strength_may_change():
    session, single = request(0, resumable=True), request(0)
    separate(session)
    separate(single)
    assert not is_marked(session.sampling_params) and session.cache_salt is None
    assert is_marked(single.sampling_params) and single.cache_salt == "plain:"
    assert single.block_hashes == [] and single.hashed  # hashed anew, with the salt
