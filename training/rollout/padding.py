"""Where tokens stand in a batch that is padded on the left."""

from __future__ import annotations

from torch import Tensor


def positions(mask_BT: Tensor) -> dict[str, Tensor]:
    """The model's `attention_mask` and `position_ids` for tokens that are real where the mask is.

    Without padding on the left there are none to give: a causal model never looks right, and its
    attention is faster without a mask.
    """
    if bool(mask_BT[:, 0].all()):
        return {}
    position_ids_BT = (mask_BT.long().cumsum(1) - 1).clamp(min=0)
    return {"attention_mask": mask_BT.long(), "position_ids": position_ids_BT}
