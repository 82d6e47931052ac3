"""What steerlab itself computes for the scripts beside: prompts, vectors, greedy tokens and their log-probabilities.

A token counts as another one only where the two likeliest tokens of the reference are more than 1e-3 nats apart: below
that, rounding decides. After the first such near-tie, or difference, the texts go different ways and are not compared.
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import steerlab as sl
from steerlab.environment import hardware, library_versions

NEAR_TIE = 1e-3
_WORDS = (
    "the sea", "a small dog", "an old clock", "the number seven", "a glass of water", "the moon", "a train to Paris",
    "the first snow",
)  # fmt: skip
_QUESTIONS = (
    "Tell me about {}.",
    "Write a story that begins with {}.",
    "Why do people like {}?",
    "Describe {} in one sentence.",
)
PROMPTS = [question.format(word) for word in _WORDS for question in _QUESTIONS]


@dataclass(frozen=True)
class Text:
    """One prompt's tokens, what was written greedily, and each written token's two best log-probabilities."""

    prompt: list[int]
    written: list[int]
    best: list[float]
    second: list[float]


def load(folder: str) -> Any:
    """The model in float32 on the CPU."""
    return sl.load(folder, device="cpu", dtype="float32")


def prompts(model: Any, count: int) -> list[Any]:
    """Chat prompts of the model."""
    return [model.instruction_prompt(text) for text in PROMPTS[:count]]


def vectors(model: Any, layers: Sequence[int], share: float = 0.2) -> list[Any]:
    """A random addition at each layer, a share of the stream's mean norm there; the seed is the layer."""
    some = prompts(model, 4)
    sites = [sl.Site("resid_post", layer) for layer in layers]
    states = sl.capture(model, some, sites, positions=sl.All())
    edits = []
    for site in sites:
        unit = torch.nn.functional.normalize(
            torch.randn(model.d_model, generator=torch.Generator().manual_seed(site.layer or 0)), dim=0
        )
        # the first token's norm is of another size in many families
        length = float(states[site].float().norm(dim=1).median())
        vector = sl.Direction({site: share * length * unit}, model.name, model.fingerprint)
        edits.append(sl.Add(vector, strength=1.0, unit="raw"))
    return edits


def ablation(model: Any) -> Any:
    """A random direction removed everywhere."""
    vector = torch.randn(model.d_model, generator=torch.Generator().manual_seed(1000))
    site = sl.Site("resid_post", model.n_layers // 2)
    return sl.Ablate(sl.Direction({site: vector}, model.name, model.fingerprint))


def texts(model: Any, some: Sequence[Any], tokens: int, edits: Sequence[Any] = ()) -> list[Text]:
    """Greedy texts of transformers, steered by hooks, with the law at every written token."""
    from contextlib import nullcontext

    found = []
    with model.steering(*edits) if edits else nullcontext():
        for prompt, written in zip(some, model.generate(some, max_new_tokens=tokens), strict=True):
            found.append(_read(model, model.token_ids(prompt)[0], list(written.token_ids)))
    return found


def law(model: Any, prompt: Sequence[int], written: Sequence[int], edits: Sequence[Any] = ()) -> torch.Tensor:
    """Log-probabilities of given tokens after a prompt."""
    from contextlib import nullcontext

    with model.steering(*edits) if edits else nullcontext():
        return _log_probabilities(model, prompt, written).gather(1, torch.tensor(written)[:, None])[:, 0]


def _read(model: Any, prompt: list[int], written: list[int]) -> Text:
    two = _log_probabilities(model, prompt, written).topk(2, dim=-1).values
    return Text(prompt, written, two[:, 0].tolist(), two[:, 1].tolist())


def _log_probabilities(model: Any, prompt: Sequence[int], written: Sequence[int]) -> torch.Tensor:
    ids = torch.tensor([[*prompt, *written]])
    with torch.inference_mode():
        logits = model.model(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 : -1].double()
    return torch.log_softmax(logits, dim=-1)


def compared(
    reference: Sequence[Text], written: Sequence[Sequence[int]], logprobs: Sequence[Sequence[float]]
) -> dict[str, Any]:
    """Tokens compared up to the first near-tie, the differences that count, and the largest in log-probability."""
    tokens = differences = ties = 0
    largest = 0.0
    for expected, found, values in zip(reference, written, logprobs, strict=True):
        for place, token in enumerate(expected.written):
            if place >= len(found) or found[place] != token:
                is_tie = expected.best[place] - expected.second[place] <= NEAR_TIE
                ties, differences = ties + is_tie, differences + (not is_tie)
                break
            tokens += 1
            largest = max(largest, abs(values[place] - expected.best[place]))
    return {
        "prompts": len(reference),
        "tokens compared": tokens,
        "tokens that differ": differences,
        "texts cut at a near-tie": ties,
        "largest difference in log-probability": largest,
    }


def environment(folder: Path, install: Sequence[Sequence[str]], marker: str) -> Path:
    """A virtual environment in a folder, made once by pip; its Python.

    install: arguments of `python -m pip`, one call after the other.
    """
    python = folder / "bin" / "python"
    done = folder / f".{marker}"
    if not done.exists():
        if not python.exists():
            subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        for arguments in install:
            subprocess.run([str(python), "-m", "pip", "--disable-pip-version-check", *arguments], check=True)
        done.touch()
    return python


def versions(python: Path, packages: Sequence[str]) -> dict[str, str]:
    """Versions of packages in an engine's environment."""
    code = (
        "import importlib.metadata as m, json, sys\n"
        "print(json.dumps({p: m.version(p) for p in sys.argv[1:]}))"
    )
    answer = subprocess.run([str(python), "-c", code, *packages], check=True, capture_output=True, text=True)
    found: dict[str, str] = json.loads(answer.stdout)
    return found


def write(path: Path, engine: dict[str, Any], rows: Sequence[dict[str, Any]]) -> None:
    """The rows so far, with what they were measured with."""
    result = {
        "machine": hardware(),
        "python": platform.python_version(),
        "libraries": library_versions(),
        "engine": engine,
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "near-tie": NEAR_TIE,
        "rows": list(rows),
    }
    path.write_text(json.dumps(result, indent=1) + "\n")
