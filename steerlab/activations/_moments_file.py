"""The file of :class:`~steerlab.activations.moments.Moments`: safetensors with one JSON header.

Header and tensors are held against each other as they are read: what a header announces is there, and nothing else.
"""

from __future__ import annotations

import json
from collections.abc import Hashable, Iterable
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

import torch
from pydantic import AfterValidator, ConfigDict, Field, ValidationError
from torch import Tensor

from steerlab.errors import SiteError, SteerlabError
from steerlab.files import SafetensorError, read_tensors, system_reason, write_tensors
from steerlab.models import Site
from steerlab.record import Record

FORMAT, VERSION = "steerlab.moments", 1
_EMPTY: dict[str, tuple[int, ...]] = {
    "empty": (1,)
}  # safetensors has no empty file: a marker stands in when no row was seen


def _written_site(text: str) -> str:
    try:
        Site.parse(text)
    except SiteError as error:
        raise ValueError(str(error)) from error
    return text


_Label: TypeAlias = str | bool | int | float | None
_SiteText: TypeAlias = Annotated[str, AfterValidator(_written_site)]
_Width: TypeAlias = Annotated[int, Field(gt=0)]
_Count: TypeAlias = Annotated[int, Field(ge=0)]


class _Header(Record):
    """What is written beside the tensors. Files of before these fields have no classes of their own, rule or hash."""

    model_config = ConfigDict(strict=True)

    order: Literal["mean", "scatter", "cross"]
    sites: tuple[tuple[_SiteText, _Width], ...]
    scatter_sites: tuple[_SiteText, ...] | None
    pairs: tuple[tuple[_SiteText, _SiteText], ...]
    second_classes: tuple[_Label, ...] | None = None
    classes: tuple[tuple[_Label, _Count], ...]
    model_name: str | None
    fingerprint: str | None
    positions: str = ""
    prompts_hash: Annotated[str, Field(pattern="^[0-9a-f]*$")] = ""

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Every tensor that the file has to hold, by name."""
        widths = dict(self.sites)
        second = set(self.scatter_sites or ()) if self.scatter_sites is not None else set(widths)
        if self.order == "cross" and self.scatter_sites is None:
            second = {site for pair in self.pairs for site in pair}
        found: dict[str, tuple[int, ...]] = {}
        for number, (label, _) in enumerate(self.classes):
            found |= {f"{number}/mean/{site}": (width,) for site, width in widths.items()}
            found |= {f"{number}/norm/{site}": () for site in widths}
            if self.order != "mean" and (self.second_classes is None or label in self.second_classes):
                found |= {f"{number}/scatter/{site}": (widths[site], widths[site]) for site in second}
                found |= {f"{number}/cross/{a}/{b}": (widths[a], widths[b]) for a, b in self.pairs}
        return found or _EMPTY


def write(path: Path, header: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """Write the file, whole or not at all.

    Raises:
        SteerlabError: nothing can be written there.
    """
    metadata = {"format": FORMAT, "version": str(VERSION), "header": json.dumps(header)}
    stored = tensors or {name: torch.zeros(shape) for name, shape in _EMPTY.items()}
    try:
        write_tensors(path, stored, metadata)
    except (OSError, SafetensorError) as error:
        raise SteerlabError(
            f"The moments cannot be written to {path}: {system_reason(error)}; choose another place or free space."
        ) from error


def read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Header and tensors, which hold together.

    Raises:
        SteerlabError: when the file is missing, is not safetensors, is of another kind or version, or is damaged.
    """
    try:
        metadata, tensors = read_tensors(path)
    except (OSError, SafetensorError) as error:
        raise SteerlabError(
            f"{path} cannot be read as a safetensors file ({system_reason(error)}); save the moments again."
        ) from error
    if (metadata.get("format"), metadata.get("version")) != (FORMAT, str(VERSION)):
        raise SteerlabError(f"{path} does not hold moments of format {FORMAT} {VERSION}; name another file.")
    header = _checked(path, metadata.get("header", ""))
    wanted = header.shapes()
    for name in sorted({*wanted, *tensors}):
        found = tuple(tensors[name].shape) if name in tensors else None
        if found != wanted.get(name) or (wanted is not _EMPTY and tensors[name].dtype != torch.float64):
            raise _damaged(path, f"header and tensors disagree about {name}")
    return header.model_dump(), tensors


def require_storable(labels: Iterable[Hashable]) -> None:
    """Raise `SteerlabError` for a label that JSON cannot hold."""
    for label in labels:
        if not isinstance(label, (str, int, float, bool, type(None))):
            raise SteerlabError(f"Label {label!r} cannot be saved; use strings, numbers or booleans.")


def _checked(path: Path, text: str) -> _Header:
    """The header, each of whose parts is as it should be and names what is there."""
    try:
        header = _Header.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the whole"
        raise _damaged(path, f"its header does not hold: {where}: {first['msg']}") from error
    sites, labels = [site for site, _ in header.sites], [label for label, _ in header.classes]
    for what, several in (("sites", list(map(Site.parse, sites))), ("classes", labels)):
        if len(set(several)) != len(several):
            raise _damaged(path, f"its header names one of the {what} twice")
    named = {*(header.scatter_sites or ()), *(site for pair in header.pairs for site in pair)}
    if sites and (strange := sorted(named - set(sites))):
        raise _damaged(path, f"its header asks for second moments at {strange[0]}, which it does not hold")
    if labels and not sites:
        raise _damaged(path, "its header has classes and no sites")
    return header


def _damaged(path: Path, what: str) -> SteerlabError:
    return SteerlabError(f"{path} is damaged: {what}; save the moments again.")
