"""What a result was made with: library versions and hardware, for manifests and for `steerlab doctor`."""

from __future__ import annotations

import functools
import hashlib
import os
import platform
from importlib import metadata
from pathlib import Path

_LIBRARIES = (
    "steerlab",
    "torch",
    "transformers",
    "transformer-lens",
    "nnsight",
    "scikit-learn",
    "einops",
    "plotly",
    "safetensors",
)
#: What some checkpoints need to be read.
_OPTIONAL = ("accelerate", "peft", "gguf", "bitsandbytes", "torchao", "gptqmodel", "compressed-tensors")


def library_versions() -> dict[str, str]:
    """Installed version of Python and of each library results depend on; "not installed" where absent."""
    return {"python": platform.python_version(), **_versions(_LIBRARIES)}


def optional_versions() -> dict[str, str]:
    """The same of each library that only some checkpoints need: adapters, GGUF, quantised weights."""
    return _versions(_OPTIONAL)


def _versions(names: tuple[str, ...]) -> dict[str, str]:
    versions: dict[str, str] = {}
    for name in names:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return versions


@functools.cache
def code_version() -> str:
    """Hash (16 hex digits) of the toolkit's own source, which two checkouts of one version need not share."""
    hashed = hashlib.sha256()
    package = Path(__file__).parent
    for file in sorted(package.rglob("*.py")):
        hashed.update(f"{file.relative_to(package).as_posix()} ".encode() + file.read_bytes())
    return hashed.hexdigest()[:16]


def hardware() -> dict[str, str | int]:
    """Processor, cores, threads torch uses, and the accelerator if there is one."""
    import torch

    facts: dict[str, str | int] = {
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": os.cpu_count() or 1,
        "torch threads": torch.get_num_threads(),
        "accelerator": "none",
    }
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        count = torch.cuda.device_count()
        facts["accelerator"] = f"{count} x {properties.name}, {properties.total_memory / 2**30:.0f} GiB"
    elif torch.backends.mps.is_available():
        facts["accelerator"] = "Apple GPU (mps)"
    return facts


def peak_memory() -> dict[str, float]:
    """MiB that this process has taken at most so far, and that its tensors took on the GPU; empty where unknown."""
    import torch

    peaks: dict[str, float] = {}
    try:
        import resource
    except ImportError:  # Windows
        pass
    else:
        unit = 2**20 if platform.system() == "Darwin" else 2**10  # bytes on macOS, KiB elsewhere
        peaks["process"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit, 1)
    if torch.cuda.is_available():
        peaks["gpu"] = round(torch.cuda.max_memory_allocated() / 2**20, 1)
    return peaks


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or "unknown"
