"""What a name stands for: a hub name, a folder, a GGUF file or an adapter, and what is read from it.

Weights are read in the dtype that is computed in, and every one of them is used: a weight without a part, as well as a
part without a weight, is an error that names it.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError

from steerlab.errors import ModelError, reason
from steerlab.files import model_place, require_holds
from steerlab.models import quantised, tuners
from steerlab.models.adapters import architecture_of, auto_class, is_multimodal
from steerlab.models.gguf_files import gguf_in, joined, quantisation
from steerlab.models.output_weights import TOKENIZER_FILES
from steerlab.models.wishes import Wishes
from steerlab.progress import quiet

if TYPE_CHECKING:
    from steerlab.models.language_model import LanguageModel

# Above this many parameters a float32 copy no longer fits beside other things in an ordinary machine's memory.
_FLOAT32_LIMIT = 4_000_000_000
#: Causal masks that old checkpoints of GPT-2, GPT-J and GPT-Neo hold: a "bias" of the attention, of no projection.
_MASKS = re.compile(r"\.attn(\.attention)?\.(masked_)?bias$")
_TOWERS = re.compile(r"vision|visual|image|audio|speech|multi_?modal|mm_")


class Source:
    """A hub name or a place on this machine.

    Attributes:
        name: as it was given.
        stored_as: how the weights were stored, where it is not plain ("GGUF Q4_K_M, dequantised", "LoRA, merged").
        part_of: the multimodal model of which only the text part was read, by its class; "" where all was.

    Raises:
        ModelError: there is nothing of this name.
    """

    def __init__(self, name: str, wishes: Wishes) -> None:
        self.name, self.wishes, self.stored_as, self.part_of = name, wishes, "", ""
        found = model_place(name)
        self.parts = gguf_in(found) if found is not None else ()
        if found is not None and found.is_file():
            if not self.parts:
                raise ModelError(
                    f"{name} is a file, not a model folder; give the folder that contains config.json, or a .gguf file."
                )
            found = found.parent
        self.folder = found
        self.gguf = self._one_file() if self.parts else None
        self.where = str(self.gguf.parent if self.gguf is not None else found or name)
        self.options: dict[str, Any] = {
            "revision": wishes.revision,
            "trust_remote_code": wishes.trust_remote_code,
        }
        if found is not None:
            self.options = {"trust_remote_code": wishes.trust_remote_code, "local_files_only": True}
        if self.gguf is not None:
            self.options["gguf_file"] = self.gguf.name

    # Reading

    def model(self) -> Any:
        """The transformers module, its weights complete and all of them used."""
        adapter = self._adapter()
        if adapter is not None:
            return self._tuned(adapter)
        config = self.config()
        require_causal(config, self.name)
        self.require_weights()
        return self._read(config)

    def config(self) -> Any:
        """The checkpoint's configuration."""
        from transformers import AutoConfig

        if self.folder is not None and self.gguf is None:
            require_holds(self.folder, "config.json")
        try:
            with quiet():
                return AutoConfig.from_pretrained(self.where, **self.options)
        except Exception as error:  # the libraries below raise many kinds; each means: no configuration
            what = "header" if self.gguf is not None else "config.json"
            if self.folder is not None:
                raise ModelError(
                    f"The {what} of {self.name} cannot be used ({reason(error)}); repair it."
                ) from error
            raise ModelError(
                f"{self.name!r} is neither a folder here nor a model that can be fetched from the hub "
                f"({reason(error)}); check the name, the connection and your access."
            ) from error

    def tokenizer(self, given: Any) -> Any:
        """The tokenizer given, or the checkpoint's own."""
        if isinstance(given, str | Path):
            return Source(str(given), Wishes(trust_remote_code=self.wishes.trust_remote_code)).tokenizer(None)
        if given is not None:
            return given
        from transformers import AutoTokenizer

        failure = "it holds no tokenizer file"
        if self.folder is None or self.gguf or any((self.folder / name).exists() for name in TOKENIZER_FILES):
            try:
                with quiet():
                    return self._with_template(AutoTokenizer.from_pretrained(self.where, **self.options))
            except Exception as error:  # see config()
                failure = reason(error)
        adapter = self._adapter()
        if adapter is not None and not self._has_weights():
            return self._with_own_template(self._base_tokenizer(adapter))
        raise ModelError(
            f"{self.name} has no usable tokenizer ({failure}); pass tokenizer= with a tokenizer or its name."
        )

    def require_weights(self) -> None:
        """Raise `ModelError` where a folder holds no weights that are opened here."""
        if self.folder is None or self.gguf or any(self.folder.glob("*.safetensors")):
            return
        if any(self.folder.glob("*.bin")):
            raise ModelError(
                f"Folder {self.name} has its weights as pickle (*.bin) only, which is not opened; convert them with "
                "model.save_pretrained(...)."
            )
        raise ModelError(
            f"Folder {self.name} has a configuration but no weights (*.safetensors); {self._again}."
        )

    # -- private, in the order they are called --

    def _one_file(self) -> Path:
        """The GGUF file, or one that its parts are joined into for as long as this source is used."""
        tuners.require_package("gguf", self.name)
        if len(self.parts) == 1:
            return self.parts[0]
        self._joined = TemporaryDirectory(prefix="steerlab-gguf-")
        return joined(self.parts, Path(self._joined.name))

    def _with_template(self, tokenizer: Any) -> Any:
        """The tokenizer with the chat template that older multimodal checkpoints keep in a file of their processor."""
        name = "chat_template.json"
        if not tokenizer.chat_template and not self.gguf:
            file = self._on_hub(name) if self.folder is None else self.folder / name
            if file is not None and file.is_file():
                tokenizer.chat_template = json.loads(file.read_text("utf-8"))["chat_template"]
        return tokenizer

    def _read(self, config: Any) -> Any:
        settings = {**self.options, **self.wishes.placing, "dtype": self._dtype(config)}
        if self.gguf is not None:
            from transformers import GgufConfig

            settings["quantization_config"] = GgufConfig(dequantize=True)
        else:
            settings["use_safetensors"] = True
        try:
            with quiet():
                module, report = auto_class(config).from_pretrained(
                    self.where, output_loading_info=True, ignore_mismatched_sizes=True, **settings
                )
        except Exception as error:  # the libraries below raise many kinds; each means: unusable weights
            method = quantised.method_named(
                settings.get("quantization_config", getattr(config, "quantization_config", None))
            )
            raise ModelError(self._unread(error, "" if self.gguf else method)) from error
        if is_multimodal(config) and not is_multimodal(module.config):
            self.part_of = str((config.architectures or [config.model_type])[0])
        self._require_all(module, report)
        if self.gguf is not None:
            split = f" in {len(self.parts)} parts" if len(self.parts) > 1 else ""
            self.stored_as = f"GGUF {quantisation(self.gguf)}{split}, dequantised"
            _forget_quantisation(module)
        return module

    def _unread(self, error: Exception, method: str) -> str:
        """Why the weights cannot be read, and what to do: of quantised ones, it is seldom the file that is wrong."""
        asked = ", ".join(name for name in self.wishes.placing if name != "quantization_config")
        if asked and not isinstance(error, OSError | SafetensorError):
            return f"{self.name} cannot be read with {asked} as given ({reason(error)}); correct it, or leave it out."
        if not method:
            return f"The weights of {self.name} cannot be read ({reason(error)}); {self._again}."
        if isinstance(error, ImportError):
            return (
                f"{self.name} is quantised with {method}, and what reads that is not installed ({reason(error)}); "
                f"run pip install {quantised.packages_for(method)}."
            )
        return (
            f"The weights of {self.name}, quantised with {method}, cannot be read here ({reason(error)}); load it "
            "where that is given, or take the checkpoint that is not quantised."
        )

    def _dtype(self, config: Any) -> str | torch.dtype:
        """The dtype that is computed in: rounding weights or buffers first would make another model of them."""
        is_quantised = getattr(config, "quantization_config", None) is not None
        if self.wishes.dtype != "auto" or not self.wishes.is_on_cpu or is_quantised:
            return self.wishes.dtype
        return torch.float32 if _parameters(config) <= _FLOAT32_LIMIT else "auto"

    def _require_all(self, module: Any, report: Any) -> None:
        kind = type(module).__name__
        other = sorted((key, tuple(stored), tuple(own)) for key, stored, own in report["mismatched_keys"])
        if other:
            key, stored, own = other[0]
            raise ModelError(
                f"{self.name} holds {len(other)} weights of another shape than a {kind} of its configuration has "
                f"(first: {key}, {list(stored)} in place of {list(own)}); correct the configuration, or {self._again}."
            )
        absent = sorted(report["missing_keys"])
        if absent:
            raise ModelError(
                f"{self.name} lacks the weights of {len(absent)} parts of a {kind} (first: {absent[0]}), which would "
                f"be random numbers; {self._again}."
            )
        unused = sorted(
            key
            for key in report["unexpected_keys"]
            if not _MASKS.search(key) and not (self.part_of and _TOWERS.search(key.lower()))
        )
        if unused and not self.wishes.unused:
            raise ModelError(
                f"{self.name} holds {len(unused)} weights that a {kind} has no part for ({_listed(unused)}), so it is "
                "not the model that its configuration describes; correct the configuration, or load it without them "
                "with ignore_unused=True."
            )

    def _adapter(self) -> dict[str, Any] | None:
        """The settings of an adapter in the folder, or on the hub where there is no model of this name."""
        file = None if self.folder is None or self.gguf else self.folder / "adapter_config.json"
        if self.folder is None:
            file = self._on_hub("adapter_config.json")
        if file is None or not file.is_file():
            return None
        try:
            settings = json.loads(file.read_text("utf-8"))
            if not isinstance(settings, dict):
                raise ValueError("it is no object")
        except (OSError, ValueError) as error:
            raise ModelError(f"{file} cannot be read ({reason(error)}); save the adapter again.") from error
        return settings

    def _base_network(self, adapter: dict[str, Any]) -> Any:
        """The network under an adapter: on the weights of a loaded base where that can be, else read."""
        loaded = _loaded(self.wishes.base)
        if loaded is None or loaded.backend != "transformers" or not tuners.can_share(loaded.model):
            return self._base(adapter).model()
        if loaded.frames.watched:
            raise ModelError(f"{loaded.name} is steered; load {self.name} on it before or after that.")
        network = tuners.merged(tuners.on_shared_weights(loaded.model), loaded.name)
        return network.to(self.wishes.dtype) if isinstance(self.wishes.dtype, torch.dtype) else network

    def _base_tokenizer(self, adapter: dict[str, Any]) -> Any:
        loaded = _loaded(self.wishes.base)
        return self._base(adapter).tokenizer(None) if loaded is None else copy.deepcopy(loaded.tokenizer)

    def _with_own_template(self, tokenizer: Any) -> Any:
        """The base's tokenizer, with the chat template that lies beside the adapter."""
        file = None if self.folder is None else self.folder / "chat_template.jinja"
        if self.folder is None:
            file = self._on_hub("chat_template.jinja")
        if file is not None and file.is_file():
            try:
                tokenizer.chat_template = file.read_text("utf-8")
            except (OSError, ValueError) as error:
                raise ModelError(f"{file} cannot be read ({reason(error)}); save it again.") from error
        return tokenizer

    def _base(self, adapter: dict[str, Any]) -> Source:
        """Where the weights under an adapter lie: as asked, else what it names."""
        loaded = _loaded(self.wishes.base)
        asked = self.wishes.base if loaded is None else loaded.name
        name = asked or adapter.get("base_model_name_or_path")
        if not name:
            raise ModelError(f"The adapter {self.name} names no base model; name it with base=....")
        if Path(str(name)).expanduser().resolve() == Path(self.where).expanduser().resolve():
            raise ModelError(
                f"The adapter {self.name} names itself as its base, and no weights lie there; name it with base=...."
            )
        revision = None if self.wishes.base else adapter.get("revision")
        return Source(str(name), replace(self.wishes, base=None, revision=revision))

    def _on_hub(self, file: str) -> Path | None:
        """A file of the hub repository, fetched; None where there is none, or no hub."""
        from transformers.utils import cached_file

        try:
            with quiet():
                found = cached_file(
                    self.name,
                    file,
                    revision=self.wishes.revision,
                    _raise_exceptions_for_missing_entries=False,
                    _raise_exceptions_for_connection_errors=False,
                )
        except OSError:  # no repository of this name: reading its configuration says so
            return None
        return None if found is None else Path(found)

    def _tuned(self, adapter: dict[str, Any]) -> Any:
        tuners.require_package("peft", self.name)
        if self.wishes.base is None and self._has_weights():
            config = self.config()
            require_causal(config, self.name)
            network = self._read(config)  # transformers puts the adapter beside it in
        else:
            network = tuners.with_adapter(
                self._base_network(adapter), self.where, self.wishes.revision, self.name
            )
        kind = str(adapter.get("peft_type", "adapter"))
        self.stored_as = f"{kind}, {'merged' if self.wishes.merge else 'kept apart'}"
        return tuners.thawed(tuners.merged(network, self.name) if self.wishes.merge else network)

    @property
    def _again(self) -> str:
        return (
            "save the checkpoint again" if self.folder is not None else "check the name or download it again"
        )

    def _has_weights(self) -> bool:
        """Whether weights of a whole model lie beside an adapter."""
        if self.folder is None:
            return any(self._on_hub(name) for name in ("model.safetensors", "model.safetensors.index.json"))
        return any(not file.name.startswith("adapter_") for file in self.folder.glob("*.safetensors"))


def is_adapter(name: str, revision: str | None = None) -> bool:
    """Whether a name stands for an adapter, which needs a base model's weights.

    Raises:
        ModelError: there is nothing of this name.
    """
    place = Path(name).expanduser()
    if place.exists() and not (place / "adapter_config.json").is_file():
        return False  # parts of a GGUF file are not joined to know that
    source = Source(name, Wishes(revision=revision))
    return source._adapter() is not None and not source._has_weights()


def _loaded(base: str | Path | LanguageModel | None) -> LanguageModel | None:
    return None if base is None or isinstance(base, str | Path) else base


def require_causal(config: Any, name: str) -> None:
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


def _parameters(config: Any) -> int:
    """How many parameters a model of this configuration has."""
    with torch.device("meta"), quiet():
        return int(auto_class(config).from_config(config).num_parameters())


def _forget_quantisation(module: Any) -> None:
    """A dequantised model is a plain one."""
    module.hf_quantizer, module.is_quantized = None, False
    if hasattr(module.config, "quantization_config"):
        del module.config.quantization_config


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
