"""Which interventions a model is under: what is read while one acts belongs to no later run.

What a hook does has no name that two processes could compare, so interventions in force are equal to nothing, not even
to those of the same call: whatever is kept under them is never taken up again.
"""

from __future__ import annotations

import secrets

from steerlab.models import LanguageModel, metering

NONE = "none"
#: Hooks that a TransformerBridge is built with (those that people add to it are of other modules), and what counts.
_HARMLESS = ("transformer_lens.model_bridge.", metering.__name__)


def interventions_in_force(model: LanguageModel) -> str:
    """ "none", or how many hooks change or watch the model, with a mark that no other answer has."""
    hooks = [
        hook
        for module in model.model.modules()
        for hook in (*module._forward_pre_hooks.values(), *module._forward_hooks.values())
        if not (getattr(hook, "__module__", None) or "").startswith(_HARMLESS)
    ]
    return f"{len(hooks)} hooks in force ({secrets.token_hex(4)})" if hooks else NONE
