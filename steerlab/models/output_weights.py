"""The three tensors that say what a model's last neurons do, read from a checkpoint without loading the rest of it.

The last down projection, the final norm's gain and the unembedding are found by name in a skeleton without
weights, and only their entries are read from the safetensors files (a hub checkpoint's index names the shards;
only those are fetched). The unembedding is read in slices, so a checkpoint of any size needs no more memory than
its last down projection and a slice.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from steerlab.errors import ModelError, reason
from steerlab.models.adapters import auto_class
from steerlab.models.anatomy import Anatomy
from steerlab.models.weights import down_matrix, norm_gain, takes_mean_off, through_post_norm

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "tokenizer_config.json")
#: Names of unembeddings in files whose module transformers calls otherwise.
_HEADS = ("lm_head", "embed_out", "output")
_INDEX, _SINGLE = "model.safetensors.index.json", "model.safetensors"


@dataclass(frozen=True)
class SlicedRows:
    """Rows of a stored matrix, read when they are asked for by a slice."""

    file: Path
    key: str
    shape: tuple[int, int]

    def __getitem__(self, rows: slice) -> Float[Tensor, "row width"]:
        with safe_open(str(self.file), framework="pt") as file:
            part: Tensor = file.get_slice(self.key)[rows.start : rows.stop]
        return part

    def __len__(self) -> int:
        return self.shape[0]


@dataclass(frozen=True)
class OutputWeights:
    """Of one checkpoint: w_out [d_mlp, d_model] of the last layer as it enters the stream (times the gain of a norm
    behind the MLP), the final norm's gain, whether that norm takes
    the mean off, and the unembedding's rows of real tokens. d_mlp, n_layers: of the model."""

    name: str
    n_layers: int
    w_out: Float[Tensor, "d_mlp d_model"]
    gain: Float[Tensor, " d_model"]
    centred: bool
    unembedding: SlicedRows | Float[Tensor, "vocab d_model"]

    @property
    def layer(self) -> int:
        """The last layer."""
        return self.n_layers - 1


def read_output_weights(name_or_path: str | Path, *, revision: str | None = None) -> OutputWeights:
    """Read a local folder or a hub checkpoint in safetensors.

    Raises:
        ModelError: no configuration or safetensors, a family without a final norm, or tensors that are not there.
        SiteError: the last layer is a mixture of experts: it has no single down projection a token.
    """
    from transformers import AutoConfig

    where = str(name_or_path)
    try:
        config = AutoConfig.from_pretrained(where, revision=revision)
        with torch.device("meta"):
            skeleton = auto_class(config).from_config(config)
    except (OSError, ValueError) as error:
        raise ModelError(
            f"{where} has no configuration of a causal language model: {reason(error)}."
        ) from error
    anatomy = Anatomy(skeleton)
    n_layers = len(anatomy.blocks)
    if anatomy.ln_final is None:
        raise ModelError(f"{where} has no final norm, and entropy neurons act through the final norm.")
    stored = StoredTensors(where, revision)
    stored.find_stack(anatomy.names.embed)
    names = {id(module): name for name, module in skeleton.named_modules()}
    down = anatomy.down_projection(n_layers - 1)
    width = int(anatomy.config.hidden_size)
    _fill(down, names[id(down)], stored)
    _fill(anatomy.ln_final, names[id(anatomy.ln_final)], stored)
    post_norm = anatomy.mlp_post_norm(n_layers - 1)
    if post_norm is not None:
        _fill(post_norm, names[id(post_norm)], stored)
    return OutputWeights(
        name=where,
        n_layers=n_layers,
        w_out=through_post_norm(down_matrix(down).float(), post_norm),
        gain=norm_gain(anatomy.ln_final, width, torch.device("cpu"), torch.float32),
        centred=takes_mean_off(anatomy.ln_final, width, torch.device("cpu"), torch.float32),
        unembedding=_unembedding(anatomy, names, stored, _real_tokens(where, revision, anatomy.config)),
    )


# -- private, in the order they are called --


