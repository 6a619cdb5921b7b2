"""Which rows of a prompt's logits belong to which request, so that both models can score them.

A front end submits an ordinary request with `prompt_logprobs` and a `Scoring` in its extra
arguments. vLLM then leaves the prefix cache unread and, chunk after chunk, asks the model for the
logits of the prompt's rows. The values go to the request's side channel.
Legend: N rows, K of them that are scored, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from rlvr_decode.engine.prompt_scores import EXTRA_ARG, Scoring, score_rows
from rlvr_decode.engine.side_channel import SideChannel

if TYPE_CHECKING:
    from vllm import SamplingParams
    from vllm.v1.worker.gpu.input_batch import InputBatch


class Prompt(NamedTuple):
    """A prompt that is being scored."""

    scoring: Scoring
    tokens: Sequence[int]


def prompt_of(
    params: SamplingParams | None, tokens: Sequence[int] | None, channel: SideChannel
) -> Prompt | None:
    """The prompt of a request whose scores the front end waits for; None of any other."""
    asked = (params.extra_args or {}).get(EXTRA_ARG) if params is not None else None
    # A client may send what it likes; it cannot know a key that was opened.
    if tokens is None or not isinstance(asked, dict):
        return None
    return Prompt(Scoring(**asked), tokens) if channel.is_open(str(asked.get("key"))) else None


class Piece(NamedTuple):
    """Rows [begin, end) of one call: those of a prompt's tokens from `start` on."""

    prompt: Prompt
    begin: int
    end: int
    start: int

    def within(self, first: int, count: int) -> Piece | None:
        """The part among `count` rows from row `first` that predicts a token of the prompt."""
        begin = max(self.begin, first)
        last = self.begin + len(self.prompt.tokens) - 1 - self.start
        end = min(self.end, first + count, last)
        if begin >= end:
            return None
        return Piece(self.prompt, begin - first, end - first, self.start + begin - self.begin)


class PromptRows:
    """Knows whose the rows are when a runner asks for logits of prompts, and scores them.

    V2 says before each forward pass which rows belong to which prompt, and asks for all rows in
    order. V1 asks for one request's rows at a time, in the order of its own table.
    """

    def __init__(self, channel: SideChannel) -> None:
        self._channel = channel
        self._slots: dict[int, Prompt] = {}
        self._pieces: list[Piece] | None = None
        self._rows = 0
        self._calls: Iterator[Piece | None] | None = None

    def admit(self, slot: int, params: SamplingParams | None, tokens: Sequence[int] | None) -> None:
        """V2: a request enters a slot, whatever the slot held before."""
        self._slots.pop(slot, None)
        prompt = prompt_of(params, tokens, self._channel)
        if prompt is not None:
            self._slots[slot] = prompt

    def arm(self, batch: InputBatch) -> None:
        """V2, before every forward pass: whose rows the coming ones are."""
        self._pieces = [
            Piece(
                self._slots[slot],
                int(batch.query_start_loc_np[i]),
                int(batch.query_start_loc_np[i + 1]),
                int(batch.num_computed_prefill_tokens_np[i]),
            )
            for i, slot in enumerate(batch.idx_mapping_np.tolist())
            if slot in self._slots
        ]

    def begin(self) -> None:
        """The rows to sample from were asked for; those of prompts come next, if any."""
        self._rows = 0
        self._calls = None

    def take(self, count: int) -> list[Piece]:
        """The prompts among the next `count` rows that the runner asks for."""
        if self._pieces is None:
            pieces = [self._next_call(count)]
        else:
            pieces = [piece.within(self._rows, count) for piece in self._pieces]
            self._rows += count
        return [piece for piece in pieces if piece is not None]

    def _next_call(self, count: int) -> Piece | None:
        """V1: what the runner's next call is about."""
        if self._channel.runner is None:
            return None
        if self._calls is None:
            self._calls = _calls_of_v1(self._channel)
        piece = next(self._calls, None)
        return None if piece is None else piece._replace(end=count).within(0, count)

    def score(self, pieces: Sequence[Piece], rlvr_NV: Tensor, base_KV: Tensor) -> None:
        """Put the values of these rows into their channels; base has the rows of pieces alone."""
        first = 0
        for piece in pieces:
            scoring, tokens = piece.prompt
            count, position = piece.end - piece.begin, piece.start + 1
            values = score_rows(
                rlvr_NV[piece.begin : piece.end],
                base_KV[first : first + count],
                tokens[position : position + count],
                position,
                scoring,
            )
            self._channel.put(scoring.key, values)
            first += count


def rows_of(pieces: Sequence[Piece], device: torch.device) -> Tensor:
    """The indices [K] of the rows of these pieces."""
    return torch.cat([torch.arange(p.begin, p.end, device=device) for p in pieces])


def _calls_of_v1(channel: SideChannel) -> Iterator[Piece | None]:
    """The prompts in the order in which runner V1 asks for their rows in this step.

    It goes through its requests that want log-probs of their prompt and skips those that are not
    in the batch and those of whose prompt nothing is left to predict. None is another's prompt.
    """
    runner = channel.runner
    for request_id in list(runner.num_prompt_logprobs):
        request = runner.requests[request_id]
        tokens, start = request.prompt_token_ids, request.num_computed_tokens
        if request_id not in runner.input_batch.req_id_to_index or tokens is None:
            continue
        if len(tokens) - 1 - start > 0:
            prompt = prompt_of(request.sampling_params, tokens, channel)
            yield None if prompt is None else Piece(prompt, 0, len(tokens), start)
