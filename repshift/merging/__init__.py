"""Pruners that let tokens become part of others instead of dropping them; none needs an attention map.

Their names are registered in :data:`repshift.PRUNERS`: ``mnn`` (recommended), ``ward``, ``tome``, ``merge``, ``fuse``,
``saliency_merge``.
"""

from repshift.merging.bipartite import BipartitePruner
from repshift.merging.fusing import FusePruner, NearestPruner
from repshift.merging.mutual import MutualNearestPruner
from repshift.merging.saliency import SaliencyPruner
from repshift.merging.ward import WardPruner

__all__ = ["BipartitePruner", "FusePruner", "MutualNearestPruner", "NearestPruner", "SaliencyPruner", "WardPruner"]
