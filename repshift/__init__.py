"""Faster pretrained vision backbones without retraining: drop the tokens whose representation barely shifts.

::

    import repshift

    model = repshift.load_model("deit_small_patch16_224", pretrained=True)
    pruned = repshift.ShiftTracker(model).prune({0: 0.2, 3: 0.2, 6: 0.2})

Source: "Representation Shift: Unifying Token Compression with FlashAttention", arXiv 2508.00367.
"""

from repshift.distances import DISTANCES
from repshift.errors import (
    CheckpointError,
    DataError,
    RepresentationError,
    RepshiftError,
    ScheduleError,
    UnknownNameError,
    UnsupportedModelError,
)
from repshift.loading import MODELS, load_model
from repshift.modules import repeated_blocks
from repshift.pruners import PRUNERS
from repshift.schedules import Schedule
from repshift.scores import SCORES
from repshift.sites import BACKBONES
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
    "RepresentationError",
    "RepshiftError",
    "Schedule",
    "ScheduleError",
    "ShiftTracker",
    "UnknownNameError",
    "UnsupportedModelError",
    "load_model",
    "repeated_blocks",
]
