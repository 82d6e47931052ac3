"""What was run and with what: the manifest's names, moment and sections as the page shows them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from steerlab.report.cells import shown

_ORDER = (
    "models",
    "data",
    "configuration",
    "versions",
    "hardware",
    "timings",
    "costs",
    "peak_memory",
)


def label(key: object) -> str:
    """A key as a heading: "open_prompts" becomes "Open prompts"."""
    words = str(key).replace("_", " ").strip()
    return words[:1].upper() + words[1:]


def model_names(manifest: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(role, name) of each model in the manifest."""
    models = manifest.get("models")
    if not isinstance(models, Mapping):
        return []
    return [
        (str(role), str(facts.get("name", role) if isinstance(facts, Mapping) else facts))
        for role, facts in models.items()
    ]


def title(manifest: Mapping[str, Any]) -> str:
    """The run's title, or its models from one to the next."""
    names = [name for _, name in model_names(manifest)]
    return str(manifest.get("title") or " → ".join(_short(name) for name in names) or "steerlab report")


def moment(created: str) -> str:
    """An ISO time for people; anything else as it is."""
    try:
        return datetime.fromisoformat(created).strftime("%d %B %Y, %H:%M %Z").strip()
    except ValueError:
        return created


def _short(name: str) -> str:
    return name.rstrip("/").rsplit("/", 1)[-1] or name


def sections(manifest: Mapping[str, Any]) -> list[tuple[str, object]]:
    """The sections of the manifest that say something: known ones first, then the rest, single values together."""
    keys = [key for key in _ORDER if key in manifest]
    keys += [key for key in manifest if key not in keys]
    blocks = [
        (key, _block(manifest[key], named=key == "versions"))
        for key in keys
        if isinstance(manifest[key], Mapping | list)
    ]
    single = {key: manifest[key] for key in keys if not isinstance(manifest[key], Mapping | list)}
    return [(key, block) for key, block in blocks if block] + ([("run", _block(single))] if single else [])


def _block(value: object, named: bool = False) -> dict[str, Any] | None:
    """A manifest section as a table: a mapping of mappings has two sides, anything else one line a key.

    named: the keys are names already (of packages) and stay as they are.
    """
    if isinstance(value, Sequence) and not isinstance(value, str):
        value = {str(number): entry for number, entry in enumerate(value, start=1)}
    if not isinstance(value, Mapping) or not value:
        return None
    if all(isinstance(entry, Mapping) for entry in value.values()):
        value = _turned(value)
        columns = list(dict.fromkeys(column for entry in value.values() for column in entry))
        rows = [
            [label(key), *(_plain(entry.get(column)) for column in columns)] for key, entry in value.items()
        ]
        return {"columns": ["", *map(label, columns)], "rows": rows}
    return {
        "columns": [],
        "rows": [[str(key) if named else label(key), _plain(entry)] for key, entry in value.items()],
    }


def _turned(entries: Mapping[Any, Mapping[Any, Any]]) -> Mapping[Any, Mapping[Any, Any]]:
    """The longer side down the page: two models with ten facts each have ten rows."""
    inner = list(dict.fromkeys(key for entry in entries.values() for key in entry))
    if len(inner) <= len(entries):
        return entries
    return {key: {outer: entry.get(key) for outer, entry in entries.items()} for key in inner}


def _plain(value: object) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool | int | float):
        return shown(value).text if not isinstance(value, float) else f"{value:g}"
    if isinstance(value, str):
        return value
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {_plain(entry)}" for key, entry in value.items())
    if isinstance(value, Iterable):
        return ", ".join(_plain(entry) for entry in value)
    return str(value)
