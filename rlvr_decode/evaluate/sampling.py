"""What every engine gives: responses to questions, drawn as an arm says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from rlvr_decode.evaluate.arms import Arm

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Question(Protocol):
    """A prompt: its text, or, where it is a chat, the (role, content) of each turn."""

    @property
    def text(self) -> str: ...

    @property
    def messages(self) -> tuple[tuple[str, str], ...]: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Response:
    """One response and what was seen on the way.

    length    tokens, the end-of-sequence token included.
    finished  whether it ended by itself, not at the limit of tokens.
    entropy   mean over its tokens of the entropy of what they were drawn from, in nats; with vLLM
              the mean of −log p of the tokens drawn, which has the same expectation. None where
              an endpoint's log-probs are not those of the distribution drawn from.
    rate      mean probability that the gate throws the primary's token away; None without a gate
              and where the engine does not tell.
    """

    text: str
    length: int
    finished: bool
    entropy: float | None = None
    rate: float | None = None


class Sampler(Protocol):
    """Whatever can answer questions as one variant of the pair."""

    def sample(
        self, questions: Sequence[Question], arm: Arm, *, samples: int, seed: int
    ) -> list[list[Response]]:
        """`samples` responses to each question; the same seed gives the same ones."""
        ...

    def close(self) -> None:
        """Give back what the engine holds."""
        ...


def rendered(question: Question, tokenizer: PreTrainedTokenizerBase) -> str:
    """The text to encode: the question itself, or the chat in the tokenizer's own template.

    A beginning-of-sequence token that encoding adds anyway is left to it.
    """
    if not question.messages:
        return question.text
    turns = [{"role": role, "content": content} for role, content in question.messages]
    text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    assert isinstance(text, str)
    bos = tokenizer.bos_token_id
    if bos is not None and tokenizer.encode("")[:1] == [bos]:
        text = text.removeprefix(str(tokenizer.bos_token))
    return text
