"""Features of sparse autoencoders as directions: rows of the decoder.

A sparse autoencoder writes a state as x ≈ b_dec + Σ_j f_j(x) W_dec[j], so adding s · W_dec[j] raises what it calls
feature j by s, and clamping or ablating along that row sets or removes it (Bricken et al. 2023; Templeton et al. 2024).
Two layouts are read:

    SAELens       a folder with sae_weights.safetensors (W_dec [d_sae, d_in]) and cfg.json, whose hook name is the site
    Gemma Scope   params.npz (W_dec [d_sae, d_model]), which does not say its site

Neither names its checkpoint, so the caller vouches for the model; the width must fit. NumPy files are opened
without pickle. Of the decoder only the rows that are asked for are kept.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from torch import Tensor

from steerlab.directions.direction import Direction
from steerlab.errors import DirectionError, SiteError, reason
from steerlab.files import require_regular, system_reason
from steerlab.models import Site, SiteName, site_of
from steerlab.models.sites import is_layer

if TYPE_CHECKING:
    from steerlab.models import LanguageModel

_WEIGHTS, _CONFIG, _PARAMETERS, _DECODER = "sae_weights.safetensors", "cfg.json", "params.npz", "W_dec"
#: Where configurations name the hook that the decoder writes to; a transcoder writes to another than it reads.
_HOOKS = ("hook_name_out", "hook_name", "hook_point")


def read_sae(
    path: str | Path, feature: int | Sequence[int], model: LanguageModel, *, site: SiteName | None = None
) -> Direction:
    """The decoder row of a feature (or of several, k vectors) as a direction.

    Args:
        path: a folder or file of SAELens (sae_weights.safetensors beside cfg.json) or Gemma Scope (params.npz).
        feature: its index in the dictionary, from 0; several span a subspace.
        model: the model that the autoencoder was trained on.
        site: where it was trained; by default the hook that cfg.json names ("blocks.12.hook_resid_post").

    Returns:
        A direction at one site, with the rows as they are stored: strengths of `Add` are then raw activations.

    Raises:
        DirectionError: no such file or no W_dec in it, an index that it does not have, a feature that writes nothing,
            a width that is not the model's, no site, or another one than cfg.json names.
        SiteError: the model has no such site.

    Example:
        >>> bridge = sl.directions.read_sae("gemma-scope/params.npz", 1024, model, site="resid_post.12")
        ... # doctest: +SKIP
    """
    features = _indices(feature)
    file, config = _files(Path(path))
    place = _site(file, config, site)
    model.require(place)
    rows = _from_npz(file, features) if file.suffix == ".npz" else _from_safetensors(file, features)
    width = model.width(place)
    if rows.shape[1] != width:
        raise DirectionError(
            f"Features of {file} have {rows.shape[1]} numbers, and {place} of {model.name} has width {width}; give an "
            "autoencoder of this model and site."
        )
    for index, row in zip(features, rows, strict=True):
        if not row.any():
            raise DirectionError(
                f"Feature {index} of {file} writes nothing (its row is zero); choose another."
            )
    direction = Direction(
        {place: rows},
        model.name,
        model.fingerprint,
        estimator="sparse autoencoder",
        parameters={"file": file.name, "features": list(features)},
    )
    direction.check(model)
    return direction


# ------------------------------------------------------------------------------------------------------------ inside


def _indices(feature: Any) -> tuple[int, ...]:
    given = list(feature) if isinstance(feature, Iterable) and not isinstance(feature, str) else [feature]
    if not given or not all(is_layer(one) for one in given):
        raise DirectionError(f"A feature is an index counted from 0, or a list of them, not {feature!r:.80}.")
    return tuple(int(one) for one in given)


def _files(path: Path) -> tuple[Path, dict[str, Any]]:
    """The file with the weights, and the configuration beside it ({} where there is none)."""
    found = [path] if path.is_file() else [path / name for name in (_WEIGHTS, _PARAMETERS)]
    file = next((one for one in found if one.is_file()), None)
    if file is None:
        raise DirectionError(f"There is no {_WEIGHTS} or {_PARAMETERS} at {path}; check the path.")
    if file.suffix not in (".safetensors", ".npz"):
        raise DirectionError(
            f"{file} is neither safetensors (SAELens) nor npz (Gemma Scope); give {_WEIGHTS} or {_PARAMETERS}."
        )
    config = file.with_name(_CONFIG)
    if not config.is_file():
        return file, {}
    try:
        read = json.loads(config.read_text("utf-8"))
        return file, {**read, **(read.get("metadata") or {})}
    except (ValueError, OSError, TypeError, AttributeError) as error:
        raise DirectionError(f"{config} cannot be read as JSON: {reason(error)}; check the file.") from error


def _site(file: Path, config: dict[str, Any], given: SiteName | None) -> Site:
    """The site that was given or is named in the configuration; both have to agree."""
    hook = next((config[name] for name in _HOOKS if config.get(name)), None)
    if given is None and hook is None:
        raise DirectionError(
            f"{file} does not say where it was trained; name the site, for example site='resid_post.12' (Gemma "
            "Scope's residual autoencoders of layer 12)."
        )
    asked = None if given is None else site_of(given)
    try:
        named = None if hook is None else site_of(hook)
    except SiteError as error:
        if asked is None:
            raise DirectionError(
                f"{file} was trained at {hook!r}, which is none of the sites here; name the site whose states it "
                "writes, site='resid_post.12'."
            ) from error
        named = None
    if asked is not None and named is not None and not _same_state(asked, named):
        raise DirectionError(
            f"{file} was trained at {named} ({hook}), not at {asked}; leave site= out, and name other sites in the "
            "intervention."
        )
    place = asked or named
    assert place is not None
    return place


def _same_state(one: Site, other: Site) -> bool:
    """A block's input is the output of the one before."""
    places = {(site.name == "resid_post") + (site.layer or 0) for site in (one, other)}
    return one == other or ({one.name, other.name} == {"resid_pre", "resid_post"} and len(places) == 1)


