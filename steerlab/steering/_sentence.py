"""What an intervention does, in a sentence: what is done, where, on which tokens, when."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from steerlab.models import All, FirstGenerated, Generated, Index, Last, Selector, WholePrompt

_TOKENS: dict[type[Selector], str] = {
    All: "every token",
    Last: "the last token of the prompt",
    WholePrompt: "every token of the prompt",
    Generated: "every generated token",
}


def sentence(edit: Any, done: str) -> str:
    """What `edit` does, after `done` ("adds 2 class gaps of Lda")."""
    parts = [f"{done} {where(edit)}", tokens(edit.positions)]
    if edit.schedule is not None:
        parts.append(f"with {edit.schedule!r}")
    if edit.condition is not None:
        parts.append("on a condition")
    return ", ".join(parts)


def where(edit: Any) -> str:
    """ "at resid_post.18", "at resid_post.10 to 18", "at 5 sites"."""
    sites = getattr(edit, "outputs", edit.sites)
    if not sites or getattr(edit, "everywhere", False):
        kept = getattr(edit, "preserve", None)
        return "in what every attention and MLP writes" if kept else "everywhere in the residual stream"
    if any(isinstance(site, str) for site in sites):
        return f"at every {' and '.join(map(str, sites))}"
    layers = [site.layer for site in sites]
    first, last = sites[0], sites[-1]
    one_family = len({site.name for site in sites}) == 1 and None not in layers
    if len(sites) > 1 and one_family and layers == list(range(layers[0], layers[-1] + 1)):
        return f"at {first} to {last.layer}"
    return f"at {', '.join(map(str, sites))}" if len(sites) <= 4 else f"at {len(sites)} sites"


def tokens(positions: Selector) -> str:
    """Which tokens, in words where there are some."""
    if isinstance(positions, FirstGenerated):
        return f"the first {positions.count} generated tokens"
    if positions == All() - Index(0):
        return "every token but the first"
    return _TOKENS.get(type(positions), str(positions))


def amount(strength: float | Mapping[int, float]) -> str:
    """A strength, or the range of those of the layers."""
    if not isinstance(strength, Mapping):
        return f"{strength:g}"
    low, high = min(strength.values()), max(strength.values())
    return f"{low:g}" if low == high else f"{low:g} to {high:g}"


def listed(numbers: Sequence[int]) -> str:
    """Some numbers, the first of them where they are many."""
    return ", ".join(map(str, numbers[:6])) + (", ..." if len(numbers) > 6 else "")
