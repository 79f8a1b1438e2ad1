from itertools import pairwise

import pytest
import torch
from timm.models import MlpMixer, VisionTransformer

from repshift import Recipe, RepresentationError, Selection, ShiftTracker, UnsupportedModelError, load_model
from repshift.analysis.report.examination import examine
from repshift.analysis.samples.canvases import evaluation_canvases

DROP = "5@0;0.5@2"


@pytest.fixture
def images():
    return torch.rand(18, 3, 24, 40)


def test_maps_and_predictions_are_those_of_the_two_models(small_vit, images):
    settings = {"operation": "attn", "distance": "cosine", "residual": True}
    found = examine(small_vit, images, Recipe(DROP, **settings))
    for model, name in ((small_vit, "dense"), (ShiftTracker(small_vit, **settings).prune(DROP), "pruned")):
        with ShiftTracker(model, **settings) as tracker, torch.inference_mode():
            logits = model(images)
        assert torch.allclose(getattr(found, name), logits.softmax(1), atol=1e-5)
        assert [block.name for block in found.blocks] == list(tracker.maps)
        for block in found.blocks:
            assert torch.allclose(getattr(block, name), tracker.maps[block.name], atol=1e-5, equal_nan=True)


def test_what_a_block_keeps_is_what_the_next_block_gets(small_vit, images):
    blocks = examine(small_vit, images, Recipe(DROP)).blocks
    for block, following in pairwise(blocks):
        assert (block.kept == ~following.pruned.isnan()).all()
    assert [int(block.kept[7].sum()) for block in blocks] == [10, 10, 5, 5]


def test_a_cut_marks_its_tokens_where_they_stood(small_vit, images):
    found = examine(small_vit, images, Recipe("0.5@3"))  # behind the last block, so that no later map shows it
    pruned = ShiftTracker(small_vit).prune("0.5@3")
    with ShiftTracker(pruned) as tracker, torch.inference_mode():
        pruned(images)
    for image, kept in enumerate(tracker.kept["blocks.3"]):
        assert found.blocks[3].kept[image].flatten().nonzero().flatten().tolist() == kept.tolist()


def test_who_joined_whom_is_known_behind_every_block(small_vit, images):
    found = examine(small_vit, images, Recipe(DROP, pruner="mnn"))
    tracker = ShiftTracker(ShiftTracker(small_vit).prune(DROP, pruner="mnn"))
    joined = torch.cat([tracker.run(part).joined.stacked() for part in (images[:16], images[16:])], 1).view(2, 18, 3, 5)
    for block, expected in zip(found.blocks, joined.repeat_interleave(2, 0), strict=True):
        assert torch.equal(block.joined, expected)
        assert block.kept.all()
    assert [block.left[7] for block in found.blocks] == [10, 10, 5, 5]


JOINS = torch.tensor([*range(10), 0, 0, 1, 2, 2])


class MergesThenDrops:
    def choose(self, candidates, drop):
        if candidates.count < 15:
            return candidates.highest(candidates.left(drop))
        return Selection(torch.arange(10).expand(3, -1), joins=JOINS.expand(3, -1))


def test_what_is_dropped_after_merging_takes_its_group_along(small_vit, images):
    blocks = examine(small_vit, images[:3], Recipe(DROP, pruner=MergesThenDrops())).blocks
    assert torch.equal(blocks[1].joined, JOINS.view(3, 5).expand(3, -1, -1))
    for joined, pruned in zip(blocks[2].joined, blocks[3].pruned, strict=True):
        assert torch.equal(joined < 0, pruned.isnan())
        assert len(joined[joined >= 0].unique()) == 5
        assert all(len(joined.flatten()[JOINS.eq(number)].unique()) == 1 for number in range(10))
    assert torch.equal(blocks[3].kept, blocks[2].joined >= 0)
    assert [block.left.tolist() for block in blocks] == [[10] * 3, [10] * 3, [5] * 3, [5] * 3]


def test_without_a_schedule_there_is_no_pruned_model(small_vit, images):
    found = examine(small_vit, images[:1], None)
    assert found.pruned is None
    assert all(block.pruned is None and block.kept is None for block in found.blocks)


def test_lines_of_a_feature_map_stay_rows_and_columns():
    model = load_model("tiny_resnet", pretrained=True)
    canvases = evaluation_canvases().images[:2] / 255
    found = examine(model, canvases, Recipe("4@0;2@1"))
    assert [tuple(block.kept.shape[1:]) for block in found.blocks] == [tuple(b.dense.shape[1:]) for b in found.blocks]
    first = found.blocks[0].kept[0]
    rows, columns = first.any(1), first.any(0)
    assert (first == rows.unsqueeze(1) & columns).all()
    assert (len(rows) - int(rows.sum()), len(columns) - int(columns.sum())) == (4, 4)


def test_random_scores_are_drawn_the_same_each_time_and_leave_the_generator_alone(small_vit, images):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    masks = [examine(small_vit, images, Recipe(DROP, score="random")).blocks[0].kept for _ in range(2)]
    assert torch.equal(*masks)
    assert torch.equal(torch.rand(3), expected)


def test_progress_counts_images(small_vit, images):
    seen = []
    examine(small_vit, images, None, seen.append)
    assert seen == [16, 18]


def test_a_model_without_a_classifier_predicts_nothing(images):
    model = VisionTransformer(img_size=(24, 40), patch_size=8, embed_dim=16, depth=2, num_heads=2, num_classes=0)
    found = examine(model.eval(), images[:2], Recipe("5@0"))
    assert found.dense is None
    assert found.pruned is None
    assert len(found.blocks) == 2


def test_a_model_without_a_backbone_is_shown_dense_and_not_pruned():
    model = MlpMixer(img_size=32, patch_size=8, num_blocks=3, embed_dim=16).eval()
    found = examine(model, torch.rand(1, 3, 32, 32), None)
    assert [(block.name, *block.dense.shape) for block in found.blocks] == [(f"blocks.{i}", 1, 4, 4) for i in range(3)]
    with pytest.raises(UnsupportedModelError, match="MlpMixer"):
        examine(model, torch.rand(1, 3, 32, 32), Recipe("0.2@0"))


def test_a_model_without_blocks_is_refused():
    plain = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Flatten())
    with pytest.raises(UnsupportedModelError, match=r"Sequential has no blocks that .* Choose another model"):
        examine(plain, torch.rand(1, 3, 8, 8), None)


def test_a_shift_that_is_no_number_is_refused(small_vit, images):
    with torch.no_grad():
        small_vit.blocks[1].mlp.fc2.bias.fill_(torch.inf)
    with pytest.raises(RepresentationError, match=r"blocks\.1.* not finite"):
        examine(small_vit, images, None)
