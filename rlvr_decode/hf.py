"""The same settings for transformers: a logits processor, and a `generate` around it.

Slower than the engine and exact: it is what the engine's tests are measured against.
Legend: B sequences, T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList, PreTrainedModel

from rlvr_decode import ops
from rlvr_decode.params import SAMPLING_SETTINGS, Extrapolation
from rlvr_decode.rules import rule_numbers, rule_of_rows
from rlvr_decode.sampling import Sampling

# transformers applies these to rlvr's logits before any processor of the caller's; vLLM applies
# its own to the extrapolated ones.
APPLIED_TOO_EARLY = ("repetition_penalty", "sequence_bias", "exponential_decay_length_penalty")


class ExtrapolationLogitsProcessor(LogitsProcessor):
    """Turns rlvr's scores into log p_rlvr + strength · Δ at every step of `generate`.

    base            the base model of the pair; it keeps its own KV cache beside rlvr's.
    extrapolation   one setting for all sequences, or one for each of the B.
    attention_mask  [B, T] of the prompt, for prompts of unequal length padded on the left.
    sampling        where a sequence has a gate, how all of them are drawn: the scores are then
                    log q, to be sampled from as they are; `generate` sees to that.

    One object serves one call of `generate`; sampling or greedy, not beams. Raises ValueError where
    a gate would look at scores that another processor has masked.
    """

    def __init__(
        self,
        base: PreTrainedModel,
        extrapolation: Extrapolation | Sequence[Extrapolation],
        *,
        attention_mask: Tensor | None = None,
        sampling: Sampling | None = None,
    ) -> None:
        self._base = base
        self._extrapolation = extrapolation
        self._mask_BT = attention_mask
        self._sampling = sampling or Sampling()
        self._cache: Any = None

    @torch.no_grad()
    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        settings = self._settings(len(input_ids))
        base_BV = self._base_logits(input_ids).to(scores.device)
        numbers = [rule_numbers(setting, self._sampling) for setting in settings]
        rule = rule_of_rows(torch.tensor(numbers, device=scores.device).T.contiguous())
        if not any(setting.gated for setting in settings):
            return ops.extrapolate(scores, base_BV, rule.strength, rule.plausibility)
        if scores.isneginf().any():
            raise ValueError("scores hold -inf: a mask before the gate would change Δ; drop one")
        return ops.gated_extrapolate(scores, base_BV, rule).logprobs

    def _settings(self, batch: int) -> Sequence[Extrapolation]:
        if isinstance(self._extrapolation, Extrapolation):
            return [self._extrapolation] * batch
        if len(self._extrapolation) != batch:
            raise ValueError(
                f"extrapolation has {len(self._extrapolation)} settings for {batch} sequences; "
                "give one for all or one for each"
            )
        return self._extrapolation

    def _base_logits(self, input_ids: Tensor) -> Tensor:
        """Base's logits [B, V] after the tokens so far, of which only the last is new to it."""
        if self._mask_BT is None:
            self._mask_BT = torch.ones_like(input_ids)
        new = input_ids if self._cache is None else input_ids[:, -1:]
        grown = self._mask_BT.new_ones(len(input_ids), input_ids.shape[1] - self._mask_BT.shape[1])
        self._mask_BT = torch.cat([self._mask_BT, grown], dim=1)
        positions_BT = (self._mask_BT.cumsum(dim=1) - 1).clamp(min=0)[:, -new.shape[1] :]
        outputs = self._base(
            input_ids=new.to(self._base.device),
            attention_mask=self._mask_BT.to(self._base.device),
            position_ids=positions_BT.to(self._base.device),
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
        )
        self._cache = outputs.past_key_values
        logits: Tensor = outputs.logits[:, -1]
        return logits


def generate(
    rlvr: PreTrainedModel,
    base: PreTrainedModel,
    input_ids: Tensor,
    extrapolation: Extrapolation | Sequence[Extrapolation],
    *,
    attention_mask: Tensor | None = None,
    **options: Any,
) -> Any:
    """Generate from a pair with transformers; `options` are those of `rlvr.generate`.

    input_ids [B, T], padded on the left where attention_mask [B, T] is 0. Returns what
    `rlvr.generate` returns. Where a setting has a gate, temperature, top_k, top_p and min_p are
    applied by its rule, and those that neither the options nor rlvr's generation config name keep
    all (transformers' own top_k is 50); `output_scores` are then log q. Raises ValueError for
    options that would not act on the extrapolated distribution.
    """
    if options.get("num_beams", 1) != 1:
        raise ValueError(f"num_beams={options['num_beams']}: beams are not supported; sample")
    for name in APPLIED_TOO_EARLY:
        if options.get(name) is not None:
            raise ValueError(f"{name}={options[name]!r}: would act on rlvr before it is combined")
    if attention_mask is None:
        attention_mask = torch.ones_like(input_ids)
    sampling = None
    if any(setting.gated for setting in _each(extrapolation)):
        sampling = _take_sampling(rlvr, options)
    processor = ExtrapolationLogitsProcessor(
        base, extrapolation, attention_mask=attention_mask, sampling=sampling
    )
    # transformers types `generate` for a mixin that its own models do not declare.
    return rlvr.generate(  # type: ignore[operator]
        input_ids,
        attention_mask=attention_mask,
        logits_processor=LogitsProcessorList([processor, *options.pop("logits_processor", [])]),
        **options,
    )


def _take_sampling(rlvr: PreTrainedModel, options: dict[str, Any]) -> Sampling:
    """Move the sampling settings out of the options, and leave transformers neutral ones."""
    config = rlvr.generation_config
    defaults = {name: getattr(config, name) for name in (*SAMPLING_SETTINGS, "do_sample")}
    sampling = Sampling.take(options, {k: v for k, v in defaults.items() if v is not None})
    if not options.get("do_sample", defaults["do_sample"]):
        sampling = Sampling(temperature=0.0)
    options |= {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": None}
    return sampling


def _each(extrapolation: Extrapolation | Sequence[Extrapolation]) -> Sequence[Extrapolation]:
    return [extrapolation] if isinstance(extrapolation, Extrapolation) else extrapolation
