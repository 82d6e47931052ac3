"""Directions other tools have written: control vectors, CAA, steering-vectors, refusal_direction.

Each format counts layers in its own way. They are read as follows:

    GGUF control vector (repeng, llama.cpp)   direction.N        output of block N              resid_post.N
    steering-vectors, saved as {layer: v}     layer N            output of block N (default)    resid_post.N
    CAA                                       vec_layer_N_*.pt   output of block N              resid_post.N
    refusal_direction                         layer N            input of block N               resid_pre.N

None of them names its checkpoint, so the caller vouches for the model; widths and layers must fit. Files of
`torch.save` are read as plain tensors only (`weights_only`): a pickled object is code, and is refused.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from steerlab.directions.direction import Direction
from steerlab.errors import DirectionError, reason
from steerlab.models import Site

if TYPE_CHECKING:
    from steerlab.models import LanguageModel

#: Below this share of the largest, a difference in means is what rounding left of equal means.
_NOISE = 1e-9

#: The sites a hook on a whole module reads: block, attention (plus residual multiplier), MLP.
LayerSite = Literal["resid_post", "resid_pre", "attn_out", "mlp_out"]


def read_gguf(path: str | Path, model: LanguageModel) -> Direction:
    """A control vector of repeng or llama.cpp: `direction.N` acts on the output of block N, so at resid_post.N.

    Packed tensors (BF16, Q8_0, ...) are unpacked by the library gguf.

    Raises:
        DirectionError: no such file, no GGUF, no control vector, one written here for another model, or one that does
            not fit this model or keeps its numbers in a type that gguf does not unpack; or `gguf` is not installed.
    """
    try:
        from gguf import GGUFReader
    except ImportError as error:
        raise DirectionError("GGUF files need the library gguf; install steerlab[gguf].") from error
    path = _existing(path)
    try:
        reader = GGUFReader(path)
        fields = {name: _gguf_text(reader, name) for name in ("general.architecture", "steerlab.fingerprint")}
        tensors = {tensor.name: _gguf_numbers(path, tensor) for tensor in reader.tensors}
    except DirectionError:
        raise
    except Exception as error:  # the reader raises whatever its numpy views raise on a damaged file
        raise DirectionError(
            f"{path} cannot be read as a GGUF file: {reason(error)}; write it again."
        ) from error
    if fields["general.architecture"] != "controlvector":
        raise DirectionError(
            f"{path} is a GGUF file, but not a control vector; give the file --control-vector takes."
        )
    if fields["steerlab.fingerprint"] not in ("", model.fingerprint):
        raise DirectionError(
            f"{path} was written for a model with fingerprint {fields['steerlab.fingerprint']}, and {model.name} has "
            f"{model.fingerprint}; load the model it belongs to."
        )
    layers = {_gguf_layer(path, name): vector for name, vector in tensors.items()}
    return _direction(layers, "resid_post", model, "control vector", {"file": path.name})


def read_steering_vectors(
    path: str | Path, model: LanguageModel, *, name: LayerSite = "resid_post"
) -> Direction:
    """A dictionary from layer to vector, as `torch.save(vector.layer_activations, path)` writes with steering-vectors.

    Args:
        path: the file.
        model: the model it belongs to.
        name: where the vectors were read; steering-vectors' layer type "decoder_block" is "resid_post" (the block's
            output), "self_attn" is "attn_out", "mlp" is "mlp_out".

    Raises:
        DirectionError: no such file, a pickled object, other contents, or one that does not fit this model.
    """
    path = _existing(path)
    loaded = _tensors(path)
    if not isinstance(loaded, Mapping) or not all(
        isinstance(key, int) and isinstance(value, Tensor) for key, value in loaded.items()
    ):
        raise DirectionError(
            f"{path} holds a {type(loaded).__name__}, not a dictionary from layers to vectors; save "
            "vector.layer_activations."
        )
    return _direction(dict(loaded), name, model, "steering-vectors", {"file": path.name})


def read_caa(path: str | Path, model: LanguageModel, *, layer: int | None = None) -> Direction:
    """A CAA vector, or a folder of them: `vec_layer_N_MODEL.pt` acts on the output of block N, so at resid_post.N.

    Args:
        path: one file, or a folder with the vectors of one behaviour and one model.
        model: the model they belong to.
        layer: the layer of a single file whose name does not say it.

    Raises:
        DirectionError: no such file, no vector, a name without a layer, two of one layer, or one that does not fit.
    """
    path = _existing(path, folder=True)
    files = sorted(path.glob("vec_layer_*.pt")) if path.is_dir() else [path]
    if not files:
        raise DirectionError(
            f"{path} holds no vec_layer_N_MODEL.pt; give a folder of CAA vectors or one file."
        )
    layers: dict[int, Tensor] = {}
    for file in files:
        named = re.match(r"vec_layer_(\d+)(?:_|\.)", file.name)
        place = int(named[1]) if named else layer
        if place is None:
            raise DirectionError(f"The name of {file} does not say its layer; pass layer=.")
        if place in layers:
            raise DirectionError(
                f"{path} holds two vectors of layer {place}; keep those of one model in a folder."
            )
        layers[place] = _one_vector(file)
    return _direction(layers, "resid_post", model, "CAA", {"file": path.name})


def read_refusal_direction(
    folder: str | Path, model: LanguageModel, *, position: int | None = None
) -> Direction:
    """The direction of a run of refusal_direction: the vector its selection chose, at resid_pre of its layer.

    Args:
        folder: the run's folder, with `direction.pt` and `direction_metadata.json` (its layer and position).
        model: the model it belongs to.
        position: read `mean_diffs.pt` instead, the differences of means [positions, layers, d_model], at this position
            counted from the end of the prompt (-1 is its last token): one vector a layer. Layers at which the classes
            do not differ (the embedding of one template token) have no direction and are left out.

    Raises:
        DirectionError: a file is missing or holds something else, or the vectors do not fit this model.
    """
    folder = _existing(folder, folder=True)
    if position is None:
        chosen = _metadata(folder / "direction_metadata.json")
        vector = _one_vector(_existing(folder / "direction.pt"))
        place = f"Index(index={chosen['pos']})"
        return _direction(
            {chosen["layer"]: vector}, "resid_pre", model, "refusal_direction", {}, position=place
        )
    file = _existing(folder / "mean_diffs.pt")
    tensors = _tensors(file)
    if not isinstance(tensors, Tensor) or tensors.dim() != 3:
        raise DirectionError(
            f"{file} does not hold a tensor [positions, layers, d_model]; give a run's folder."
        )
    if not -tensors.shape[0] <= position < 0:
        raise DirectionError(
            f"{file} has the positions {-tensors.shape[0]} to -1, not {position}; choose one of them."
        )
    norms = tensors[position].norm(dim=-1)
    layers = {
        int(layer): tensors[position, layer] for layer in (norms > _NOISE * norms.max()).nonzero()[:, 0]
    }
    return _direction(
        layers, "resid_pre", model, "refusal_direction", {}, position=f"Index(index={position})"
    )


# ------------------------------------------------------------------------------------------------------------ inside


def _direction(
    layers: Mapping[int, Tensor],
    name: str,
    model: LanguageModel,
    source: str,
    parameters: dict[str, Any],
    *,
    position: str = "",
) -> Direction:
    negative = sorted(layer for layer in layers if layer < 0)
    if negative:
        raise DirectionError(
            f"The vectors name layer {negative[0]}, and layers count from 0 here; save them with positive numbers."
        )
    for layer, vector in layers.items():
        if not vector.is_floating_point():
            kind = str(vector.dtype).removeprefix("torch.")
            raise DirectionError(
                f"The vector of layer {layer} holds {kind} numbers, not floating-point ones; save it as float32."
            )
    direction = Direction(
        {Site(name, layer): vector for layer, vector in layers.items()},
        model.name,
        model.fingerprint,
        estimator=source,
        parameters=parameters,
        position=position,
    )
    direction.check(model)
    return direction


def _existing(path: str | Path, *, folder: bool = False) -> Path:
    path = Path(path)
    if not (path.is_file() or (folder and path.is_dir())):
        raise DirectionError(f"There is no {'folder' if folder else 'file'} {path}; check the path.")
    return path


def _tensors(path: Path) -> Any:
    """What `torch.save` wrote, tensors and plain containers only."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about protocols of pickles, which are refused below
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # its unpickler raises many kinds; each means: not plain tensors
        raise DirectionError(
            f"{path} is not a file of plain tensors, and pickled objects are not opened ({reason(error)}); save the "
            "tensors themselves with torch.save."
        ) from error


