"""Two ranks: each gathers full rows of both heads and combines them."""


def test_two_ranks_are_exact(pair, exact, prompts, child_engine):
    asked, strengths = prompts(8, seed=13), [-1, 0, 0.5, 1, 1.5, 2, 3, 4]
    answers = child_engine(
        pair,
        asked,
        strengths,
        # Without the binding, vLLM asserts a NUMA node for each rank.
        environment={"VLLM_ENABLE_V1_MULTIPROCESSING": "1", "VLLM_CPU_OMP_THREADS_BIND": "0|1"},
        tensor_parallel_size=2,
    )
    for prompt, strength, tokens in zip(asked, strengths, answers["tokens"], strict=True):
        assert exact(prompt, tokens, strength).argmax(-1).tolist() == tokens
