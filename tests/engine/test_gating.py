"""From requests to log q as the engine goes: the V1 processor, the model's logits, the masks.

The models are toys whose hidden states are their logits; the papers' loop is drawn and counted.
"""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from rlvr_decode import Extrapolation
from rlvr_decode.engine import pair_model
from rlvr_decode.engine.pair_model import PairModel
from rlvr_decode.interventions import intervention_rates
from rlvr_decode.params import GATES, PRIMARIES, THRESHOLD_RANGES, TICKET

INF = float("inf")
DRAWS = 2_000_000
R = [1.9, 0.4, -0.3, 1.1, -2.0, 0.8, 1.0, -0.9, 0.1]
B = [0.9, 1.1, 0.2, 1.3, -1.1, 0.3, -1.5, 0.4, 0.15]
# Forbids the token that both models like best, and favours one.
MASK = [-INF, 0.0, 0.0, 0.0, -INF, 0.0, 0.0, 1.5, 0.0]
SAMPLING = {"temperature": 0.8, "top_k": 7, "top_p": 0.9, "min_p": 0.02}
THRESHOLDS = {
    "delta": (-0.3, 0.5),
    "kl": (0.2, 9.0),
    "reverse_kl": (0.2, 9.0),
    "jsd": (0.1, 0.6),
    "entropy": (1.8, 2.1),
    "random": (0.3,),
}
SETTINGS = [
    Extrapolation(strength=0.6, plausibility=0.04, gate=gate, threshold=threshold, primary=primary)
    for gate in GATES
    if gate != "none"
    for threshold in THRESHOLDS.get(gate, (None,))
    for primary in PRIMARIES
]


class Config:
    """As much of vLLM's as is asked for; engines are told apart by it."""

    scheduler_config = SimpleNamespace(max_num_seqs=8, scheduler_cls=None)
    kv_transfer_config = None


class Toy(PairModel):
    def rlvr_logits(self, rlvr_NH):
        return rlvr_NH

    def both_logits(self, rlvr_NH, base_KH):
        return rlvr_NH, base_KH


class Engine:
    """The V1 runner's order of calls, for toys."""

    def __init__(self, monkeypatch):
        from rlvr_decode.engine.processor import ExtrapolationProcessor

        monkeypatch.setattr(pair_model, "refuse_unsupported", lambda config: None)
        self.config = Config()
        self.processor = ExtrapolationProcessor(self.config, torch.device("cpu"))
        self.model = Toy(self.config)

    def enter(self, *requests):
        """A batch of new requests, which replaces the last one."""
        added = [(i, params, None, []) for i, params in enumerate(requests)]
        self.update(batch_size=len(requests), removed=[], added=added, moved=[])

    def update(self, **changes):
        self.processor.update_state(SimpleNamespace(**changes) if changes else None)

    def logits(self, rlvr_NV, base_NV):
        return self.model.compute_logits(torch.cat([rlvr_NV, base_NV], dim=-1))


@pytest.fixture
def engine(monkeypatch):
    return Engine(monkeypatch)


def models(rows):
    return (torch.tensor([logits]).repeat(rows, 1) for logits in (R, B))


def shaped(logits, *, temperature, top_k, top_p, min_p):
    """The distribution that vLLM draws from: temperature, min-p, top-k, top-p."""
    p = np.exp(np.array(logits) / temperature)
    p = np.where(p >= min_p * p.max(), p, 0) / p.sum()
    by_rank = np.argsort(-p)
    p[by_rank[top_k:]] = 0
    p /= p.sum()
    before = np.concatenate([[0], np.cumsum(p[by_rank])[:-1]])
    p[by_rank[before >= top_p]] = 0
    return p / p.sum()


def kl(p, q):
    return float((p * np.log(p / q)).sum())


