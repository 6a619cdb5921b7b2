"""Our objectives and TRL's own GRPOTrainer loss, side by side on the same tensors.

    pip install --no-deps --target trl-1.16 trl==1.16
    PYTHONPATH=trl-1.16 python benchmarks/trl_parity.py

TRL's `_compute_loss` runs as it is, on a stand-in trainer that hands it log-probs instead of a
model. Prints |Δloss| and the largest |Δgradient| over the largest |gradient| in float64 for every
case, and exits with 1 if a case that is the same objective by definition differs by more than
1e-6 (SAPO by 1e-8: TRL keeps its temperature 1.05 in float32). The last rows are differences of
definition, with their reasons; they are expected to differ.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from rlvr_decode.training.objectives import OBJECTIVES, LossInputs

GROUPS, GROUP_SIZE, TOKENS, EPS = 6, 8, 40, 1e-4
LIMIT = 1e-6


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """One of our presets with options, and the TRL settings that should be the same."""

    preset: str
    loss_type: str
    ours: dict[str, Any] = field(default_factory=dict)
    trl: dict[str, Any] = field(default_factory=dict)
    differs: str = ""


CASES = [
    Case(preset="grpo", loss_type="grpo"),
    Case(preset="grpo", loss_type="bnpo", ours={"aggregation": "token_mean"}),
    Case(preset="dr_grpo", loss_type="dr_grpo", trl={"scale_rewards": "none"}),
    Case(
        preset="grpo",
        loss_type="dr_grpo",
        ours={"aggregation": "constant", "max_tokens": 3000},
        trl={"scale_rewards": "group"},
    ),
    Case(
        preset="dapo",
        loss_type="dapo",
        ours={"overlong_buffer": 0},
        trl={"epsilon_high": 0.28},
    ),
    Case(preset="lite_ppo", loss_type="dapo", trl={"scale_rewards": "batch"}),
    Case(preset="cispo", loss_type="cispo", ours={"cap": 5.0}, trl={"epsilon_high": 5.0}),
    Case(preset="sapo", loss_type="sapo"),
    Case(preset="vespo", loss_type="vespo"),
    Case(
        preset="gspo",
        loss_type="grpo",
        trl={"level": "sequence", "epsilon_low": 3e-4, "epsilon_high": 4e-4},
    ),
    Case(
        preset="luspo",
        loss_type="luspo",
        trl={"level": "sequence", "epsilon_low": 2e-3, "epsilon_high": 2.5e-3},
    ),
    Case(preset="grpo", loss_type="grpo", ours={"kl_coef": 0.04}, trl={"beta": 0.04}),
    Case(
        preset="grpo",
        loss_type="grpo",
        ours={"kl_coef": 0.04, "kl_unbiased": True},
        trl={"beta": 0.04, "unbiased_kl": True},
    ),
    *(
        Case(
            preset="grpo",
            loss_type="grpo",
            ours={"correction": mode, "correction_low": 0.5, "correction_high": 1.5},
            trl={"correction": mode},
        )
        for mode in ("token_truncate", "token_mask", "sequence_truncate", "sequence_mask")
    ),
    Case(
        preset="grpo",
        loss_type="bnpo",
        ours={"aggregation": "token_mean"},
        trl={"micro_batches": 4},
        differs="TRL normalises bnpo by each micro-batch's tokens, we by the batch's",
    ),
    Case(
        preset="vespo",
        loss_type="vespo",
        ours={"correction": "token_truncate", "correction_low": 0.5, "correction_high": 1.5},
        trl={"correction": "token_truncate"},
        differs="TRL multiplies the rollout correction into W, we multiply the loss",
    ),
    Case(
        preset="gspo",
        loss_type="grpo",
        ours={"kl_coef": 0.04, "kl_unbiased": True},
        trl={
            "level": "sequence",
            "epsilon_low": 3e-4,
            "epsilon_high": 4e-4,
            "beta": 0.04,
            "unbiased_kl": True,
        },
        differs="TRL weights the KL with the sequence ratio, we with the token's",
    ),
    Case(
        preset="dr_grpo",
        loss_type="dr_grpo",
        differs="TRL's default scale_rewards='group' keeps the standard deviation",
    ),
    Case(
        preset="cispo",
        loss_type="cispo",
        trl={"epsilon_high": 0.2},
        differs="TRL's cap defaults to epsilon = 0.2, which cuts every weight; ours refuses ≤ 1",
    ),
]


def rollouts(*, drift: float) -> LossInputs:
    """Ragged responses, binary rewards, mixed and uniform groups."""
    generator = torch.Generator().manual_seed(0)
    shape = (GROUPS * GROUP_SIZE, TOKENS)

    def noise() -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    old = -noise().abs() - 0.01
    lengths = torch.randint(1, TOKENS + 1, shape[:1], generator=generator)
    rewards = (torch.rand(shape[0], generator=generator) < 0.4).double()
    rewards[:GROUP_SIZE] = 1.0
    return LossInputs(
        logp_BT=(old + drift * noise()).requires_grad_(),
        old_logp_BT=old,
        mask_BT=torch.arange(TOKENS) < lengths[:, None],
        rewards_B=rewards,
        group_B=torch.arange(GROUPS).repeat_interleave(GROUP_SIZE),
        ref_logp_BT=old + 0.2 * noise(),
        rollout_logp_BT=old + 0.1 * noise(),
    )


def trl_advantages(x: LossInputs, scale: str) -> Tensor:
    rewards = x.rewards_B.view(-1, GROUP_SIZE)
    centred = (rewards - rewards.mean(1, keepdim=True)).flatten()
    if scale == "none":
        return centred
    std = rewards.std(1).repeat_interleave(GROUP_SIZE) if scale == "group" else rewards.std()
    return centred / (std + EPS)


def trl_correction(x: LossInputs, mode: str) -> Tensor:
    gap = (x.old_logp_BT - x.rollout_logp_BT) * x.mask_BT
    ratio = (gap.sum(-1, keepdim=True) if mode.startswith("sequence") else gap).exp()
    if mode.endswith("truncate"):
        return ratio.clamp(0.5, 1.5)
    return ratio * ((ratio >= 0.5) & (ratio <= 1.5))


def trl_loss(x: LossInputs, case: Case) -> Tensor:
    """TRL's own `_compute_loss`, once per micro-batch."""
    from trl import GRPOTrainer

    settings = {"epsilon_low": 0.2, "epsilon_high": 0.2, "beta": 0.0, **case.trl}
    steps = settings.get("micro_batches", 1)
    advantages = trl_advantages(x, settings.get("scale_rewards", "group"))
    ratio = trl_correction(x, settings["correction"]) if "correction" in settings else None
    losses = []
    for rows in torch.arange(len(x.group_B)).chunk(steps):
        trainer = stand_in(case.loss_type, settings, steps, x.logp_BT[rows])
        trainer.get_gamma_weights = GRPOTrainer.get_gamma_weights
        inputs = {
            "prompt_ids": torch.zeros(len(rows), 1, dtype=torch.long),
            "prompt_mask": torch.ones(len(rows), 1, dtype=torch.long),
            "completion_ids": torch.zeros(len(rows), TOKENS, dtype=torch.long),
            "completion_mask": x.mask_BT[rows].long(),
            "advantages": advantages[rows],
            "old_per_token_logps": x.old_logp_BT[rows],
            "ref_per_token_logps": x.require("ref_logp_BT")[rows],
            "num_items_in_batch": x.mask_BT.sum(),
        }
        if ratio is not None:
            inputs["importance_sampling_ratio"] = ratio[rows]
        losses.append(GRPOTrainer._compute_loss(trainer, None, inputs))
    return torch.stack(losses).sum()


