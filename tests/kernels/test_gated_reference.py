"""The gated rule's definition against the papers' loop, drawn and counted, and by hand."""

import math

import pytest
import torch

from rlvr_decode.kernels.gated_reference import GATES, PRIMARIES, Rule, gated_extrapolate, processed

INF = float("inf")
DRAWS = 2_000_000
R = [1.9, 0.4, -0.3, 1.1, -2.0, 0.8, 1.0, -0.9, 0.1]
B = [0.9, 1.1, 0.2, 1.3, -1.1, 0.3, -1.5, 0.4, 0.15]
PLAIN = {
    "strength": 1.0,
    "plausibility": 0.0,
    "gate": "none",
    "threshold": 0.0,
    "primary": "rlvr",
    "temperature": 1.0,
    "top_k": 0,
    "top_p": 1.0,
    "min_p": 0.0,
}
TRUNCATED = PLAIN | {
    "strength": 0.6,
    "plausibility": 0.04,
    "temperature": 0.8,
    "top_k": 7,
    "top_p": 0.9,
    "min_p": 0.02,
}


def rule(*rows, **settings):
    """The rule of one row, or of several."""
    rows = rows or (PLAIN | settings,)
    rows = [
        row | {"gate": GATES[row["gate"]], "primary": PRIMARIES[row["primary"]]} for row in rows
    ]
    integers = ("gate", "primary", "top_k")
    return Rule(
        *(
            torch.tensor(
                [row[name] for row in rows],
                dtype=torch.int32 if name in integers else torch.float64,
            )
            for name in Rule._fields
        )
    )


def gated(r, b, bias=None, **settings):
    """log q and m of one row."""
    r, b = torch.tensor([r], dtype=torch.float64), torch.tensor([b], dtype=torch.float64)
    bias = None if bias is None else torch.tensor([bias], dtype=torch.float64)
    result = gated_extrapolate(r, b, rule(**settings), bias)
    return result.logprobs[0], result.rate[0].item()


# The same rule once more, for one row, in Python's numbers.


def softmax(logits):
    peak = max(logits)
    weights = [math.exp(x - peak) for x in logits]
    return [w / sum(weights) for w in weights]


def drawn_from(logits, temperature, top_k, top_p, min_p):
    if temperature == 0:
        return [float(v == logits.index(max(logits))) for v in range(len(logits))]
    p = softmax([x / temperature for x in logits])
    p = [x if x >= min_p * max(p) else 0.0 for x in p]
    by_rank = sorted(range(len(p)), key=lambda v: -p[v])
    for v in by_rank[top_k:] if top_k else []:
        p[v] = 0.0
    p = [x / sum(p) for x in p]
    total = 0.0
    for v in by_rank:
        reached, total = total >= top_p, total + p[v]
        if reached:
            p[v] = 0.0
    return [x / sum(p) for x in p]


def kl(p, q):
    return sum(x * math.log(x / y) for x, y in zip(p, q, strict=True))


def loop(r, b, *, strength, plausibility, gate, threshold, primary, **sampling):
    """p, e, and for each token the probability that it is drawn again."""
    p_r, p_b = softmax(r), softmax(b)
    first, p_first = (r, p_r) if primary == "rlvr" else (b, p_b)
    delta = [math.log(x / y) for x, y in zip(p_r, p_b, strict=True)]
    z = [x + strength * d for x, d in zip(r, delta, strict=True)]
    if strength > 0:
        z = [x if y >= plausibility * max(p_r) else -INF for x, y in zip(z, p_r, strict=True)]
    middle = [(x + y) / 2 for x, y in zip(p_r, p_b, strict=True)]
    here = {
        "none": True,
        "all": True,
        "kl": kl(p_r, p_b) >= threshold,
        "reverse_kl": kl(p_b, p_r) >= threshold,
        "jsd": (kl(p_r, middle) + kl(p_b, middle)) / 2 >= threshold,
        "entropy": -sum(x * math.log(x) for x in p_first) >= threshold,
    }
    if gate == "delta":
        again = [float(d <= threshold) for d in delta]
    else:
        again = [threshold if gate == "random" else float(here[gate])] * len(r)
    return drawn_from(first, **sampling), drawn_from(z, **sampling), again


def expected(r, b, **settings):
    p, e, again = loop(r, b, **PLAIN | settings)
    m = sum(x * a for x, a in zip(p, again, strict=True))
    return [x * (1 - a) + m * y for x, y, a in zip(p, e, again, strict=True)], m


GATED = [
    ("none", 0.0),
    ("all", 0.0),
    ("delta", -0.3),
    ("delta", 0.5),
    ("kl", 0.2),
    ("kl", 9.0),
    ("reverse_kl", 0.2),
    ("reverse_kl", 9.0),
    ("jsd", 0.1),
    ("jsd", 0.6),
    ("entropy", 1.8),
    ("entropy", 2.1),
    ("random", 0.3),
]


