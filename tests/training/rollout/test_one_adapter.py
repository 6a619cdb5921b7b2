"""LoRA as two dense products gives what vLLM's own CPU code gives, and only where asked for."""

import torch
from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU
from vllm.platforms import current_platform

from rlvr_decode.training.rollout.one_adapter import OneAdapter, one_adapter


def test_it_adds_what_vllm_adds():
    tokens, inner, rank, widths = 5, 24, 4, (16, 8, 8)
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float32)

    x, y = drawn(tokens, inner), drawn(tokens, sum(widths))
    a = tuple(drawn(1, 1, rank, inner) for _ in widths)
    b = tuple(drawn(1, 1, width, rank) for width in widths)
    wrappers = [kind(64, 8, "cpu") for kind in (PunicaWrapperCPU, OneAdapter)]
    results = []
    for wrapper in wrappers:
        # Five decoding requests, all with the adapter in slot 0.
        wrapper.is_prefill = False
        wrapper.indices_len = [tokens] * 4
        wrapper._token_lora_indices[:tokens] = 0
        results.append(y.clone())
        wrapper.add_lora_linear(results[-1], x, a, b, 0.5, widths)
    theirs, ours = results
    start = 0
    for width, a_, b_ in zip(widths, a, b, strict=True):
        part = slice(start, start + width)
        expected = y[:, part] + 0.5 * x @ a_[0, 0].T @ b_[0, 0].T
        torch.testing.assert_close(ours[:, part], expected)
        start += width
    torch.testing.assert_close(ours, theirs)
    assert (ours - y).abs().max() > 1


def test_it_is_chosen_inside_alone():
    usual = current_platform.get_punica_wrapper()
    with one_adapter():
        assert current_platform.get_punica_wrapper().endswith("one_adapter.OneAdapter")
    assert current_platform.get_punica_wrapper() == usual != ""
