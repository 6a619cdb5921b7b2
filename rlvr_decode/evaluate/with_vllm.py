"""Sampling with a vLLM engine in this process: what pays for models of real size."""

from __future__ import annotations

import gc
import statistics
import uuid
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rlvr_decode.evaluate.arms import Arm
from rlvr_decode.evaluate.sampling import Question, Response
from rlvr_decode.interventions import intervention_rates
from rlvr_decode.pair import Pair
from rlvr_decode.params import TICKET

if TYPE_CHECKING:
    from vllm import SamplingParams
    from vllm.outputs import CompletionOutput, RequestOutput


class VllmSampler:
    """Answers as one variant of a pair, from one engine that serves every arm of it.

    max_tokens  of a response; may change between calls.
    """

    def __init__(self, pair: Pair, *, max_tokens: int, **engine: Any) -> None:
        from vllm import LLM

        from rlvr_decode.engine.launch import engine_args

        chosen = {"disable_log_stats": True, "logprobs_mode": "processed_logprobs"} | engine
        self._llm = LLM(**engine_args(pair, **chosen))
        self.max_tokens = max_tokens

    def sample(
        self, questions: Sequence[Question], arm: Arm, *, samples: int, seed: int
    ) -> list[list[Response]]:
        # The engine tells its rates of intervention to whoever sends a ticket with a request.
        tickets = [uuid.uuid4().hex if arm.extrapolation.gated else None for _ in questions]
        params = [
            arm.extrapolation.sampling_params(
                extra_args={} if ticket is None else {TICKET: ticket},
                n=samples,
                temperature=arm.temperature,
                top_p=arm.top_p,
                min_p=arm.min_p,
                max_tokens=self.max_tokens,
                logprobs=0,
                seed=seed + number,
            )
            for number, ticket in enumerate(tickets)
        ]
        answers: list[list[Response]] = [[] for _ in questions]
        for chat in (False, True):
            at = [k for k, question in enumerate(questions) if bool(question.messages) == chat]
            outputs = self._answer([questions[k] for k in at], [params[k] for k in at], chat)
            for k, output in zip(at, outputs, strict=True):
                rate = self._rate(tickets[k])
                answers[k] = [_response(each, arm, rate) for each in output.outputs]
        return answers

    def _answer(
        self, questions: Sequence[Question], params: Sequence[SamplingParams], chat: bool
    ) -> list[RequestOutput]:
        if not questions:
            return []
        if not chat:
            return self._llm.generate([q.text for q in questions], params, use_tqdm=False)
        turns: list[Any] = [
            [{"role": role, "content": content} for role, content in question.messages]
            for question in questions
        ]
        return self._llm.chat(turns, params, use_tqdm=False)

    def _rate(self, ticket: str | None) -> float | None:
        """Mean rate of intervention over a request's samples."""
        if ticket is None:
            return None
        told: Any = self._llm.collective_rpc("take_side_channel", args=(ticket,))
        return statistics.fmean(intervention_rates(told[0]))

    def close(self) -> None:
        del self._llm
        gc.collect()


def _response(output: CompletionOutput, arm: Arm, rate: float | None) -> Response:
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
        rate=rate,
    )
