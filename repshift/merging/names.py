"""What the names of merging pruners stand for."""

from repshift.merging.bipartite import BipartitePruner
from repshift.merging.fusing import FusePruner, NearestPruner
from repshift.merging.mutual import MutualNearestPruner
from repshift.merging.saliency import SaliencyPruner
from repshift.merging.ward import WardPruner

MNN, MNN_ONE_ROUND = MutualNearestPruner(), MutualNearestPruner(rounds=1)
WARD, TOME = WardPruner(), BipartitePruner()
SALIENCY_MERGE = SaliencyPruner()
MERGE, FUSE = NearestPruner(), FusePruner()
