"""Aligners by name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from steerlab.errors import AlignmentError
from steerlab.registry import Registry

if TYPE_CHECKING:
    from steerlab.alignment._aligner import Aligner

#: Classes of aligners, each registered where it is defined; others come through `steerlab.aligners`.
ALIGNERS: Registry[type[Aligner]] = Registry(
    "aligner", package="steerlab.alignment", group="steerlab.aligners", error=AlignmentError
)

#: Classes that had another name in files of before.
_RENAMED = {"Affine": "AffineMap"}


def aligner_class(name: str) -> type[Aligner]:
    """The registered class of this name: files hold the names of classes.

    Raises:
        AlignmentError: no registered class has the name.
    """
    classes = {aligner.__name__: aligner for aligner in ALIGNERS.values()}
    name = _RENAMED.get(name, name)
    if name not in classes:
        raise AlignmentError(
            f"There is no aligner class {name!r} among {', '.join(classes)}; register it in "
            "steerlab.alignment.ALIGNERS, or fit again."
        )
    return classes[name]
