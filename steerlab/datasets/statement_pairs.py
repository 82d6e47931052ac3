"""Pairs of a true and a false statement that differ in one thing: what runs are patched between.

`match` pairs statements of one group by rules of the caller's; `read_pairs` reads pairs that somebody else made.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from steerlab.datasets.readers.source import ending_of, stem_of, text_of
from steerlab.datasets.readers.table import name_of, read_table
from steerlab.datasets.statement_set import Statement, StatementSet
from steerlab.datasets.templates import template_pattern, with_template
from steerlab.errors import DatasetError

Differ = Literal["subject", "object"]
Matching = Literal["corrected", "published"]


@dataclass(frozen=True, slots=True)
class StatementPair:
    """A true and a false statement, each with the spans "subject" and "object" where they are known."""

    true: Statement
    false: Statement


def match(
    statements: Sequence[Statement],
    group: Callable[[Statement], Hashable | None],
    *,
    matching: Matching = "corrected",
    seed: int = 0,
) -> list[StatementPair]:
    """Pair every true statement with a false one of its group, in the order of the true ones.

    Args:
        group: what the two must agree in; None leaves a statement out.
        matching: "corrected" draws partners at random and uses every statement once; "published" takes the last
            false statement of the group that is left and uses the only one left again and again (Du et al., 2025), so
            that pairs are not independent.
    """
    pools: dict[Hashable, list[Statement]] = {}
    for item in statements:
        key = None if item.label else group(item)
        if key is not None:
            pools.setdefault(key, []).append(item)
    if matching == "corrected":
        rng = random.Random(seed)
        for pool in pools.values():
            rng.shuffle(pool)
    pairs = []
    for item in statements:
        pool = pools.get(group(item), []) if item.label else []
        if pool:
            last = matching == "published" and len(pool) == 1
            pairs.append(StatementPair(item, pool[-1] if last else pool.pop()))
    return pairs


def read_pairs(path: Any, *, template: str | None = None, topic: str | None = None) -> list[StatementPair]:
    """Pairs from a file: rows with `true` and `false`, or Du et al.'s JSON with two lists.

    Rows may hold `topic`; `template` says where subject and object stand (see `with_template`).

    Raises:
        DatasetError: lists of unequal length, a statement that both are, or a template that does not fit.
    """
    if template is not None:
        template_pattern(template)
    named_json = isinstance(path, str | Path) and ending_of(Path(path)) == ".json"
    pairs = _published(Path(path)) if named_json else None
    if pairs is None:
        table = read_table(path)
        table.require("true", "false")
        pairs = [
            (
                row.text("true"),
                row.text("false"),
                row.text("topic") if row.has("topic") else topic or row.stem,
            )
            for row in table.rows
        ]
    for number, (true, false, _) in enumerate(pairs, start=1):
        if true == false:
            raise DatasetError(
                f"{name_of(path)}, pair {number}: both statements are the same; a pair needs two."
            )
    trues = StatementSet(Statement(true, True, topic or name) for true, _, name in pairs)
    falses = StatementSet(Statement(false, False, topic or name) for _, false, name in pairs)
    if template is not None:
        trues, falses = with_template(trues, template), with_template(falses, template)
    return [StatementPair(true, false) for true, false in zip(trues, falses, strict=True)]


def _published(place: Path) -> list[tuple[str, str, str]] | None:
    """The two lists of Du et al.'s file; None for another kind of JSON."""
    try:
        content = json.loads(text_of(place))
    except DatasetError:
        raise
    except (ValueError, RecursionError) as error:
        raise DatasetError(f"{place} cannot be read as JSON: {error}.") from error
    if not isinstance(content, dict):
        return None
    lists = {
        kind: value
        for kind in ("true", "false")
        for name, value in content.items()
        if name.endswith(f"{kind}_prompts") and isinstance(value, list)
    }
    if set(lists) != {"true", "false"}:
        raise DatasetError(
            f"{place}: pairs come as two lists NAME_true_prompts and NAME_false_prompts; the keys here are "
            f"{', '.join(map(str, content)) or 'none'}."
        )
    if len(lists["true"]) != len(lists["false"]):
        raise DatasetError(
            f"{place}: {len(lists['true'])} true but {len(lists['false'])} false statements; a pair needs one of each."
        )
    if not all(isinstance(text, str) and text.strip() for value in lists.values() for text in value):
        raise DatasetError(f"{place}: the lists must hold texts.")
    name = stem_of(place).removesuffix("_paired")
    return [(true, false, name) for true, false in zip(lists["true"], lists["false"], strict=True)]
