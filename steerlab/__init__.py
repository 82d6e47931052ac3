"""steerlab: what post-training changed inside a language model, and how to steer one at inference.

Names are imported when first used, so that `import steerlab` and `steerlab --help` do not wait for torch.
`_ROOM_OF` says where each name of the front door lives and `_ROOMS` which rooms there are; the imports for type
checkers repeat both (a test holds them equal).
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from steerlab import activations as activations
    from steerlab import alignment as alignment
    from steerlab import auditing as auditing
    from steerlab import batching as batching
    from steerlab import card as card
    from steerlab import chat as chat
    from steerlab import cli as cli
    from steerlab import comparison as comparison
    from steerlab import datasets as datasets
    from steerlab import directions as directions
    from steerlab import environment as environment
    from steerlab import errors as errors
    from steerlab import extraction as extraction
    from steerlab import files as files
    from steerlab import forecast as forecast
    from steerlab import judging as judging
    from steerlab import lock as lock
    from steerlab import models as models
    from steerlab import monitoring as monitoring
    from steerlab import neurons as neurons
    from steerlab import old_names as old_names
    from steerlab import opening as opening
    from steerlab import plots as plots
    from steerlab import progress as progress
    from steerlab import readouts as readouts
    from steerlab import record as record
    from steerlab import registry as registry
    from steerlab import report as report
    from steerlab import results as results
    from steerlab import run_data as run_data
    from steerlab import run_folder as run_folder
    from steerlab import runs as runs
    from steerlab import selection as selection
    from steerlab import serving as serving
    from steerlab import showing as showing
    from steerlab import stages as stages
    from steerlab import statistics as statistics
    from steerlab import steering as steering
    from steerlab import studies as studies
    from steerlab import zoo as zoo
    from steerlab.activations import Activations as Activations
    from steerlab.activations import Moments as Moments
    from steerlab.activations import PatchSweep as PatchSweep
    from steerlab.activations import attention_pattern as attention_pattern
    from steerlab.activations import capture as capture
    from steerlab.auditing import audit as audit
    from steerlab.card import steering_card as steering_card
    from steerlab.comparison import compare as compare
    from steerlab.directions import Direction as Direction
    from steerlab.directions import fit_direction as fit_direction
    from steerlab.errors import SteerlabError as SteerlabError
    from steerlab.extraction import extract as extract
    from steerlab.models import AfterInstruction as AfterInstruction
    from steerlab.models import All as All
    from steerlab.models import FirstGenerated as FirstGenerated
    from steerlab.models import Generated as Generated
    from steerlab.models import Index as Index
    from steerlab.models import LanguageModel as LanguageModel
    from steerlab.models import Last as Last
    from steerlab.models import Prompt as Prompt
    from steerlab.models import Site as Site
    from steerlab.models import Span as Span
    from steerlab.models import WholePrompt as WholePrompt
    from steerlab.models import Window as Window
    from steerlab.monitoring import Alarm as Alarm
    from steerlab.monitoring import calibrate as calibrate
    from steerlab.neurons import entropy_neurons as entropy_neurons
    from steerlab.opening import load as load
    from steerlab.readouts import lens as lens
    from steerlab.readouts import patchscope as patchscope
    from steerlab.selection import select_direction as select_direction
    from steerlab.steering import Ablate as Ablate
    from steerlab.steering import Add as Add
    from steerlab.steering import Affine as Affine
    from steerlab.steering import Clamp as Clamp
    from steerlab.steering import Condition as Condition
    from steerlab.steering import Erase as Erase
    from steerlab.steering import LowRank as LowRank
    from steerlab.steering import Patch as Patch
    from steerlab.steering import PerRow as PerRow
    from steerlab.steering import Project as Project
    from steerlab.steering import Rotate as Rotate
    from steerlab.steering import Scale as Scale
    from steerlab.steering import export as export
    from steerlab.steering import learn_low_rank as learn_low_rank
    from steerlab.steering import optimise_direction as optimise_direction
    from steerlab.steering.bake import bake as bake
    from steerlab.steering.calibrate_strength import calibrate_strength as calibrate_strength
    from steerlab.studies import branching_factor as branching_factor
    from steerlab.studies import unlock as unlock

#: Rooms and modules below the front door, each as `steerlab.NAME`.
_ROOMS = (
    *("activations", "alignment", "auditing", "batching", "card", "chat", "cli", "comparison", "datasets"),
    *("directions", "environment", "errors", "extraction", "files", "forecast", "judging", "lock", "models"),
    *("monitoring", "neurons", "old_names", "opening", "plots", "progress", "readouts", "record", "registry"),
    *("report", "results", "run_data", "run_folder", "runs", "selection", "serving", "showing", "stages", "statistics"),
    *("steering", "studies", "zoo"),
)  # fmt: skip

#: Names of the front door by the room they live in.
_NAMES: dict[str, tuple[str, ...]] = {
    "opening": ("load",),
    "models": (
        *("LanguageModel", "Prompt", "Site"),
        *("AfterInstruction", "All", "FirstGenerated", "Generated", "Index", "Last", "Span", "WholePrompt", "Window"),
    ),
    "activations": ("Activations", "Moments", "PatchSweep", "attention_pattern", "capture"),
    "directions": ("Direction", "fit_direction"),
    "readouts": ("lens", "patchscope"),
    "selection": ("select_direction",),
    "steering": (
        *("Ablate", "Add", "Affine", "Clamp", "Condition", "Erase", "LowRank", "Patch", "PerRow", "Project", "Rotate"),
        *("Scale", "bake", "calibrate_strength", "export", "learn_low_rank", "optimise_direction"),
    ),
    "monitoring": ("Alarm", "calibrate"),
    "studies": ("branching_factor", "unlock"),
    "neurons": ("entropy_neurons",),
    "extraction": ("extract",),
    "comparison": ("compare",),
    "auditing": ("audit",),
    "card": ("steering_card",),
    "errors": ("SteerlabError",),
}  # fmt: skip
_ROOM_OF = {name: room for room, names in _NAMES.items() for name in names}

__all__ = sorted([*_ROOM_OF, *_ROOMS])  # one list of names, not two


def __getattr__(name: str) -> object:
    if name in _ROOM_OF:
        value = getattr(import_module(f"steerlab.{_ROOM_OF[name]}"), name)
    elif name in _ROOMS:
        value = import_module(f"steerlab.{name}")
    else:
        raise AttributeError(_unknown(name))
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])


def _unknown(name: str) -> str:
    if name.startswith("_"):
        return f"steerlab has no attribute {name!r}"
    from difflib import get_close_matches

    known = {known.lower(): known for known in __all__}
    alike = [known[match] for match in get_close_matches(name.lower(), known, cutoff=0.7)]
    hint = (
        f"did you mean {' or '.join(f'sl.{match}' for match in alike)}?" if alike else "dir(sl) lists them."
    )
    return f"steerlab has no {name!r}; {hint}"
