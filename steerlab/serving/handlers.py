"""transformers' handlers of the OpenAI endpoints, with the extra fields read before and the scores added behind.

What a handler would leave out in silence (several answers, stop strings, penalties, pictures) is refused in a sentence.
"""

from __future__ import annotations

import json
import logging
import time
import uuid
from collections.abc import AsyncIterator, Mapping
from typing import Any, ClassVar

from fastapi import HTTPException
from fastapi.responses import JSONResponse, StreamingResponse
from jinja2 import TemplateError
from transformers.cli.serving.chat_completion import ChatCompletionHandler
from transformers.cli.serving.completion import CompletionHandler
from transformers.cli.serving.response import ResponseHandler

from steerlab.errors import SteerlabError, reason
from steerlab.serving.engine import Engine, Open

logger = logging.getLogger(__name__)

#: Fields that change an answer and that continuous batching does not heed, with the value that asks for nothing.
_UNHEEDED: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "best_of": (1,),
    "stop": ([],),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "echo": (False,),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "logit_bias": ({},),
    "response_format": ({"type": "text"},),
    "generation_config": (),
}
_TEXT = ("text", "input_text", "output_text", "reasoning_text", "summary_text", "refusal")


class _Steered:
    """What the three handlers share; stands before transformers' handler."""

    engine: Engine
    #: What the request cannot do without.
    needs: ClassVar[str]
    #: What a last piece of a stream is called.
    piece: ClassVar[dict[str, Any]]

    async def handle_request(self, body: dict[str, Any], request_id: str) -> Any:
        """Read the extra fields, let transformers answer, add what was watched."""
        # A client may name its request; two of the same name must not become one.
        request_id = f"{request_id}-{uuid.uuid4().hex[:8]}"
        engine = self.engine
        try:
            _require_heeded(body)
            _require_text(body, self.needs)
            engine.requests[request_id] = Open(engine.desk.read(body))
            body.pop("seed", None)  # it is the request's, not the process's
            body.setdefault("stream", False)  # as OpenAI means it; transformers' responses stream by default
            response = await super().handle_request(body, request_id)  # type: ignore[misc]
        except (SteerlabError, KeyError, TypeError, ValueError, TemplateError) as error:
            engine.close(request_id)
            if not isinstance(error, SteerlabError):
                logger.debug("a request that cannot be read", exc_info=error)
            said = (
                str(error)
                if isinstance(error, SteerlabError)
                else f"The request cannot be read: {reason(error)}."
            )
            raise HTTPException(400, said) from error
        except BaseException:
            engine.close(request_id)
            raise
        if isinstance(response, StreamingResponse):
            response.body_iterator = self._finished(response.body_iterator, request_id, body.get("model"))
            return response
        watched = engine.close(request_id)
        if not watched:
            return response
        return JSONResponse({**json.loads(bytes(response.body)), "watch": watched})

    async def _finished(self, pieces: Any, request_id: str, model: Any) -> AsyncIterator[Any]:
        """The stream, then what was watched or went wrong; the request is forgotten however the stream ends."""
        request, watched = self.engine.requests[request_id], {}
        try:
            async for piece in pieces:
                yield piece
            watched = self.engine.close(request_id)
            if request.error:
                yield _data({"error": {"message": request.error, "type": "invalid_request_error"}})
            elif watched:
                head = {"id": request_id, "created": int(time.time()), "model": model}
                yield _data({**head, **self.piece, "watch": watched})
        finally:
            self.engine.close(request_id)


class SteeredChat(_Steered, ChatCompletionHandler):  # type: ignore[misc]
    """/v1/chat/completions."""

    needs = "messages"
    piece: ClassVar[dict[str, Any]] = {"object": "chat.completion.chunk", "choices": []}


class SteeredCompletion(_Steered, CompletionHandler):  # type: ignore[misc]
    """/v1/completions."""

    needs = "prompt"
    piece: ClassVar[dict[str, Any]] = {"object": "text_completion", "choices": []}


class SteeredResponse(_Steered, ResponseHandler):  # type: ignore[misc]
    """/v1/responses."""

    needs = "input"
    piece: ClassVar[dict[str, Any]] = {"type": "steerlab.watch"}


def _data(content: Mapping[str, Any]) -> str:
    return f"data: {json.dumps(content)}\n\n"


def _require_heeded(body: Mapping[str, Any]) -> None:
    for name, idle in _UNHEEDED.items():
        if body.get(name) is not None and body[name] not in idle:
            raise SteerlabError(
                f"This server does not heed {name!r}, which would change the answer; leave it out."
            )


def _require_text(body: Mapping[str, Any], needs: str) -> None:
    given = body.get(needs)
    if not isinstance(given, list | str) or not given:
        raise SteerlabError(f"The request has no {needs!r}; give it.")
    for part in given if isinstance(given, list) else ():
        if not isinstance(part, dict):
            raise SteerlabError(
                f"The {needs!r} hold {part!r:.80}, which is no message; give objects with role and content."
            )
        content = part.get("content")
        for piece in content if isinstance(content, list) else ():
            kind = piece.get("type") if isinstance(piece, dict) else None
            if kind not in _TEXT:
                raise SteerlabError(
                    f"This server reads text, and a message holds {kind or piece!r:.80}; leave it out."
                )
