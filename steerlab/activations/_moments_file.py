"""The file of :class:`~steerlab.activations.moments.Moments`: safetensors with one JSON header."""

from __future__ import annotations

import json
from collections.abc import Hashable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from steerlab.errors import SteerlabError
from steerlab.files import SafetensorError, read_tensors, write_tensors

FORMAT, VERSION = "steerlab.moments", 1


def write(path: Path, header: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """Write the file, whole or not at all."""
    metadata = {"format": FORMAT, "version": str(VERSION), "header": json.dumps(header)}
    # safetensors has no empty file: a marker stands in when no row was seen
    write_tensors(path, tensors or {"empty": torch.zeros(1)}, metadata)


def read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Header and tensors.

    Raises:
        SteerlabError: when the file is missing, is not safetensors, or is of another kind or version.
    """
    try:
        metadata, tensors = read_tensors(path)
    except (OSError, SafetensorError) as error:
        raise SteerlabError(
            f"{path} cannot be read as a safetensors file ({error}); save the moments again."
        ) from error
    if (metadata.get("format"), metadata.get("version")) != (FORMAT, str(VERSION)):
        raise SteerlabError(f"{path} does not hold moments of format {FORMAT} {VERSION}; name another file.")
    return json.loads(metadata["header"]), tensors


def require_storable(labels: Iterable[Hashable]) -> None:
    """Raise `SteerlabError` for a label that JSON cannot hold."""
    for label in labels:
        if not isinstance(label, (str, int, float, bool, type(None))):
            raise SteerlabError(f"Label {label!r} cannot be saved; use strings, numbers or booleans.")
