"""A run is a folder: `manifest.json`, `results/<study>.json`, `directions/*.safetensors`, `report.html`, `figures/`;
of stages `readings/<number>.json`, too.

Every file is written to a temporary name and renamed, so a reader never meets half a file, and an
interrupted run can be taken up where it stopped: by a run that is made with the same, and by no other.
A run keeps its files in its own folder; no link in it is written through.
"""

from __future__ import annotations

import contextlib
import errno
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from steerlab.errors import RunError
from steerlab.files import is_partial, system_reason, whole, write_text
from steerlab.lock import LOCK

SCHEMA_VERSION = 1
_FOLDERS = ("results", "directions", "figures", "readings")
_NEEDED_BYTES = 64 * 2**20
#: Where killed runs leave temporary files.
_PARTIAL = (
    ".*.manifest.json",
    ".*.report.html",
    "results/.*.json",
    "readings/.*.json",
    "directions/.*.safetensors",
)
_FULL = {errno.ENOSPC, errno.EDQUOT}
#: What results depend on of each model, by its name in a sentence.
_OF_MODELS = {"model": "fingerprint", "dtype": "dtype", "interventions": "interventions"}
_NOT_NOTED = "not noted"


class Manifest(BaseModel):
    """Everything a run was made with; `made_with()` is the part that must agree for a run to be resumed."""

    model_config = ConfigDict(extra="forbid")

    schema_version: int = SCHEMA_VERSION
    status: Literal["running", "interrupted", "done"] = "running"
    created: str
    models: dict[str, dict[str, str | int | float | bool | None]]
    data: dict[str, dict[str, str | int]]
    configuration: dict[str, str | int | list[str]]
    versions: dict[str, str]
    hardware: dict[str, str | int]
    timings: dict[str, float] = Field(default_factory=dict)
    #: Tokens that went through each model in each study, and the seconds inside and outside of the models.
    costs: dict[str, dict[str, float]] = Field(default_factory=dict)
    #: MiB the process (and the GPU) had taken at most by the end of each study.
    peak_memory: dict[str, dict[str, float]] = Field(default_factory=dict)

    def made_with(self) -> dict[tuple[str, str], str]:
        """All that results depend on, by what it is and whose: two runs with the same give the same results."""
        facts = {
            (name, role): str(self.models[role].get(fact, _NOT_NOTED))
            for name, fact in _OF_MODELS.items()
            for role in self.models
        }
        device = {
            ("device", role): _kind(str(self.models[role].get("device", _NOT_NOTED))) for role in self.models
        }
        data = {("data", name): str(facts["hash"]) for name, facts in self.data.items()}
        asked = {(name, ""): _written(value) for name, value in self.configuration.items()}
        code = {(name, ""): self.versions.get(name, _NOT_NOTED) for name in ("steerlab", "steerlab code")}
        return facts | device | data | asked | code

    def differences(self, now: Manifest) -> list[tuple[str, str, str]]:
        """(what, here, there) for all in which another run's making differs; what holds of every model is said once."""
        here, there = self.made_with(), now.made_with()
        owners: dict[tuple[str, str, str], list[str]] = {}
        for what, whose in dict.fromkeys([*here, *there]):
            pair = here.get((what, whose), _NOT_NOTED), there.get((what, whose), _NOT_NOTED)
            if pair[0] != pair[1]:
                owners.setdefault((what, *pair), []).append(whose)
        return [
            (what if set(whose) in ({""}, set(now.models)) else f"{what} of {' and '.join(whose)}", was, is_)
            for (what, was, is_), whose in owners.items()
        ]