@pytest.mark.parametrize("primary", PRIMARIES)
@pytest.mark.parametrize(("gate", "threshold"), GATED)
def test_is_what_the_two_stage_loop_emits(gate, threshold, primary):
    settings = TRUNCATED | {"gate": gate, "threshold": threshold, "primary": primary}
    p, e, again = (torch.tensor(x, dtype=torch.float64) for x in loop(R, B, **settings))
    chance = torch.Generator().manual_seed(17 * GATES[gate] + PRIMARIES[primary])

    def uniform():
        return torch.rand(DRAWS, generator=chance, dtype=torch.float64)

    def draw(probabilities):
        return torch.bucketize(uniform(), probabilities.cumsum(0)[:-1], right=True)

    drawn = draw(p)
    redrawn = uniform() < again[drawn]
    emitted = torch.where(redrawn, draw(e), drawn)
    frequency = torch.bincount(emitted, minlength=len(R)) / DRAWS

    logq, m = gated(R, B, **settings)
    q = logq.exp()
    assert ((frequency - q).abs() <= 3 * (q * (1 - q) / DRAWS).sqrt()).all()
    assert abs(redrawn.double().mean() - m) <= 3 * math.sqrt(max(m * (1 - m), 0) / DRAWS) + 1e-12


@pytest.mark.parametrize("sampling", [{}, {"temperature": 0.0}, {"temperature": 1.7}, TRUNCATED])
@pytest.mark.parametrize("strength", [-1.0, -0.4, 0.0, 2.0])
@pytest.mark.parametrize("primary", PRIMARIES)
@pytest.mark.parametrize(("gate", "threshold"), GATED)
def test_is_the_rule_written_out(gate, threshold, primary, strength, sampling):
    settings = sampling | {
        "gate": gate,
        "threshold": threshold,
        "primary": primary,
        "strength": strength,
    }
    logq, m = gated(R, B, **settings)
    q, m_expected = expected(R, B, **settings)
    torch.testing.assert_close(logq.exp(), torch.tensor(q, dtype=torch.float64), rtol=0, atol=1e-12)
    assert m == pytest.approx(m_expected, abs=1e-12)
    assert logq.exp().sum().item() == pytest.approx(1, abs=1e-12)
    assert (logq == -INF).tolist() == [x == 0 for x in q]


def test_one_step_by_hand():
    # Δ = ln 2, −ln 2, 0: the second is thrown away. z ∝ p_r²/p_b = 1, 1/8, 1/4; their sum is 11/8.
    r, b = [math.log(x) for x in (0.5, 0.25, 0.25)], [math.log(x) for x in (0.25, 0.5, 0.25)]
    logq, m = gated(r, b, gate="delta", threshold=-0.3)
    assert m == pytest.approx(0.25)
    wanted = [0.5 + 0.25 * 8 / 11, 0.25 * 1 / 11, 0.25 + 0.25 * 2 / 11]
    torch.testing.assert_close(logq.exp(), torch.tensor(wanted, dtype=torch.float64))


@pytest.mark.parametrize("primary", PRIMARIES)
def test_thresholds_without_end(primary):
    settings = TRUNCATED | {"primary": primary}
    p, e, _ = loop(R, B, **settings)
    for gate, threshold, wanted in [
        ("delta", -INF, p),
        ("delta", INF, e),
        ("kl", -INF, e),
        ("kl", INF, p),
        ("entropy", INF, p),
        ("random", 0.0, p),
        ("random", 1.0, e),
    ]:
        logq, m = gated(R, B, **settings | {"gate": gate, "threshold": threshold})
        torch.testing.assert_close(logq.exp(), torch.tensor(wanted, dtype=torch.float64))
        assert m == pytest.approx(float(wanted is e), abs=1e-12)


def test_strength_0_replaces_by_plain_rlvr():
    logq, m = gated(R, B, strength=0.0, gate="delta", threshold=-0.3, primary="base")
    p_r, p_b = (torch.tensor(softmax(x), dtype=torch.float64) for x in (R, B))
    stays = (p_r / p_b).log() > -0.3
    assert m == pytest.approx(p_b[~stays].sum().item())
    torch.testing.assert_close(logq.exp(), p_b * stays + m * p_r)


def test_the_gate_looks_at_temperature_1():
    cold, hot = (gated(R, B, gate="kl", threshold=0.3, temperature=t)[1] for t in (0.1, 10.0))
    assert cold == hot == 1.0
    q, m = expected(R, B, gate="delta", threshold=-0.3, temperature=0.5)
    logq, rate = gated(R, B, gate="delta", threshold=-0.3, temperature=0.5)
    torch.testing.assert_close(logq.exp(), torch.tensor(q, dtype=torch.float64))
    assert rate == pytest.approx(m)


def test_greedy_throws_away_and_takes_the_next():
    # base's favourite is token 3 (Δ < 0); extrapolated, it is token 6.
    logq, m = gated(R, B, temperature=0.0, gate="delta", threshold=0.0, primary="base")
    assert (m, logq.argmax().item(), logq.exp().sum().item()) == (1.0, 6, 1.0)
    logq, m = gated(R, B, temperature=0.0, gate="delta", threshold=-3.0, primary="base")
    assert (m, logq.argmax().item(), logq.exp().sum().item()) == (0.0, 3, 1.0)
    logq, m = gated(R, B, temperature=0.0, gate="random", threshold=0.25, primary="base")
    assert logq.exp()[[6, 3]].tolist() == pytest.approx([0.25, 0.75])


