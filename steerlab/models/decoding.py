"""One decoding step for everything that writes token by token: streams, chats, and the branching sampler.

The inputs of a step (cache, mask, positions) are what the family's own `generate` prepares, so that hybrids, state
spaces and families with counters of their own write what `generate` writes.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from steerlab.errors import ModelError
from steerlab.models.finite import require_scores
from steerlab.models.modes import evaluating
from steerlab.models.weights import parameters_of

_CACHES = ("past_key_values", "cache_params")


class Decoding:
    """Rows that grow by one token a step.

    Args:
        network: transformers' causal language model.
        ids: the prompts, padded on the left.
        mask: 1 at real tokens.

    Attributes:
        logits: after each row's last token, padded rows of the unembedding included.
    """

    logits: Float[Tensor, "row vocab"]

    def __init__(
        self, network: Any, ids: Int[Tensor, "row position"], mask: Int[Tensor, "row position"]
    ) -> None:
        self._network, self._ids, self._written = network, ids, -1
        known = parameters_of(network.forward)
        self._state: dict[str, Any] = {"attention_mask": mask, "use_cache": True}
        if "position_ids" in known:
            self._state["position_ids"] = (mask.cumsum(-1) - 1).clamp(min=0)
        if "logits_to_keep" in known:
            self._state["logits_to_keep"] = 1
        self._run(None)

    def append(self, tokens: Int[Tensor, " row"]) -> None:
        """Let every row go on with its token."""
        self._ids = torch.cat([self._ids, tokens.to(self._ids.device)[:, None]], dim=1)
        self._run(1)

    def keep(self, rows: Int[Tensor, " row"]) -> None:
        """Go on with these rows, each as often as it is named.

        Raises:
            ModelError: the family's cache cannot be taken apart by rows.
        """
        rows = rows.to(self._ids.device)
        self._ids, self.logits = self._ids[rows], self.logits[rows]
        for name in ("attention_mask", "position_ids"):
            if name in self._state:
                self._state[name] = self._state[name][rows]
        for name in _CACHES:
            cache = self._state.get(name)
            if cache is None:
                continue
            if not hasattr(cache, "reorder_cache"):
                raise ModelError(
                    f"The {type(cache).__name__} of a {type(self._network).__name__} cannot be taken apart by rows; "
                    "decode its prompts one by one."
                )
            cache.reorder_cache(rows)

    def _run(self, new: int | None) -> None:
        network = self._network
        inputs = network.prepare_inputs_for_generation(
            self._ids, next_sequence_length=new, is_first_iteration=new is None, **self._state
        )
        with evaluating(network):
            output = network(**inputs, return_dict=True)
        self._state = network._update_model_kwargs_for_generation(output, self._state)
        self.logits = output.logits[:, -1].float()
        self._written += 1
        require_scores(type(network).__name__, self.logits, self._written)
