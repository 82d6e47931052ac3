"""The checkpoint a model was read from: its dtypes, its files, and what lies beside the weights.

A baked folder keeps them. transformers writes the weights in the dtype that is computed in and cuts them anew, so the
tensors are put into the checkpoint's files afterwards, one file at a time, each in the dtype that it had there. A
tensor that the checkpoint has not (a new bias, an untied unembedding) goes beside its neighbour.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from steerlab.errors import ModelError
from steerlab.models import LanguageModel
from steerlab.models.output_weights import TOKENIZER_FILES, StoredTensors

_INDEX = "model.safetensors.index.json"
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
}
_LICENCES = ("licen[sc]e*", "notice*", "copying*", "use_policy*", "copyright*")
_OF_TOKENIZER = (*TOKENIZER_FILES, "merges.txt", "special_tokens_map.json", "added_tokens.json")
_OF_PROCESSOR = ("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json")


@dataclass(frozen=True)
class StoredCheckpoint:
    """What a checkpoint's files say of its tensors.

    Attributes:
        where: its folder, or its name on the hub.
        revision: of the hub's.
        files: by tensor the file it lies in.
        dtypes: by tensor its dtype.
        main: the dtype of most of its numbers.
    """

    where: str
    revision: str | None
    files: Mapping[str, str]
    dtypes: Mapping[str, torch.dtype]
    main: torch.dtype

    @property
    def folder(self) -> Path | None:
        """Where its other files lie; those of the hub are fetched, if it can be reached."""
        if Path(self.where).is_dir():
            return Path(self.where)
        from huggingface_hub import snapshot_download

        wanted = ["README.md", *_ignoring_case(_LICENCES), *_OF_TOKENIZER, *_OF_PROCESSOR]
        try:
            return Path(snapshot_download(self.where, revision=self.revision, allow_patterns=wanted))
        except Exception:  # no network and nothing here: the weights are what counts
            return None

    def dtype_of(self, key: str) -> torch.dtype:
        """The dtype a tensor is stored in, of a new one its neighbour's."""
        return self.dtypes.get(self._neighbour(key) or "", self.main)

    def file_of(self, key: str) -> str:
        """The file a tensor is stored in, of a new one its neighbour's."""
        known = self._neighbour(key)
        return self.files[known] if known is not None else max(self.files.values())

    def _neighbour(self, key: str) -> str | None:
        if key in self.files:
            return key
        weight = f"{key.rpartition('.')[0]}.weight"
        return weight if weight in self.files else None


def stored_checkpoint(model: LanguageModel) -> StoredCheckpoint | None:
    """The safetensors that a model's weights were read from; None of one that was never stored so (made live, GGUF)."""
    where = str(getattr(model.model.config, "_name_or_path", "") or "")
    if not where or model.stored_as.startswith("GGUF"):
        return None
    revision = getattr(model.model.config, "_commit_hash", None)
    try:
        stored = StoredTensors(where, revision)
        dtypes: dict[str, torch.dtype] = {}
        sizes: Counter[torch.dtype] = Counter()
        for key in stored.files:
            with safe_open(str(stored.file(key)), framework="pt") as file:
                view = file.get_slice(key)
                if view.get_dtype() in _DTYPES:
                    dtypes[key] = _DTYPES[view.get_dtype()]
                    sizes[dtypes[key]] += torch.Size(view.get_shape()).numel()
    except (ModelError, OSError):  # nothing of that name is at hand any more
        return None
    if not sizes:
        return None
    return StoredCheckpoint(where, revision, stored.files, dtypes, sizes.most_common(1)[0][0])


def narrowed(given: torch.dtype, stored: torch.dtype) -> torch.dtype:
    """The stored dtype, where the one in memory holds all of its numbers; else the one in memory."""
    return stored if torch.promote_types(given, stored) == given else given


def rounded(module: Any, stored: StoredCheckpoint) -> None:
    """Round every weight to the dtype it is stored in, and keep it in the dtype that is computed in."""
    for name, tensor in module.state_dict(keep_vars=True).items():
        if tensor.is_floating_point():
            tensor.data = tensor.data.to(narrowed(tensor.dtype, stored.dtype_of(name))).to(tensor.dtype)


def arranged(folder: Path, module: Any, stored: StoredCheckpoint) -> None:
    """Put the weights that transformers wrote into the checkpoint's files and dtypes, with its index."""
    written = StoredTensors(str(folder), None)
    old = {folder / name for name in written.files.values()} | {folder / _INDEX}
    state = module.state_dict()
    # A tied weight that the checkpoint holds twice: transformers writes it once.
    again = {key: state[key] for key in stored.files if key not in written.files and key in state}
    by_file: dict[str, list[str]] = {}
    for key in sorted({*written.files, *again}):
        by_file.setdefault(stored.file_of(key), []).append(key)
    new: list[tuple[Path, str]] = []
    size = 0
    for number, (name, keys) in enumerate(sorted(by_file.items())):
        tensors: dict[str, Tensor] = {}
        for key in keys:
            tensor = again[key].cpu() if key in again else _read(written.file(key), key)
            dtype = (
                narrowed(tensor.dtype, stored.dtype_of(key)) if tensor.is_floating_point() else tensor.dtype
            )
            tensors[key] = tensor.to(dtype, copy=True).contiguous()
            size += tensors[key].nbytes
        new.append((folder / f".part-{number}", name))
        save_file(tensors, str(new[-1][0]), metadata={"format": "pt"})
    for path in old:
        path.unlink(missing_ok=True)
    for path, name in new:
        path.replace(folder / name)
    if set(stored.files.values()) != {"model.safetensors"}:
        places = {key: name for name, keys in by_file.items() for key in keys}
        index = {"metadata": {"total_size": size}, "weight_map": dict(sorted(places.items()))}
        (folder / _INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def copy_beside(stored: StoredCheckpoint, folder: Path, tokenizer: Any) -> list[str]:
    """Copy licences, and what the tokenizer and processor are made of, where the folder has none; names of licences."""
    source = stored.folder
    if source is None:
        return []
    licences = [path.name for path in source.iterdir() if path.is_file() and _is_licence(path)]
    own = getattr(tokenizer, "name_or_path", None) == stored.where
    for name in (*licences, *(_OF_TOKENIZER if own else ()), *_OF_PROCESSOR):
        if (source / name).is_file() and not (folder / name).exists():
            shutil.copyfile(source / name, folder / name)
    return sorted(licences)


def front_matter(stored: StoredCheckpoint) -> dict[str, Any]:
    """What the checkpoint's own card says of its licence and language."""
    from huggingface_hub import ModelCard

    source = stored.folder
    try:
        said = ModelCard.load(source / "README.md").data.to_dict() if source is not None else {}
    except Exception:  # no card, or one that is no YAML
        return {}
    return {
        name: said[name] for name in ("license", "license_name", "license_link", "language") if said.get(name)
    }


def readable(folder: Path) -> None:
    """Give every file the mode of a file that is simply opened (0644 under the usual umask)."""
    probe = folder / ".mode"
    probe.touch()
    mode = probe.stat().st_mode & 0o777
    probe.unlink()
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(mode)


def _read(path: Path, key: str) -> Tensor:
    with safe_open(str(path), framework="pt") as file:
        tensor: Tensor = file.get_tensor(key)
    return tensor


def _is_licence(path: Path) -> bool:
    return any(path.match(pattern) or Path(path.name.lower()).match(pattern) for pattern in _LICENCES)


def _ignoring_case(patterns: tuple[str, ...]) -> Iterator[str]:
    for pattern in patterns:
        yield from (pattern, pattern.capitalize(), pattern.upper())
