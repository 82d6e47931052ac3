"""Directions on the Hugging Face hub, named "owner/name:file.safetensors"."""

from __future__ import annotations

import re
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from steerlab.errors import DirectionError, reason

if TYPE_CHECKING:
    from steerlab.directions.direction import Direction

_NAME = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+):(?P<file>[\w./-]+\.safetensors)")


def fetched(path: str | Path) -> Path:
    """The file itself, or the hub's file of that name in the hub's cache.

    Raises:
        DirectionError: the hub does not give it.
    """
    named = _NAME.fullmatch(str(path))
    if named is None or Path(path).exists():
        return Path(path)
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(named["repo"], named["file"]))
    except Exception as error:  # which ones depends on the client's release and transport
        raise DirectionError(
            f"{path} cannot be fetched from the hub: {reason(error)}; check owner/name:file and whether you are logged "
            "in."
        ) from error


def pushed(direction: Direction, repo: str, file: str, *, private: bool) -> str:
    """Put a direction into a model repository of the hub, made where there is none; the name under which it loads.

    Raises:
        DirectionError: a name that is no repository's, or the hub refuses.
    """
    name = f"{repo}:{file}"
    if _NAME.fullmatch(name) is None:
        raise DirectionError(
            f"{name!r} names no file of the hub; write push('owner/name', file='mood.safetensors')."
        )
    from huggingface_hub import create_repo, upload_file

    try:
        with TemporaryDirectory() as folder:
            written = Path(folder) / "direction.safetensors"
            direction.save(written)
            create_repo(repo, private=private, exist_ok=True)
            upload_file(
                path_or_fileobj=written,
                path_in_repo=file,
                repo_id=repo,
                commit_message=f"Add the direction {file}",
            )
    except Exception as error:  # which ones depends on the client's release and transport
        raise DirectionError(
            f"{name} cannot be put on the hub: {reason(error)}; log in with `hf auth login`."
        ) from error
    return name
