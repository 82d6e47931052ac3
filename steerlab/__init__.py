"""steerlab: what post-training changed inside a language model, and how to steer one at inference.

Names are imported when first used, so that `import steerlab` and `steerlab --help` do not wait for torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from steerlab import (
        alignment,
        datasets,
        directions,
        neurons,
        plots,
        readouts,
        report,
        selection,
        statistics,
        steering,
        studies,
        zoo,
    )
    from steerlab.activations import Activations, Moments, capture
    from steerlab.comparison import compare
    from steerlab.directions import Direction
    from steerlab.models import (
        AfterInstruction,
        All,
        FirstGenerated,
        Generated,
        Index,
        LanguageModel,
        Last,
        Prompt,
        Site,
        Span,
        WholePrompt,
        Window,
    )
    from steerlab.opening import load

_ROOMS = (
    "alignment",
    "datasets",
    "directions",
    "neurons",
    "plots",
    "readouts",
    "report",
    "selection",
    "statistics",
    "steering",
    "studies",
    "zoo",
)
_NAMES = {
    "load": "opening",
    "LanguageModel": "models",
    "Site": "models",
    "Prompt": "models",
    "Last": "models",
    "Index": "models",
    "All": "models",
    "AfterInstruction": "models",
    "Span": "models",
    "Generated": "models",
    "FirstGenerated": "models",
    "WholePrompt": "models",
    "Window": "models",
    "capture": "activations",
    "Activations": "activations",
    "Moments": "activations",
    "Direction": "directions",
    "compare": "comparison",
}

__all__ = [
    "Activations",
    "AfterInstruction",
    "All",
    "Direction",
    "FirstGenerated",
    "Generated",
    "Index",
    "LanguageModel",
    "Last",
    "Moments",
    "Prompt",
    "Site",
    "Span",
    "WholePrompt",
    "Window",
    "alignment",
    "capture",
    "compare",
    "datasets",
    "directions",
    "load",
    "neurons",
    "plots",
    "readouts",
    "report",
    "selection",
    "statistics",
    "steering",
    "studies",
    "zoo",
]


def __getattr__(name: str) -> object:
    if name in _NAMES:
        value = getattr(import_module(f"steerlab.{_NAMES[name]}"), name)
    elif name in _ROOMS:
        value = import_module(f"steerlab.{name}")
    else:
        raise AttributeError(f"steerlab has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
