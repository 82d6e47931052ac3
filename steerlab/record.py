"""The base of everything that steerlab stores: frozen, strict, and written as plain JSON."""

from __future__ import annotations

from typing import Literal, TypeAlias

from pydantic import BaseModel, ConfigDict

#: Which model of a pair a row speaks of.
Role: TypeAlias = Literal["BASE", "POST"]


class Record(BaseModel):
    """A frozen row of named values. Unknown fields are refused, so an old or damaged file never half-loads."""

    model_config = ConfigDict(frozen=True, extra="forbid")
