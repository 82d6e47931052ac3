"""What is read off the weights themselves: the fingerprint, a norm's gain, a projection's matrix."""

from __future__ import annotations

import hashlib
import inspect
import json
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from steerlab.models._shipped import sample
from steerlab.models.offloaded import is_away, own_state
from steerlab.models.quantised import floats, is_packed
from steerlab.models.tuners import weight_of

# Settings that say how a checkpoint was stored or is run, not what it computes.
_TRANSIENT = (
    "name_or_path",
    "transformers_version",
    "dtype",
    "architectures",
    "use_cache",
    "attn_implementation",
)
#: How a TransformerBridge's wrapper names the module it stands in for.
WRAPPED = "_original_component"


def original(module: nn.Module) -> nn.Module:
    """The transformers module behind a TransformerBridge's wrappers; any other module is itself."""
    while WRAPPED in module._modules:
        module = module._modules[WRAPPED]  # type: ignore[assignment]
    return module


def named_state(module: nn.Module, *, remove_duplicate: bool = True) -> Iterator[tuple[str, Tensor]]:
    """Every weight, and every buffer that enters the computation (Gemma's embedding scale); no rotary frequencies,
    which follow from the configuration, and no masks."""
    if any(is_away(part) for part in module.modules()):
        buffers = {name for name, _ in module.named_buffers()}
        for name, tensor in own_state(module):
            if name not in buffers or (tensor.is_floating_point() and "inv_freq" not in name):
                yield name, tensor
        return
    for name, parameter in module.named_parameters(remove_duplicate=remove_duplicate):
        yield name, floats(parameter)
    for name, buffer in module.named_buffers(remove_duplicate=remove_duplicate):
        if buffer.is_floating_point() and "inv_freq" not in name:
            yield name, buffer


def fingerprint(config: Any, parameters: Iterable[tuple[str, Tensor]]) -> str:
    """SHA-256 (first 16 hex digits) of the configuration and of 16 evenly spaced values of every weight and buffer.

    Values are hashed in float32, so a half-precision checkpoint keeps its fingerprint when up-cast.
    """
    return digest(config, ((name, (tuple(weight.shape), sample(weight))) for name, weight in parameters))


def digest(config: Any, samples: Iterable[tuple[str, tuple[tuple[int, ...], Tensor]]]) -> str:
    """The fingerprint from name, shape and sampled values of every weight."""
    lasting = _lasting(config.to_dict())
    if "output_attentions" in lasting:
        lasting["output_attentions"] = False  # how much a pass hands out; a bridge asks for more
    hashed = hashlib.sha256(json.dumps(lasting, sort_keys=True, default=str).encode())
    for name, (shape, values) in sorted(samples, key=lambda sample: sample[0]):
        hashed.update(f"{name}{shape}".encode())
        hashed.update(values.numpy().tobytes())
    return hashed.hexdigest()[:16]


def _lasting(settings: dict[str, Any]) -> dict[str, Any]:
    """A configuration's settings, and those of its parts, without the transient ones."""
    return {
        key: _lasting(value) if isinstance(value, dict) else value
        for key, value in settings.items()
        if not str(key).strip("_").startswith(_TRANSIENT)
    }


def norm_gain(
    norm: nn.Module, width: int, device: torch.device, dtype: torch.dtype
) -> Float[Tensor, " width"]:
    """The factor a normalisation layer applies to each coordinate, found by using it.

    On a vector x with mean 0 and mean square 1 both LayerNorm and RMSNorm give gain * x + bias (up to their
    epsilon, made negligible by scaling x), so gain = (N(x) - N(-x)) / 2x whatever the family stores.
    """
    probe = torch.ones(width, dtype=torch.float64)
    probe[1::2] = -1
    if width % 2:
        probe[-3:] = torch.tensor([math.sqrt(0.5), math.sqrt(0.5), -math.sqrt(2.0)], dtype=torch.float64)
    loud = (probe * 1024).to(device=device, dtype=dtype)
    with torch.inference_mode():
        odd: Tensor = (norm(loud[None, None]) - norm(-loud[None, None]))[0, 0].double().cpu() / 2
    gain: Tensor = odd / probe
    return gain.float()


def down_matrix(module: nn.Module) -> Float[Tensor, "d_mlp d_model"]:
    """A down projection as `[inputs, outputs]`: `nn.Linear` stores the transpose, GPT-2's `Conv1D` this."""
    matrix = weight_of(module).detach()
    return matrix if type(original(module)).__name__ == "Conv1D" else matrix.T


def through_post_norm(
    rows: Float[Tensor, "d_mlp d_model"], norm: nn.Module | None
) -> Float[Tensor, "d_mlp d_model"]:
    """Output rows as a norm behind the MLP lets them into the stream, up to the size that it divides by.

    They are multiplied with its gain, and lose their mean where it takes the mean off.
    """
    if norm is None:
        return rows
    width, precise = rows.shape[1], rows.float()
    if takes_mean_off(norm, width, rows.device, rows.dtype):
        precise = precise - precise.mean(dim=1, keepdim=True)
    return (precise * norm_gain(norm, width, rows.device, rows.dtype).to(rows.device)).to(rows.dtype)


def takes_mean_off(norm: nn.Module, width: int, device: torch.device, dtype: torch.dtype) -> bool:
    """Whether a norm takes the mean off (LayerNorm) or not (RMSNorm), found by using it."""
    probe = torch.linspace(-1, 1, width, device=device, dtype=dtype)[None, None] ** 3 * 4
    with torch.inference_mode():
        change = (norm(probe + 4) - norm(probe)).float().abs().max()
        size = norm(probe).float().abs().max()
    return bool(change < 0.1 * size)


def projection_width(module: nn.Module) -> int:
    """Input width of a linear map: `nn.Linear` stores [out, in], GPT-2's `Conv1D` [in, out]."""
    if is_packed(module):
        return int(module.in_features)  # type: ignore[arg-type]
    weight: Tensor = module.weight  # type: ignore[assignment]
    return int(weight.shape[0] if type(original(module)).__name__ == "Conv1D" else weight.shape[1])


def parameters_of(function: Callable[..., Any]) -> frozenset[str]:
    """Names of a function's parameters."""
    return frozenset(inspect.signature(function).parameters)
