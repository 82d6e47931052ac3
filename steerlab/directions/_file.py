"""Reading and writing direction files: safetensors with one JSON header, never a pickle."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pydantic import ValidationError
from torch import Tensor

from steerlab.directions import _stored
from steerlab.directions._header import FORMAT, VERSION, Header
from steerlab.errors import DirectionError, SteerlabError, reason
from steerlab.files import SafetensorError, read_tensors, require_regular, system_reason, write_tensors
from steerlab.models import Site

_PICKLE_STARTS = (b"PK\x03\x04", b"\x80")


def write(path: Path, tensors: dict[str, Tensor], header: Header) -> None:
    """Write the file, whole or not at all."""
    try:
        write_tensors(path, tensors, {"format": FORMAT, "header": header.model_dump_json()})
    except (OSError, SafetensorError) as error:
        raise DirectionError(
            f"The direction cannot be written to {path}: {system_reason(error)}; choose another place or free space."
        ) from error


def read(path: Path) -> tuple[Header, dict[str, Tensor]]:
    """The checked header and the vectors of a file."""
    _refuse_pickle(path)
    try:
        metadata, tensors = read_tensors(path)
    except (OSError, SafetensorError) as error:
        raise DirectionError(
            f"{path} cannot be read as a safetensors file: {system_reason(error)}; make the direction again."
        ) from error
    if metadata.get("format") != FORMAT:
        raise DirectionError(
            f"{path} is not a direction file: its header does not name {FORMAT}; name a file that Direction.save wrote."
        )
    header = _parse(path, metadata.get("header", ""))
    held = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if _stored.shapes(header) != {name: _comparable(name, shape) for name, shape in held.items()}:
        raise DirectionError(
            f"{path} is damaged: its header and its vectors disagree about sites or shapes; make the direction again."
        )
    with damage_named(path):
        sites = [Site.parse(name) for name in tensors if _stored.is_vectors(name)]
        if len(set(sites)) != len(sites):
            raise DirectionError("One of its sites is there under two names.")
        if strange := [name for name in header.accuracy if Site.parse(name) not in sites]:
            raise DirectionError(f"An accuracy is known at {strange[0]}, where there is no vector.")
    return header, tensors


def _comparable(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Mean states lie where they were read, so their width is not the vectors'."""
    return (*shape[:-1], 0) if _stored.is_means(name) else shape


@contextmanager
def damage_named(path: str | Path) -> Iterator[None]:
    """Errors about what a file holds name the file."""
    try:
        yield
    except SteerlabError as error:
        raise DirectionError(f"{path} is damaged: {reason(error)}; make the direction again.") from error


def _refuse_pickle(path: Path) -> None:
    try:
        require_regular(path)
        with path.open("rb") as file:
            start = file.read(9)
    except OSError as error:
        raise DirectionError(f"{path} cannot be opened: {system_reason(error)}; check the path.") from error
    # A safetensors file begins with its header's length, whose first bytes may be a pickle's; then comes the header.
    if start.startswith(_PICKLE_STARTS) and not start.endswith(b"{"):
        raise DirectionError(f"{path} is a pickle and is not opened; save directions with Direction.save.")


def _parse(path: Path, text: str) -> Header:
    try:
        return Header.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the whole"
        if where == "version":
            raise DirectionError(
                f"{path} is of version {first['input']!r}, but this library reads versions 1 to {VERSION}; "
                "make the direction again or use the library that wrote it."
            ) from error
        raise DirectionError(
            f"{path} has a header that does not hold: {where}: {first['msg']}; make the direction again."
        ) from error
