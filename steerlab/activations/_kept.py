"""A patch sweep that is kept on disk: the key of all that its values depend on, and its file.

The file's name is the beginning of the key, and the whole key is in it, with a line that people can read.
"""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from steerlab.activations.in_force import NONE, interventions_in_force
from steerlab.environment import code_version
from steerlab.errors import RunError, SteerlabError
from steerlab.files import system_reason, whole
from steerlab.models import LanguageModel


class UnnamedError(SteerlabError):
    """What a sweep depends on has no name that a later sweep could be held against."""


def model_key(model: LanguageModel) -> str:
    """A model as it computes now: fingerprint, dtype and kind of device.

    Raises:
        UnnamedError: hooks are in force.
    """
    in_force = interventions_in_force(model)
    if in_force != NONE:
        raise UnnamedError(
            f"{model.name} runs under interventions, by which no kept sweep could be known again, so nothing is kept; "
            "run the sweep outside of model.steering(...) to keep it."
        )
    return f"{model.fingerprint} {model.dtype} {model.device.type}"


@dataclass(frozen=True)
class KeptSweep:
    """The file of one sweep.

    Attributes:
        path: where it is, or will be.
        key: a hash of all that the values depend on.
        made_with: model and code, for people.
    """

    path: Path
    key: str
    made_with: str

    @classmethod
    def of(cls, folder: Path, model: LanguageModel, parts: Iterable[str]) -> KeptSweep:
        """The file in `folder` for a sweep of `model` that depends on `parts`, and on the code that computes.

        Raises:
            UnnamedError: hooks are in force.
        """
        made_with = f"{model_key(model)}, code {code_version()}"
        digest = hashlib.sha256(made_with.encode())
        for part in parts:
            digest.update(f"\0{part}".encode())
        key = digest.hexdigest()
        return cls(folder / f"{key[:16]}.npz", key, f"{model.name}: {made_with}")

    def read(self) -> tuple[NDArray[np.float64], NDArray[np.bool_]] | None:
        """Values [prompt, cell, ...] and which of them are finished [prompt, cell]; None where nothing is kept.

        Raises:
            RunError: the file cannot be read, or belongs to another sweep.
        """
        if not self.path.exists():
            return None
        try:
            with np.load(self.path, allow_pickle=False) as stored:
                key, values, done = str(stored["key"]), stored["values"], stored["done"]
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise RunError(
                f"{self.path} does not hold a sweep that can be gone on with ({system_reason(error)}); remove it."
            ) from error
        if key != self.key:
            raise RunError(
                f"{self.path} holds another sweep (other models, prompts or cells); name another folder."
            )
        return values, done

    def write(self, values: NDArray[Any], done: NDArray[np.bool_]) -> None:
        """Write the file, whole or not at all.

        Raises:
            RunError: nothing can be written there.
        """
        key, made_with = np.array(self.key), np.array(self.made_with)
        try:
            with whole(self.path) as partial, partial.open("wb") as file:
                np.savez(file, key=key, made_with=made_with, values=values, done=done)
        except OSError as error:
            raise RunError(
                f"The sweep cannot be kept in {self.path}: {system_reason(error)}; choose another folder or free space."
            ) from error
