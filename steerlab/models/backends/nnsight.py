"""An nnsight model: `TransformersModel`, its deprecated name `LanguageModel`, or `NNsight` around a transformers model.

nnsight leaves the modules of the transformers model where they are and watches their calls while a trace runs. Hooks on
those modules act in nnsight's traces as well as in ours, and a pass of ours outside a trace costs what the plain one
does. What the user stored with `model.edit(...)` acts in nnsight's traces only; such a model is refused, because the
same prompt would have two answers.
"""

from __future__ import annotations

import warnings
from typing import Any

from torch import nn

from steerlab.errors import ModelError, reason
from steerlab.models.backends.native import Transformers
from steerlab.models.backends.registry import register_backend


@register_backend
class NNsight(Transformers):
    """An nnsight envoy around a transformers model."""

    name = "nnsight"

    @classmethod
    def wraps(cls, source: Any) -> bool:
        """Whether `source` belongs to nnsight; asked without importing it."""
        return any(kind.__module__.startswith("nnsight.") for kind in type(source).__mro__)

    @classmethod
    def around(cls, module: Any, tokenizer: Any, *, name: str) -> NNsight:
        """nnsight's wrapper of a loaded transformers model."""
        import nnsight

        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return cls(nnsight.TransformersModel(module, task="text-generation", tokenizer=tokenizer))
        except Exception as error:  # transformers' pipeline is built inside, which fails in many ways
            raise ModelError(
                f"nnsight cannot wrap {name} ({reason(error)}); use backend='transformers'."
            ) from error

    def module_of(self, source: Any) -> Any:
        """The transformers model, its weights loaded."""
        if getattr(source, "dispatched", True) is False:
            source.dispatch()
        module = getattr(source, "_module", None)
        if not isinstance(module, nn.Module) or not hasattr(module, "config"):
            raise ModelError(
                f"The nnsight model wraps a {type(module).__name__}, not a transformers model; wrap one in "
                "nnsight.TransformersModel."
            )
        return module

    def check(self) -> None:
        """Refuse stored edits."""
        if getattr(self.source, "_edits", None):
            raise ModelError(
                "This nnsight model carries stored edits (model.edit), which act in its traces only; call "
                "clear_edits() and state them as steerlab interventions."
            )
