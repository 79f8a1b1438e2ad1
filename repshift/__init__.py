"""Faster pretrained vision backbones without retraining: drop the tokens whose representation barely shifts.

::

    import repshift

    model = repshift.load_model("deit_small_patch16_224", pretrained=True)
    pruned = repshift.ShiftTracker(model).prune({0: 0.2, 3: 0.2, 6: 0.2})

Source: "Representation Shift: Unifying Token Compression with FlashAttention", arXiv 2508.00367.
"""

from repshift.choosing import attention, recipe_of
from repshift.describing import describe
from repshift.distances import DISTANCES
from repshift.errors import (
    CheckpointError,
    DataError,
    RecipeError,
    RepresentationError,
    RepshiftError,
    ScheduleError,
    UnknownNameError,
    UnsupportedModelError,
)
from repshift.finding import BACKBONES
from repshift.folders import save_model
from repshift.kernels import available_attention
from repshift.loading import MODELS, load_model
from repshift.modules import repeated_blocks
from repshift.pruners import PRUNERS
from repshift.pruning import dense
from repshift.recipes import Recipe
from repshift.schedules import Schedule
from repshift.scores import SCORES
from repshift.selection import Selection
from repshift.tracker import ShiftTracker

__version__ = "0.1.0"

__all__ = [
    "BACKBONES",
    "DISTANCES",
    "MODELS",
    "PRUNERS",
    "SCORES",
    "CheckpointError",
    "DataError",
    "Recipe",
    "RecipeError",
    "RepresentationError",
    "RepshiftError",
    "Schedule",
    "ScheduleError",
    "Selection",
    "ShiftTracker",
    "UnknownNameError",
    "UnsupportedModelError",
    "attention",
    "available_attention",
    "dense",
    "describe",
    "load_model",
    "recipe_of",
    "repeated_blocks",
    "save_model",
]
