"""Warnings and bars of other libraries, which appear only where somebody watches."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def quiet() -> Iterator[None]:
    """No warnings while a checkpoint is read (transformers, peft, kernels of other machines), bars only if watched."""
    from transformers.utils import logging as quietable

    own: Any = quietable  # its functions carry no types
    level, before = own.get_verbosity(), logging.root.manager.disable
    own.set_verbosity_error()
    logging.disable(logging.WARNING)
    try:
        with transformers_bars(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
        own.set_verbosity(level)


@contextmanager
def transformers_bars() -> Iterator[None]:
    """transformers' own progress bars, too, show only while somebody watches."""
    from transformers.utils import logging as quietable

    from steerlab.progress import watched

    own: Any = quietable  # its functions carry no types
    hidden = own.is_progress_bar_enabled() and not watched()
    if hidden:
        own.disable_progress_bar()
    try:
        yield
    finally:
        if hidden:
            own.enable_progress_bar()
