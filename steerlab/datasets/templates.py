"""Where the subject and the object of statements stand, told by a template.

    with_template(statements, "The Spanish word '{subject}' means '{object}'.")

For files whose rows do not name the two.
"""

from __future__ import annotations

import re
from dataclasses import replace

from steerlab.datasets.statement_set import Statement, StatementSet
from steerlab.errors import DatasetError

_FIELD = re.compile(r"\{(\w+)\}")


def with_template(statements: StatementSet, template: str) -> StatementSet:
    """The same statements with the spans "subject" and "object" where the template has its fields.

    A field stands for as few characters as fit. Statements that the template does not fit keep the spans they have.

    Raises:
        DatasetError: a template without `{subject}` or with another field, with nothing but the subject, or one that
            fits no statement.
    """
    pattern = template_pattern(template)
    marked = [_marked(item, pattern) for item in statements]
    if not any(marked):
        raise DatasetError(
            f"The template {template!r} fits none of the {len(statements)} statements; write the words around the "
            f"fields as they stand there, for example in {statements[0].text!r}."
        )
    return StatementSet(new or old for new, old in zip(marked, statements, strict=True))


def template_pattern(template: str) -> re.Pattern[str]:
    """The template as a regular expression with a group for each field. Raises as `with_template`."""
    fields = _FIELD.findall(template)
    if "subject" not in fields:
        raise DatasetError(
            f"The template {template!r} has no {{subject}}; write it where the subject stands, for example "
            "'The city of {subject} is in {object}.'."
        )
    if unknown := sorted(set(fields) - {"subject", "object"}):
        raise DatasetError(
            f"The template {template!r} has a field {{{unknown[0]}}}; its fields are {{subject}} and {{object}}."
        )
    if len(fields) != len(set(fields)):
        raise DatasetError(f"The template {template!r} has a field twice; each stands in one place.")
    literals = [part for number, part in enumerate(_FIELD.split(template)) if number % 2 == 0]
    if fields == ["subject"] and not "".join(literals).strip(" ."):
        raise DatasetError(
            f"In the template {template!r} the subject is the whole statement, so nothing is said of it; write "
            "the words around it."
        )
    pattern = re.escape(literals[0])
    for field, literal in zip(fields, literals[1:], strict=True):
        pattern += f"(?P<{field}>.+?){re.escape(literal)}"
    return re.compile(pattern)


def _marked(item: Statement, pattern: re.Pattern[str]) -> Statement | None:
    match = pattern.fullmatch(item.text)
    if match is None:
        return None
    return replace(item, spans={name: match.span(name) for name in pattern.groupindex})
