"""Requests of two kinds, harmful and harmless: labelled rows, or files that hold one kind each.

Files of one kind are refusal_direction's JSON lists (`instruction`) and AdvBench's CSV (`goal`); which kind they hold
is told by their names in a folder, `harmful...` and `harmless...`, with `_train`, `_val` and `_test` for splits.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from steerlab.datasets.contrast_set import SPLITS, ContrastSet
from steerlab.datasets.readers.source import stem_of
from steerlab.datasets.readers.table import ENDINGS, Table, files_in, folder_of, name_of, read_table
from steerlab.errors import DatasetError

_HARM = {"harmful": True, "1": True, "harmless": False, "0": False}
_KINDS = ("harmful", "harmless")
_TEXTS = ("text", "statement", "instruction", "goal")
_UNDERSTOOD = (
    "requests are read from rows with text,label, or from a folder with a harmful... and a harmless... file "
    "(refusal_direction's JSON, AdvBench's CSV)"
)
_OTHERS = {
    "answer_matching_behavior": "These are questions with two answers (CAA); read them with read_caa.",
    "correct answers": "These are TruthfulQA's questions; read them with read_statements or read_truthful_qa.",
}


def read_requests(path: Any, *, harmless: Any = None, seed: int = 0) -> ContrastSet:
    """Read harmful and harmless requests.

    `path` is one of
    - a file or frame of rows with `text` (or `statement`) and `label` (harmful/harmless or 1/0), and perhaps `split`
      (train, val or test in every row);
    - a folder as of refusal_direction, with `harmful_train.json`, `harmless_val.json` and so on, six in all;
    - a folder with one file whose name begins with `harmful` and one that begins with `harmless`;
    - a file of harmful requests alone, when `harmless` names one of harmless ones.

    Where the files have splits of their own they hold; else they are drawn by the seed, near-duplicates together.
    Raises `DatasetError`.
    """
    if harmless is not None:
        return _contrast(name_of(path), _one_kind(path), _one_kind(harmless), seed)
    if (folder := folder_of(path)) is not None:
        return _folder(folder, seed)
    table = read_table(path)
    if "label" in table.columns or {"text", "statement"} & set(table.columns):
        return _labelled(table, seed)
    if {"instruction", "goal"} & set(table.columns):
        raise DatasetError(
            f"{name_of(path)}: a list of requests of one kind, and a contrast needs two; put it into a folder as "
            "harmful.csv (or .json) with a harmless.csv (or .json) beside it, and name the folder."
        )
    raise _unknown(table)


# -- private, in the order they are called --


def _contrast(
    where: str,
    harmful: Sequence[str],
    harmless: Sequence[str],
    seed: int,
    splits: tuple[tuple[str, ...], tuple[str, ...]] | None = None,
) -> ContrastSet:
    """Both kinds, in splits of their own or in drawn ones."""
    try:
        if splits is None:
            return ContrastSet.from_texts(harmful, harmless, seed=seed)
        return ContrastSet(tuple(harmful), tuple(harmless), splits=splits)
    except DatasetError as error:
        raise DatasetError(f"{where}: {error}") from error


def _one_kind(given: Any) -> list[str]:
    table = read_table(given)
    column = next((name for name in _TEXTS if name in table.columns), None)
    if column is None:
        raise _unknown(table)
    return [row.text(column) for row in table.rows]


def _unknown(table: Table) -> DatasetError:
    hint = next((advice for column, advice in _OTHERS.items() if column in table.columns), "")
    return DatasetError(
        f"{table.file}: its columns ({table.named}) are not those of requests. "
        + (hint or f"{_UNDERSTOOD[0].upper()}{_UNDERSTOOD[1:]}.")
    )


def _folder(folder: Path, seed: int) -> ContrastSet:
    files = files_in(folder, ENDINGS)
    named = {stem_of(file): file for file in files}
    in_splits = {(kind, split): named.get(f"{kind}_{split}") for kind in _KINDS for split in SPLITS}
    if any(in_splits.values()):
        texts: dict[str, list[str]] = {kind: [] for kind in _KINDS}
        where: dict[str, list[str]] = {kind: [] for kind in _KINDS}
        for (kind, split), file in in_splits.items():
            if file is None:
                raise DatasetError(
                    f"{folder}: {kind}_{split} is missing; harmful and harmless requests need train, val and test."
                )
            read = _one_kind(file)
            texts[kind] += read
            where[kind] += [split] * len(read)
        splits = (tuple(where["harmful"]), tuple(where["harmless"]))
        return _contrast(str(folder), texts["harmful"], texts["harmless"], seed, splits)
    harmful, harmless = (
        _only(folder, kind, [file for file in files if re.match(rf"{kind}(?![a-z])", stem_of(file).lower())])
        for kind in _KINDS
    )
    return _contrast(str(folder), _one_kind(harmful), _one_kind(harmless), seed)


def _only(folder: Path, kind: str, files: Sequence[Path]) -> Path:
    if len(files) != 1:
        raise DatasetError(
            f"{folder}: {len(files) or 'no'} file{'s' if len(files) > 1 else ''} whose name begins with {kind!r}; "
            f"one is needed. {_UNDERSTOOD[0].upper()}{_UNDERSTOOD[1:]}."
        )
    return files[0]


def _labelled(table: Table, seed: int) -> ContrastSet:
    column = "statement" if "statement" in table.columns and "text" not in table.columns else "text"
    table.require(column, "label")
    texts = [row.text(column) for row in table.rows]
    labels = [row.choice("label", _HARM) for row in table.rows]
    if len(set(labels)) < 2:
        raise DatasetError(
            f"{table.file}, column 'label': only one class occurs; both harmful and harmless prompts are needed."
        )

    def of(kind: bool, cells: Sequence[str]) -> tuple[str, ...]:
        return tuple(cell for cell, label in zip(cells, labels, strict=True) if label == kind)

    if "split" not in table.columns:
        return _contrast(str(table.file), of(True, texts), of(False, texts), seed)
    names = [row.choice("split", {name: name for name in SPLITS}) for row in table.rows]
    splits = (of(True, names), of(False, names))
    return _contrast(str(table.file), of(True, texts), of(False, texts), seed, splits)
