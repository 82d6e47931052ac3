"""Steering as data for other engines: llama.cpp's control vectors, vllm-lens, EasySteer.

All three add one vector to the output of a block at every token, so they can carry `Add` at resid_post.l, or at a site
with nothing that reads in between (mlp_out.l, resid_pre.l+1, ln_final_in). Several are summed, strengths included.

    llama.cpp   `direction.N` is added to the output of block N, counted from 0 (`build_cvec(cur, il)` behind the last
                residual addition); block 0 has no slot (common/common.cpp refuses index 0)
    vllm-lens   `layer_indices` count blocks from 0; the vector is added to the block's output
    EasySteer   `layers` count blocks from 0; algorithm "direct" adds the vector to the block's output

llama.cpp's numbering was read in its source. `benchmarks/engines/` runs files for vllm-lens in vLLM on the CPU and
compares the tokens; a file for EasySteer follows its documentation and has not been run against a live server.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from steerlab.errors import SteeringError
from steerlab.files import system_reason, whole
from steerlab.models import Edit, LanguageModel, Site
from steerlab.steering.add import Add
from steerlab.steering.bake import require_constant, shift_of
from steerlab.steering.registry import EXPORTS
from steerlab.steering.transformers_folder import new_folder


def block_shifts(model: LanguageModel, interventions: Sequence[Edit]) -> dict[int, Float[Tensor, " d_model"]]:
    """By layer, what a list of `Add` adds to the block's output, float32.

    Raises:
        SteeringError: an intervention is not a constant added to a block's output.
        DirectionError: a direction does not belong to the model.
    """
    shifts: dict[int, Tensor] = {}
    for edit in interventions:
        require_constant(edit)
        if not isinstance(edit, Add):
            raise SteeringError(
                "Other engines' vectors only add, so an Ablate cannot be written for them; bake it into weights with "
                "export_transformers."
            )
        edit.check(model)
        for site in dict.fromkeys(edit.sites):
            layer = _block_of(model, site)
            shifts[layer] = shifts.get(layer, torch.zeros(model.d_model).double()) + shift_of(edit, site)
    moved = {layer: shift.float() for layer, shift in sorted(shifts.items()) if shift.any()}
    if not moved:
        raise SteeringError("There is nothing to export: no intervention adds anything.")
    return moved


@EXPORTS.register("gguf")
def export_gguf(model: LanguageModel, interventions: Sequence[Edit], path: str | Path) -> Path:
    """Write a control vector for llama.cpp, to be used with `--control-vector FILE` (strength 1).

    Raises:
        SteeringError: as :func:`block_shifts`; for block 0, which llama.cpp cannot steer; when `gguf` is not installed;
            when the file cannot be written.
    """
    shifts = block_shifts(model, interventions)
    if 0 in shifts:
        raise SteeringError(
            "llama.cpp has no control vector for the output of block 0; leave that layer out, or bake it with "
            "export_transformers."
        )
    used = ",".join(_direction_hashes(interventions))
    return _written(Path(path), lambda partial: write_gguf(partial, shifts, model, used))


@EXPORTS.register("vllm-lens")
def export_vllm_lens(model: LanguageModel, interventions: Sequence[Edit], path: str | Path) -> Path:
    """Write the value of `apply_steering_vectors` for vllm-lens: JSON, float32 in base64.

    Over HTTP it is sent as a string: `vllm_xargs={"apply_steering_vectors": Path(path).read_text()}`.

    Raises:
        SteeringError: as :func:`block_shifts`, or when the file cannot be written.
    """
    shifts = block_shifts(model, interventions)
    rows = torch.stack(list(shifts.values()))
    vector = {
        "activations": {
            "data": base64.b64encode(rows.numpy().tobytes()).decode("ascii"),
            "dtype": "float32",
            "shape": list(rows.shape),
        },
        "layer_indices": list(shifts),
        "scale": 1.0,
        "norm_match": False,
        "position_indices": None,
    }
    return _written(Path(path), lambda partial: partial.write_text(json.dumps([vector]), encoding="utf-8"))


@EXPORTS.register("easysteer")
def export_easysteer(model: LanguageModel, interventions: Sequence[Edit], folder: str | Path) -> Path:
    """Write a specification for EasySteer: `steering.json` and the `vectors.gguf` it names, in a new folder.

    The name is relative, so the server has to be started in that folder (`--steering-config steering.json`).

    Raises:
        SteeringError: as :func:`block_shifts`; when `gguf` is not installed; when nothing can be written there.
    """
    shifts = block_shifts(model, interventions)
    vector = {
        "source": "vectors.gguf",
        "algorithm": "direct",
        "scale": 1.0,
        "layers": list(shifts),
        "normalize": False,
        "apply": {"prompt": "all", "generation": "all"},
    }
    target = Path(folder)
    with new_folder(target) as partial:
        write_gguf(partial / "vectors.gguf", shifts, model, ",".join(_direction_hashes(interventions)))
        (partial / "steering.json").write_text(json.dumps({"vectors": [vector]}, indent=2), encoding="utf-8")
    return target


def write_gguf(path: Path, shifts: Mapping[int, Tensor], model: LanguageModel, directions: str) -> None:
    """One float32 tensor `direction.N` a layer, under the architecture name control vectors have.

    Raises:
        SteeringError: the library gguf is not installed.
    """
    try:
        from gguf import GGUFWriter
    except ImportError as error:
        raise SteeringError("GGUF files need the library gguf; install steerlab[gguf].") from error
    kind = "controlvector"
    writer = GGUFWriter(path, kind)
    writer.add_string(f"{kind}.model_hint", model.model.config.model_type)
    writer.add_uint32(f"{kind}.layer_count", len(shifts))
    writer.add_string("steerlab.model", model.name)
    writer.add_string("steerlab.fingerprint", model.fingerprint)
    writer.add_string("steerlab.directions", directions)
    for layer, shift in shifts.items():
        writer.add_tensor(f"direction.{layer}", shift.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _direction_hashes(interventions: Sequence[Edit]) -> list[str]:
    return [edit.direction.hash for edit in interventions if isinstance(edit, Add)]


def _block_of(model: LanguageModel, site: Site) -> int:
    """The block whose output a constant at `site` moves, and nothing before."""
    match site.name, site.layer:
        case "resid_post" | "mlp_out", int(layer):
            return layer
        case "resid_pre", int(layer) if layer > 0:
            return layer - 1
        case "ln_final_in", _:
            return model.n_layers - 1
    raise SteeringError(
        f"Other engines add to the output of a block only, and {site} is read before it is one; use resid_post, "
        "mlp_out or resid_pre of a later layer, or bake it with export_transformers."
    )


def _written(path: Path, write: Callable[[Path], object]) -> Path:
    """The path, once `write` has made the file, whole or not at all."""
    try:
        with whole(path) as partial:
            write(partial)
    except OSError as error:
        raise SteeringError(
            f"{path} cannot be written: {system_reason(error)}; choose another place or free space."
        ) from error
    return path
