"""`load_model`: from a hub name, a folder or a live object to a `LanguageModel` that passed the self-check.

Everything that can be wrong with a checkpoint is found before it is used and said in one sentence: a missing folder or
hub name, no configuration, no or damaged or missing weights, weights that nothing uses, a family the adapters do not
know, encoders, no tokenizer, and parts that do not compute what the map of the model says.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from steerlab.errors import ModelError, kind_of, reason
from steerlab.models import backends, tuners
from steerlab.models.backends import NNsight, Transformers
from steerlab.models.language_model import LanguageModel
from steerlab.models.quantised import method_of
from steerlab.models.source import Source, require_causal
from steerlab.models.wishes import Wishes


# Long: two thirds of it document its options.
def load_model(
    name_or_path_or_model: Any,
    tokenizer: Any = None,
    *,
    backend: str | None = None,
    remote: bool | str = False,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
    revision: str | None = None,
    trust_remote_code: bool = False,
    base: str | Path | LanguageModel | None = None,
    merge: bool = True,
    ignore_unused: bool = False,
    device_map: Any = None,
    max_memory: Any = None,
    offload_folder: str | Path | None = None,
    quantization_config: Any = None,
    attn_implementation: str | None = None,
) -> LanguageModel:
    """Load a causal language model and prove that every part of it was found.

    Args:
        name_or_path_or_model: a hub name, a local folder, a GGUF file, an adapter's folder, or a live object, used as
            it is: a transformers or PEFT model (needs `tokenizer`), a TransformerLens `TransformerBridge` or an nnsight
            model.
        backend: the engine the model runs in, "transformers", "transformer_lens", "nnsight" or another name of
            `steerlab.models.backends.BACKENDS`; states are the same in each. By default a live object's own, else
            "transformers". A live transformers model is wrapped as it is; a bridge replaces its modules.
        remote: with "nnsight": run on nnsight's server instead of here, where only the model's skeleton is made (see
            `steerlab.models.backends.remote`): True, a server's address, or "local", which packs every request
            and runs it here.
        tokenizer: a tokenizer, or the name or folder of one; by default the checkpoint's or the live object's own.
        device: "auto" is the GPU when there is one.
        dtype: "auto" is the checkpoint's own on a GPU. On the CPU checkpoints of up to 4 billion parameters are read
            as float32: CPUs multiply half precision slowly, and rounding would add noise to every state that is read.
        revision: branch, tag or commit on the hub.
        trust_remote_code: passed to transformers.
        base: the model under an adapter, by default the one that it names. The weights of a loaded one are used, not
            read again; with `merge=False` both are one set of weights, with the adapter off and on.
        merge: fold an adapter into the weights; False keeps it apart.
        ignore_unused: go on where a checkpoint holds weights that the model has no part for.
        device_map: where layers go, as transformers takes it; then `device` is not used.
        max_memory: bytes a device, with `device_map`.
        offload_folder: for layers on the disk, with `device_map`.
        quantization_config: how transformers quantises the weights as it reads them.
        attn_implementation: "eager", "sdpa", ..., as transformers takes it.

    Raises:
        ModelError: one sentence that says what is wrong with the checkpoint or the live object.
    """
    given = name_or_path_or_model
    if isinstance(given, LanguageModel):
        if remote or backend not in (None, given.backend):
            raise ModelError(
                f"{given.name} is loaded already, in the backend {given.backend!r}; load it by its name, or its source."
            )
        return given
    wanted = backends.BACKENDS[backend] if backend is not None else None
    placing = {
        "device_map": device_map,
        "max_memory": max_memory,
        "offload_folder": offload_folder,
        "quantization_config": quantization_config,
        "attn_implementation": attn_implementation,
    }
    placing = {name: value for name, value in placing.items() if value is not None}
    target = _device(device)
    wishes = Wishes(
        dtype=_dtype(dtype),
        is_on_cpu=target.type == "cpu" and "quantization_config" not in placing,
        revision=revision,
        trust_remote_code=trust_remote_code,
        unused=ignore_unused,
        merge=merge,
        base=base,
        placing=placing,
    )
    if remote:
        return _remote(given, backend, remote, tokenizer, wishes)
    if isinstance(given, str | Path):
        source = Source(str(given), wishes)
        module, name = source.model(), source.name
        tokenizer = source.tokenizer(tokenizer)
        if "device_map" not in placing and not (method_of(module) and module.device.type == target.type):
            module = _placed(module, target)
        engine = (wanted or Transformers).around(module, tokenizer, name=name)
        model = LanguageModel(engine, tokenizer, name=name)
        model.model.eval()
        model.stored_as = ", ".join(filter(None, (source.stored_as, model.stored_as)))
        model.part_of = source.part_of or model.part_of
        return _proved(model)
    if placing:
        raise ModelError(f"A live model is where it is; leave {', '.join(placing)} out.")
    engine, tokenizer, name = _live(tuners.unwrapped(given), wanted, tokenizer, wishes)
    if device != "auto":
        _placed(given, target)
    if dtype != "auto":
        given.to(_dtype(dtype))
    return _proved(LanguageModel(engine, tokenizer, name=name))


def _live(
    given: Any,
    wanted: type[Transformers] | None,
    tokenizer: Any,
    wishes: Wishes,
) -> tuple[Transformers, Any, str]:
    """Engine, tokenizer and name of a live object, in the backend that is wanted."""
    if not hasattr(given, "config") and backends.backend_of(given) is Transformers:
        raise ModelError(
            f"A model cannot be loaded from {kind_of(given)}; give a hub name, a folder, 'zoo:small-post', or a "
            "live model with its tokenizer."
        )
    engine = backends.backend_of(given)(given)
    tokenizer = engine.tokenizer if tokenizer is None else tokenizer
    if tokenizer is None:
        raise ModelError(f"A live {type(given).__name__} needs its tokenizer; pass tokenizer=.")
    if isinstance(tokenizer, str | Path):
        tokenizer = Source(str(tokenizer), wishes).tokenizer(None)
    module = engine.module
    require_causal(module.config, type(module).__name__)
    name = getattr(module.config, "name_or_path", "") or type(module).__name__
    if wanted is not None and wanted is not type(engine):
        if type(engine) is not Transformers:
            raise ModelError(
                f"A {type(given).__name__} runs in the backend {engine.name!r}, not in {wanted.name!r}; leave backend "
                "out."
            )
        engine = wanted.around(module, tokenizer, name=name)
    return engine, tokenizer, name


def _remote(
    given: Any,
    backend: str | None,
    remote: bool | str,
    tokenizer: Any,
    wishes: Wishes,
) -> LanguageModel:
    from steerlab.models.backends.remote import Remote, RemoteModel

    named = isinstance(given, str | Path)
    if backend != NNsight.name and (named or not NNsight.wraps(given)):
        raise ModelError("Only nnsight runs remotely; use backend='nnsight' with remote.")
    if not named and not NNsight.wraps(given):
        raise ModelError(
            f"A live {type(given).__name__} is here and not on a server; give its name on the hub, or an "
            "nnsight.TransformersModel."
        )
    if named:
        source = Source(str(given), wishes)
        if source.folder is not None and remote != "local":
            raise ModelError(
                f"The folder {given} is here and not on a server; give the model's name on the hub."
            )
        require_causal(source.config(), source.name)
        tokenizer = source.tokenizer(tokenizer)
        given = Remote.skeleton(
            source.where,
            tokenizer,
            revision=wishes.revision,
            trust_remote_code=wishes.trust_remote_code,
        )
    engine = Remote(given, remote)
    tokenizer = engine.tokenizer if tokenizer is None else tokenizer
    if isinstance(tokenizer, str | Path):
        tokenizer = Source(str(tokenizer), wishes).tokenizer(None)
    require_causal(engine.module.config, type(engine.module).__name__)
    name = str(getattr(given, "repo_id", None) or type(engine.module).__name__)
    return _proved(RemoteModel(engine, tokenizer, name=name))


def _proved(model: LanguageModel) -> LanguageModel:
    check = model.self_check()
    if not check.ok:
        worst = max(check.failed, key=lambda row: row.error)
        error = ModelError(
            f"{model.name} does not compute what the map of its architecture says: '{worst.part}' is off by "
            f"{worst.error:.2g} of the state's size (allowed {check.tolerance:.2g}), so its states cannot be read "
            "reliably; choose another checkpoint."
        )
        error.self_check = check
        raise error
    return model


def _dtype(dtype: str | torch.dtype) -> str | torch.dtype:
    if dtype == "auto" or isinstance(dtype, torch.dtype):
        return dtype
    named = getattr(torch, dtype, None) if isinstance(dtype, str) else None
    if not isinstance(named, torch.dtype) or not named.is_floating_point:
        raise ModelError(f"There is no dtype called {dtype!r}; use 'float32', 'bfloat16' or 'float16'.")
    return named


def _device(device: str | torch.device) -> torch.device:
    chosen = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    try:
        target = torch.device(chosen)
    except RuntimeError as error:
        raise ModelError(f"There is no device called {chosen!r}; use 'cpu', 'cuda' or 'auto'.") from error
    if target.type == "cuda" and not torch.cuda.is_available():
        raise ModelError(f"Device {chosen!r} is not there: torch sees no GPU; use device='cpu'.")
    if target.type == "meta":
        raise ModelError("On the device 'meta' nothing is computed; use 'cpu', 'cuda' or 'auto'.")
    return target


def _placed(module: Any, target: torch.device) -> Any:
    try:
        return module.to(target)
    except (RuntimeError, ValueError) as error:  # no such device, too little memory there, or packed weights
        raise ModelError(
            f"The model cannot be put on the device {str(target)!r} ({reason(error)}); use another one."
        ) from error
