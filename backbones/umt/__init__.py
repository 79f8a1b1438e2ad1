"""Unmasked Teacher (UMT): video encoder, retrieval, question answering, by the names of the published weights.

Source: Li et al. 2023, "Unmasked Teacher: Towards Training-Efficient Video Foundation Models" (arXiv 2303.16058).
"""

from repshift.backbones.umt.answering import UMTAnswering
from repshift.backbones.umt.retrieval import UMTRetrieval
from repshift.backbones.umt.settings import TextSettings, UMTSettings, VisionSettings
from repshift.backbones.umt.vision import UMTVideoEncoder

__all__ = ["TextSettings", "UMTAnswering", "UMTRetrieval", "UMTSettings", "UMTVideoEncoder", "VisionSettings"]
