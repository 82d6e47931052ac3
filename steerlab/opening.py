"""`steerlab.load`: a model by any name or as a live object. Beside the run, the only door that knows the zoo."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from steerlab.models import LanguageModel


def load(source: Any, tokenizer: Any = None, **options: Any) -> LanguageModel:
    """Load a model: a hub name, a local folder, `zoo:NAME` for a bundled one, or a live object.

    A bundled model keeps the name `zoo:NAME`, wherever the package lies.

    Args:
        source: what to load.
        tokenizer: a tokenizer, or the name or folder of one; a live transformers model needs it.
        options: those of `models.load_model`.

    Raises:
        ModelError: as `models.load_model` does, and for an unknown bundled model.
    """
    from inspect import signature

    from steerlab import zoo
    from steerlab.errors import ModelError
    from steerlab.models import load_model, loading

    known = [
        name
        for name, part in signature(loading.load_model).parameters.items()
        if part.kind is part.KEYWORD_ONLY
    ]
    if unknown := sorted(options.keys() - set(known)):
        raise ModelError(f"Loading has no option {', '.join(unknown)}; there are {', '.join(known)}.")
    if isinstance(source, str | Path) and str(source).startswith("zoo:"):
        return zoo.load_bundled(str(source).removeprefix("zoo:"), tokenizer=tokenizer, **options)
    return load_model(source, tokenizer, **options)
