"""Files that appear whole or not at all, and safetensors files with metadata.

Everything is written under a temporary name in the same folder and renamed when complete, so a reader never meets half
a file. The name is drawn at random and the file made anew, so no link that somebody put there is followed. Callers turn
what is raised here (`OSError`, `SafetensorError`) into sentences of their own.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError, safe_open

from steerlab.errors import ModelError, reason

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "SafetensorError",
    "is_partial",
    "model_place",
    "read_tensors",
    "require_holds",
    "require_regular",
    "system_reason",
    "whole",
    "write_tensors",
    "write_text",
]


#: Names of temporary files; releases before wrote the process's number alone.
_PARTIAL = re.compile(r"\.(\d+|steerlab-[0-9a-f]{16})\..")
_NO_LINK = getattr(os, "O_NOFOLLOW", 0)  # Windows has none


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A new, empty file that becomes `path` when the context ends well and is removed when it does not.

    It has the ending of `path`, since writers read the format from it. Missing folders are made. A link at `path` is
    replaced, and what it names stays as it is.
    """
    partial = path.with_name(f".steerlab-{secrets.token_hex(8)}.{path.name}")
    path.parent.mkdir(parents=True, exist_ok=True)
    os.close(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _NO_LINK, 0o666))
    try:
        yield partial
        os.replace(partial, path)
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()


def is_partial(path: Path) -> bool:
    """Whether `path` is a temporary one of `whole`; a process that was killed leaves it behind."""
    return _PARTIAL.match(path.name) is not None


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 to `path` and to the disk; what UTF-8 cannot hold (lone surrogates) becomes "?"."""
    with path.open("w", encoding="utf-8", errors="replace") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    """Write one safetensors file, whole or not at all."""
    from safetensors.torch import save_file

    with whole(path) as partial:
        save_file(
            {name: tensor.contiguous() for name, tensor in tensors.items()}, str(partial), metadata=metadata
        )


def require_regular(path: Path) -> None:
    """Raise `OSError` for what ends never or only when somebody else writes: a device, a pipe, a socket."""
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise OSError(errno.EINVAL, "it is a device or a pipe and no file")


def read_tensors(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Metadata and tensors of a safetensors file."""
    require_regular(path)
    with safe_open(str(path), framework="pt") as file:
        tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return file.metadata() or {}, tensors


def system_reason(error: Exception) -> str:
    """What the system says about a failed read or write: one line without its codes and full stop."""
    system_text: str | None = getattr(error, "strerror", None)
    return system_text.rstrip(".") if system_text else reason(error)


def model_place(name: str) -> Path | None:
    """The folder or file of this machine that a model's name stands for; None for a name of the hub.

    Raises:
        ModelError: the name looks like a path, and nothing is there.
    """
    place = Path(name).expanduser()
    if place.exists():
        return place
    if name.startswith((".", "/", "~")) or name.count("/") > 1 or not name:
        raise ModelError(
            f"There is no folder {name!r}; check the path or give a hub name like 'owner/model'."
        )
    return None


def require_holds(folder: Path, *patterns: str) -> None:
    """Raise `ModelError` where a folder holds no file of these patterns, the configuration's name first."""
    if not any(True for pattern in patterns for _ in folder.glob(pattern)):
        raise ModelError(
            f"Folder {folder} has no {patterns[0]}, so it is not a model folder; check the path."
        )
