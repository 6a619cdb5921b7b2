"""An engine in a process of its own: reads a job from standard input, prints the answers.

For engines that need several ranks, and for those that import numba: vLLM 0.32 cannot start
another engine in a process that has.
"""

import json
import os
import sys


def main():
    if "TRITON_INTERPRET" in os.environ:
        from interpreter_repair import repair_interpreter

        repair_interpreter()
    from vllm import LLM, TokensPrompt
    from vllm.v1.metrics.reader import Counter

    from rlvr_decode import Extrapolation
    from rlvr_decode.engine.launch import engine_args
    from rlvr_decode.pair import Pair

    job = json.load(sys.stdin)
    engine = LLM(**engine_args(Pair.open(job["pair"]), **job["arguments"]))
    params = [
        Extrapolation(**settings).sampling_params(**job["sampling"]) for settings in job["settings"]
    ]
    inputs = [TokensPrompt(prompt_token_ids=prompt) for prompt in job["prompts"]]
    answers = engine.generate(inputs, params, use_tqdm=False)
    metrics = {m.name: m.value for m in engine.get_metrics() if isinstance(m, Counter)}
    tokens = [list(answer.outputs[0].token_ids) for answer in answers]
    print("ANSWER", json.dumps({"tokens": tokens, "metrics": metrics}), flush=True)


if __name__ == "__main__":
    main()
