"""Models whose class token reads the patches by an attention of its own, and models that lose lines in front of it."""

import pytest
import timm
import torch
from timm.models._features import FeatureGetterNet
from timm.models.cait import Cait
from timm.models.crossvit import CrossVit
from timm.models.volo import VOLO
from timm.models.xcit import Xcit

from repshift import ShiftTracker, UnsupportedModelError, describe
from repshift.positions import pick
from repshift.testing import CHECKS, make_subject

SMALL = {"num_classes": 5}
BUILD = {
    "cait": lambda: Cait(img_size=24, patch_size=4, embed_dim=16, depth=3, num_heads=2, init_values=0.5, **SMALL),
    "crossvit": lambda: CrossVit(
        img_size=48,
        img_scale=(1.0, 0.5),
        patch_size=(12, 4),
        embed_dim=(8, 16),
        depth=((1, 2, 0), (1, 2, 0)),
        num_heads=(2, 2),
        mlp_ratio=(2, 2, 1),
        **SMALL,
    ),
    "volo": lambda: VOLO(
        layers=(1, 1, 2, 1),
        img_size=48,
        embed_dims=(16,) * 4,
        num_heads=(2,) * 4,
        mlp_ratio=(2,) * 4,
        stem_hidden_dim=8,
        post_layers=("ca",),
        downsamples=(True, False, False, False),
        outlook_attention=(True, False, False, False),
        **SMALL,
    ),
    "xcit": lambda: Xcit(img_size=48, patch_size=8, embed_dim=16, depth=3, num_heads=2, cls_attn_layers=1, **SMALL),
}
SIZES = {"cait": 24, "crossvit": 48, "volo": 48, "xcit": 48}


def build(name):
    model = BUILD[name]().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape) / (parameter[0].numel() ** 0.5 if parameter.ndim > 1 else 2))
    return model, torch.randn(2, 3, SIZES[name], SIZES[name])


# --- written out ----------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_cait_by_hand():
    model, images = build("cait")
    pruned = ShiftTracker(model).prune({0: 11, 1: 5})
    x = model.patch_embed(images) + model.pos_embed
    for number, block in enumerate(model.blocks):
        x = x + block.gamma_1 * block.attn(block.norm1(x))
        branch = block.gamma_2 * block.mlp(block.norm2(x))
        kept = (branch - x).norm(dim=-1).topk(x.shape[1] - (11, 5, 0)[number]).indices.sort(1).values
        x = pick(x + branch, kept)
    cls = model.cls_token.expand(2, -1, -1)
    for block in model.blocks_token_only:
        cls = cls + block.gamma_1 * block.attn(block.norm1(torch.cat([cls, x], 1)))
        cls = cls + block.gamma_2 * block.mlp(block.norm2(cls))
    torch.testing.assert_close(pruned(images), model.head(model.norm(torch.cat([cls, x], 1))[:, 0]))


@torch.no_grad()
def test_xcit_by_hand_on_a_grid_that_is_no_square():
    model, images = build("xcit")
    images = images[..., :32]  # 6 x 4 tokens
    pruned = ShiftTracker(model).prune({0: 1})
    x, sides = model.patch_embed(images)
    x = x + model.pos_embed(2, *sides).flatten(2).mT
    x = model.blocks[0](x, *sides)
    kept = ShiftTracker(pruned).run(images).kept["blocks.0"]
    x = pick(x, kept)
    for block in model.blocks[1:]:
        x = block(x, 5, 3)
    torch.testing.assert_close(pruned(images), model.forward_head(model.norm(model.forward_cls(x))))
    rows = kept.view(2, 5, 3)
    assert (rows // 4 == rows[:, :, :1] // 4).all()  # whole lines
    assert (rows % 4 == rows[:, :1] % 4).all()


# --- what every pruned model promises -------------------------------------------------------------------------------

SOME = [
    "nothing dropped is the dense model, bit for bit",
    "places do not matter behind a cut",
    "images do not disturb each other",
    "copies prune alike",
    "nothing is left of a forward",
    "what is recorded is what is pruned by",
]


def test_xcit_lays_nothing_out_where_lines_have_gone():
    # a fourth of the lines are left, so that a map of a fourth of the channels would fit the grid
    model, images = build("xcit")
    pruned = ShiftTracker(model).prune({0: 0.5})
    assert pruned.forward_features(images).shape == (len(images), 1 + 9, 16)
    with pytest.raises(UnsupportedModelError, match=r"forward_intermediates lays.* Use forward_features"):
        pruned.forward_intermediates(images)
    extractor = FeatureGetterNet(model, out_indices=[1])
    assert [each.shape for each in extractor(images)] == [(len(images), 16, 6, 6)]
    with pytest.raises(UnsupportedModelError, match=r"FeatureGetterNet.*built without features_only"):
        ShiftTracker(extractor).prune({0: 0.5})


@pytest.mark.parametrize("promised", SOME)
@pytest.mark.parametrize("name", BUILD)
def test_promises_are_kept(name, promised):
    CHECKS[promised](make_subject(*build(name)))


@pytest.mark.parametrize("name", ["cait", "crossvit"])
def test_merged_tokens_that_class_attention_would_count_once_are_refused(name):
    model, images = build(name)
    with pytest.raises(UnsupportedModelError, match=r"class attention takes no mask.*size_attention=False"):
        ShiftTracker(model).prune({0: 0.2}, pruner="mnn")
    assert "mnn" not in describe(model).pruners
    assert ShiftTracker(model).prune({0: 0.2}, pruner="fuse")(images).shape == (2, 5)


def test_a_map_of_a_pruned_sequence_of_lines_has_the_grid_of_the_image():
    model, images = build("xcit")
    tracker = ShiftTracker(ShiftTracker(model).prune({0: 1, 1: 1})).run(images[..., :32])
    assert tracker.maps["blocks.2"].shape == (2, 6, 4)
    assert tracker.maps["blocks.2"].isnan().sum() == 2 * (24 - 4 * 2)


@pytest.mark.parametrize(
    ("name", "blocks"),
    [("cait_xxs24_224", 24), ("crossvit_15_240", 15), ("volo_d1_224", 14), ("xcit_nano_12_p16_224", 12)],
)
def test_models_of_timm_are_known(name, blocks):
    with torch.device("meta"):
        known = describe(timm.create_model(name))
    assert known.why_not is None
    assert len(known.blocks) == blocks