def _from_safetensors(file: Path, features: Sequence[int]) -> Float[Tensor, "k width"]:
    try:
        require_regular(file)
        with safe_open(str(file), framework="pt") as weights:
            names = list(weights.keys())
            if _DECODER not in names:
                raise DirectionError(_lacks(file, names))
            decoder = weights.get_slice(_DECODER)
            _require_among(file, features, decoder.get_shape())
            return torch.stack([decoder[index] for index in features])
    except (OSError, SafetensorError) as error:
        raise DirectionError(
            f"{file} cannot be read as a safetensors file: {system_reason(error)}; check the file."
        ) from error


def _from_npz(file: Path, features: Sequence[int]) -> Float[Tensor, "k width"]:
    try:
        require_regular(file)
        with np.load(file, allow_pickle=False) as weights:
            if _DECODER not in weights:
                raise DirectionError(_lacks(file, list(weights)))
            decoder = weights[_DECODER]
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise DirectionError(
            f"{file} cannot be read as NumPy arrays (objects are not opened): {reason(error)}; check the file."
        ) from error
    _require_among(file, features, decoder.shape)
    return torch.from_numpy(decoder[list(features)].astype(np.float32))


def _lacks(file: Path, names: Sequence[str]) -> str:
    return (
        f"{file} has no {_DECODER}, the decoder of a sparse autoencoder; it has {', '.join(names) or 'nothing'}. Give "
        "the file with the weights."
    )


def _require_among(file: Path, features: Sequence[int], shape: Sequence[int]) -> None:
    if len(shape) != 2:
        raise DirectionError(
            f"{_DECODER} of {file} has the shape {list(shape)}; a decoder is [features, width]."
        )
    strange = [index for index in features if not 0 <= index < shape[0]]
    if strange:
        raise DirectionError(
            f"{file} has the features 0 to {shape[0] - 1}, not {strange[0]}; choose one of them."
        )