def loop(setting, mask):
    """First draw, second draw, and for each token the probability of the second, by the papers."""
    p_r, p_b = (np.exp(x) / np.exp(x).sum() for x in (np.array(R), np.array(B)))
    mask = np.array(mask)
    delta = np.log(p_r / p_b)
    plausible = p_r >= setting.plausibility * p_r[mask > -INF].max()
    mixed = np.where(plausible, np.array(R) + setting.strength * delta, -INF)
    first, p_first = (R, p_r) if setting.primary == "rlvr" else (B, p_b)
    middle = (p_r + p_b) / 2
    statistic = {
        "kl": kl(p_r, p_b),
        "reverse_kl": kl(p_b, p_r),
        "jsd": (kl(p_r, middle) + kl(p_b, middle)) / 2,
        "entropy": -float((p_first * np.log(p_first)).sum()),
    }
    if setting.gate == "delta":
        again = delta <= setting.threshold
    elif setting.gate in statistic:
        again = np.full(len(R), statistic[setting.gate] >= setting.threshold)
    else:
        again = np.full(len(R), setting.threshold if setting.gate == "random" else 1.0)
    return shaped(np.array(first) + mask, **SAMPLING), shaped(mixed + mask, **SAMPLING), again


def counted(setting, mask, seed):
    """How often the loop emits each token, and draws again, of two million times."""
    first, second, again = loop(setting, mask)
    chance = np.random.default_rng(seed)
    drawn = chance.choice(len(R), size=DRAWS, p=first)
    redrawn = chance.random(DRAWS) < again[drawn]
    emitted = np.where(redrawn, chance.choice(len(R), size=DRAWS, p=second), drawn)
    return np.bincount(emitted, minlength=len(R)) / DRAWS, redrawn.mean()


@pytest.mark.parametrize("masked", [False, True], ids=["", "masked"])
@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_the_engine_emits_what_the_loop_emits(engine, setting, masked):
    mask = MASK if masked else [0.0] * len(R)
    bias = {7: 1.5} if masked else None
    params = setting.sampling_params(**SAMPLING, logit_bias=bias, extra_args={TICKET: "t"})
    engine.enter(params)
    logits_NV = engine.logits(*models(1))
    if masked:
        assert (logits_NV == 0).all()  # so that vLLM's additions are the mask itself
        logits_NV += torch.tensor(mask)
    logq = engine.processor.apply(logits_NV)[0]
    frequency, redrawn = counted(setting, mask, seed=SETTINGS.index(setting))
    q = logq.double().exp().numpy()
    assert (abs(frequency - q) <= 3 * np.sqrt(q * (1 - q) / DRAWS) + 1e-7).all()
    assert (frequency[q == 0] == 0).all()
    (m,) = intervention_rates(engine.processor._channel.take("t"))
    assert abs(redrawn - m) <= 3 * math.sqrt(max(m * (1 - m), 0) / DRAWS) + 1e-7


def test_only_gated_rows_with_a_mask_wait_for_it(engine):
    gated = Extrapolation(strength=1, gate="all")
    engine.enter(
        Extrapolation().sampling_params(logit_bias={1: 1.0}),
        gated.sampling_params(min_tokens=3),
        Extrapolation(strength=1).sampling_params(),
        gated.sampling_params(),
    )
    rlvr_NV, base_NV = models(4)
    logits_NV = engine.logits(rlvr_NV.clone(), base_NV)
    assert torch.equal(logits_NV[0], rlvr_NV[0])
    assert (logits_NV[1] == 0).all()
    expected = 2 * rlvr_NV.log_softmax(-1) - base_NV.log_softmax(-1)
    for row in (2, 3):  # without truncation, the gate "all" is extrapolation everywhere
        torch.testing.assert_close(logits_NV[row].softmax(-1), expected[row].softmax(-1))
    before = logits_NV.clone()
    after = engine.processor.apply(logits_NV)
    torch.testing.assert_close(after[1].softmax(-1), expected[1].softmax(-1))
    assert torch.equal(after[[0, 2, 3]], before[[0, 2, 3]])


