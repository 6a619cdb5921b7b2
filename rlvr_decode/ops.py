"""The one door to the kernels: each operation for any device, eager or compiled.

An operation is a `torch.library` op with a CPU and a CUDA implementation; the device of the logits
chooses, and nothing falls back. `rlvr_decode.kernels.reference` says what each one means. Triton is
imported by the first call on a GPU, never by this module.

Shapes: N rows of logits, V and W columns (rlvr, base), K chosen tokens of a row.
"""

import torch
from torch import Tensor

from rlvr_decode.kernels import cpu
from rlvr_decode.kernels.gated_reference import GATES, PRIMARIES, Gated, Rule
from rlvr_decode.kernels.reference import DeltaLogprobs

__all__ = [
    "GATES",
    "PRIMARIES",
    "DeltaLogprobs",
    "Gated",
    "Rule",
    "delta_logprobs",
    "extrapolate",
    "extrapolate_",
    "gated_extrapolate",
]

LOGITS_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def extrapolate(
    rlvr: Tensor,
    base: Tensor,
    strength: Tensor,
    plausibility: Tensor | float = 0.0,
    *,
    out_dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Push rlvr's next-token logits further from base; returns new logits.

    z = r + strength · (log p_r − log p_b), by row, in float32 whatever the dtypes of the inputs;
    `rlvr_decode.kernels.reference.extrapolate` defines every corner (arXiv 2603.22117, §4.1).

    rlvr, base    logits [N, V] and [N, W] in float32, bfloat16 or float16, of any strides. The
                  vocabulary is the first min(V, W) columns; slice both where it is smaller.
    strength      float32 [N]: −1 is base, 0 is rlvr (a row of 0 costs a copy), above 0 beyond.
    plausibility  in [0, 1], one for all or float32 [N]: for strength > 0, only tokens with
                  p_rlvr ≥ plausibility · max p_rlvr stay finite.

    ValueError names a dtype, shape or device that does not fit. The values in `strength` and in a
    tensor of plausibilities are not looked at, which would stall a GPU.
    """
    strength, plausibility = _check_settings(rlvr, base, strength, plausibility)
    if out_dtype not in LOGITS_DTYPES:
        raise ValueError(f"out_dtype={out_dtype}: must be one of {_names(LOGITS_DTYPES)}")
    out: Tensor = _extrapolate(rlvr, base, strength, plausibility, out_dtype)
    return out


def extrapolate_(
    rlvr: Tensor, base: Tensor, strength: Tensor, plausibility: Tensor | float = 0.0
) -> Tensor:
    """`extrapolate` in place: writes rlvr in its own dtype and returns it.

    Rows of strength 0 are neither read nor written; if all are, hardly any time passes.
    """
    strength, plausibility = _check_settings(rlvr, base, strength, plausibility)
    _extrapolate_(rlvr, base, strength, plausibility)
    return rlvr


def gated_extrapolate(rlvr: Tensor, base: Tensor, rule: Rule, bias: Tensor | None = None) -> Gated:
    """What one step of the papers' two-stage loop emits: draw, and draw again where the gate says.

    q(v) = p(v) · keep(v) + m · e(v), by row, with p and e after temperature and truncation;
    `rlvr_decode.kernels.gated_reference.gated_extrapolate` defines every gate and corner.

    rlvr, base  logits [N, V] and [N, W], as for `extrapolate`.
    rule        a float32 [N] for each setting; int32 [N] for `gate` (codes of `GATES`), `primary`
                (codes of `PRIMARIES`) and `top_k`.
    bias        float32 [N, V], added to the primary's and to the extrapolated logits; −inf forbids.

    Returns float32: `logprobs` [N, V], log q, −inf where q is 0, to be sampled from as it is (at
    temperature 1, without truncation); and `rate` [N], m, the expected rate of intervention. Not
    differentiable. ValueError names a dtype, shape or device that does not fit; values are not
    looked at, which would stall a GPU.
    """
    _check_logits(rlvr, base)
    for name, setting in rule._asdict().items():
        integer = name in ("gate", "primary", "top_k")
        _check_setting(name, setting, rlvr, torch.int32 if integer else torch.float32)
    if bias is not None:
        if bias.dtype != torch.float32 or bias.shape != rlvr.shape:
            raise ValueError(
                f"bias is {bias.dtype} {list(bias.shape)}: must be torch.float32 "
                f"{list(rlvr.shape)}, as rlvr"
            )
        _check_device("bias", bias, rlvr)
    return Gated(*_gated_extrapolate(rlvr, base, [t.contiguous() for t in rule], bias))


def delta_logprobs(rlvr: Tensor, base: Tensor, tokens: Tensor) -> DeltaLogprobs:
    """What RLVR changed: chosen tokens' log p under both models, and each row's entropies and KL.

    rlvr, base  logits [N, V] and [N, W], as for `extrapolate`.
    tokens      integer ids [N] or [N, K]; an id outside the common vocabulary gets NaN.

    Returns float32: `rlvr`, `base` and `delta` of the shape of `tokens`; `rlvr_entropy`,
    `base_entropy` and `kl` = KL(rlvr ‖ base) of shape [N], in nats. Nothing of the logits' size is
    made on the way. Not differentiable. ValueError names what does not fit.
    """
    _check_logits(rlvr, base)
    if tokens.dtype not in (torch.int64, torch.int32):
        raise ValueError(f"tokens has dtype {tokens.dtype}: must be int64 or int32")
    if tokens.dim() not in (1, 2) or len(tokens) != len(rlvr):
        rows = len(rlvr)
        raise ValueError(f"tokens has shape {list(tokens.shape)}: must be [{rows}] or [{rows}, K]")
    _check_device("tokens", tokens, rlvr)
    tokens_NK = tokens if tokens.dim() == 2 else tokens[:, None]
    chosen_r, chosen_b, delta, *of_row = _delta_logprobs(rlvr, base, tokens_NK)
    chosen = (chosen.reshape(tokens.shape) for chosen in (chosen_r, chosen_b, delta))
    return DeltaLogprobs(*chosen, *of_row)


@torch.library.custom_op("rlvr_decode::extrapolate", mutates_args=(), device_types="cpu")
def _extrapolate(
    rlvr: Tensor, base: Tensor, strength: Tensor, plausibility: Tensor, out_dtype: torch.dtype
) -> Tensor:
    out = torch.empty(rlvr.shape, dtype=out_dtype, device=rlvr.device)
    cpu.extrapolate_into(out, rlvr, base, strength, plausibility)
    return out


@_extrapolate.register_kernel("cuda")
def _(
    rlvr: Tensor, base: Tensor, strength: Tensor, plausibility: Tensor, out_dtype: torch.dtype
) -> Tensor:
    from rlvr_decode.kernels.extrapolate import extrapolate_into

    out = torch.empty(rlvr.shape, dtype=out_dtype, device=rlvr.device)
    extrapolate_into(out, rlvr, base, strength, plausibility)
    return out


@_extrapolate.register_fake
def _(
    rlvr: Tensor, base: Tensor, strength: Tensor, plausibility: Tensor, out_dtype: torch.dtype
) -> Tensor:
    return torch.empty(rlvr.shape, dtype=out_dtype, device=rlvr.device)


@torch.library.custom_op("rlvr_decode::extrapolate_", mutates_args={"rlvr"}, device_types="cpu")
def _extrapolate_(rlvr: Tensor, base: Tensor, strength: Tensor, plausibility: Tensor) -> None:
    cpu.extrapolate_into(rlvr, rlvr, base, strength, plausibility)


@_extrapolate_.register_kernel("cuda")
def _(rlvr: Tensor, base: Tensor, strength: Tensor, plausibility: Tensor) -> None:
    from rlvr_decode.kernels.extrapolate import extrapolate_into

    extrapolate_into(rlvr, rlvr, base, strength, plausibility)


@_extrapolate_.register_fake
def _(rlvr: Tensor, base: Tensor, strength: Tensor, plausibility: Tensor) -> None:
    return None


@torch.library.custom_op("rlvr_decode::gated_extrapolate", mutates_args=(), device_types="cpu")
def _gated_extrapolate(
    rlvr: Tensor, base: Tensor, rule: list[Tensor], bias: Tensor | None
) -> tuple[Tensor, Tensor]:
    return cpu.gated_extrapolate(rlvr, base, Rule(*rule), bias)


@_gated_extrapolate.register_kernel("cuda")
def _(rlvr: Tensor, base: Tensor, rule: list[Tensor], bias: Tensor | None) -> tuple[Tensor, Tensor]:
    from rlvr_decode.kernels.gated_extrapolate import gated_extrapolate as launch

    return launch(rlvr, base, Rule(*rule), bias)


@_gated_extrapolate.register_fake
def _(rlvr: Tensor, base: Tensor, rule: list[Tensor], bias: Tensor | None) -> tuple[Tensor, Tensor]:
    logq = torch.empty(rlvr.shape, device=rlvr.device)
    return logq, torch.empty(len(rlvr), device=rlvr.device)


_SixTensors = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


@torch.library.custom_op("rlvr_decode::delta_logprobs", mutates_args=(), device_types="cpu")
def _delta_logprobs(rlvr: Tensor, base: Tensor, tokens: Tensor) -> _SixTensors:
    return cpu.delta_logprobs(rlvr, base, tokens)


@_delta_logprobs.register_kernel("cuda")
def _(rlvr: Tensor, base: Tensor, tokens: Tensor) -> _SixTensors:
    from rlvr_decode.kernels.delta_logprobs import delta_logprobs as launch

    return launch(rlvr, base, tokens)


@_delta_logprobs.register_fake
def _(rlvr: Tensor, base: Tensor, tokens: Tensor) -> _SixTensors:
    chosen_r, chosen_b, delta = (torch.empty(tokens.shape, device=rlvr.device) for _ in range(3))
    entropy_r, entropy_b, kl = (torch.empty(len(rlvr), device=rlvr.device) for _ in range(3))
    return chosen_r, chosen_b, delta, entropy_r, entropy_b, kl


def _check_settings(
    rlvr: Tensor, base: Tensor, strength: Tensor, plausibility: Tensor | float
) -> tuple[Tensor, Tensor]:
    _check_logits(rlvr, base)
    if not isinstance(plausibility, Tensor):
        if not 0.0 <= plausibility <= 1.0:
            raise ValueError(f"plausibility={plausibility!r}: must be from 0 to 1")
        plausibility = torch.full((len(rlvr),), plausibility, device=rlvr.device)
    for name, setting in (("strength", strength), ("plausibility", plausibility)):
        _check_setting(name, setting, rlvr, torch.float32)
    return strength.contiguous(), plausibility.contiguous()


def _check_setting(name: str, setting: Tensor, rlvr: Tensor, dtype: torch.dtype) -> None:
    if setting.dtype != dtype or setting.shape != (len(rlvr),):
        raise ValueError(
            f"{name} is {setting.dtype} {list(setting.shape)}: "
            f"must be {dtype} [{len(rlvr)}], a value for each row"
        )
    _check_device(name, setting, rlvr)


def _check_logits(rlvr: Tensor, base: Tensor) -> None:
    for name, logits in (("rlvr", rlvr), ("base", base)):
        if logits.dim() != 2 or logits.shape[1] == 0:
            raise ValueError(f"{name} has shape {list(logits.shape)}: must be [rows, vocabulary]")
        if logits.dtype not in LOGITS_DTYPES:
            raise ValueError(f"{name} has dtype {logits.dtype}: use {_names(LOGITS_DTYPES)}")
    if len(rlvr) != len(base):
        raise ValueError(f"rlvr has {len(rlvr)} rows and base {len(base)}: must be the same")
    _check_device("base", base, rlvr)


def _check_device(name: str, tensor: Tensor, rlvr: Tensor) -> None:
    if tensor.device != rlvr.device:
        raise ValueError(f"{name} is on {tensor.device}, rlvr on {rlvr.device}: move one")


def _names(dtypes: tuple[torch.dtype, ...]) -> str:
    return ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
