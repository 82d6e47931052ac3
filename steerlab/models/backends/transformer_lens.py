"""A TransformerLens `TransformerBridge`.

The bridge replaces the modules of a transformers model by wrappers, in place and under the same names, and its
`forward`, `run_with_cache` and `generate` all call those. Hooks on the wrappers are therefore seen by every way the
bridge runs, and the bridge's own hooks act in ours. Two things differ from the plain model and are handled here:

- parameters are found below the wrappers (and once more as q, k, v where a family stores them joined), so the
  fingerprint asks for them by the names the plain model has;
- `enable_compatibility_mode()` may rewrite the weights (fold norms into the next layer, centre what is written to the
  stream). The logits stay, the states do not: directions of the checkpoint no longer fit, so such a bridge is refused.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from steerlab.errors import ModelError, reason
from steerlab.models import weights
from steerlab.models.backends.native import Transformers
from steerlab.models.backends.registry import register_backend
from steerlab.models.tuners import is_installed


@register_backend
class TransformerLens(Transformers):
    """A `TransformerBridge` around a transformers model."""

    name = "transformer_lens"

    @classmethod
    def wraps(cls, source: Any) -> bool:
        """Whether `source` belongs to TransformerLens; asked without importing it."""
        return any(kind.__module__.startswith("transformer_lens.") for kind in type(source).__mro__)

    @classmethod
    def around(cls, module: Any, tokenizer: Any, *, name: str) -> TransformerLens:
        """Boot a bridge on a loaded transformers model, whose modules it wraps in place, and compare their logits."""
        from transformer_lens.model_bridge import TransformerBridge

        if not getattr(tokenizer, "init_kwargs", {}).get("name_or_path"):
            raise ModelError(
                "TransformerLens reads a tokenizer again from its folder, and this one was made in memory; save it "
                "with save_pretrained and give its folder as tokenizer=, or use backend='transformers'."
            )
        boot: Any = TransformerBridge.boot_transformers
        plain = _logits(module)
        try:
            with warnings.catch_warnings(), _nothing_installed():
                warnings.simplefilter("ignore")
                bridge = boot(name, hf_model=module, tokenizer=tokenizer, device=str(module.device))
        except Exception as error:  # an adapter or tokenizer the bridge cannot use, each with its own kind
            raise ModelError(
                f"TransformerLens cannot build a bridge for {name} ({reason(error)}); "
                "use backend='transformers'."
            ) from error
        off = float((_logits(module) - plain).abs().max() / plain.abs().max())
        if not off <= max(1e-4, 4 * torch.finfo(module.dtype).eps):
            raise ModelError(
                f"The bridge TransformerLens builds for {name} computes other logits than transformers (off by "
                f"{off:.2g} of the largest); use backend='transformers'."
            )
        return cls(bridge)

    def module_of(self, source: Any) -> Any:
        """The transformers model whose modules the bridge wraps."""
        module = getattr(source, "original_model", None)
        if not isinstance(module, nn.Module):
            raise ModelError(
                f"A {type(source).__name__} holds no transformers model here; boot a "
                "TransformerBridge.boot_transformers(...) and load that."
            )
        if not hasattr(module, "config") or not hasattr(module, "base_model"):
            raise ModelError(
                f"The bridge is built on a {type(module).__name__}, not on a transformers model; boot it with "
                "TransformerBridge.boot_transformers(...)."
            )
        return module

    def check(self) -> None:
        """Refuse processed weights."""
        # Private there, but the only sign: compatibility mode itself may leave the weights alone.
        if getattr(self.source, "_weights_processed", False):
            raise ModelError(
                "The weights of this bridge were processed (norms folded, writing weights centred), so its states are "
                "not the checkpoint's; boot a fresh bridge, and if you want the old hook names call "
                "enable_compatibility_mode(no_processing=True)."
            )

    def fingerprint(self) -> str:
        """The fingerprint of the plain checkpoint."""
        return weights.fingerprint(self.module.config, self._parameters())

    def _parameters(self) -> Iterator[tuple[str, Tensor]]:
        """The parameters by the names they have in a plain model of the same configuration."""
        parameters = {
            name.replace(f".{weights.WRAPPED}", ""): parameter
            for name, parameter in weights.named_state(self.module, remove_duplicate=False)
        }
        with torch.device("meta"):
            plain = type(self.module)(self.module.config)
        for name, _ in weights.named_state(plain):
            yield name, parameters[name]


@contextmanager
def _nothing_installed() -> Iterator[None]:
    """For multimodal models TransformerLens calls pip for torchvision, which may replace torch; text needs none."""
    from transformer_lens.model_bridge.sources.transformers import helpers

    private: Any = helpers
    installing, private._ensure_torchvision = private._ensure_torchvision, lambda: is_installed("torchvision")
    try:
        yield
    finally:
        private._ensure_torchvision = installing


def _logits(module: Any) -> Tensor:
    tokens = torch.arange(1, 5, device=module.device)[None]
    with torch.inference_mode():
        logits: Tensor = module.eval()(input_ids=tokens, use_cache=False).logits
    return logits.float()
