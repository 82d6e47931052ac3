"""Interventions: what is done to a model's states while it runs, inside ``with model.steering(...)``.

Each is frozen data with sites, positions, a schedule over generated tokens and a condition, satisfies the `Edit`
protocol of the models room, and can be written down and read back. `PerRow` gives every prompt of a batch its own,
`calibrate_strength` finds the strength that does what is wanted at the least price, `side_effects` measures that price.
"""

from __future__ import annotations

from steerlab.models.steering import is_compiled
from steerlab.old_names import old_names
from steerlab.steering._intervention import Intervention
from steerlab.steering.ablate import Ablate, stream_writes
from steerlab.steering.add import Add
from steerlab.steering.affine import Affine
from steerlab.steering.bake import bake, why_not_baked
from steerlab.steering.by_category import CategoryEffects, effects_by_category
from steerlab.steering.calibrate_strength import Calibration, calibrate_strength, token_log_odds
from steerlab.steering.clamp import Clamp
from steerlab.steering.condition import Condition
from steerlab.steering.continuous import generate_batch
from steerlab.steering.engines import export_easysteer, export_gguf, export_vllm_lens
from steerlab.steering.erase import Erase
from steerlab.steering.independence import Independence, independence
from steerlab.steering.learning import learn_low_rank
from steerlab.steering.low_rank import LowRank
from steerlab.steering.optimise import optimise_direction
from steerlab.steering.patch import Patch, mean_state
from steerlab.steering.per_row import PerRow
from steerlab.steering.price import SideEffects, side_effects
from steerlab.steering.project import Project
from steerlab.steering.registry import EXPORTS, INTERVENTIONS, edit_from_dict, export, register_intervention
from steerlab.steering.rotate import Rotate
from steerlab.steering.scale import Scale
from steerlab.steering.schedules import Constant, Decay, Linear, PerStep
from steerlab.steering.slots import Slots
from steerlab.steering.transformers_folder import export_transformers

__all__ = [
    "EXPORTS",
    "INTERVENTIONS",
    "Ablate",
    "Add",
    "Affine",
    "Calibration",
    "CategoryEffects",
    "Clamp",
    "Condition",
    "Constant",
    "Decay",
    "Erase",
    "Independence",
    "Intervention",
    "Linear",
    "LowRank",
    "Patch",
    "PerRow",
    "PerStep",
    "Project",
    "Rotate",
    "Scale",
    "SideEffects",
    "Slots",
    "bake",
    "calibrate_strength",
    "edit_from_dict",
    "effects_by_category",
    "export",
    "export_easysteer",
    "export_gguf",
    "export_transformers",
    "export_vllm_lens",
    "generate_batch",
    "independence",
    "is_compiled",
    "learn_low_rank",
    "mean_state",
    "optimise_direction",
    "register_intervention",
    "side_effects",
    "stream_writes",
    "token_log_odds",
    "why_not_baked",
]

__getattr__ = old_names(__name__, {"calibrate": "steerlab.steering.calibrate_strength"})
