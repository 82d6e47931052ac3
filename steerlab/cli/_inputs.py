"""What commands are given, held against what is there before a model is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from steerlab.cli._app import loading_libraries, say
from steerlab.errors import RunError

if TYPE_CHECKING:
    from steerlab.models import LanguageModel


def load_model(
    model: str, device: str, dtype: str, trust_remote_code: bool, base: str | None = None
) -> LanguageModel:
    """A model by its name; a name that nothing here has is refused before the libraries are imported."""
    from steerlab.opening import load, require_findable

    require_findable(model, base)
    with loading_libraries():
        import steerlab.models  # noqa: F401  (seconds, once)
    say(f"Loading {model}")
    return load(model, device=device, dtype=dtype, trust_remote_code=trust_remote_code, base=base)


def require_files(*files: Path | None) -> None:
    """Raise `RunError` for a file or folder of the user's own that is not there; None passes."""
    for file in files:
        if file is not None and not file.exists():
            raise RunError(f"{file} cannot be read: there is no such file; check the path.")


def require_room(folder: Path, file: str, *, overwrite: bool) -> None:
    """Raise `RunError` where --out is a file, or a folder in which `file` stands already, without --overwrite."""
    if folder.is_file():
        raise RunError(f"{folder} is a file; name a folder with --out.")
    if (folder / file).exists() and not overwrite:
        raise RunError(
            f"{folder / file} exists already; replace it with --overwrite, or choose another --out."
        )


def require_free(path: Path, *, overwrite: bool) -> None:
    """Raise `RunError` where --out names a folder that holds something, or a file without --overwrite."""
    if path.is_dir() and any(path.iterdir()):
        raise RunError(f"{path} is a folder that holds something; choose another --out, or empty it.")
    if path.is_file() and not overwrite:
        raise RunError(f"{path} exists already; replace it with --overwrite, or choose another --out.")
