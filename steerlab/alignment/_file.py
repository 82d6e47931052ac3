"""Reading and writing aligners and alignments: safetensors with one JSON header, never a pickle."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from steerlab.alignment._aligner import Aligner
from steerlab.alignment.registry import aligner_class
from steerlab.errors import AlignmentError, reason
from steerlab.files import SafetensorError, read_tensors, system_reason, write_tensors

ALIGNER, ALIGNMENT, VERSION = "steerlab.aligner", "steerlab.alignment", 1
_PARTS = ("mean_x_", "mean_y_", "left_", "core_", "right_")


def save_aligner(aligner: Aligner, path: Path) -> None:
    """One aligner, in float64."""
    write(path, ALIGNER, {"aligner": described(aligner)}, tensors(aligner, torch.float64))


def load_aligner(path: Path) -> Aligner:
    """The aligner of a file."""
    header, stored = read(path, ALIGNER)
    with damage_named(path):
        return rebuilt(header["aligner"], stored)


def described(aligner: Aligner) -> dict[str, Any]:
    """Class, options and rows of an aligner, as JSON."""
    options = {name: described_option(value) for name, value in aligner.get_params(deep=False).items()}
    return {"kind": type(aligner).__name__, "options": options, "rows": aligner.n_rows_}


def described_option(value: Any) -> Any:
    """An option as JSON; an aligner among the options by its class and options."""
    if isinstance(value, Aligner):
        options = {name: described_option(option) for name, option in value.get_params(deep=False).items()}
        return {"kind": type(value).__name__, "options": options}
    return list(value) if isinstance(value, tuple) else value


def tensors(aligner: Aligner, dtype: torch.dtype, prefix: str = "") -> dict[str, torch.Tensor]:
    """Means and factors by name."""
    return {
        f"{prefix}{name.rstrip('_')}": torch.from_numpy(np.ascontiguousarray(getattr(aligner, name))).to(
            dtype
        )
        for name in _PARTS
    }


def rebuilt(header: Mapping[str, Any], stored: Mapping[str, torch.Tensor]) -> Aligner:
    """The aligner that a header and its tensors describe; any error where they describe none."""
    aligner = _aligner_of(header)
    if stored.keys() != {name.rstrip("_") for name in _PARTS}:
        raise ValueError(f"there are {', '.join(sorted(stored)) or 'no factors'}")
    parts = {name: stored[name.rstrip("_")].double().numpy() for name in _PARTS}
    left, core, right = (parts[name] for name in ("left_", "core_", "right_"))
    if (left.shape, right.shape) != tuple(
        (*parts[mean].shape, rank) for mean, rank in zip(("mean_x_", "mean_y_"), core.shape, strict=True)
    ):
        raise ValueError("the factors have shapes that do not fit each other")
    for name, value in parts.items():
        setattr(aligner, name, value)
    aligner.n_rows_, aligner.n_features_in_ = int(header["rows"]), len(parts["mean_x_"])
    return aligner


@contextmanager
def damage_named(path: Path) -> Iterator[None]:
    """Whatever goes wrong while a file's parts are put together is a sentence that names the file.

    Raises:
        AlignmentError: in place of the error; one that is a sentence already passes.
    """
    try:
        yield
    except AlignmentError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise AlignmentError(
            f"{path} is damaged: its header and its factors do not describe an aligner ({reason(error)}); fit it again."
        ) from error


def write(path: Path, form: str, header: dict[str, Any], stored: dict[str, torch.Tensor]) -> None:
    """Write the file, whole or not at all."""
    metadata = {"format": form, "version": str(VERSION), "header": json.dumps(header)}
    try:
        write_tensors(path, stored, metadata)
    except (OSError, SafetensorError) as error:
        raise AlignmentError(
            f"{path} cannot be written: {system_reason(error)}; choose another place or free space."
        ) from error


def read(path: Path, form: str) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Header and tensors of a file of this form."""
    try:
        metadata, stored = read_tensors(path)
        if (metadata.get("format"), metadata.get("version")) != (form, str(VERSION)):
            raise AlignmentError(
                f"{path} is no file of {form}, version {VERSION}; name one that `save` wrote."
            )
        header = json.loads(metadata["header"])
    except AlignmentError:
        raise
    except (OSError, SafetensorError, KeyError, ValueError, RecursionError) as error:
        raise AlignmentError(
            f"{path} cannot be read as {form}: {system_reason(error)}; name a file that `save` wrote."
        ) from error
    if not isinstance(header, dict):
        raise AlignmentError(f"{path} is damaged: its header is no table; fit it again.")
    return header, stored


def _aligner_of(header: Mapping[str, Any]) -> Aligner:
    options = {
        name: _aligner_of(value)
        if isinstance(value, dict)
        else tuple(value)
        if isinstance(value, list)
        else value
        for name, value in header["options"].items()
    }
    return aligner_class(header["kind"])(**options)
