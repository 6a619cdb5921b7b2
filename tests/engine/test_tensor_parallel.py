"""Two ranks: each gathers full rows of both heads and combines them."""

from rlvr_decode import Extrapolation

GATED = Extrapolation(strength=2, gate="delta", threshold=-0.1, primary="base")


def test_two_ranks_are_exact(pair, exact, prompts, child_engine):
    asked, settings = prompts(8, seed=13), [-1, 0, 0.5, 1, GATED, 2, GATED, 4]
    answers = child_engine(
        pair,
        asked,
        settings,
        # Without the binding, vLLM asserts a NUMA node for each rank.
        environment={"VLLM_ENABLE_V1_MULTIPROCESSING": "1", "VLLM_CPU_OMP_THREADS_BIND": "0|1"},
        tensor_parallel_size=2,
    )
    for prompt, setting, tokens in zip(asked, settings, answers["tokens"], strict=True):
        assert exact(prompt, tokens, setting).argmax(-1).tolist() == tokens
