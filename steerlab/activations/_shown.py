"""How captured states and their statistics show themselves."""

from __future__ import annotations

from typing import TYPE_CHECKING

from steerlab.showing import counted, html_table

if TYPE_CHECKING:
    from steerlab.activations.moments import Moments
    from steerlab.activations.states import Activations


def states_html(states: Activations) -> str:
    """One row a site: its rows, width and mean norm."""
    rows = [(site, len(x), x.shape[1], float(x.norm(dim=1).mean())) for site, x in states.states.items()]
    where = f", {states.positions}" if states.positions else ""
    caption = f"States of {counted(states.n_prompts, 'prompt')} in {states.model_name}{where}"
    return html_table(caption, ["Site", "Rows", "Width", "Mean norm"], rows)


def moments_text(moments: Moments) -> str:
    """Order, rows by class, and sites."""
    labels = moments.labels
    classes = ", ".join(f"{label!r}: {moments.count(label)}" for label in labels[:4])
    more = f" and {counted(len(labels) - 4, 'more class')}" if len(labels) > 4 else ""
    rows = (
        f"rows by class {classes}{more}" if any(label is not None for label in labels) else _all_rows(moments)
    )
    whose = f", {moments.model_name}" if moments.model_name else ""
    return f"Moments({moments.order}, {rows}, {counted(len(moments.sites), 'site')}{whose})"


def moments_html(moments: Moments) -> str:
    """One row a site: its width and the mean norm of the states."""
    rows = [
        (site, moments._widths[site], moments.norm(site) if moments.labels else None)
        for site in moments.sites
    ]
    return html_table(moments_text(moments), ["Site", "Width", "Mean norm"], rows)


def _all_rows(moments: Moments) -> str:
    return counted(moments.count() if moments.labels else 0, "row")
