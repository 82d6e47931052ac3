"""A plain transformers model."""

from __future__ import annotations

from typing import Any

from steerlab.errors import ModelError
from steerlab.models import weights
from steerlab.models.backends.registry import register_backend


@register_backend
class Transformers:
    """A transformers model run by itself, and what every engine around one shares.

    Attributes:
        name: the backend's name in `load`.
        source: the live object the user has: the transformers model, the bridge, the nnsight model.
        module: the transformers model underneath, whose own modules are hooked.
        tokenizer: the engine's tokenizer, `None` when it has none.
    """

    name = "transformers"

    def __init__(self, source: Any) -> None:
        self.source = source
        self.module = self.module_of(source)
        self.tokenizer: Any = getattr(source, "tokenizer", None)

    @classmethod
    def wraps(cls, source: Any) -> bool:
        """Whether `source` is this engine's live object."""
        return True

    @classmethod
    def around(cls, module: Any, tokenizer: Any, *, name: str) -> Transformers:
        """The engine around a loaded transformers model."""
        return cls(module)

    def module_of(self, source: Any) -> Any:
        """The transformers model in `source`.

        Raises:
            ModelError: it is another engine's live object, or there is no transformers model in it.
        """
        if not hasattr(source, "config") or not hasattr(source, "named_modules"):
            raise ModelError(
                f"A {type(source).__name__} is neither a name, a folder, a transformers model, a TransformerBridge nor "
                "an nnsight model."
            )
        if any(name.endswith(weights.WRAPPED) for name, _ in source.named_modules()):
            raise ModelError(
                f"The modules of this {type(source).__name__} are wrapped by a TransformerBridge; load the bridge."
            )
        return source

    def check(self) -> None:
        """Before every run: raise `ModelError` when the engine no longer computes what was loaded."""

    def fingerprint(self) -> str:
        """See `LanguageModel.fingerprint`."""
        return weights.fingerprint(self.module.config, weights.named_state(self.module))
