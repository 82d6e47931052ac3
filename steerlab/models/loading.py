"""`load_model`: from a hub name, a folder or a live object to a `LanguageModel` that passed the self-check.

Everything that can be wrong with a checkpoint is found before it is used and said in one sentence: a
missing folder or hub name, no configuration, no or damaged or missing weights, a family the adapters do
not know, encoders, no tokenizer, and parts that do not compute what the map of the model says.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from steerlab.errors import ModelError, kind_of, reason
from steerlab.models import backends
from steerlab.models.adapters import architecture_of
from steerlab.models.backends import NNsight, Transformers
from steerlab.models.language_model import LanguageModel
from steerlab.models.output_weights import TOKENIZER_FILES
from steerlab.progress import transformers_bars

# Above this many parameters a float32 copy no longer fits beside other things in an ordinary machine's memory.
_FLOAT32_LIMIT = 4_000_000_000


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
) -> LanguageModel:
    """Load a causal language model and prove that every part of it was found.

    Args:
        name_or_path_or_model: a hub name, a local folder, or a live object, used as it is, in evaluation mode: a
            transformers model (needs `tokenizer`), a TransformerLens `TransformerBridge` or an nnsight model.
        backend: the engine the model runs in, "transformers", "transformer_lens", "nnsight" or another name of
            `steerlab.models.backends.BACKENDS`; states are the same in each. By default a live object's own, else
            "transformers". A live transformers model is wrapped as it is; a bridge replaces its modules.
        remote: with "nnsight": run on nnsight's server instead of here, where only the model's skeleton is made (see
            `steerlab.models.backends.remote`): True, a server's address, or "local", which packs every request
            and runs it here.
        tokenizer: a tokenizer, or the name or folder of one; by default the checkpoint's or the live object's own.
        device: "auto" is the GPU when there is one.
        dtype: "auto" is the checkpoint's own on a GPU. On the CPU half-precision checkpoints of up to 4
            billion parameters are up-cast to float32: CPUs multiply half precision slowly, and rounding
            would add noise to every state that is read.
        revision: branch, tag or commit on the hub.
        trust_remote_code: passed to transformers.

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
    if remote:
        return _remote(given, backend, remote, tokenizer, revision, trust_remote_code)
    if isinstance(given, str | Path):
        source = _Source(str(given), revision, trust_remote_code)
        module, name = source.model(_dtype(dtype)), source.name
        tokenizer = source.tokenizer(tokenizer)
        engine = (wanted or Transformers).around(_place(module, device, dtype), tokenizer, name=name)
        return _proved(LanguageModel(_evaluating(engine), tokenizer, name=name))
    engine, tokenizer, name = _live(given, wanted, tokenizer, revision, trust_remote_code)
    if device != "auto":
        given.to(device)
    if dtype != "auto":
        given.to(_dtype(dtype))
    return _proved(LanguageModel(_evaluating(engine), tokenizer, name=name))