def _one_vector(path: Path) -> Tensor:
    tensors = _tensors(path)
    if not isinstance(tensors, Tensor) or tensors.dim() != 1:
        shape = tuple(tensors.shape) if isinstance(tensors, Tensor) else type(tensors).__name__
        raise DirectionError(
            f"{path} holds {shape}, not one vector [d_model]; give a file with a single vector."
        )
    return tensors


def _metadata(path: Path) -> dict[str, int]:
    try:
        data = json.loads(_existing(path).read_text("utf-8"))
        return {"layer": int(data["layer"]), "pos": int(data["pos"])}
    except (ValueError, KeyError, TypeError) as error:
        raise DirectionError(f"{path} does not name a layer and a position; give a run's folder.") from error


def _gguf_text(reader: Any, name: str) -> str:
    field = reader.get_field(name)
    return "" if field is None else str(field.contents())


def _gguf_numbers(path: Path, tensor: Any) -> Tensor:
    """The numbers of a tensor, unpacked where its type packs them."""
    from gguf import dequantize

    kind = tensor.tensor_type
    if kind.name in ("F64", "F32", "F16"):
        return torch.from_numpy(tensor.data.copy())
    try:
        return torch.from_numpy(dequantize(tensor.data, kind).copy())
    except NotImplementedError as error:  # whole numbers, and packings that gguf only names
        raise DirectionError(
            f"{path} keeps {tensor.name} as {kind.name}, which is not read; save it as F32."
        ) from error


def _gguf_layer(path: Path, name: str) -> int:
    match = re.fullmatch(r"direction\.(\d+)", name)
    if match is None:
        raise DirectionError(
            f"{path} has a tensor {name!r}, and a control vector has only direction.N; write it again."
        )
    return int(match[1])