class StoredTensors:
    """Where each tensor of a checkpoint lies."""

    def __init__(self, where: str, revision: str | None) -> None:
        self.where, self.revision = where, revision
        self.stack = ("", "")
        self.folder = Path(where) if Path(where).is_dir() else None
        index = self._file(_INDEX)
        if index is not None:
            self.files: dict[str, str] = json.loads(index.read_text("utf-8"))["weight_map"]
            return
        single = self._file(_SINGLE)
        if single is None:
            raise ModelError(f"{where} holds no safetensors; only those can be read tensor by tensor.")
        try:
            with safe_open(str(single), framework="pt") as file:
                self.files = dict.fromkeys(file.keys(), _SINGLE)
        except (OSError, SafetensorError) as error:
            raise ModelError(f"{single} is damaged: {reason(error)}.") from error

    def key(self, name: str) -> str | None:
        """The stored name of a parameter; checkpoints of a base model lack the prefix, or have another one."""
        moved = name.replace(*self.stack, 1) if name.startswith(self.stack[0]) else name
        if name in self.files or moved in self.files:
            return name if name in self.files else moved
        ends = [key for key in self.files if name.endswith(f".{key}") or key.endswith(f".{name}")]
        return ends[0] if len(ends) == 1 else None

    def find_stack(self, embed: str) -> None:
        """Learn from the embedding where the files put what holds it: multimodal ones have names of their own."""
        parent, _, leaf = embed.rpartition(".")
        ends = [key for key in self.files if key.endswith(f".{leaf}.weight")]
        if parent and len(ends) == 1:
            self.stack = (f"{parent}.", ends[0].removesuffix(f"{leaf}.weight"))

    def file(self, key: str) -> Path:
        """The file of a tensor, fetched where it is not here."""
        path = self._file(self.files[key])
        if path is None:
            raise ModelError(f"{self.where} lacks {self.files[key]}, which its index names; fetch it again.")
        return path

    def _file(self, name: str) -> Path | None:
        if self.folder is not None:
            return self.folder / name if (self.folder / name).is_file() else None
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError

        try:
            return Path(hf_hub_download(self.where, name, revision=self.revision))
        except EntryNotFoundError:
            return None
        except Exception as error:  # no network, no access, no such repository: the hub's own words
            raise ModelError(f"{self.where} cannot be fetched: {reason(error)}.") from error


def _fill(module: nn.Module, name: str, stored: StoredTensors) -> None:
    """Give a part of the skeleton its stored weights, in float32."""
    module.to_empty(device="cpu")
    for part, _ in list(module.named_parameters()):
        key = stored.key(f"{name}.{part}")
        if key is None:
            raise ModelError(f"{stored.where} holds no tensor for {name}.{part}.")
        with safe_open(str(stored.file(key)), framework="pt") as file:
            owner, _, leaf = part.rpartition(".")
            setattr(
                module.get_submodule(owner),
                leaf,
                nn.Parameter(file.get_tensor(key).float(), requires_grad=False),
            )


def _unembedding(anatomy: Anatomy, names: dict[int, str], stored: StoredTensors, real: int) -> SlicedRows:
    wanted: tuple[str, ...] = (names[id(anatomy.head)], *_HEADS)
    if getattr(anatomy.config, "tie_word_embeddings", False):
        wanted = (*wanted, names[id(anatomy.embed)])
    key = next(
        (stored_key for name in wanted if (stored_key := stored.key(f"{name}.weight")) is not None), None
    )
    if key is None:
        raise ModelError(f"{stored.where} holds no tensor for the unembedding, {wanted[0]}.weight.")
    file = stored.file(key)
    with safe_open(str(file), framework="pt") as opened:
        shape = opened.get_slice(key).get_shape()
    return SlicedRows(file, key, (min(real, int(shape[0])), int(shape[1])))


def _real_tokens(where: str, revision: str | None, config: Any) -> int:
    """Tokens of the tokenizer; rows beyond are padding. Without a tokenizer all count."""
    from transformers import AutoTokenizer

    folder = Path(where)
    if folder.is_dir() and not any((folder / name).is_file() for name in TOKENIZER_FILES):
        return int(config.vocab_size)  # transformers would make an empty tokenizer of nothing
    try:
        return len(AutoTokenizer.from_pretrained(where, revision=revision))
    except Exception:  # a folder of weights alone is enough for weights
        return int(config.vocab_size)
