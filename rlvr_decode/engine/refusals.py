"""What a pair cannot do exactly, refused when the engine starts, with the reason."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vllm.config import VllmConfig

PROCESSOR = "rlvr_decode.engine.processor:ExtrapolationProcessor"

# Drafters that read only token ids; the others read hidden states, which here are two models'.
EXACT_DRAFTERS = ("ngram", "draft_model")


def refuse_unsupported(vllm_config: VllmConfig) -> None:
    """Raise ValueError listing every engine feature under which the pair would not be exact."""
    if reasons := list(_reasons(vllm_config)):
        raise ValueError(
            "this engine cannot serve a pair:\n" + "\n".join(f"- {r}" for r in reasons)
        )


def _reasons(config: VllmConfig) -> list[str]:
    model, parallel = config.model_config, config.parallel_config
    v2 = runs_v2(config)
    reasons = []
    if parallel.pipeline_parallel_size > 1:
        reasons.append(
            f"pipeline_parallel_size={parallel.pipeline_parallel_size}: the logits of both models "
            "must meet on one rank; use --tensor-parallel-size"
        )
    if parallel.decode_context_parallel_size > 1 or parallel.prefill_context_parallel_size > 1:
        reasons.append("context parallelism has not been verified for a pair; use 1")
    if parallel.use_ubatching:
        reasons.append("dual-batch overlap has not been verified for a pair; leave it off")
    if config.speculative_config is not None and not v2:
        reasons.append(
            "speculative decoding under model runner V1 ignores per-request strengths; "
            "set VLLM_USE_V2_MODEL_RUNNER=1 or drop --speculative-config"
        )
    elif config.speculative_config is not None:
        method = config.speculative_config.method
        if method not in EXACT_DRAFTERS:
            reasons.append(
                f"speculative method {method!r} reads the target's hidden states, which here are "
                f"two models'; use one of {', '.join(EXACT_DRAFTERS)}"
            )
        if getattr(config.speculative_config, "enable_adaptive_verification", False):
            reasons.append("adaptive verification moves rows after their strengths are known")
    if model.enable_prompt_embeds:
        reasons.append("prompt embeddings belong to one model, a pair has two; drop the flag")
    if model.runner_type != "generate":
        reasons.append(f"runner_type={model.runner_type!r}: a pair generates; it has no pooler")
    if config.lora_config is not None:
        reasons.append("--enable-lora: an adapter on top would change rlvr but not base")
    if config.quant_config is not None:
        reasons.append(
            f"quantization {model.quantization!r}: its layer lists do not match a pair's names"
        )
    if PROCESSOR not in (model.logits_processors or []):
        reasons.append(f"requests would not be validated; add --logits-processors {PROCESSOR}")
    return reasons


def runs_v2(config: VllmConfig) -> bool:
    """Whether this engine uses model runner V2, by capability."""
    return bool(getattr(config, "use_v2_model_runner", False))
