"""Videos, annotations and texts on their way to a model, as UMT's published evaluation reads them."""

from repshift.analysis.video.annotations import Annotations, Questions, read_answers, read_questions, read_retrieval
from repshift.analysis.video.decoding import Clip, decode, read_clip
from repshift.analysis.video.frames import preprocess
from repshift.analysis.video.loading import Clips
from repshift.analysis.video.presets import PRESETS, DatasetPreset
from repshift.analysis.video.sampling import frame_indices
from repshift.analysis.video.texts import Tokeniser, clean

__all__ = [
    "PRESETS",
    "Annotations",
    "Clip",
    "Clips",
    "DatasetPreset",
    "Questions",
    "Tokeniser",
    "clean",
    "decode",
    "frame_indices",
    "preprocess",
    "read_answers",
    "read_clip",
    "read_questions",
    "read_retrieval",
]
