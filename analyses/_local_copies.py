"""Local copies of hub models and public data, named by STEERLAB_REAL_MODELS and STEERLAB_DATA."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

WEIGHTS = "model.safetensors"


def model_folder(name: str, sha256: str) -> Path:
    """The folder of a hub model: STEERLAB_REAL_MODELS / the last part of its name in small letters.

    Ends the script with a sentence where it is absent or its weights are others.
    """
    root = os.environ.get("STEERLAB_REAL_MODELS")
    folder = Path(root or "") / name.rpartition("/")[2].lower()
    _require(root, folder / WEIGHTS, "STEERLAB_REAL_MODELS", name, WEIGHTS, sha256)
    return folder


def data_file(repository: str, place: str, file: str, sha256: str) -> Path:
    """A file of a public data set: STEERLAB_DATA / `place` / `file`; `repository` says where it comes from."""
    root = os.environ.get("STEERLAB_DATA")
    path = Path(root or "") / place / file
    _require(root, path, "STEERLAB_DATA", repository, file, sha256)
    return path


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def data_files(table: Mapping[str, object]) -> dict[str, Path]:
    """Every file of a `[data]` table of `repository`, `folder` and `[data.files]` (name = SHA-256), by its stem."""
    repository, place, files = str(table["repository"]), str(table["folder"]), table["files"]
    assert isinstance(files, Mapping)
    return {Path(name).stem: data_file(repository, place, name, sha256) for name, sha256 in files.items()}


def _require(root: str | None, path: Path, variable: str, source: str, file: str, sha256: str) -> None:
    wanted = f"{file} of {source} (SHA-256 {sha256})"
    if root is None or not path.is_file():
        where = f"not at {path}" if root else "not named"
        raise SystemExit(
            f"This analysis reads {wanted}; a local copy is {where}: set {variable} to its folder."
        )
    if (found := digest(path)) != sha256:
        raise SystemExit(f"{path} has SHA-256 {found}; this analysis reads {wanted}.")