def test_drawing_twice_changes_nothing(engine):
    engine.enter(Extrapolation(strength=1, gate="all").sampling_params(min_tokens=3))
    once = engine.processor.apply(engine.logits(*models(1))).clone()
    assert torch.equal(engine.processor.apply(once.clone()), once)


def test_rows_may_be_sampled_in_parts(engine):
    """V2 verifies drafts a run of requests at a time; a request is known by its slot."""
    gated = [Extrapolation(strength=s, gate="all") for s in (0.5, 1.0, 1.5)]
    engine.enter(
        gated[0].sampling_params(min_tokens=3),
        Extrapolation().sampling_params(),
        gated[1].sampling_params(min_tokens=3),
        gated[2].sampling_params(min_tokens=3),
    )
    logits_NV = engine.logits(*models(4))
    whole = logits_NV.clone()
    for first, part in ((0, slice(0, 1)), (1, slice(1, 2)), (2, slice(2, 4))):
        context = SimpleNamespace(idx_mapping_np=np.array([first]))
        whole[part] = engine.processor.apply(logits_NV[part].clone(), context)
    rlvr_NV, base_NV = models(1)
    delta = rlvr_NV.log_softmax(-1) - base_NV.log_softmax(-1)
    for row, setting in ((0, gated[0]), (2, gated[1]), (3, gated[2])):
        expected = (rlvr_NV + setting.strength * delta)[0].softmax(-1)
        torch.testing.assert_close(whole[row].softmax(-1), expected)
    engine.update()  # nothing is left to draw


def test_a_mask_that_is_never_applied_stops_the_engine(engine):
    engine.enter(Extrapolation(gate="all").sampling_params(min_tokens=3))
    engine.logits(*models(1))
    with pytest.raises(RuntimeError, match="1 gated rows were sampled before their rule"):
        engine.update()


def test_a_reused_place_forgets_the_rule(engine):
    gated = Extrapolation(strength=1, gate="random", threshold=1.0)
    engine.enter(gated.sampling_params(min_tokens=3, temperature=0, extra_args={TICKET: "a"}))
    engine.processor.apply(engine.logits(*models(1)))
    engine.enter(Extrapolation().sampling_params())
    rlvr_NV, base_NV = models(1)
    assert torch.equal(engine.logits(rlvr_NV.clone(), base_NV), rlvr_NV)
    assert len(intervention_rates(engine.processor._channel.take("a"))) == 1


def test_rules_move_with_their_requests(engine):
    from vllm.v1.sample.logits_processor import MoveDirectionality

    first = Extrapolation(strength=2, gate="all").sampling_params(temperature=0)
    second = Extrapolation(strength=-1, gate="all").sampling_params(temperature=0.5)
    engine.enter(first, second, Extrapolation().sampling_params())
    before = engine.logits(*models(3)).clone()
    swap = (0, 2, MoveDirectionality.SWAP)
    engine.update(batch_size=3, removed=[], added=[], moved=[swap])
    after = engine.logits(*models(3))
    assert torch.equal(after[[2, 1, 0]], before)
    engine.update(
        batch_size=1, removed=[0], added=[], moved=[(1, 0, MoveDirectionality.UNIDIRECTIONAL)]
    )
    assert torch.equal(engine.logits(*models(1))[0], before[1])


