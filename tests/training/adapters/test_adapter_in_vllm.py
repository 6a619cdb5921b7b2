"""Stock vLLM serves base and trained policy from one engine and an exported adapter."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
import torch

from rlvr_decode.training.adapters.attach import AttachedAdapter
from rlvr_decode.training.adapters.export import export

if TYPE_CHECKING:
    from vllm import LLM
    from vllm.lora.request import LoRARequest

PROMPT = [1, 40, 77, 103, 5, 68, 222, 131, 9, 30, 250, 17]


@pytest.fixture
def trained(train_on_disk, tmp_path) -> AttachedAdapter:
    """An adapter trained on the base in tmp_path/base."""
    _, adapter = train_on_disk(tmp_path)
    return adapter


def test_vllm_validates_the_rank(trained: AttachedAdapter, tmp_path) -> None:
    from vllm.config.lora import LoRAConfig
    from vllm.lora.peft_helper import PEFTHelper

    config = (export(trained, tmp_path / "adapter") / "adapter_config.json").read_text()
    helper = PEFTHelper.from_dict(json.loads(config))
    assert (helper.r, helper.lora_alpha) == (32, 64)
    helper.validate_legal(LoRAConfig(max_lora_rank=32))
    with pytest.raises(ValueError, match="rank 32 is greater"):
        helper.validate_legal(LoRAConfig(max_lora_rank=16))


@pytest.fixture
def engine(trained: AttachedAdapter, tmp_path) -> Iterator[LLM]:
    from vllm import LLM

    llm = LLM(
        str(tmp_path / "base"),
        dtype="float32",
        enforce_eager=True,
        max_model_len=64,
        max_num_seqs=4,
        enable_lora=True,
        max_lora_rank=32,
        disable_log_stats=True,
    )
    yield llm
    llm.llm_engine.engine_core.shutdown()


def served_logprobs(engine: LLM, adapter: LoRARequest | None) -> torch.Tensor:
    from vllm import SamplingParams

    settings = SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=0)
    [result] = engine.generate(
        {"prompt_token_ids": PROMPT}, settings, lora_request=adapter, use_tqdm=False
    )
    rows = zip(result.prompt_logprobs[1:], PROMPT[1:], strict=True)
    return torch.tensor([row[token].logprob for row, token in rows])


@torch.no_grad()
def trainer_logprobs(adapter: AttachedAdapter) -> torch.Tensor:
    logits = adapter.model(input_ids=torch.tensor([PROMPT])).logits[0, :-1]
    chosen = torch.tensor(PROMPT[1:])[:, None]
    return logits.log_softmax(-1).gather(1, chosen).squeeze(1)


def test_vllm_gives_the_trained_and_the_base_logprobs(
    trained: AttachedAdapter, engine: LLM, tmp_path
) -> None:
    from vllm.lora.request import LoRARequest

    exact = export(trained, tmp_path / "exact", dtype=torch.float32)
    compact = export(trained, tmp_path / "compact")
    after = trainer_logprobs(trained)
    with trained.disabled():
        before = trainer_logprobs(trained)
    assert (after - before).abs().mean() > 0.1
    served = served_logprobs(engine, LoRARequest("exact", 1, str(exact)))
    torch.testing.assert_close(served, after, rtol=0, atol=1e-4)
    torch.testing.assert_close(served_logprobs(engine, None), before, rtol=0, atol=1e-4)
    in_bfloat16 = served_logprobs(engine, LoRARequest("compact", 2, str(compact)))
    assert (in_bfloat16 - after).norm() < 0.01 * (after - before).norm()
