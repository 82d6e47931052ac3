"""The base of everything that steerlab stores: frozen, strict, and written as plain JSON."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, BeforeValidator, ConfigDict


def _lower_case(value: Any) -> Any:
    return value.lower() if isinstance(value, str) else value


#: Which model of a pair a row speaks of. Results of earlier versions have it in capitals.
Role: TypeAlias = Annotated[Literal["base", "post"], BeforeValidator(_lower_case)]


class Record(BaseModel):
    """A frozen row of named values. Unknown fields are refused, so an old or damaged file never half-loads."""

    model_config = ConfigDict(frozen=True, extra="forbid")
