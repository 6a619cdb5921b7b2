"""A linear layer with a low-rank update that starts from nothing.

M  out features   N  in features   R  rank
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from rlvr_decode.training.adapters.config import Anchors


class AnchoredLinear(nn.Module):
    """y = W x + scaling · [(B − B0)(A x) + B0((A − A0) x)] on an untouched W.

    That is W x + scaling · (B A − B0 A0) x, GeoRA's and PiSSA's eq. 5, without their residual
    W − scaling · B0 A0, which in bfloat16 would lose as much as training adds. What is trained
    is how far the factors have shifted, A − A0 and B − B0, from zero: AdamW's path is the same,
    weight decay pulls towards the base model instead of eroding it, and float32 does not round
    small steps away against large anchors.

    The factors are float32 (float64 on a float64 layer) and so is the update; it is added in
    that precision and rounded once to the layer's output dtype. With the shifts at zero, or with
    `enabled` off, the output is the base layer's to the last bit.
    """

    anchor_A: Tensor
    anchor_B: Tensor | None

    def __init__(self, base: nn.Linear, anchors: Anchors, *, scaling: float) -> None:
        super().__init__()
        self.base = base
        self.scaling = scaling
        self.enabled = True
        A_RN, B_MR = anchors
        # Contiguous, or safetensors would refuse a checkpoint of them.
        self.register_buffer("anchor_A", A_RN.contiguous())
        self.register_buffer("anchor_B", None if B_MR is None else B_MR.contiguous())
        self.shift_A = nn.Parameter(A_RN.new_zeros(A_RN.shape))
        self.shift_B = nn.Parameter(A_RN.new_zeros(base.out_features, A_RN.shape[0]))

    def update_factors(self) -> tuple[Tensor, Tensor]:
        """left, right with ΔW = scaling · left @ right, well conditioned however small ΔW is.

        left = [B − B0, B0] and right = [A; A − A0], of rank 2R; where B0 is zero, B and A.
        """
        A_RN = self.anchor_A + self.shift_A
        if self.anchor_B is None:
            return self.shift_B, A_RN
        left = torch.cat([self.shift_B, self.anchor_B], dim=1)
        return left, torch.cat([A_RN, self.shift_A])

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.base(x)
        if not self.enabled:
            return y
        precision = self.anchor_A.dtype
        if precision not in (torch.float32, torch.float64):
            raise TypeError(
                f"adapter factors are {precision}: their steps would be rounded away; convert "
                "the model's dtype before attaching the adapter"
            )
        left, right = self.update_factors()
        with torch.autocast(x.device.type, enabled=False):
            update = linear(linear(x.to(precision), right), left)
            return torch.add(y, update, alpha=self.scaling).to(y.dtype)

    def extra_repr(self) -> str:
        return f"rank={self.anchor_A.shape[0]}, scaling={self.scaling:g}"