def test_forbidden_tokens_stay_forbidden():
    # Token 0 is what both would say; a grammar forbids it, and a bias favours token 7.
    bias = [-INF, 0, 0, 0, 0, 0, 0, 2.5, 0]
    for primary in PRIMARIES:
        for gate, threshold in GATED:
            settings = {"primary": primary, "gate": gate, "threshold": threshold}
            logq, m = gated(R, B, bias, **settings)
            assert logq[0] == -INF
            assert logq.exp().sum().item() == pytest.approx(1)
            p, e, again = loop(R, B, **PLAIN | settings)
            p, e = ([x * math.exp(y) for x, y in zip(z, bias, strict=True)] for z in (p, e))
            p, e = ([x / sum(z) for x in z] for z in (p, e))
            assert m == pytest.approx(sum(x * a for x, a in zip(p, again, strict=True)))
            wanted = [x * (1 - a) + m * y for x, y, a in zip(p, e, again, strict=True)]
            torch.testing.assert_close(logq.exp(), torch.tensor(wanted, dtype=torch.float64))


def test_a_mask_on_the_primary_alone_is_kept():
    for primary in PRIMARIES:
        r, b = list(R), list(B)
        (r if primary == "rlvr" else b)[0] = -INF
        logq, _ = gated(r, b, primary=primary)
        assert logq[0] == -INF and logq[1:].isfinite().all()


def test_plausible_among_what_is_permitted():
    bias = [0.0 if x in (-2.0, -0.9) else -INF for x in R]
    logq, _ = gated(R, B, bias, plausibility=0.9)
    assert logq.isfinite().sum() == 1 and logq[7] == 0.0


def test_nothing_to_draw_from_shows():
    nothing = [-INF] * 9
    for r, b in ((R, nothing), (nothing, B), ([math.nan, *R[1:]], B), (R, [INF, *B[1:]])):
        for gate, threshold in GATED:
            for temperature in (0.0, 1.0):
                logq, m = gated(r, b, gate=gate, threshold=threshold, temperature=temperature)
                assert not logq.isfinite().any() and math.isnan(m)
    logq, _ = gated(R, B, nothing)
    assert (logq == -INF).all()
    # rlvr rules out all that the bias permits: base may draw, but there is no second draw.
    bias = [0.0, 0.0] + [-INF] * 7
    r = [-INF, -INF, *R[2:]]
    logq, m = gated(r, B, bias, primary="base", gate="kl", threshold=INF)
    assert m == 0.0 and logq[:2].isfinite().all()
    for temperature in (0.0, 1.0):
        logq, m = gated(r, B, bias, primary="base", temperature=temperature)
        assert logq[:2].isnan().all() and (logq[2:] == -INF).all()


def test_ties_stand_or_fall_together():
    logits = torch.tensor([[1.0, 2.0, 1.0, 1.0, 0.0]], dtype=torch.float64)
    for sampling in ({"top_k": 2}, {"top_p": 0.6}, {"min_p": math.exp(-1.0) * 0.999}):
        kept = processed(logits, rule(**sampling)).isfinite()
        assert kept.tolist() == [[True, True, True, True, False]]
    assert processed(logits, rule(top_p=1e-9)).isfinite().sum() == 1


def test_truncates_as_vllm_does():
    sampler = pytest.importorskip("vllm.v1.sample.ops.topk_topp_sampler")
    logits = torch.randn(40, 300, generator=torch.Generator().manual_seed(0)).double() * 3
    for top_k, top_p, min_p in [(0, 0.7, 0.0), (20, 1.0, 0.0), (9, 0.8, 0.05), (0, 0.9, 0.1)]:
        settings = {"temperature": 0.7, "top_k": top_k, "top_p": top_p, "min_p": min_p}
        ours = processed(logits, rule(*[PLAIN | settings] * 40))
        scaled = logits / 0.7
        p = scaled.softmax(-1)
        scaled = scaled.masked_fill(p < min_p * p.amax(-1, keepdim=True), -INF)
        theirs = sampler.apply_top_k_top_p_pytorch(
            scaled, torch.full((40,), top_k or 300), torch.full((40,), top_p, dtype=torch.float64)
        )
        torch.testing.assert_close(ours, theirs.log_softmax(-1))


def test_padding_of_either_vocabulary():
    for r, b in ((R[:6], B), (R, B[:6])):
        for primary in PRIMARIES:
            logq, m = gated(r, b, gate="delta", threshold=-0.3, primary=primary)
            common, rate = gated(R[:6], B[:6], gate="delta", threshold=-0.3, primary=primary)
            torch.testing.assert_close(logq[:6], common)
            assert m == pytest.approx(rate)
            assert (logq[6:] == -INF).all() and len(logq) == len(r)
