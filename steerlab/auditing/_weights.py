"""Two sets of weights tensor by tensor, in blocks of rows: from safetensors files, or from a model in memory."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from steerlab.errors import ModelError, kind_of, reason
from steerlab.models import LanguageModel
from steerlab.models.output_weights import StoredTensors
from steerlab.models.quantised import is_packed, unpacked
from steerlab.models.source import Source, is_adapter
from steerlab.models.weights import WRAPPED, named_state
from steerlab.models.wishes import Wishes

#: What files and models put before a name that is the same otherwise.
_ROOTS = re.compile(r"^(base_model\.model\.|_orig_mod\.)*(model\.|transformer\.|language_model\.)*")
#: What is no weight: rotary frequencies, and the causal masks of old checkpoints.
_NO_WEIGHT = re.compile(r"inv_freq$|\.attn(\.attention)?\.(masked_)?bias$")
_FLOATS = {
    "F64": torch.float64,
    "F32": torch.float32,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}
#: Dimensions from which a stack of matrices (experts) is one, and not a convolution's short kernel.
_MATRIX = 8


class Weights(Protocol):
    """One side of an audit: shapes and dtypes by bare name, and rows on demand."""

    name: str
    folder: Path | None
    shapes: dict[str, tuple[int, ...]]
    dtypes: dict[str, torch.dtype]

    @property
    def config(self) -> Any:
        """The model's configuration; None where there is none."""

    def rows(self, name: str, part: int | None, start: int, stop: int) -> Float[Tensor, "rows columns"]:
        """Some rows of a tensor in float32; `part` is a matrix of a stack."""


@dataclass
class FileWeights:
    """Weights in safetensors; a block of rows is in memory, and nothing else.

    A file is opened for one block at a time: what stays mapped would count as this process's memory.
    """

    stored: StoredTensors
    name: str
    folder: Path | None
    config: Any = None
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    dtypes: dict[str, torch.dtype] = field(default_factory=dict)
    _places: dict[str, tuple[Path, str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for file in sorted(set(self.stored.files.values())):
            keys = [key for key, place in self.stored.files.items() if place == file]
            path = self.stored.file(keys[0])
            try:
                with safe_open(str(path), framework="pt") as opened:
                    for key in keys:
                        self._note(path, key, opened.get_slice(key))
            except (OSError, SafetensorError) as error:
                raise ModelError(f"{path} is damaged ({reason(error)}); download it again.") from error

    def _note(self, path: Path, key: str, view: Any) -> None:
        dtype = view.get_dtype()
        if _NO_WEIGHT.search(key) or dtype in ("BOOL", "I64") or not view.get_shape():
            return
        if dtype not in _FLOATS or getattr(self.config, "quantization_config", None):
            raise ModelError(
                f"{self.name} holds {key} as packed numbers ({dtype}); load it with sl.load and give the model, whose "
                "weights are read as the numbers that they act as."
            )
        name = bare(key)
        self._places[name] = (path, key)
        self.shapes[name] = tuple(view.get_shape())
        self.dtypes[name] = _FLOATS[dtype]

    def rows(self, name: str, part: int | None, start: int, stop: int) -> Float[Tensor, "rows columns"]:
        """Some rows of a tensor in float32."""
        path, key = self._places[name]
        with safe_open(str(path), framework="pt") as opened:
            view = opened.get_slice(key)
            if len(self.shapes[name]) == 1:
                return as_rows(view[:].float(), None)
            block: Tensor = view[start:stop] if part is None else view[part, start:stop]
        return as_rows(block.float(), part)


@dataclass
class ModelWeights:
    """Weights of a model in memory, quantised ones as the numbers that they act as."""

    module: nn.Module
    name: str
    folder: Path | None = None
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    dtypes: dict[str, torch.dtype] = field(default_factory=dict)
    _tensors: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        packed = {
            f"{path}.weight": part for path, part in self.module.named_modules() if path and is_packed(part)
        }
        plain = {name: tensor for name, tensor in named_state(self.module) if name not in packed}
        for name, tensor in (plain | {name: unpacked(part) for name, part in packed.items()}).items():
            if tensor.is_floating_point() and tensor.dim() > 0 and not _NO_WEIGHT.search(name):
                self._tensors[bare(name)] = tensor.detach()
        self.shapes = {name: tuple(tensor.shape) for name, tensor in self._tensors.items()}
        self.dtypes = {name: tensor.dtype for name, tensor in self._tensors.items()}

    @property
    def config(self) -> Any:
        """The model's configuration."""
        return getattr(self.module, "config", None)

    def rows(self, name: str, part: int | None, start: int, stop: int) -> Float[Tensor, "rows columns"]:
        """Some rows of a tensor in float32, on the CPU."""
        tensor = self._tensors[name]
        if tensor.dim() == 1:
            return as_rows(tensor.float().cpu(), None)
        block = tensor[start:stop] if part is None else tensor[part, start:stop]
        return as_rows(block.float().cpu(), part)


def opened(given: Any, base: Any = None) -> Weights:
    """The weights of a folder, a hub name, an adapter, a GGUF file, a `LanguageModel` or a module.

    base: what an adapter is put on; by default what it names. An adapter and a GGUF file are read into memory whole.

    Raises:
        ModelError: there is nothing of this name, no weights, or weights that cannot be read tensor by tensor.
    """
    if isinstance(given, LanguageModel):
        return ModelWeights(given.model, given.name)
    if isinstance(given, nn.Module):
        return ModelWeights(given, getattr(getattr(given, "config", None), "name_or_path", "") or "the model")
    if not isinstance(given, str | Path):
        raise ModelError(f"An audit reads a folder, a hub name or a loaded model, and not {kind_of(given)}.")
    from steerlab.opening import load

    if str(given).startswith("zoo:"):
        return ModelWeights(load(given).model, str(given))
    source = Source(str(given), Wishes(dtype=torch.float32, base=base))
    if source.gguf is not None or is_adapter(str(given)):
        return ModelWeights(source.model(), source.name, source.folder)
    source.require_weights()
    config = _config(source)
    return FileWeights(StoredTensors(source.where, None), source.name, source.folder, config)


def as_model(weights: FileWeights) -> ModelWeights:
    """The same weights under the names that they have in a model; all of them in memory.

    Raises:
        ModelError: they are not those of a model that can be loaded.
    """
    source = Source(weights.name, Wishes(dtype=torch.float32))
    return ModelWeights(source.model(), weights.name, weights.folder)


def bare(name: str) -> str:
    """A tensor's name without what stands before the part that every form of a checkpoint shares."""
    return _ROOTS.sub("", name.replace(f".{WRAPPED}", ""))


def as_rows(block: Tensor, part: int | None) -> Float[Tensor, "rows columns"]:
    """A vector as one row, a convolution's kernel as a row a channel."""
    if block.dim() == 1 and part is None:
        return block[None]
    return block.reshape(block.shape[0], -1)


def matrices_of(shape: tuple[int, ...]) -> tuple[list[int | None], tuple[int, int]]:
    """The matrices that a tensor holds (None: it is one), and their rows and columns."""
    if len(shape) == 1:
        return [None], (1, shape[0])
    if len(shape) == 3 and min(shape[1:]) >= _MATRIX:
        return list(range(shape[0])), (shape[1], shape[2])
    return [None], (shape[0], int(torch.Size(shape[1:]).numel()))


# -- private --


def _config(source: Source) -> Any:
    """The configuration, which only names the parts: a folder without one is read all the same."""
    try:
        return source.config()
    except ModelError:
        if source.folder is None:  # nothing of this name can be fetched
            raise
        return None
