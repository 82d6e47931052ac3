"""Fixtures every room's tests share: the read-only data beside the checkout, and tiny random models."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Tiny models are faster on one thread, and threads of a shared machine only wait for each other. Set before numpy and
# torch are imported, so that worker processes, kernels and scripts inherit it.
for _library in ("OMP", "OPENBLAS", "MKL"):
    os.environ[f"{_library}_NUM_THREADS"] = "1"
os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
sys.path.insert(0, str(Path(__file__).parent))

import torch  # noqa: E402

# torchao tells of every kernel that was built for another machine, and pytest would hand that on behind its last line.
logging.disable(logging.WARNING)
logging.getLogger("torch.utils._pytree").setLevel(logging.ERROR)
with contextlib.suppress(ImportError):
    import torchao.quantization  # noqa: F401
logging.disable(logging.NOTSET)

from families import DEVICE, tiny  # noqa: E402
from smaller import use_smaller_amounts  # noqa: E402
from torch.utils._pytree import tree_map_only  # noqa: E402
from transformers import GenerationMixin, PreTrainedModel  # noqa: E402

from steerlab.models import LanguageModel  # noqa: E402


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Where torch was imported before this file, the variables above came too late."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _numbers_not_places(monkeypatch: pytest.MonkeyPatch) -> None:
    """On another device than the CPU plain models take inputs from there, and numbers count wherever they are."""
    if torch.device("cpu") == DEVICE:
        return
    compared = functools.partial(torch.testing.assert_close, check_device=False)
    monkeypatch.setattr(torch.testing, "assert_close", compared)
    monkeypatch.setattr(PreTrainedModel, "__call__", _inputs_there(PreTrainedModel.__call__), raising=False)
    monkeypatch.setattr(GenerationMixin, "generate", _inputs_there(GenerationMixin.generate))


def _inputs_there(run: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(run)
    def moved(model: Any, *args: Any, **kwargs: Any) -> Any:
        args, kwargs = tree_map_only(torch.Tensor, lambda given: given.to(model.device), (args, kwargs))
        return run(model, *args, **kwargs)

    return moved


@pytest.fixture
def smaller_studies(monkeypatch: pytest.MonkeyPatch) -> None:
    """Studies read less, for tests that something runs through."""
    use_smaller_amounts(monkeypatch)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder `shared` beside the checkout: published data and small trained models, read only."""
    folder = Path(__file__).parents[2] / "shared"
    if not folder.is_dir():
        pytest.skip("needs the folder 'shared' (published data and trained models) beside the checkout")
    return folder


@pytest.fixture(scope="session")
def tiny_llama() -> LanguageModel:
    """Llama shape, 3 layers, width 32, untied, chat template, BOS added by the tokenizer."""
    return tiny("llama", chat=True)


@pytest.fixture(scope="session")
def tiny_gpt2() -> LanguageModel:
    """GPT-2 shape, 3 layers, width 32, tied, learned positions, neither chat template nor BOS nor padding."""
    return tiny("gpt2", bos=False)
