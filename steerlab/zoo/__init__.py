"""Small trained pairs with known behaviour: base and post-trained models at two scales, shipped in the package."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from steerlab.errors import ModelError
from steerlab.old_names import old_names

if TYPE_CHECKING:
    from steerlab.datasets import StatementSet, Task
    from steerlab.models import LanguageModel
    from steerlab.zoo.measuring import Amounts, Measured
    from steerlab.zoo.training import Track

_SCALES = ("small", "large")
_KINDS = ("base", "post")

__all__ = ["known_statements", "load_bundled", "measure", "names", "path", "scales", "sums_task", "train"]


def scales() -> tuple[str, ...]:
    """Names of the scales of the bundled pairs."""
    return _SCALES


def names() -> tuple[str, ...]:
    """The bundled models' names."""
    return tuple(f"{scale}-{kind}" for scale in _SCALES for kind in _KINDS)


def path(name: str) -> Path:
    """The folder of a bundled model, an ordinary transformers checkpoint. `ModelError` for an unknown name."""
    if name not in names():
        raise ModelError(f"There is no bundled model {name!r}; the bundled models are {', '.join(names())}.")
    folder = Path(str(files("steerlab.zoo"))) / "weights" / name
    if not (folder / "model.safetensors").is_file():
        raise ModelError(
            f"The weights of {name} are missing at {folder}; install the package again, or train them."
        )
    return folder


def load_bundled(name: str, **options: Any) -> LanguageModel:
    """A bundled model, called `zoo:NAME` wherever the package lies; `options` go to `steerlab.load`.

    Raises `ModelError` for an unknown name.
    """
    from steerlab.datasets.facts import TOPICS
    from steerlab.models import load_model

    model = load_model(path(name), **options)
    model.name = f"zoo:{name}"
    model.topics = TOPICS
    return model


def known_statements() -> StatementSet:
    """The packaged statements of the topics that the bundled models were trained on, about facts held out there."""
    from steerlab import datasets
    from steerlab.datasets.facts import TOPICS

    return datasets.statements(TOPICS)


def sums_task(n: int = 400, *, count: int = 4, seed: int = 0) -> Task:
    """Sums that no bundled model was trained on, asked plainly and with the wish for steps: see `datasets.Task`."""
    from steerlab.zoo.sums import task

    return task(n, count=count, seed=seed)


def train(
    out: str | Path,
    *,
    scale: str | Sequence[str] = _SCALES,
    seed: int = 0,
    progress: Track | None = None,
    compiled: bool = False,
    card: bool = True,
) -> list[Path]:
    """Train the pairs of some scales from nothing, on CPU, into `out/<scale>-base` and `out/<scale>-post`.

    `progress` is `steerlab.progress.track` or like it; `compiled` uses torch.compile, which needs a C++ compiler and
    is faster; `card` measures each pair and writes its model cards. Returns the folders. Raises `ModelError` for an
    unknown scale, before anything is written.
    """
    wanted = [scale] if isinstance(scale, str) else list(scale)
    for name in wanted:
        if name not in _SCALES:
            raise ModelError(f"There is no scale {name!r}; the scales are {', '.join(_SCALES)}.")
    from steerlab.zoo.card import write_card
    from steerlab.zoo.measuring import measure_pair
    from steerlab.zoo.training import SCALES, train_pair

    folders: list[Path] = []
    for name in wanted:
        pair = train_pair(Path(out), SCALES[name], seed=seed, progress=progress, compiled=compiled)
        folders += pair
        if card:
            measured = measure_pair(*pair, large=name == "large")
            for folder in pair:
                write_card(folder, SCALES[name], measured, seed=seed)
    return folders


def measure(
    folder: str | Path | None = None, *, scale: str | Sequence[str] = _SCALES, amounts: Amounts | None = None
) -> list[Measured]:
    """Measure the bundled pairs (or the pairs that `train` wrote into `folder`) against their bars.

    Raises:
        ModelError: a folder without weights.
    """
    from steerlab.zoo.measuring import measure_pair

    rows: list[Measured] = []
    for name in [scale] if isinstance(scale, str) else scale:
        pair = [Path(folder) / f"{name}-{kind}" if folder else path(f"{name}-{kind}") for kind in _KINDS]
        for place in pair:
            if not (place / "model.safetensors").is_file():
                raise ModelError(f"{place} holds no weights; name a folder that `steerlab zoo train` wrote.")
        rows += measure_pair(*pair, large=name == "large", amounts=amounts)
    return rows


__getattr__ = old_names(
    __name__, {"load": "steerlab.zoo.load_bundled", "statements": "steerlab.zoo.known_statements"}
)
