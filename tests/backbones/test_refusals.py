"""Models that cannot be pruned are tracked with right maps or none."""

import pytest
import torch
from timm.models.hiera import Hiera
from timm.models.nest import Nest
from timm.models.swin_transformer import SwinTransformer

from repshift import RepresentationError, ShiftTracker

# as many windows as tokens in each, so that the numbers alone would look like a map
NEST = {"img_size": 16, "patch_size": 4, "num_levels": 2, "embed_dims": (8, 8), "num_heads": (2, 2), "depths": (2, 2)}
HIERA = {"img_size": (32, 32), "embed_dim": 8, "num_heads": 1, "stages": (1, 1), "q_pool": 1, "mask_unit_size": (2, 2)}


@pytest.mark.parametrize(
    ("model", "site"),
    [
        (lambda: Nest(**NEST), "levels.0.transformer_encoder.1"),
        (lambda: Hiera(**HIERA, mask_unit_attn=(True, False)), "blocks.0"),
    ],
    ids=["Nest", "Hiera"],
)
def test_tokens_that_are_out_of_row_order_are_not_shown_as_a_map(model, site):
    model = model().eval()
    side = 16 if isinstance(model, Nest) else 32
    tracker = ShiftTracker(model, sites=site).run(torch.randn(1, 3, side, side))
    assert tracker.shifts[site].shape[0] == 1
    with pytest.raises(RepresentationError, match="no known rows and columns"):
        tracker.maps[site]


def test_windows_of_a_map_are_tracked_where_they_stand():
    options = {"img_size": 32, "patch_size": 4, "embed_dim": 8, "depths": (2,), "num_heads": (2,), "window_size": 4}
    model = SwinTransformer(**options).eval()
    images = torch.zeros(1, 3, 32, 32)
    images[:, :, 20:24, 8:12] = 9.0  # the patch in row 5, column 2
    tracker = ShiftTracker(model, sites="layers.0.blocks.0", score="norm").run(images)
    shown = tracker.maps["layers.0.blocks.0"][0]
    where = (shown - shown.median()).abs().argmax()
    assert shown.shape == (8, 8)
    assert divmod(int(where), 8) == (5, 2)
