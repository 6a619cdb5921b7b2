"""POST /v1/delta: what base and rlvr say of every token of a text, a chat or token ids."""

from __future__ import annotations

from http import HTTPStatus
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Request, Response
from pydantic import BaseModel, ConfigDict, Field
from starlette.datastructures import State
from starlette.responses import JSONResponse
from vllm.entrypoints.serve.engine.protocol import ErrorResponse
from vllm.entrypoints.serve.tokenize.protocol import TokenizeChatRequest, TokenizeCompletionRequest
from vllm.entrypoints.serve.utils.api_utils import validate_json_request, with_cancellation

from rlvr_decode.params import GATES, PRIMARIES, Extrapolation, SettingError
from rlvr_decode.server.middleware import bad_request
from rlvr_decode.server.request import Served
from rlvr_decode.server.scores import ScoredToken, longest, score

MAX_TOP = 20
TokenId = Annotated[int, Field(ge=0, strict=True)]


class DeltaRequest(BaseModel):
    """One of `input` (or `prompt`, the same) and `messages`; everything else may be left out."""

    model_config = ConfigDict(extra="forbid")

    model: str | None = None
    input: str | list[TokenId] | None = Field(None, description="text, or token ids as they are")
    prompt: str | list[TokenId] | None = Field(None, description="another name of `input`")
    messages: list[dict[str, Any]] | None = Field(
        None, description="a chat; a last message of the assistant is the response that is scored"
    )
    add_special_tokens: bool = Field(True, description="with text: BOS, as completions have it")
    chat_template_kwargs: dict[str, Any] | None = None
    top: int = Field(0, ge=0, le=MAX_TOP, description="also the most likely tokens of either model")
    # Words and bounds of these are checked where every request's are, which names the permitted.
    gate: str = Field(
        "none",
        description="also whether this gate would act at each token",
        json_schema_extra={"enum": list(GATES)},
    )
    threshold: float | None = Field(None, description="of the gate, see Extrapolation")
    primary: str | None = Field(
        None,
        description="of the gate: rlvr (default) or base",
        json_schema_extra={"enum": [*PRIMARIES, None]},
    )


class DeltaResponse(BaseModel):
    """Every token of the text, in order."""

    object: Literal["delta"] = "delta"
    model: str
    tokens: list[ScoredToken]
    response_start: int | None = Field(
        None, description="index of the first token of the assistant's message, if there is one"
    )


def delta_routes(served: Served) -> APIRouter:
    """POST /v1/delta."""
    router = APIRouter()

    @router.post(
        "/v1/delta",
        summary="Log p under base and rlvr, their difference and more, of every token",
        dependencies=[Depends(validate_json_request)],
        response_model=DeltaResponse,
        responses={
            HTTPStatus.BAD_REQUEST.value: {"model": ErrorResponse},
            HTTPStatus.NOT_FOUND.value: {"model": ErrorResponse},
        },
    )
    @with_cancellation  # type: ignore[untyped-decorator]
    async def post_delta(request: DeltaRequest, raw_request: Request) -> Response:
        state = raw_request.app.state
        try:
            gate = _gate(request)
            if (refusal := _unknown_model(request.model, served)) is not None:
                return refusal
            token_ids, start = await _tokenize(request, state, raw_request)
            _check_length(token_ids, state)
        except SettingError as error:
            return bad_request(error)
        except _Refused as refused:
            return JSONResponse(refused.answer.model_dump(), refused.answer.error.code)
        tokens = await score(state.engine_client, token_ids, top=request.top, gate=gate)
        answer = DeltaResponse(
            object="delta",
            model=request.model or served.names[0],
            tokens=tokens,
            response_start=start,
        )
        # Values that were not asked for are left out; infinite ones become null.
        content = answer.model_dump_json(exclude_unset=True)
        return Response(content, media_type="application/json")

    return router


class _Refused(Exception):
    """vLLM's own refusal of a text or a chat."""

    def __init__(self, answer: ErrorResponse) -> None:
        self.answer = answer


def _gate(request: DeltaRequest) -> Extrapolation:
    said = {"gate": request.gate, "threshold": request.threshold, "primary": request.primary}
    settings = {name: value for name, value in said.items() if value is not None}
    return Extrapolation.from_request(settings, Extrapolation())


def _unknown_model(model: str | None, served: Served) -> JSONResponse | None:
    """A 404 for a name that does not stand for the pair; a strength after @ does not matter."""
    if model is None or model.partition("@")[0] in served.names or model in served.names:
        return None
    detail = {
        "message": f"The model `{model}` does not exist.",
        "type": "NotFoundError",
        "param": "model",
        "code": 404,
    }
    return JSONResponse({"error": detail}, status_code=404)


async def _tokenize(
    request: DeltaRequest, state: State, raw_request: Request
) -> tuple[list[int], int | None]:
    """The tokens, and where the assistant's last message begins among them."""
    given = {
        name: value
        for name in ("input", "prompt", "messages")
        if (value := getattr(request, name)) is not None
    }
    if len(given) != 1:
        said = " and ".join(given) or None
        raise SettingError("input", said, "give exactly one of input, prompt and messages")
    [(name, text)] = given.items()
    if not text:
        raise SettingError(name, text, "there is nothing to score; give at least one token")
    if name == "messages":
        return await _tokenize_chat(text, request, state, raw_request)
    if isinstance(text, list):
        _check_ids(text, name, state)
        return text, None
    whole = TokenizeCompletionRequest(prompt=text, add_special_tokens=request.add_special_tokens)
    return await _tokens(whole, state, raw_request), None


async def _tokenize_chat(
    messages: list[dict[str, Any]], request: DeltaRequest, state: State, raw_request: Request
) -> tuple[list[int], int | None]:
    answered = messages[-1].get("role") == "assistant"

    async def render(part: list[dict[str, Any]], *, prompting: bool) -> list[int]:
        said = {
            "messages": part,
            "add_generation_prompt": prompting,
            "continue_final_message": not prompting,
            "chat_template_kwargs": request.chat_template_kwargs,
        }
        chat = TokenizeChatRequest.model_validate(said)
        return await _tokens(chat, state, raw_request)

    whole = await render(messages, prompting=not answered)
    if not answered or len(messages) == 1:
        return whole, None
    before = await render(messages[:-1], prompting=True)
    # A template may tokenise the seam otherwise; what both agree on came before the response.
    pairs = zip(whole, before, strict=False)
    seam = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(whole), len(before)))
    return whole, seam


async def _tokens(
    request: TokenizeCompletionRequest | TokenizeChatRequest, state: State, raw_request: Request
) -> list[int]:
    """vLLM's own tokens of a text or a chat, so that they are those a completion would have."""
    answer = await state.serving_tokenization.create_tokenize(request, raw_request)
    if isinstance(answer, ErrorResponse):
        raise _Refused(answer)
    tokens: list[int] = answer.tokens
    return tokens


def _check_ids(token_ids: list[int], name: str, state: State) -> None:
    vocabulary = state.engine_client.model_config.get_vocab_size()
    for token_id in token_ids:
        if token_id >= vocabulary:
            raise SettingError(name, token_id, f"token ids are below {vocabulary}")


def _check_length(token_ids: list[int], state: State) -> None:
    limit = longest(state.engine_client)
    if len(token_ids) > limit:
        reason = f"more tokens than the {limit} that can be scored at once; give fewer"
        raise SettingError("tokens", len(token_ids), reason)
    if not token_ids:
        raise SettingError("input", [], "there is nothing to score; give at least one token")