class RunFolder:
    """The files of one run below `path`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def report(self) -> Path:
        """Where the report is, or will be."""
        return self.path / "report.html"

    @classmethod
    def open(cls, path: str | Path) -> RunFolder:
        """An existing run. Raises `RunError` where there is none."""
        folder = cls(Path(path))
        if not (folder.path / "manifest.json").is_file():
            raise RunError(
                f"{path} is not a run folder: it has no manifest.json; name the --out of a comparison."
            )
        return folder

    @classmethod
    def prepare(
        cls, path: str | Path, manifest: Manifest, *, resume: bool = False, overwrite: bool = False
    ) -> RunFolder:
        """Make `path` ready for a run.

        An earlier run there is kept and continued with `resume`, replaced with `overwrite`, refused otherwise;
        temporary files that a killed run left there are removed.
        Raises `RunError` if the folder holds anything else, cannot be written, or lies on a full disk.
        """
        folder = cls(Path(path))
        if folder.require_free(resume=resume, overwrite=overwrite):
            if resume:
                folder._require_same(manifest)
                stored = folder.manifest()
                manifest.timings.update(stored.timings)
                manifest.costs.update(stored.costs)
                manifest.peak_memory.update(stored.peak_memory)
            else:
                folder._attempt(folder._clear)
        folder._attempt(lambda: folder.path.mkdir(parents=True, exist_ok=True))
        for name in _FOLDERS:
            folder._require_own(folder.path / name)
        for file in folder._left_over():
            folder._attempt(file.unlink)
        folder.write_manifest(manifest)
        return folder

    def require_free(self, *, resume: bool, overwrite: bool) -> bool:
        """Raise `RunError` where `prepare` would refuse whatever the manifest; say whether a run is there."""
        self._require_space()
        if not self._holds_something():
            return False
        if not (self.path / "manifest.json").is_file():
            raise RunError(f"{self.path} is not empty and is not a run folder; choose another --out.")
        if not (resume or overwrite):
            raise RunError(
                f"{self.path} already holds a run; go on with --resume, replace it with --overwrite, "
                "or choose another --out."
            )
        return True

    def manifest(self) -> Manifest:
        """The manifest as stored. Raises `RunError` if it cannot be read or is of a later format."""
        unreadable = (
            f"{self.path}/manifest.json cannot be read as a manifest of format {SCHEMA_VERSION}; "
            "the run was written by another version or is damaged: run it again with --overwrite."
        )
        try:
            stored = json.loads((self.path / "manifest.json").read_bytes())
        except (OSError, ValueError, RecursionError) as error:
            raise RunError(unreadable) from error
        form = stored.get("schema_version") if isinstance(stored, dict) else None
        if isinstance(form, int) and form > SCHEMA_VERSION:
            raise RunError(
                f"{self.path}/manifest.json is of format {form}, and this steerlab reads formats up to "
                f"{SCHEMA_VERSION}; read it with the steerlab that wrote it, or run it again with --overwrite."
            )
        try:
            return Manifest.model_validate(stored)
        except ValidationError as error:
            raise RunError(unreadable) from error

    def write_manifest(self, manifest: Manifest) -> None:
        """Store the manifest."""
        self._write("manifest.json", manifest.model_dump_json(indent=2))

    def has_result(self, study: str) -> bool:
        """Whether the study is finished."""
        return (self.path / "results" / f"{study}.json").is_file()

    def write_result(self, study: str, result: dict[str, Any]) -> None:
        """Store a finished study."""
        self._write(f"results/{study}.json", json.dumps(result, indent=1, allow_nan=False))

    def read_result(self, study: str) -> dict[str, Any]:
        """A finished study's record. Raises `RunError` where it is absent or damaged."""
        file = self.path / "results" / f"{study}.json"
        try:
            loaded: dict[str, Any] = json.loads(file.read_text("utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise RunError(
                f"{file} cannot be read ({system_reason(error)}); run the same comparison with --resume."
            ) from error
        if not isinstance(loaded, dict):
            raise RunError(f"{file} does not hold a result; run the same comparison with --resume.")
        return loaded

    def studies(self) -> list[str]:
        """Names of the finished studies."""
        files = (self.path / "results").glob("*.json")
        return sorted(file.stem for file in files if not is_partial(file))

    def write_with(self, name: str, write: Callable[[Path], object]) -> None:
        """Let `write` make a file at a temporary path, then move it to `name` below the folder.

        Raises:
            RunError: on a full or unwritable disk, or where a link leads out of the folder; nothing half-written stays.
        """

        def _replace() -> None:
            self._require_own((self.path / name).parent)
            with whole(self.path / name) as partial:
                write(partial)

        self._attempt(_replace)

    def discard_if_empty(self) -> None:
        """Remove the run's files where no study was finished and no stage read, and the folder if it is empty then."""
        if self.path.is_dir() and not self.studies() and not any((self.path / "readings").glob("*.json")):
            with contextlib.suppress(OSError):
                self._clear()
                self.path.rmdir()

    def _write(self, name: str, text: str) -> None:
        self.write_with(name, lambda path: write_text(path, text))

    def _holds_something(self) -> bool:
        try:
            left_over = [*self._left_over(), self.path / LOCK]
            return any(file not in left_over for file in self.path.iterdir())
        except FileNotFoundError:
            return False
        except NotADirectoryError as error:
            raise RunError(f"{self.path} is a file or lies below one; --out must name a folder.") from error
        except OSError as error:
            raise RunError(
                f"{self.path} cannot be opened ({error.strerror}); choose another --out."
            ) from error

    def _left_over(self) -> list[Path]:
        found = (file for pattern in _PARTIAL for file in self.path.glob(pattern))
        return [
            file
            for file in found
            if is_partial(file) and not (file.parent != self.path and file.parent.is_symlink())
        ]

    def _require_same(self, manifest: Manifest) -> None:
        if differences := self.manifest().differences(manifest):
            were = " and ".join(f"{what} {was}" for what, was, _ in differences)
            ours = " and ".join(
                f"{what} {now}" if len(differences) > 1 else now for what, _, now in differences
            )
            raise RunError(
                f"The run in {self.path} was made with {were}; this one has {ours}; replace it with --overwrite or "
                "choose another --out."
            )

    def _require_own(self, place: Path) -> None:
        """Raise `RunError` where a folder of the run is a link, behind which the files of others may lie."""
        for folder in (place, *place.parents):
            if folder == self.path:
                return
            if folder.is_symlink():
                raise RunError(
                    f"{folder} is a link, and a run keeps its files in its own folder; remove the link or choose "
                    "another --out."
                )

    def _require_space(self) -> None:
        existing = next(parent for parent in [self.path, *self.path.absolute().parents] if parent.exists())
        free = shutil.disk_usage(existing).free
        if free < _NEEDED_BYTES:
            raise RunError(
                f"The disk of {existing} has {free / 2**20:.0f} MB free and a run needs about "
                f"{_NEEDED_BYTES / 2**20:.0f} MB; free some space or choose another --out."
            )

    def _clear(self) -> None:
        for name in _FOLDERS:
            folder = self.path / name
            if folder.is_symlink() or folder.is_file():
                folder.unlink()  # what a link names is not the run's
            elif folder.exists():
                shutil.rmtree(folder)
        for name in ("report.html", "manifest.json"):
            (self.path / name).unlink(missing_ok=True)

    def _attempt(self, action: Callable[[], None]) -> None:
        try:
            action()
        except OSError as error:
            reason = "the disk is full" if error.errno in _FULL else (error.strerror or str(error))
            raise RunError(
                f"Nothing can be written to {self.path}: {reason}; choose another --out or free some space."
            ) from error


def _kind(device: str) -> str:
    """A device without its number: the second GPU gives what the first one gives."""
    return device.partition(":")[0]


def _written(value: str | int | list[str]) -> str:
    return ", ".join(value) if isinstance(value, list) else str(value)
