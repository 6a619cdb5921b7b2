"""How well base plus a low-rank delta stands in for rlvr, measured on text that rlvr writes.

One model is in memory at a time: rlvr writes and scores the text, then base is moved towards it
rank by rank. Everything is computed in float32.

N  response tokens      V  vocabulary      T  tokens of one sequence
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from tqdm import tqdm

from rlvr_decode.deltas import Deltas
from rlvr_decode.pair import Checkpoint, Pair

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, kw_only=True, slots=True)
class Probe:
    """Responses that rlvr sampled, and its log-probs of every token at every step of them.

    sequences_T  prompt and response of each.
    lengths      of the responses.
    log_rlvr_NV  float32, all responses one after another.
    """

    sequences_T: Sequence[Tensor]
    lengths: Sequence[int]
    log_rlvr_NV: Tensor

    @property
    def tokens_N(self) -> Tensor:
        """The response tokens."""
        pairs = zip(self.sequences_T, self.lengths, strict=True)
        return torch.cat([sequence_T[-length:] for sequence_T, length in pairs])


@dataclass(frozen=True, kw_only=True, slots=True)
class Quality:
    """A low-rank form of the pair, compared with rlvr on the probe.

    rank         largest of any matrix; 0 is base itself.
    parameters   numbers in the adapter.
    energy       share of ‖ΔW‖² that it holds, over the linear layers.
    kl           mean KL(rlvr ‖ base + delta) per token, in nats.
    top1         share of the steps at which the likeliest token is rlvr's.
    correlation  Pearson, of Δ = log p − log p_base of the sampled tokens with rlvr's own; None
                 where one of the two does not vary.
    """

    rank: int
    parameters: int
    energy: float
    kl: float
    top1: float
    correlation: float | None


def make_probe(
    pair: Pair,
    prompts: Sequence[Sequence[int]] = (),
    *,
    samples: int = 64,
    max_tokens: int = 64,
    seed: int = 0,
    device: str = "cpu",
) -> Probe:
    """Sample responses from rlvr at temperature 1, and score them.

    prompts     token ids; from the beginning-of-sequence token alone where there are none.
    samples     how many responses: the prompts in turn.
    max_tokens  of each; a response ends where the pair stops.

    Holds log_rlvr_NV in memory: 1 GB for 2048 tokens of a vocabulary of 128k.
    """
    if samples < 1 or max_tokens < 1:
        raise ValueError(f"{samples=}, {max_tokens=}: must be at least 1")
    starts = list(prompts) or [_beginning(pair)]
    model = _load(pair.rlvr, device)
    sequences_T, lengths, scores = [], [], []
    generator = torch.Generator(device).manual_seed(seed)
    for i in tqdm(range(samples), desc="rlvr writes"):
        prompt = list(starts[i % len(starts)])
        sequence_T = _sample(model, prompt, pair.stop_token_ids, max_tokens, generator)
        sequences_T.append(sequence_T.cpu())
        lengths.append(len(sequence_T) - len(prompt))
        scores.append(_logprobs(model, sequence_T, lengths[-1]).cpu())
    return Probe(sequences_T=sequences_T, lengths=lengths, log_rlvr_NV=torch.cat(scores))


def qualities(
    pair: Pair, deltas: Deltas, probe: Probe, ranks: Sequence[int], *, device: str = "cpu"
) -> Iterator[Quality]:
    """The quality of base (rank 0) and of every one of the rising ranks, each when it is known.

    Factors are rounded to `deltas.dtype` first, as they would be stored. Base is changed in
    place: only the triples between one rank and the next are added.
    """
    model = _load(pair.base, device)
    weights = dict(model.named_parameters())
    if missing := [layer for layer in deltas.low_rank if f"{layer}.weight" not in weights]:
        raise ValueError(f"{missing[0]}: in the checkpoint, but not in {type(model).__name__}")
    log_base_N: Tensor | None = None
    reached = 0
    for rank in (0, *ranks):
        for layer, each in deltas.low_rank.items():
            left, right = (
                factor.to(deltas.dtype).to(device, torch.float32)
                for factor in (each.left_MR[:, reached:rank], each.right_RN[reached:rank])
            )
            weights[f"{layer}.weight"].data.addmm_(left, right)
        reached = rank
        kl, top1, logp_N = _compare(model, probe)
        log_base_N = logp_N if log_base_N is None else log_base_N
        log_rlvr_N = probe.log_rlvr_NV.gather(-1, probe.tokens_N[:, None])[:, 0]
        yield Quality(
            rank=rank,
            parameters=deltas.parameters(rank),
            energy=deltas.energy(rank),
            kl=kl,
            top1=top1,
            correlation=_correlation(log_rlvr_N - log_base_N, logp_N - log_base_N),
        )


def _compare(model: PreTrainedModel, probe: Probe) -> tuple[float, float, Tensor]:
    """Mean KL, top-1 agreement, and log p of the response tokens [N]."""
    kl = agreed = 0.0
    chosen = []
    rlvr_parts = torch.split(probe.log_rlvr_NV, list(probe.lengths))
    for sequence_T, log_rlvr_nV in zip(probe.sequences_T, rlvr_parts, strict=True):
        length = len(log_rlvr_nV)
        logp_nV = _logprobs(model, sequence_T, length).cpu()
        kl += (log_rlvr_nV.exp() * (log_rlvr_nV - logp_nV)).double().sum().item()
        agreed += (log_rlvr_nV.argmax(-1) == logp_nV.argmax(-1)).double().sum().item()
        chosen.append(logp_nV.gather(-1, sequence_T[-length:, None])[:, 0])
    tokens = sum(probe.lengths)
    return kl / tokens, agreed / tokens, torch.cat(chosen)


@torch.no_grad()
def _sample(
    model: PreTrainedModel,
    prompt: Sequence[int],
    stops: Sequence[int],
    max_tokens: int,
    generator: torch.Generator,
) -> Tensor:
    """Prompt and response, drawn from the plain distribution until it stops."""
    sequence_T = new = torch.tensor(prompt, device=model.device)
    cache: Any = None
    for _ in range(max_tokens):
        outputs = model(new[None], past_key_values=cache, use_cache=True, logits_to_keep=1)
        cache = outputs.past_key_values
        p_V = outputs.logits[0, -1].float().softmax(-1)
        new = torch.multinomial(p_V, 1, generator=generator)
        sequence_T = torch.cat([sequence_T, new])
        if int(new) in stops:
            break
    return sequence_T


@torch.no_grad()
def _logprobs(model: PreTrainedModel, sequence_T: Tensor, length: int) -> Tensor:
    """log p [n, V] at each of the last `length` tokens, given those before it."""
    ids = sequence_T.to(model.device)[None]
    logits_TV = model(ids, use_cache=False, logits_to_keep=length + 1).logits[0]
    logp_nV: Tensor = logits_TV[:-1].float().log_softmax(-1)
    return logp_nV


def _correlation(first_N: Tensor, second_N: Tensor) -> float | None:
    centred = [each_N.double() - each_N.double().mean() for each_N in (first_N, second_N)]
    scale = centred[0].norm() * centred[1].norm()
    return (centred[0] @ centred[1] / scale).item() if scale > 0 else None


def _beginning(pair: Pair) -> list[int]:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(pair.tokenizer_directory, trust_remote_code=False)
    start = tokenizer.bos_token_id
    # Where there is no such token, one that ends a text is what the next one starts after.
    start = tokenizer.eos_token_id if start is None else start
    if start is None:
        raise ValueError(f"{pair.name}: its tokenizer has no token to start from; give prompts")
    return [start]


def _load(checkpoint: Checkpoint, device: str) -> PreTrainedModel:
    from transformers import AutoModelForCausalLM

    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        checkpoint.fetch(), dtype=torch.float32, trust_remote_code=False, use_safetensors=True
    )
    model.to(device)  # type: ignore[arg-type]
    return model
