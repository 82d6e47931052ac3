"""Tables in memory, told by what they offer: pandas and polars frames, Arrow tables, a `datasets.Dataset`, a mapping.

None of these libraries is imported. A table is never a list of texts: what iterates over it gets the names of its
columns, or its rows, and would take them for texts.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from steerlab.errors import kind_of


def columns_of(given: Any) -> list[str] | None:
    """The names of a table's columns; None for what is no table."""
    names = getattr(given, "column_names", None)
    if names is None:
        names = given if isinstance(given, Mapping) else getattr(given, "columns", None)
    return None if names is None else [str(name) for name in names]


def rows_of(given: Any) -> list[dict[str, Any]] | None:
    """A table's rows, None in cells that are missing; None for what is no table of rows."""
    if hasattr(given, "to_pylist") and hasattr(given, "column_names"):  # Arrow
        rows = given.to_pylist()
    elif hasattr(given, "to_dicts"):  # polars
        rows = given.to_dicts()
    elif hasattr(given, "to_dict") and hasattr(given, "columns"):  # pandas
        rows = given.to_dict("records")
    elif hasattr(given, "column_names") and not isinstance(given, Mapping):  # datasets
        rows = given
    else:
        return None
    return [{str(name): None if _missing(value) else value for name, value in row.items()} for row in rows]


def _missing(value: Any) -> bool:
    """Whether a frame means that nothing is there: not a number, or pandas' own marks."""
    return (isinstance(value, float) and value != value) or type(value).__name__ in ("NAType", "NaTType")


def table_advice(given: Any) -> str | None:
    """What to give instead of a table where texts are asked for; None for what is no table."""
    names = columns_of(given)
    if names is None:
        return None
    shown = ", ".join(map(repr, names[:4])) or "no column"
    return f"as a list of texts, not as a table ({shown}); give one column of it"


def row_advice(given: Any) -> str:
    """What something is that stands where a text is asked for, and what to give instead."""
    messages = given if isinstance(given, list | tuple) else [given]
    if messages and all(isinstance(one, Mapping) and {"role", "content"} <= set(one) for one in messages):
        return (
            "a chat message, not a text; render it with model.instruction_prompt(text), or several with "
            "model.conversation_prompt(turns)"
        )
    if isinstance(given, Mapping):
        return f"a row of a table ({', '.join(map(repr, list(given)[:4]))}); give the texts of one column"
    return f"{kind_of(given)}; give a text"