def _live(
    given: Any,
    wanted: type[Transformers] | None,
    tokenizer: Any,
    revision: str | None,
    trust_remote_code: bool,
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
        tokenizer = _Source(str(tokenizer), revision, trust_remote_code).tokenizer(None)
    module = engine.module
    _require_causal(module.config, type(module).__name__)
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
    revision: str | None,
    trust_remote_code: bool,
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
        source = _Source(str(given), revision, trust_remote_code)
        if source.folder is not None and remote != "local":
            raise ModelError(
                f"The folder {given} is here and not on a server; give the model's name on the hub."
            )
        _require_causal(source.config(), source.name)
        tokenizer = source.tokenizer(tokenizer)
        given = Remote.skeleton(
            source.where, tokenizer, revision=revision, trust_remote_code=trust_remote_code
        )
    engine = Remote(given, remote)
    tokenizer = engine.tokenizer if tokenizer is None else tokenizer
    if isinstance(tokenizer, str | Path):
        tokenizer = _Source(str(tokenizer), revision, trust_remote_code).tokenizer(None)
    _require_causal(engine.module.config, type(engine.module).__name__)
    name = str(getattr(given, "repo_id", None) or type(engine.module).__name__)
    return _proved(RemoteModel(engine, tokenizer, name=name))


def _evaluating(engine: Transformers) -> Transformers:
    engine.module.eval()
    return engine


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
    named = getattr(torch, dtype, None)
    if not isinstance(named, torch.dtype) or not named.is_floating_point:
        raise ModelError(f"There is no dtype called {dtype!r}; use 'float32', 'bfloat16' or 'float16'.")
    return named


def _place(module: Any, device: str | torch.device, dtype: str | torch.dtype) -> Any:
    chosen = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    try:
        target = torch.device(chosen)
    except RuntimeError as error:
        raise ModelError(f"There is no device called {chosen!r}; use 'cpu', 'cuda' or 'auto'.") from error
    if target.type == "cuda" and not torch.cuda.is_available():
        raise ModelError(f"Device {chosen!r} is not there: torch sees no GPU; use device='cpu'.")
    if target.type == "meta":
        raise ModelError("On the device 'meta' nothing is computed; use 'cpu', 'cuda' or 'auto'.")
    if dtype == "auto" and target.type == "cpu" and module.num_parameters() <= _FLOAT32_LIMIT:
        module = module.float()
    try:
        return module.to(target)
    except RuntimeError as error:  # no such device, a GPU of a higher number, or too little memory there
        raise ModelError(
            f"The model cannot be put on the device {str(chosen)!r} ({reason(error)}); use another one."
        ) from error


def _require_causal(config: Any, name: str) -> None:
    """Refuse what is not a decoder-only language model before its weights are read."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES as MASKED

    if getattr(config, "is_encoder_decoder", False):
        raise ModelError(
            f"{name} is an encoder-decoder model ({config.model_type}); steerlab works on decoder-only causal language "
            "models."
        )
    if config.model_type in MASKED and not getattr(config, "is_decoder", False):
        raise ModelError(
            f"{name} is an encoder model ({config.model_type}): it fills gaps and does not continue text; choose a "
            "decoder-only causal language model."
        )
    architecture_of(config)


class _Source:
    """A hub name or a folder, and what is read from it."""

    def __init__(self, name: str, revision: str | None, trust_remote_code: bool) -> None:
        self.name = name
        self.folder = Path(name).expanduser() if Path(name).expanduser().exists() else None
        looks_local = name.startswith((".", "/", "~")) or name.count("/") > 1 or not name
        if self.folder is None and looks_local:
            raise ModelError(
                f"There is no folder {name!r}; check the path or give a hub name like 'owner/model'."
            )
        if self.folder is not None and not self.folder.is_dir():
            raise ModelError(
                f"{name} is a file, not a model folder; give the folder that contains config.json."
            )
        self.where = str(self.folder or name)
        self.options: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
        if self.folder is not None:
            self.options = {"trust_remote_code": trust_remote_code, "local_files_only": True}

    def model(self, dtype: str | torch.dtype) -> Any:
        """The transformers module, its weights complete."""
        from transformers import AutoModelForCausalLM

        config = self.config()
        _require_causal(config, self.name)
        self._require_weights()
        try:
            with _quiet():
                loaded: Any = AutoModelForCausalLM.from_pretrained(
                    self.where, dtype=dtype, use_safetensors=True, output_loading_info=True, **self.options
                )
        except Exception as error:  # the libraries below raise many kinds; each means: unusable weights
            raise ModelError(
                f"The weights of {self.name} cannot be read ({reason(error)}); {self._again}."
            ) from error
        module, report = loaded
        absent = sorted(report["missing_keys"])
        if absent:
            raise ModelError(
                f"{self.name} lacks the weights of {len(absent)} parts of a {type(module).__name__} (first: "
                f"{absent[0]}), which would be random numbers; {self._again}."
            )
        return module

    def tokenizer(self, given: Any) -> Any:
        """The tokenizer given, or the checkpoint's own."""
        if isinstance(given, str | Path):
            return _Source(str(given), None, bool(self.options["trust_remote_code"])).tokenizer(None)
        if given is not None:
            return given
        from transformers import AutoTokenizer

        failure = "it holds no tokenizer file"
        if self.folder is None or any((self.folder / name).exists() for name in TOKENIZER_FILES):
            try:
                with _quiet():
                    return AutoTokenizer.from_pretrained(self.where, **self.options)
            except Exception as error:  # see model()
                failure = reason(error)
        raise ModelError(
            f"{self.name} has no usable tokenizer ({failure}); pass tokenizer= with a tokenizer or its name."
        )

    @property
    def _again(self) -> str:
        return (
            "save the checkpoint again" if self.folder is not None else "check the name or download it again"
        )

    def config(self) -> Any:
        """The checkpoint's configuration."""
        from transformers import AutoConfig

        if self.folder is not None and not (self.folder / "config.json").exists():
            raise ModelError(
                f"Folder {self.name} has no config.json, so it is not a model folder; check the path."
            )
        try:
            with _quiet():
                return AutoConfig.from_pretrained(self.where, **self.options)
        except Exception as error:  # see model()
            if self.folder is not None:
                raise ModelError(
                    f"The config.json of {self.name} cannot be used ({reason(error)}); repair it."
                ) from error
            raise ModelError(
                f"{self.name!r} is neither a folder here nor a model that can be fetched from the hub "
                f"({reason(error)}); check the name, the connection and your access."
            ) from error

    def _require_weights(self) -> None:
        if self.folder is None or any(self.folder.glob("*.safetensors")):
            return
        if any(self.folder.glob("*.bin")):
            raise ModelError(
                f"Folder {self.name} has its weights as pickle (*.bin) only, which is not opened; convert them with "
                "model.save_pretrained(...)."
            )
        raise ModelError(
            f"Folder {self.name} has a configuration but no weights (*.safetensors); {self._again}."
        )


@contextmanager
def _quiet() -> Iterator[None]:
    """No warnings from transformers, and its bars only while somebody watches."""
    from transformers.utils import logging as quietable

    logging: Any = quietable  # its functions carry no types
    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        with transformers_bars():
            yield
    finally:
        logging.set_verbosity(level)
