"""What `LanguageModel` offers of this room, found by name, since models may not import what stands above them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from steerlab.errors import SteerlabError
from steerlab.registry import Registry

#: `model.watch` and `model.reread`.
MONITORS: Registry[Callable[..., Any]] = Registry(
    "monitor", package="steerlab.monitoring", error=SteerlabError
)
