"""How a checkpoint is to be loaded."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from steerlab.models.language_model import LanguageModel


@dataclass(frozen=True)
class Wishes:
    """How a checkpoint is to be loaded.

    dtype: "auto" is the checkpoint's own, or float32 where a small one runs on the CPU (`is_on_cpu`). unused: leave
    weights of the checkpoint aside that the model has no part for. merge: fold an adapter into the weights. base: of an
    adapter, in place of the one it names; the weights of a loaded one are shared. placing: what transformers is told
    beside (`device_map`, ...).
    """

    dtype: str | torch.dtype = "auto"
    is_on_cpu: bool = True
    revision: str | None = None
    trust_remote_code: bool = False
    unused: bool = False
    merge: bool = True
    base: str | Path | LanguageModel | None = None
    placing: dict[str, Any] = field(default_factory=dict)
