"""Models: loading, where each part lives, prompts and positions, running, steering, generation."""

from steerlab.errors import ModelError, PromptError, SiteError, SteeringError
from steerlab.models.check import CheckRow, SelfCheck
from steerlab.models.edits import Edit, EditTable, Steering
from steerlab.models.gates import EditCondition
from steerlab.models.generation import Generation
from steerlab.models.language_model import LanguageModel
from steerlab.models.loading import load_model
from steerlab.models.output_weights import OutputWeights, SlicedRows, read_output_weights
from steerlab.models.positions import (
    AfterInstruction,
    All,
    Either,
    Except,
    FirstGenerated,
    Generated,
    Index,
    Last,
    Selector,
    Span,
    WholePrompt,
    Window,
    require_selector,
)
from steerlab.models.program import Applied, Count
from steerlab.models.prompts import Conversation, Prompt, PromptsGiven, SelectedTokens, Tokens, as_prompts
from steerlab.models.sites import Site, SiteName, SitesGiven, site_of, sites_among, sites_of
from steerlab.models.source import is_adapter
from steerlab.old_names import old_names

__all__ = [
    "AfterInstruction",
    "All",
    "Applied",
    "CheckRow",
    "Conversation",
    "Count",
    "Edit",
    "EditCondition",
    "EditTable",
    "Either",
    "Except",
    "FirstGenerated",
    "Generated",
    "Generation",
    "Index",
    "LanguageModel",
    "Last",
    "ModelError",
    "OutputWeights",
    "Prompt",
    "PromptError",
    "PromptsGiven",
    "SelectedTokens",
    "Selector",
    "SelfCheck",
    "Site",
    "SiteError",
    "SiteName",
    "SitesGiven",
    "SlicedRows",
    "Span",
    "Steering",
    "SteeringError",
    "Tokens",
    "WholePrompt",
    "Window",
    "as_prompts",
    "is_adapter",
    "load_model",
    "read_output_weights",
    "require_selector",
    "site_of",
    "sites_among",
    "sites_of",
]

__getattr__ = old_names(
    __name__, {"load": "steerlab.models.load_model", "Selection": "steerlab.models.SelectedTokens"}
)
