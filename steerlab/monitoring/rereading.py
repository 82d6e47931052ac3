"""`model.reread(generation)`: the states of what a model wrote, its last token included."""

from __future__ import annotations

from steerlab.activations import Activations, capture
from steerlab.activations.rereading import Written, generations_in
from steerlab.errors import PromptError, kind_of
from steerlab.models import LanguageModel, Selector, SitesGiven
from steerlab.monitoring.registry import MONITORS


@MONITORS.register("reread")
def reread(model: LanguageModel, written: Written, sites: SitesGiven, positions: Selector) -> Activations:
    """See `LanguageModel.reread`."""
    if not generations_in(written):
        raise PromptError(
            f"What is read again is what model.generate or model.stream gave, not {kind_of(written)}; read prompts "
            "with sl.capture."
        )
    return capture(model, written, sites, positions=positions)
