"""Interventions as the command line writes them, `FILE[:AMOUNT[@LAYERS]]`: read without a model, then placed in one."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

from steerlab.cli._app import loading_libraries
from steerlab.cli._inputs import require_files
from steerlab.errors import DirectionError

if TYPE_CHECKING:
    from steerlab.directions import Direction
    from steerlab.models import LanguageModel
    from steerlab.steering import Intervention

#: In the place of what an ablation goes toward: toward zero, and weights keep their length.
_KEPT = "norm"


@dataclass(frozen=True)
class Written:
    """One `--steer`, `--ablate` or `--keep` as it was written, with the direction in its file.

    amount: the strength, or what an ablation goes toward; None where none is written. layers: likewise. keep: what an
    ablation keeps.
    """

    is_ablation: bool
    text: str
    file: Path
    direction: Direction
    amount: float | str | None
    layers: str | None
    keep: tuple[Written, ...] = ()


def read_written(
    steer: Sequence[str] | None, ablate: Sequence[str] | None, keep: Sequence[str] | None = None
) -> list[Written]:
    """Interventions with their files read; every ablation keeps what `keep` names.

    Raises:
        DirectionError: what cannot be understood, a file that is no direction, layers that are none, or something
            to keep without an ablation.
        RunError: a file that is not there.
    """
    parsed: list[tuple[bool, str, tuple[Path, float | str | None, str | None]]] = []
    parsed += [(False, text, parse_steer(text)) for text in steer or ()]
    parsed += [(True, text, parse_ablate(text)) for text in ablate or ()]
    kept = [(False, text, parse_keep(text)) for text in keep or ()]
    if kept and not ablate:
        raise DirectionError(
            "--keep names what an ablation leaves as it is, and nothing is ablated; give --ablate."
        )
    require_files(*(file for _, _, (file, _, _) in [*parsed, *kept]))
    if not parsed:
        return []
    with loading_libraries():
        keeping, given = (
            [
                Written(is_ablation, text, file, _read(file, layers), amount, layers)
                for is_ablation, text, (file, amount, layers) in some
            ]
            for some in (kept, parsed)
        )
    return [replace(one, keep=tuple(keeping)) if one.is_ablation else one for one in given]


def placed(model: LanguageModel, written: Sequence[Written]) -> list[Intervention]:
    """The interventions in a model. Raises DirectionError for layers that the model or a direction does not have."""
    return [_ablation(model, one) if one.is_ablation else _addition(model, one) for one in written]


def parse_steer(text: str) -> tuple[Path, float | None, str | None]:
    """File, strength and layers of `FILE[:STRENGTH[@LAYERS]]`. Raises `DirectionError` where it is malformed."""
    file, strength, layers = _parsed(text, "STRENGTH")
    return file, _strength(text, strength), layers


def parse_ablate(text: str) -> tuple[Path, float | str | None, str | None]:
    """File, what it goes toward and layers of `FILE[:TOWARD[@LAYERS]]`. Raises `DirectionError` as `parse_steer`."""
    file, toward, layers = _parsed(text, "TOWARD")
    try:
        return file, None if toward is None else float(toward), layers
    except ValueError:
        return file, toward, layers


def parse_keep(text: str) -> tuple[Path, None, str | None]:
    """File and layer of `FILE[@LAYER]`. Raises `DirectionError` where it is malformed or has an amount."""
    file, amount, layers = _parsed(text, "")
    if amount is not None:
        raise DirectionError(f"{text!r} is kept as it is, so {amount!r} means nothing; write FILE[@LAYER].")
    return file, None, layers


def _parsed(text: str, what: str) -> tuple[Path, str | None, str | None]:
    match = re.fullmatch(r"(?P<file>.+?\.safetensors)(?::(?P<what>[^@]+))?(?:@(?P<layers>.+))?", text)
    if match is None:
        raise DirectionError(
            f"{text!r} is not understood; write FILE.safetensors, then {f':{what} and ' if what else ''}@LAYERS if "
            "wanted."
        )
    return Path(match["file"]), match["what"], match["layers"]


def _strength(text: str, written: str | None) -> float | None:
    try:
        strength = None if written is None else float(written)
    except ValueError:
        strength = math.nan
    if strength is not None and not math.isfinite(strength):
        raise DirectionError(f"{text!r} has the strength {written!r}; write a number such as 1.5.")
    return strength


def read_direction(file: Path, layers: str | None, model: LanguageModel) -> Direction:
    """The direction in `file`, at the sites of `layers` only where some are named.

    Raises `DirectionError` for a bad file, or when the direction has no site at these layers.
    """
    from steerlab.directions import Direction

    return _at_layers(Direction.load(file), file, layers, model)


# -- private --


def _read(file: Path, layers: str | None) -> Direction:
    from steerlab.directions import Direction
    from steerlab.extraction import named_layers

    if layers is not None:
        named_layers(layers)
    return Direction.load(file)


def _at_layers(direction: Direction, file: Path, layers: str | None, model: LanguageModel) -> Direction:
    from steerlab.extraction import chosen_layers

    if layers is None:
        return direction
    wanted = chosen_layers(layers, model.n_layers)
    sites = [site for site in direction.sites if site.layer in wanted]
    if not sites:
        raise DirectionError(
            f"{file} has no vector at layer {layers}; its sites are {', '.join(map(str, direction.sites))}."
        )
    return direction.at(*sites)


def _addition(model: LanguageModel, one: Written) -> Intervention:
    from steerlab.steering import Add

    example = f"{one.file}:{one.text.partition('.safetensors:')[2] or 1}"
    return Add(
        _in_place(one, one.layers, model, example),
        strength=1.0 if one.amount is None else cast(float, one.amount),
        unit="class_gap",
        layers=None if one.layers is None else "all",
    )


def _ablation(model: LanguageModel, one: Written) -> Intervention:
    """The direction where it works best, removed toward something at some layers, or everywhere."""
    from steerlab.extraction import chosen_layers
    from steerlab.steering import Ablate

    keep = [_at_layers(kept.direction, kept.file, kept.layers, model) for kept in one.keep]
    if one.amount is None:
        return cast("Intervention", Ablate(_in_place(one, one.layers, model, one.text), keep=keep))
    direction = _in_place(one, None, model, one.text)
    if len(direction.sites) > 1 and direction.best is not None:
        direction = direction.at(direction.best)
    chosen = None if one.layers is None else chosen_layers(one.layers, model.n_layers)
    if one.amount == _KEPT:
        return cast("Intervention", Ablate(direction, preserve="norm", layers=chosen, keep=keep))
    return cast("Intervention", Ablate(direction, toward=one.amount, layers=chosen, keep=keep))


def _in_place(one: Written, layers: str | None, model: LanguageModel, example: str) -> Direction:
    """The direction at the named layers; without any it must know where it works best."""
    direction = _at_layers(one.direction, one.file, layers, model)
    if layers is None and direction.best is None and len(direction.sites) > 1:
        numbers = [site.layer for site in direction.sites if site.layer is not None]
        raise DirectionError(
            f"{one.file} has vectors at {len(direction.sites)} sites and does not know where it works best; "
            + (
                f"name layers, for example {example}@{numbers[len(numbers) // 2]}."
                if numbers
                else "keep one of them."
            )
        )
    return direction
