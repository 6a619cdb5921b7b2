"""Sampling with a vLLM engine in this process: what pays for models of real size."""

from __future__ import annotations

import gc
import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rlvr_decode.evaluate.arms import Arm
from rlvr_decode.evaluate.sampling import Question, Response
from rlvr_decode.pair import Pair

if TYPE_CHECKING:
    from vllm.outputs import CompletionOutput


class VllmSampler:
    """Answers as one variant of a pair, from one engine that serves every arm of it."""

    def __init__(self, pair: Pair, *, max_tokens: int, **engine: Any) -> None:
        from vllm import LLM

        from rlvr_decode.engine.launch import engine_args

        chosen = {"disable_log_stats": True, "logprobs_mode": "processed_logprobs"} | engine
        self._llm = LLM(**engine_args(pair, **chosen))
        self._max_tokens = max_tokens

    def sample(
        self, questions: Sequence[Question], arm: Arm, *, samples: int, seed: int
    ) -> list[list[Response]]:
        params = [
            arm.extrapolation.sampling_params(
                n=samples,
                temperature=arm.temperature,
                top_p=arm.top_p,
                min_p=arm.min_p,
                max_tokens=self._max_tokens,
                logprobs=0,
                seed=seed + number,
            )
            for number in range(len(questions))
        ]
        answers: list[list[Response]] = [[] for _ in questions]
        for chat in (False, True):
            at = [k for k, question in enumerate(questions) if bool(question.messages) == chat]
            if not at:
                continue
            asked, chosen = [questions[k] for k in at], [params[k] for k in at]
            if chat:
                turns: list[Any] = [
                    [{"role": role, "content": content} for role, content in question.messages]
                    for question in asked
                ]
                outputs = self._llm.chat(turns, chosen, use_tqdm=False)
            else:
                texts = [question.text for question in asked]
                outputs = self._llm.generate(texts, chosen, use_tqdm=False)
            for k, output in zip(at, outputs, strict=True):
                answers[k] = [_response(each, arm) for each in output.outputs]
        return answers

    def close(self) -> None:
        del self._llm
        gc.collect()


def _response(output: CompletionOutput, arm: Arm) -> Response:
    """Of a greedy arm the distribution drawn from is certain, whatever its log-probs say."""
    entropy = 0.0
    if arm.temperature:
        steps = zip(output.logprobs or [], output.token_ids, strict=True)
        entropy = -statistics.fmean(step[token].logprob for step, token in steps if step)
    return Response(
        text=output.text,
        length=len(output.token_ids),
        finished=output.finish_reason == "stop",
        entropy=entropy,
    )