class V2Engine(Engine):
    """The V2 runner's order of calls, for toys: requests have slots, and rows for drafts."""

    def __init__(self, monkeypatch):
        from vllm.v1.worker.gpu.model_states.default import DefaultModelState

        from rlvr_decode.engine.model_state import PairedModelState
        from rlvr_decode.engine.processor import ExtrapolationProcessor

        def init(state, config, model):
            state.vllm_config, state.model = config, model
            state.max_num_reqs, state.device = 8, torch.device("cpu")

        monkeypatch.setattr(DefaultModelState, "__init__", init)
        monkeypatch.setattr(DefaultModelState, "add_request", lambda *_: None)
        monkeypatch.setattr(DefaultModelState, "prepare_inputs", lambda *_: {})
        super().__init__(monkeypatch)
        self.processor = ExtrapolationProcessor(
            self.config, SimpleNamespace(device=torch.device("cpu"))
        )
        self.state = PairedModelState(self.config, self.model)

    def add(self, slot, params):
        """Whether vLLM is to call the processor for it."""
        request = SimpleNamespace(sampling_params=params, prompt_token_ids=[1, 2])
        self.state.add_request(slot, request)
        return self.processor.add_request(slot, params)

    def prepare(self, *requests):
        """(slot, rows, position of the first, whether inside its prompt) of each, in the batch."""
        slots, rows, positions, partial = zip(*requests, strict=True)
        of_rows = [p + i for n, p in zip(rows, positions, strict=True) for i in range(n)]
        batch = SimpleNamespace(
            idx_mapping_np=np.array(slots, dtype=np.int32),
            cu_num_logits_np=np.cumsum([0, *rows]),
            num_computed_tokens_np=np.array(positions),
            num_scheduled_tokens=np.array(rows),
            prefill_len_np=np.array([999 if p else 1 for p in partial]),
            positions=torch.tensor([-1, *of_rows, -1]),  # more tokens than rows of logits
            logits_indices=torch.arange(len(of_rows)) + 1,
        )
        self.state.prepare_inputs(batch, None)
        return batch


def test_v2_knows_slots_drafts_and_unfinished_prompts(monkeypatch):
    engine = V2Engine(monkeypatch)
    gated = [Extrapolation(strength=s, gate="all") for s in (0.5, 1.0)]
    masked = gated[0].sampling_params(min_tokens=3, extra_args={TICKET: "a"})
    assert not engine.add(0, Extrapolation(strength=2).sampling_params())
    assert not engine.add(1, gated[1].sampling_params(extra_args={TICKET: "b"}))
    assert engine.add(3, masked)
    batch = engine.prepare((3, 3, 20, False), (1, 1, 7, True), (0, 1, 9, False))
    rlvr_NV, base_NV = models(5)
    logits_NV = engine.logits(rlvr_NV, base_NV)
    assert (logits_NV[:3] == 0).all()
    logits_NV = engine.processor.apply(logits_NV, batch)
    delta = rlvr_NV.log_softmax(-1) - base_NV.log_softmax(-1)
    for row, strength in enumerate((0.5, 0.5, 0.5, 1.0, 2.0)):
        expected = (rlvr_NV + strength * delta)[row].softmax(-1)
        torch.testing.assert_close(logits_NV[row].softmax(-1), expected)

    engine.prepare((1, 1, 8, False), (3, 2, 21, False))  # two drafts were rejected
    logits_NV = engine.logits(*models(3))
    assert (logits_NV[1:] == 0).all() and (logits_NV[0] != 0).all()
    engine.processor.apply(logits_NV, SimpleNamespace(idx_mapping_np=np.array([1, 3])))
    channel = engine.processor._channel
    told = channel.take("a")
    assert told["position"] == [20, 21, 22, 21, 22]
    assert intervention_rates(told) == [1.0, 1.0, 1.0]
    assert channel.take("b")["position"] == [8]  # nothing is drawn inside a prompt

    assert not engine.add(3, Extrapolation().sampling_params())  # the slot's next request
    engine.prepare((3, 1, 1, False))
    rlvr_NV, base_NV = models(1)
    assert torch.equal(engine.logits(rlvr_NV.clone(), base_NV), rlvr_NV)


def test_a_position_that_comes_again_counts_once():
    told = {
        "sequence": [0, 0, 1, 0, 0, 0, 1],
        "position": [5, 6, 0, 7, 6, 7, 1],  # of sequence 0, 6 was rejected, and with it 7
        "intervention_rate": [0.1, 0.9, 0.5, 0.8, 0.2, 0.3, 0.6],
    }
    assert intervention_rates(told) == [0.1, 0.2, 0.3, 0.5, 0.6]
    assert intervention_rates({}) == []


def test_every_gate_is_counted_here():
    assert set(THRESHOLDS) == set(THRESHOLD_RANGES)
