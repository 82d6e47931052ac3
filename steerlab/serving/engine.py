"""transformers' continuous batching with every request's own interventions, law and probes.

Three of its parts are taken over by subclass: the manager of models knows one model, the state of generation one
manager, and that manager announces each pass to the hooks and chooses the next tokens. A request's seed decides what is
drawn (`models.drawing`), whoever shares its passes; without a temperature it is greedy.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from fastapi import HTTPException
from jaxtyping import Float
from torch import Tensor
from transformers import ContinuousBatchingConfig, GenerationConfig
from transformers.cli.serving.model_manager import ModelManager
from transformers.cli.serving.utils import CBGenerateManager, GenerationState

from steerlab.models import LanguageModel
from steerlab.models.drawing import Sampler, new_seed
from steerlab.models.generation import end_token_ids
from steerlab.monitoring.packed import PackedProbes
from steerlab.serving.desk import Desk, Wish
from steerlab.steering.packed import Announced, PackedRows, Pass

_PAGE = 64


@dataclass(eq=False)
class Open:
    """A request from its arrival to its answer.

    Attributes:
        wish: what it asks.
        prompt: tokens of its prompt.
        error: why its answer is none, in a sentence.
    """

    wish: Wish
    prompt: int = 0
    error: str = ""
    sampler: Sampler | None = None


class OneModel(ModelManager):  # type: ignore[misc]
    """transformers' manager of models, which knows the one that is served."""

    def __init__(self, model: LanguageModel, name: str, desk: Desk, close: Callable[[], None]) -> None:
        self._model, self._desk, self._close, self._since = model, desk, close, int(time.time())
        super().__init__(device="cpu", force_model=name)

    def load_model_and_processor(self, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        """The model and its tokenizer."""
        return self._model.model, self._model.tokenizer

    def get_gen_models(self, cache_dir: str | None = None) -> list[dict[str, Any]]:
        """The one model, with the names of its vectors and probes."""
        return [
            {
                "id": self.force_model,
                "object": "model",
                "created": self._since,
                "owned_by": "steerlab",
                "vectors": list(self._desk.vectors),
                "always": list(self._desk.always),
                "probes": list(self._desk.probes),
            }
        ]

    def shutdown(self) -> None:
        """End with the server."""
        self._close()


class Engine(CBGenerateManager):  # type: ignore[misc]
    """One packed run of a model, which every request shares.

    Args:
        desk: what requests may ask.
        cache_tokens: room of the shared cache, in tokens of all requests that run at once.
        batch_tokens: tokens of one pass.
    """

    _cb: Any

    def __init__(self, desk: Desk, *, cache_tokens: int, batch_tokens: int) -> None:
        self.desk, self.model = desk, desk.model
        self.cache_tokens = -(-cache_tokens // _PAGE) * _PAGE
        shared = ContinuousBatchingConfig(
            page_size=_PAGE,
            num_blocks=self.cache_tokens // _PAGE,
            max_batch_tokens=batch_tokens,
            # A text's beginning has other states under other interventions.
            allow_block_sharing=False,
            use_cuda_graph=False,
            auto_switch_to_flash=False,
        )
        super().__init__(cb_config=shared)
        self._now = Pass()
        self._rows = PackedRows(self.model, desk.sites, self._now)
        self.probes = PackedProbes(self.model, desk.probes, self._now)
        self._ends = list(end_token_ids(self.model))
        self.requests: dict[str, Open] = {}

    def init_cb(self, model: Any, gen_config: Any) -> None:
        """Start the run, once; requests bring their own laws."""
        if self._cb is not None:
            return
        build: Any = GenerationConfig
        settings = build(do_sample=False, eos_token_id=self._ends or -1, pad_token_id=0, max_new_tokens=1)
        self._cb = model.init_continuous_batching(
            generation_config=settings, continuous_batching_config=self._cb_config
        )
        self._cb.logit_processor = Announced(self._cb.logit_processor, self._now.begin, self._choose)
        self._cb.start()

    def generate_streaming(
        self,
        model: Any,
        processor: Any,
        inputs: Any,
        gen_config: Any,
        request_id: str,
        response_parser: Any = None,
    ) -> Any:
        """See transformers."""
        self._admit(inputs, gen_config, request_id)
        return super().generate_streaming(model, processor, inputs, gen_config, request_id, response_parser)

    async def generate_non_streaming(
        self, model: Any, processor: Any, inputs: Any, gen_config: Any, request_id: str
    ) -> Any:
        """See transformers."""
        self._admit(inputs, gen_config, request_id)
        answer = await super().generate_non_streaming(model, processor, inputs, gen_config, request_id)
        if self.requests[request_id].error:
            raise HTTPException(400, self.requests[request_id].error)
        return answer

    def close(self, request_id: str) -> dict[str, Any]:
        """Forget a request; by probe what it scored."""
        request = self.requests.pop(request_id, None)
        self._rows.release(request_id)
        scores = self.probes.take(request_id)
        length = 0 if request is None else request.prompt
        return {
            name: {"site": str(self.probes.sites[name]), "prompt": of[:length], "written": of[length:]}
            for name, of in scores.items()
        }

    def stop(self) -> None:
        """End the run and take every hook away."""
        if self._cb is not None:
            self._cb.stop(block=True, timeout=10, hard_stop=True)
        self._rows.remove()
        self.probes.remove()

    # -- private --

    def _admit(self, inputs: Any, settings: Any, request_id: str) -> None:
        """Hold a request against the room there is, and give the hooks what it asks.

        Raises:
            HTTPException: it has no tokens, or more than there is room for.
        """
        request = self.requests[request_id]
        request.prompt = length = len(inputs["input_ids"])
        context = self.model.context
        room = min(self.cache_tokens, self.cache_tokens if context is None else context)
        what = "model's context" if room == context else "server's cache"
        if not length:
            raise HTTPException(400, "The prompt has no tokens; write something.")
        wanted = request.wish.limit
        if length + (wanted or 1) > room:
            more = "" if wanted is None else f" and asks for {wanted} more"
            raise HTTPException(
                400,
                f"The request has {length} tokens{more}, and the {what} holds {room}; shorten it, or ask for fewer.",
            )
        settings.max_new_tokens = min(room - length, settings.max_new_tokens if wanted is None else wanted)
        settings.eos_token_id = self._ends or -1
        wish = request.wish
        if wish.temperature > 0:
            seed = new_seed() if wish.seed is None else wish.seed
            request.sampler = Sampler(
                seed, [0], settings.max_new_tokens, temperature=wish.temperature, top_p=wish.top_p
            )
        if wish.row.edits:
            self._rows.assign(request_id, wish.row)
        if wish.probes:
            self.probes.watch(request_id, wish.probes)

    def _choose(self, scores: Float[Tensor, "row vocab"]) -> Float[Tensor, "row vocab"]:
        """The scores in which each request's next token is the largest; runs in the generating thread."""
        writers = [columns for columns in self._now.columns if columns.writes]
        scores = scores.clone()
        scores[:, self.model.vocab_size :] = -torch.inf
        too_strong = self._rows.not_finite()
        fine = (scores[: len(writers)].amax(dim=-1) < torch.inf).tolist()  # with a NaN the largest is NaN
        for number, columns in enumerate(writers):
            request = self.requests.get(columns.request)
            if request is None:
                continue
            if columns.request in too_strong or not fine[number]:
                request.error = (
                    "What the vectors give is not finite: the strength is too large for the numbers of this model; "
                    "steer less."
                )
                token = torch.tensor([min(self._ends, default=0)], device=scores.device)
            elif request.sampler is not None:
                token = request.sampler.draw(scores[number : number + 1], columns.step)
            else:
                continue
            scores[number] = -torch.inf
            scores[number, token] = 0.0
        return scores


class OneState(GenerationState):  # type: ignore[misc]
    """transformers' state of generation, which knows the one engine."""

    def __init__(self, engine: Engine) -> None:
        super().__init__(continuous_batching=True)
        self._cb_manager = engine

    def use_continuous_batching(self, model: Any, modality: Any) -> bool:
        """Always."""
        return True

    def get_manager(self, model_id: str, use_cb: bool = False) -> Any:
        """The engine."""
        return self._cb_manager


def quiet_logs() -> None:
    """transformers warns of every request that it has received; a person who serves sees uvicorn's own line."""
    for name in ("chat_completion", "completion", "response"):
        logging.getLogger(f"transformers.cli.serving.{name}").setLevel(logging.ERROR)
