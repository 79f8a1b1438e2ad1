"""The names of the package."""

from .choosing import (
    attention,
    recipe_of,
)
from .describing import describe
from .distances import DISTANCES
from .errors import (
    CheckpointError,
    DataError,
    RecipeError,
    RepresentationError,
    RepshiftError,
    ScheduleError,
    UnknownNameError,
    UnsupportedModelError,
)
from .finding import BACKBONES
from .folders import save_model
from .kernels import available_attention
from .loading import (
    MODELS,
    load_model,
)
from .modules import repeated_blocks
from .pruners import PRUNERS
from .pruning import dense
from .recipes import Recipe
from .schedules import Schedule
from .scores import SCORES
from .selection import Selection
from .tracker import ShiftTracker

__version__: str

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
