"""`Server`: transformers' OpenAI-compatible application around one steered model, run by uvicorn.

It listens on the loopback address unless it is told another: whoever reaches it may use it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from steerlab.errors import RunError
from steerlab.files import system_reason
from steerlab.steering.continuous import require_packable

if TYPE_CHECKING:
    from steerlab.directions import Direction
    from steerlab.models import LanguageModel

LOOPBACK = "127.0.0.1"
#: Endpoints of transformers' server that load other models, or run this one beside the packed passes.
_CLOSED = ("/load_model", "/reset", "/v1/systemone", "/v1/audio/transcriptions")
_PATIENCE = 60.0


class Server:
    """A model behind transformers' own server, with vectors that requests name.

    Args:
        model: the model; while it is served, run it here alone.
        vectors: by name an `Add`, an `Ablate` or a direction.
        always: names of those that act on a request that names none; by default all.
        probes: by name a direction that requests may watch.
        host: the address to listen on.
        port: 0 takes a free one.
        name: what requests call the model; by default its folder's or hub name.
        cache_tokens: room for the texts of all requests that run at once.
        batch_tokens: tokens of one pass.

    Raises:
        SteeringError: a model whose texts cannot be packed, or a vector that cannot act there.
        DirectionError: a vector of another model.
        RunError: the extra `serve` is not installed.

    Example:
        >>> with Server(model, {"refusal": Add(refusal, 1.0)}) as server:  # doctest: +SKIP
        ...     client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none")
    """

    def __init__(
        self,
        model: LanguageModel,
        vectors: Mapping[str, Any] | None = None,
        *,
        always: Sequence[str] | None = None,
        probes: Mapping[str, Direction] | None = None,
        host: str = LOOPBACK,
        port: int = 8000,
        name: str | None = None,
        cache_tokens: int = 16384,
        batch_tokens: int = 512,
    ) -> None:
        _require_installed()
        require_packable(model)
        from steerlab.serving.desk import Desk

        self.model, self.host, self.port = model, host, port
        self.name = name or (Path(model.name).name if Path(model.name).is_dir() else model.name)
        self.desk = Desk(model, vectors, always=always, probes=probes)
        self._room = {"cache_tokens": cache_tokens, "batch_tokens": batch_tokens}
        self._thread: threading.Thread | None = None
        self._uvicorn: Any = None

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}"

    def run(self, announce: Callable[[], None] = lambda: None) -> None:
        """Serve until it is interrupted; `announce` is called when the port is taken and the model is ready.

        Raises:
            RunError: the port is taken, or the address is none of this machine.
        """
        listening = self._listen()
        server = self._made()
        announce()
        with contextlib.suppress(KeyboardInterrupt):
            server.run(sockets=[listening])

    def start(self) -> None:
        """Serve in a thread, and come back when requests are answered.

        Raises:
            RunError: as `run`.
        """
        listening = self._listen()
        server = self._made()
        self._thread = threading.Thread(
            target=lambda: asyncio.run(server.serve(sockets=[listening])), name="steerlab-serve", daemon=True
        )
        self._thread.start()
        waited = time.monotonic()
        while not server.started:
            if not self._thread.is_alive() or time.monotonic() - waited > _PATIENCE:
                raise RunError(f"The server at {self.url} did not start; its log says why.")
            time.sleep(0.01)

    def stop(self) -> None:
        """End what `start` began."""
        if self._thread is not None:
            self._uvicorn.should_exit = True
            self._thread.join(timeout=_PATIENCE)
            self._thread = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    # -- private --

    def _listen(self) -> socket.socket:
        try:
            family = socket.AF_INET6 if ":" in self.host else socket.AF_INET
            listening = socket.create_server((self.host, self.port), family=family)
        except (OSError, OverflowError) as error:
            said = system_reason(error)
            raise RunError(
                f"The server cannot listen on {self.host}, port {self.port}: {said}; choose another --port or --host."
            ) from error
        self.port = int(listening.getsockname()[1])
        return listening

    def _made(self) -> Any:
        """uvicorn's server around transformers' application."""
        import uvicorn
        from transformers.cli.serving.server import build_server
        from transformers.cli.serving.systemone import SystemOneHandler
        from transformers.cli.serving.transcription import TranscriptionHandler

        from steerlab.serving.engine import Engine, OneModel, OneState, quiet_logs
        from steerlab.serving.handlers import SteeredChat, SteeredCompletion, SteeredResponse

        quiet_logs()
        engine = Engine(self.desk, **self._room)
        state = OneState(engine)
        manager = OneModel(self.model, self.name, self.desk, engine.stop)
        handlers = [kind(manager, state) for kind in (SteeredChat, SteeredCompletion, SteeredResponse)]
        for handler in handlers:
            handler.engine = engine
        chat, completion, response = handlers
        app = build_server(
            manager,
            chat,
            completion_handler=completion,
            response_handler=response,
            transcription_handler=TranscriptionHandler(manager, state),
            systemone_handler=SystemOneHandler(manager, state),
            generation_state=state,
        )
        app.router.routes[:] = [route for route in app.router.routes if route.path not in _CLOSED]
        _answer_in_sentences(app)
        engine.init_cb(self.model.model, None)
        self._uvicorn = uvicorn.Server(uvicorn.Config(app, log_level=logging.WARNING, lifespan="on"))
        return self._uvicorn


def _answer_in_sentences(app: Any) -> None:
    """Errors in the form that OpenAI's clients read: {"error": {"message": …}}."""
    from fastapi.exceptions import RequestValidationError
    from fastapi.responses import JSONResponse
    from starlette.exceptions import HTTPException

    def answer(status: int, message: str) -> JSONResponse:
        kind = "invalid_request_error" if status < 500 else "server_error"
        return JSONResponse({"error": {"message": message, "type": kind, "code": status}}, status_code=status)

    async def refused(request: Any, error: HTTPException) -> JSONResponse:
        return answer(error.status_code, str(error.detail))

    async def unread(request: Any, error: RequestValidationError) -> JSONResponse:
        return answer(
            422, "The body of the request is no JSON object; send one, with Content-Type: application/json."
        )

    app.add_exception_handler(HTTPException, refused)
    app.add_exception_handler(RequestValidationError, unread)


def _require_installed() -> None:
    from transformers.utils.import_utils import is_serve_available

    if not is_serve_available():
        raise RunError("Serving needs fastapi, uvicorn and openai; run pip install 'steerlab[serve]'.")
