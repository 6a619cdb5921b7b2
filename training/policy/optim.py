"""Optimizers and their learning rates."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from rlvr_decode.training.config import Optim


def adamw(model: nn.Module, settings: Optim) -> torch.optim.AdamW:
    """AdamW on everything that trains."""
    return torch.optim.AdamW(
        [parameter for parameter in model.parameters() if parameter.requires_grad],
        lr=settings.lr,
        betas=(settings.betas[0], settings.betas[1]),
        weight_decay=settings.weight_decay,
    )


def muon_and_adamw(
    model: nn.Module, *, lr: float, weight_decay: float
) -> list[torch.optim.Optimizer]:
    """Muon for the hidden matrices, AdamW (without decay) for the embedding and the norms.

    Muon orthogonalises the momentum of a matrix and scales it to the size of AdamW's update
    (arXiv 2502.16982), so one learning rate fits both.
    """
    matrices: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        (matrices if parameter.ndim == 2 and "embed" not in name else rest).append(parameter)
    return [
        torch.optim.Muon(
            matrices, lr=lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"
        ),
        torch.optim.AdamW(rest, lr=lr, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def set_lr(optimizers: Iterable[torch.optim.Optimizer], lr: float) -> None:
    """Give every parameter group this learning rate."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = lr
