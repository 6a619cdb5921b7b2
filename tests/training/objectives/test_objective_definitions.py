"""Every preset against its formula written out response by response, in value and gradient.

The definitions below share nothing with the package: they are Python loops over responses and
tokens, from the papers' formulas.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator
from itertools import combinations

import pytest
import torch
from torch import Tensor

from rlvr_decode.training.objectives import OBJECTIVES, LossInputs
from rlvr_decode.training.objectives.trust_regions import covariance

Definition = Callable[[LossInputs], Tensor]
Rows = list[list[int]]


def groups(x: LossInputs) -> Rows:
    ids = x.group_B.tolist()
    return [[i for i, g in enumerate(ids) if g == group] for group in dict.fromkeys(ids)]


def tokens(x: LossInputs, i: int) -> list[int]:
    return x.mask_BT[i].nonzero().flatten().tolist()


def per_group(
    x: LossInputs, advantage: Callable[[list[float], list[int]], list[float]]
) -> list[float]:
    out = [0.0] * len(x.group_B)
    for rows in groups(x):
        values = advantage([float(x.rewards_B[i]) for i in rows], rows)
        for i, value in zip(rows, values, strict=True):
            out[i] = value
    return out


def normalised(x: LossInputs, eps: float = 1e-6) -> list[float]:
    def z(rewards: list[float], _: list[int]) -> list[float]:
        mean, std = statistics.mean(rewards), statistics.stdev(rewards)
        return [(r - mean) / (std + eps) for r in rewards]

    return per_group(x, z)


def centred(x: LossInputs) -> list[float]:
    return per_group(x, lambda rewards, _: [r - statistics.mean(rewards) for r in rewards])


def ratio(x: LossInputs, i: int, t: int) -> Tensor:
    return (x.logp_BT[i, t] - x.old_logp_BT[i, t]).exp()


def clip(r: Tensor, a: float, low: float, high: float) -> Tensor:
    return -torch.min(r * a, r.clamp(1 - low, 1 + high) * a)


def over_tokens(x: LossInputs, loss: Callable[[int, int], Tensor]) -> Tensor:
    terms = [loss(i, t) for i in range(len(x.group_B)) for t in tokens(x, i)]
    return torch.stack(terms).sum() / len(terms)


def over_responses(x: LossInputs, loss: Callable[[int, int], Tensor]) -> Tensor:
    means = [torch.stack([loss(i, t) for t in tokens(x, i)]).mean() for i in range(len(x.group_B))]
    return torch.stack(means).mean()


def sums(x: LossInputs, loss: Callable[[int, int], Tensor]) -> Tensor:
    total = torch.stack([loss(i, t) for i in range(len(x.group_B)) for t in tokens(x, i)]).sum()
    return total / len(x.group_B)


def reinforce_of(x: LossInputs, a: list[float]) -> Callable[[int, int], Tensor]:
    return lambda i, t: -a[i] * x.logp_BT[i, t]


def clipped_of(
    x: LossInputs, a: list[float], low: float = 0.2, high: float = 0.2
) -> Callable[[int, int], Tensor]:
    return lambda i, t: clip(ratio(x, i, t), a[i], low, high)


def reinforce(x: LossInputs) -> Tensor:
    return sums(x, reinforce_of(x, x.rewards_B.tolist()))


def rloo(x: LossInputs) -> Tensor:
    def others(rewards: list[float], _: list[int]) -> list[float]:
        return [r - statistics.mean(rewards[:k] + rewards[k + 1 :]) for k, r in enumerate(rewards)]

    return sums(x, reinforce_of(x, per_group(x, others)))


def remax(x: LossInputs) -> Tensor:
    return sums(x, reinforce_of(x, (x.rewards_B - x.greedy_rewards_B).tolist()))


def opo(x: LossInputs) -> Tensor:
    def weighted(rewards: list[float], rows: list[int]) -> list[float]:
        lengths = [len(tokens(x, i)) for i in rows]
        base = sum(n * r for n, r in zip(lengths, rewards, strict=True)) / sum(lengths)
        return [r - base for r in rewards]

    return sums(x, reinforce_of(x, per_group(x, weighted)))


def gpg(x: LossInputs) -> Tensor:
    scale = 11 / (11 - 3)  # the all-wrong group has 3 of the 11 responses
    return over_tokens(x, reinforce_of(x, [scale * a for a in centred(x)]))


def whitened(x: LossInputs, rewards: list[float]) -> list[float]:
    every = [rewards[i] for i in range(11) for _ in tokens(x, i)]
    mean, std = statistics.mean(every), statistics.stdev(every)
    return [(r - mean) / (std + 1e-8) for r in rewards]


def reinforce_pp(x: LossInputs) -> Tensor:
    return over_tokens(x, clipped_of(x, whitened(x, x.rewards_B.tolist())))


def reinforce_pp_baseline(x: LossInputs) -> Tensor:
    return over_tokens(x, clipped_of(x, whitened(x, centred(x))))


def maxrl(x: LossInputs) -> Tensor:
    def relative(rewards: list[float], _: list[int]) -> list[float]:
        mean = statistics.mean(rewards)
        return [(r - mean) / (mean + 1e-6) for r in rewards]

    return over_tokens(x, clipped_of(x, per_group(x, relative)))


def grpo(x: LossInputs) -> Tensor:
    return over_responses(x, clipped_of(x, normalised(x)))


def dr_grpo(x: LossInputs) -> Tensor:
    lengths = sum(len(tokens(x, i)) for i in range(11))
    return over_tokens(x, clipped_of(x, centred(x))) * lengths / (11 * 3000)


def dapo(x: LossInputs) -> Tensor:
    return over_tokens(x, clipped_of(x, normalised(x), 0.2, 0.28))


def lite_ppo(x: LossInputs) -> Tensor:
    std = statistics.stdev(x.rewards_B.tolist())
    return over_tokens(x, clipped_of(x, [a / (std + 1e-6) for a in centred(x)]))


def cispo(x: LossInputs) -> Tensor:
    a = normalised(x)
    return over_tokens(
        x, lambda i, t: -ratio(x, i, t).clamp(max=5.0).detach() * a[i] * x.logp_BT[i, t]
    )


def sapo(x: LossInputs) -> Tensor:
    a = normalised(x)

    def loss(i: int, t: int) -> Tensor:
        tau = 1.0 if a[i] > 0 else 1.05
        return -4 / tau / (1 + torch.exp(-tau * (ratio(x, i, t) - 1))) * a[i]

    return over_responses(x, loss)


def dppo(x: LossInputs, far: Callable[[float, float], bool]) -> Tensor:
    a = normalised(x)

    def loss(i: int, t: int) -> Tensor:
        mu, p = x.rollout_logp_BT[i, t].exp().item(), x.logp_BT[i, t].exp().item()
        outward = (a[i] > 0 and p > mu) or (a[i] < 0 and p < mu)
        keep = 0.0 if outward and far(mu, p) else 1.0
        return -keep * min(p / mu, 20.0) * a[i] * x.logp_BT[i, t]

    return over_tokens(x, loss)


def dppo_tv(x: LossInputs) -> Tensor:
    return dppo(x, lambda mu, p: abs(p - mu) > 0.15)


def dppo_kl(x: LossInputs) -> Tensor:
    def coin(mu: float, p: float) -> float:
        return mu * math.log(mu / p) + (1 - mu) * math.log((1 - mu) / (1 - p))

    return dppo(x, lambda mu, p: coin(mu, p) > 0.05)


def covariances(x: LossInputs, a: list[float]) -> list[tuple[float, int, int]]:
    at = [(i, t) for i in range(11) for t in tokens(x, i)]
    mean_a = statistics.mean(a[i] for i, _ in at)
    mean_logp = statistics.mean(x.old_logp_BT[i, t].item() for i, t in at)
    return [((a[i] - mean_a) * (x.old_logp_BT[i, t].item() - mean_logp), i, t) for i, t in at]


def kl_cov(x: LossInputs) -> Tensor:
    a = normalised(x)
    _, i_max, t_max = max(covariances(x, a))  # 0.2 % of 36 tokens is the minimum of one

    def loss(i: int, t: int) -> Tensor:
        penalty = ratio(x, i, t).log().abs() if (i, t) == (i_max, t_max) else 0.0
        return -ratio(x, i, t) * a[i] + penalty

    return over_tokens(x, loss)


def sequence_ratio(x: LossInputs, i: int) -> Tensor:
    return torch.stack([ratio(x, i, t).log() for t in tokens(x, i)]).mean().exp()


def gspo(x: LossInputs, a: list[float] | None = None) -> Tensor:
    a = normalised(x) if a is None else a
    losses = [clip(sequence_ratio(x, i), a[i], 3e-4, 4e-4) for i in range(11)]
    return torch.stack(losses).mean()


def gspo_token(x: LossInputs) -> Tensor:
    a = normalised(x)

    def loss(i: int, t: int) -> Tensor:
        here = x.logp_BT[i, t]
        return clip(sequence_ratio(x, i).detach() * (here - here.detach()).exp(), a[i], 3e-4, 4e-4)

    return over_responses(x, loss)


def gspo_n(x: LossInputs) -> Tensor:
    return gspo(x, [min(a, 0.0) for a in normalised(x)])


def gmpo(x: LossInputs) -> Tensor:
    a, losses = normalised(x), []
    for i in range(11):
        logs = [ratio(x, i, t).log() for t in tokens(x, i)]
        if a[i] > 0:
            logs = [log.clamp(max=0.4) for log in logs]
        elif a[i] < 0:
            logs = [log.clamp(min=-0.4) for log in logs]
        losses.append(-a[i] * torch.stack(logs).mean().exp())
    return torch.stack(losses).mean()


def luspo(x: LossInputs) -> Tensor:
    a = normalised(x)
    losses = [len(tokens(x, i)) * clip(sequence_ratio(x, i), a[i], 2e-3, 2.5e-3) for i in range(11)]
    return torch.stack(losses).mean()


def vespo(x: LossInputs) -> Tensor:
    a = normalised(x)

    def loss(i: int, t: int) -> Tensor:
        w = math.prod(ratio(x, i, s).item() for s in tokens(x, i))
        k, lam = (2, 3) if a[i] >= 0 else (3, 2)
        return -(w**k) * math.exp(lam * (1 - w)) * a[i] * x.logp_BT[i, t]

    return over_tokens(x, loss)


def signed(x: LossInputs, right: float, wrong: float) -> Tensor:
    a = [right if r > 0.5 else wrong for r in x.rewards_B.tolist()]
    return over_tokens(x, clipped_of(x, a))


def psr(x: LossInputs) -> Tensor:
    return signed(x, 1.0, 0.0)


def nsr(x: LossInputs) -> Tensor:
    return signed(x, 0.0, -1.0)


def w_reinforce(x: LossInputs) -> Tensor:
    return signed(x, 0.1, -1.0)


def grpo_n(x: LossInputs) -> Tensor:
    return over_responses(x, clipped_of(x, [min(a, 0.0) for a in normalised(x)]))


def ngrpo(x: LossInputs) -> Tensor:
    def virtual(rewards: list[float], _: list[int]) -> list[float]:
        more = [*rewards, 1.0]
        mean, std = statistics.mean(more), statistics.pstdev(more)
        return [(r - mean) / (std + 1e-6) for r in rewards]

    return over_tokens(x, clipped_of(x, per_group(x, virtual), 0.16, 0.24))


def pass_at_k(x: LossInputs, k: int = 2) -> Tensor:
    """Brute force: the mean advantage over the k-subsets that contain the response."""

    def subsets(rewards: list[float], _: list[int]) -> list[float]:
        n = len(rewards)
        best = {s: max(rewards[j] for j in s) for s in combinations(range(n), k)}
        mean, std = statistics.mean(best.values()), statistics.pstdev(best.values())
        return [
            (statistics.mean(best[s] for s in best if j in s) - mean) / (std + 1e-6)
            for j in range(n)
        ]

    return over_tokens(x, clipped_of(x, per_group(x, subsets)))


def weighted(x: LossInputs, weight: Callable[[int, int], float]) -> Tensor:
    a = normalised(x)
    return over_tokens(x, lambda i, t: clip(ratio(x, i, t), weight(i, t) * a[i], 0.2, 0.28))


def p_old(x: LossInputs, i: int, t: int) -> float:
    return x.old_logp_BT[i, t].exp().item()


def reweight(x: LossInputs) -> Tensor:
    return weighted(x, lambda i, t: 1 + 0.2 * (1 - p_old(x, i, t)))


def dominate(x: LossInputs) -> Tensor:
    return weighted(x, lambda i, t: 0.2 * p_old(x, i, t) + 0.8)


def normalize(x: LossInputs) -> Tensor:
    return weighted(x, lambda i, t: 1 / (1.2 - p_old(x, i, t)))


def middle(x: LossInputs) -> Tensor:
    return weighted(x, lambda i, t: 0.2 + p_old(x, i, t) * (1 - p_old(x, i, t)))


def log_ppl(x: LossInputs, i: int) -> float:
    return statistics.mean(-x.old_logp_BT[i, t].item() for t in tokens(x, i))


def ppl(x: LossInputs) -> Tensor:
    return weighted(x, lambda i, t: 1 - 0.2 * log_ppl(x, i))


def ppl_norm(x: LossInputs) -> Tensor:
    z = [0.0] * 11
    for rows in groups(x):
        values = [log_ppl(x, i) for i in rows]
        for i, value in zip(rows, values, strict=True):
            z[i] = (value - statistics.mean(values)) / (statistics.pstdev(values) + 1e-6)
    return weighted(x, lambda i, t: 1 - 0.2 * z[i])


def fipo(x: LossInputs) -> Tensor:
    a = normalised(x)

    def weight(i: int, t: int) -> float:
        if a[i] < 0 and ratio(x, i, t) > 10:
            return 1.0
        future = sum(
            2 ** (-(s - t) / 32) * ratio(x, i, s).log().item()
            for s in tokens(x, i)
            if s >= t and not (a[i] < 0 and ratio(x, i, s) > 10)
        )
        return min(max(math.exp(future), 1.0), 1.2)

    return over_tokens(x, lambda i, t: clip(ratio(x, i, t), weight(i, t) * a[i], 0.2, 0.28))


DEFINITIONS: dict[str, Definition] = {
    definition.__name__: definition
    for definition in (
        reinforce, rloo, remax, opo, gpg, reinforce_pp, reinforce_pp_baseline, maxrl, grpo,
        dr_grpo, dapo, lite_ppo, cispo, sapo, dppo_tv, dppo_kl, kl_cov, gspo, gspo_token, gspo_n,
        gmpo, luspo, vespo, psr, nsr, w_reinforce, grpo_n, ngrpo, reweight, dominate, normalize,
        middle, ppl, ppl_norm, fipo,
    )
}  # fmt: skip


def gradient(loss: Tensor, x: LossInputs) -> Tensor:
    (grad,) = torch.autograd.grad(loss, x.logp_BT)
    return grad


def cases() -> Iterator[tuple[str, Definition, dict[str, object]]]:
    yield from ((name, definition, {}) for name, definition in DEFINITIONS.items())
    yield "pass_at_k", pass_at_k, {"k": 2}


@pytest.mark.parametrize("drift", [0.0, 0.4, 1.5])
@pytest.mark.parametrize(("name", "definition", "options"), list(cases()))
def test_value_and_gradient_are_the_papers(name, definition, options, drift, make_inputs):
    x = make_inputs(drift=drift)
    outputs, expected = OBJECTIVES[name](**options)(x), definition(x)
    assert outputs.loss.item() == pytest.approx(expected.item(), rel=1e-12, abs=1e-13)
    torch.testing.assert_close(
        gradient(outputs.loss, x), gradient(expected, x), rtol=1e-11, atol=1e-14
    )


def test_every_preset_is_tested():
    listwise = {"lpo_fwd", "lpo_rev", "lpo_js", "lpo_alpha", "lpo_hellinger", "tpo"}
    spectral = {"mrpo", "a_grae", "verl"}  # test_spectral_presets.py
    assert set(OBJECTIVES) == {*DEFINITIONS, *listwise, *spectral, "pass_at_k", "clip_cov"}


def test_clip_cov_drops_only_tokens_of_the_band(make_inputs):
    x = make_inputs(drift=0.4)
    a = normalised(x)
    band = {(i, t) for c, i, t in covariances(x, a) if 0.1 < c < 0.6}
    torch.manual_seed(3)
    objective = OBJECTIVES["clip_cov"](fraction=0.2, low=0.1, high=0.6)
    batch = objective.prepare(x)
    dropped = {tuple(at) for at in batch.selected_BT.nonzero().tolist()}
    assert dropped <= band and len(dropped) == int(0.2 * 36) < len(band)

    def loss(i: int, t: int) -> Tensor:
        return clip(ratio(x, i, t), a[i], 1.0, 1.0) * ((i, t) not in dropped)

    outputs, expected = objective(batch), over_tokens(x, loss)
    assert outputs.loss.item() == pytest.approx(expected.item(), rel=1e-12)
    torch.testing.assert_close(gradient(outputs.loss, x), gradient(expected, x))


def test_covariance_is_of_centred_numbers(make_inputs):
    x = make_inputs(drift=0.4)
    batch = OBJECTIVES["kl_cov"]().prepare(x)
    found = covariance(batch)
    for value, i, t in covariances(x, normalised(x)):
        assert found[i, t].item() == pytest.approx(value, rel=1e-9, abs=1e-12)


def test_reinforce_pp_takes_kl_out_of_the_reward(make_inputs):
    x = make_inputs(drift=0.4)
    returns = {}
    for i in range(11):
        for t in tokens(x, i):
            kl = sum(
                (x.old_logp_BT[i, s] - x.ref_logp_BT[i, s]).item() for s in tokens(x, i) if s >= t
            )
            returns[i, t] = x.rewards_B[i].item() - 0.3 * kl
    mean, std = statistics.mean(returns.values()), statistics.stdev(returns.values())
    expected = over_tokens(
        x, lambda i, t: clip(ratio(x, i, t), (returns[i, t] - mean) / std, 0.2, 0.2)
    )
    loss = OBJECTIVES["reinforce_pp"](kl_in_reward=0.3)(x).loss
    assert loss.item() == pytest.approx(expected.item(), rel=1e-7)
    torch.testing.assert_close(gradient(loss, x), gradient(expected, x), rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("name", ["dapo", "grpo", "lpo_fwd"])
def test_overlong_responses_lose_reward_before_advantages(name, make_inputs):
    """Free up to 4 tokens, −½ at 5, −1 at 6: also inside a list's softmax."""
    x = make_inputs(drift=0.4)
    shaped = x.rewards_B + ((4 - x.mask_BT.sum(-1)) / 2).clamp(-1, 0)
    plain = OBJECTIVES[name](overlong_buffer=0)(make_inputs(drift=0.4, rewards_B=shaped))
    found = OBJECTIVES[name](overlong_tokens=6, overlong_buffer=2)(x)
    torch.testing.assert_close(found.loss, plain.loss)
    assert found.loss != OBJECTIVES[name](overlong_buffer=0)(x).loss
    # The all-wrong group has a response of 5 tokens, so it is no longer all equal.
    assert found.metrics["zero_variance"] == 0
