"""What the names of merging pruners stand for."""

from repshift.frames import FramePruner
from repshift.merging.bipartite import BipartitePruner
from repshift.merging.fusing import FusePruner, NearestPruner
from repshift.merging.mutual import MutualNearestPruner
from repshift.merging.saliency import SaliencyPruner
from repshift.merging.ward import WardPruner

MNN, MNN_ONE_ROUND = MutualNearestPruner(), MutualNearestPruner(rounds=1)
WARD, TOME = WardPruner(), BipartitePruner()
SALIENCY_MERGE = SaliencyPruner()
MERGE, FUSE = NearestPruner(), FusePruner()
# within each frame of a video by itself
MNN_FRAMES, TOME_FRAMES = FramePruner(MNN), FramePruner(TOME)
MERGE_FRAMES, SALIENCY_MERGE_FRAMES = FramePruner(MERGE), FramePruner(SALIENCY_MERGE)
