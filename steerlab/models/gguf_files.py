"""GGUF files as they lie about: one file, several in a folder, or one model in parts (`name-00001-of-00003.gguf`).

transformers reads one file, so parts are joined into one first, tensor by tensor.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from steerlab.errors import ModelError, reason

_PART = re.compile(r"(?P<name>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})$")


def gguf_in(place: Path) -> tuple[Path, ...]:
    """The GGUF file that a place is, or holds where it holds no other weights, with all its parts; () where none is.

    Raises:
        ModelError: several models lie there, or parts are missing.
    """
    if place.is_file():
        files = [place] if _is_gguf(place) else []
    else:
        plain = any(place.glob("*.safetensors")) or (place / "config.json").exists()
        files = [] if plain else sorted(file for file in place.iterdir() if _is_gguf(file))
    models = {_whole(file): file for file in reversed(files)}
    if len(models) > 1:
        named = ", ".join(sorted(file.name for file in models.values()))
        raise ModelError(f"{place} holds several GGUF models ({named}); name the one to load.")
    return _parts(*models.values()) if models else ()


def joined(parts: Iterable[Path], folder: Path) -> Path:
    """One GGUF file in `folder` with the settings of the first part and the tensors of all.

    Raises:
        ModelError: a part is damaged, tensors are missing, or nothing can be written.
    """
    from gguf import GGUFReader

    parts = list(parts)
    whole = folder / f"{_whole(parts[0])}.gguf"
    try:
        readers = [GGUFReader(part) for part in parts]
        _write(readers, whole)
    except (
        OSError,
        ValueError,
        IndexError,
        KeyError,
    ) as error:  # numpy and gguf on damaged files, a full disk
        raise ModelError(
            f"The {len(parts)} parts that {parts[0].name} begins cannot be joined ({reason(error)}); download them "
            "again, or free space for one copy."
        ) from error
    expected, found = _setting(readers[0], "split.tensors.count"), sum(len(each.tensors) for each in readers)
    if expected is not None and expected != found:
        raise ModelError(
            f"The parts that {parts[0].name} begins hold {found} tensors of {expected}; download them again."
        )
    return whole


def quantisation(file: Path) -> str:
    """The name of a GGUF file's quantisation: "Q4_K_M"."""
    from gguf import GGUFReader, LlamaFileType

    kind = _setting(GGUFReader(file), "general.file_type")
    if kind is None:
        return "of unknown type"
    return str(LlamaFileType(int(kind)).name).removeprefix("MOSTLY_").removeprefix("ALL_")


# -- private, in the order they are called --


def _is_gguf(file: Path) -> bool:
    return file.suffix.lower() == ".gguf"


def _whole(file: Path) -> str:
    """The name of the model that a file is, or is a part of."""
    part = _PART.match(file.stem)
    return f"{part['name']}-of-{part['count']}" if part else file.stem


def _parts(file: Path) -> tuple[Path, ...]:
    part = _PART.match(file.stem)
    if part is None:
        return (file,)
    count = int(part["count"])
    names = [f"{part['name']}-{number:05}-of-{count:05}{file.suffix}" for number in range(1, count + 1)]
    missing = [name for name in names if not (file.parent / name).is_file()]
    if missing:
        raise ModelError(
            f"{file.name} is one of {count} parts, and {', '.join(missing[:3])} {'is' if len(missing) == 1 else 'are'} "
            "not beside it; download what is missing."
        )
    return tuple(file.parent / name for name in names)


def _write(readers: list[Any], whole: Path) -> None:
    from gguf import GGUFValueType, GGUFWriter

    first = readers[0]
    writer: Any = GGUFWriter(whole, _setting(first, "general.architecture"), endianess=first.endianess)
    writer.data_alignment = first.alignment
    for name, field in first.fields.items():
        if name.startswith(("GGUF.", "split.")) or name == "general.architecture":
            continue
        kind = field.types[0]
        writer.add_key_value(
            name, field.contents(), kind, field.types[-1] if kind == GGUFValueType.ARRAY else None
        )
    tensors = [tensor for reader in readers for tensor in reader.tensors]
    for tensor in tensors:
        data = tensor.data
        writer.add_tensor_info(tensor.name, data.shape, data.dtype, data.nbytes, tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for tensor in tensors:
        writer.write_tensor_data(tensor.data, tensor_endianess=first.endianess)
    writer.close()


def _setting(reader: Any, name: str) -> Any:
    field = reader.get_field(name)
    return None if field is None else field.contents()