def stand_in(loss_type: str, settings: dict[str, Any], steps: int, logp_BT: Tensor) -> Any:
    """What `_compute_loss` looks up on its trainer, at TRL's defaults."""
    arguments = SimpleNamespace(
        delta=None,
        use_bias_correction_kl=settings.get("unbiased_kl", False),
        sapo_temperature_pos=1.0,
        sapo_temperature_neg=1.05,
        vespo_k_pos=2.0,
        vespo_lambda_pos=3.0,
        vespo_k_neg=3.0,
        vespo_lambda_neg=2.0,
        steps_per_generation=steps,
    )
    return SimpleNamespace(
        _get_per_token_logps_and_entropies=lambda *_, **__: (
            logp_BT,
            torch.zeros_like(logp_BT),
            None,
        ),
        accelerator=SimpleNamespace(
            num_processes=1, gather=lambda t: t, reduce=lambda t, reduction: t
        ),
        args=arguments,
        model=SimpleNamespace(training=True),
        loss_type=loss_type,
        importance_sampling_level=settings.get("level", "token"),
        beta=settings["beta"],
        epsilon_low=settings["epsilon_low"],
        epsilon_high=settings["epsilon_high"],
        max_completion_length=3000,
        current_gradient_accumulation_steps=steps,
        use_vllm="correction" in settings,
        vllm_importance_sampling_correction=True,
        aux_loss_enabled=False,
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        _entropy_bonus_enabled=False,
        _metrics={"train": defaultdict(list)},
    )


def compare(case: Case, drift: float) -> tuple[float, float]:
    x = rollouts(drift=drift)
    options = case.ours | ({"eps": EPS} if case.preset != "dr_grpo" else {})
    objective = OBJECTIVES[case.preset](**options)
    batch = replace(objective.prepare(x), logp_BT=x.logp_BT)
    ours = torch.stack([objective(micro).loss for micro in batch.split(12)]).sum()
    theirs = trl_loss(x, case)
    (our_gradient,) = torch.autograd.grad(ours, x.logp_BT)
    (their_gradient,) = torch.autograd.grad(theirs, x.logp_BT)
    worst = (our_gradient - their_gradient).abs().max() / their_gradient.abs().max()
    return (ours - theirs).abs().item(), worst.item()


def main() -> int:
    import trl

    print(f"TRL {trl.__version__}, torch {torch.__version__}, float64")
    print(f"{'ours':58} {'TRL loss_type':14} {'drift':>5} {'|Δloss|':>9} {'rel Δgrad':>10}")
    failures = 0
    for case in CASES:
        options = ", ".join(f"{name}={value}" for name, value in case.ours.items())
        for drift in (0.0, 0.02, 0.5):
            loss, gradient = compare(case, drift)
            failed = not case.differs and max(loss, gradient) > LIMIT
            failures += failed
            verdict = "  DIFFERS" if failed else f"  expected: {case.differs}" * bool(case.differs)
            print(
                f"{f'{case.preset}({options})':58.58} {case.loss_type:14} {drift:5} {loss:9.1e} "
                f"{gradient:10.1e}{verdict}"
            )
    print(f"{failures} unexplained differences above {LIMIT:g}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
