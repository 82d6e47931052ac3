"""How much memory a piece of work takes, and what an out-of-memory error looks like on each device."""

from __future__ import annotations

import torch

_CPU_MESSAGES = ("can't allocate memory", "not enough memory", "out of memory")


def is_out_of_memory(error: BaseException) -> bool:
    """True for CUDA's error class, and for the plain RuntimeError that CPU and MPS allocators raise."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in _CPU_MESSAGES)


def release_cached_memory() -> None:
    """Give cached blocks back before a smaller second try; nothing to do on the CPU."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def readable(size: float) -> str:
    """Bytes as people write them: ``readable(3 * 2**20) == "3.0 MiB"``."""
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"
