from contextlib import suppress

import pytest
import torch
from timm.models import ConvNeXt
from timm.models.mambaout import MambaOut

from repshift import ShiftTracker, load_model
from repshift.analysis.ablation.shared_blocks import SharedBlocks
from repshift.finding import find_structure


def build(name):
    torch.manual_seed(1)
    if name == "convnext":
        return ConvNeXt(depths=(1, 1, 2, 1), dims=(8, 16, 24, 32), num_classes=10).eval()
    if name == "mambaout":
        return MambaOut(depths=(1, 1, 2, 1), dims=(8, 16, 24, 32), num_classes=10).eval()
    if name == "mobilenetv3_small_050":
        return load_model(name, num_classes=10)
    return load_model(name)


MODELS = ("tiny_vit", "tiny_resnet", "tiny_vim", "convnext", "mambaout", "mobilenetv3_small_050", "regnetx_002")


@pytest.fixture
def pictures():
    return torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("name", MODELS)
def test_a_model_that_takes_blocks_over_answers_as_the_whole_pruned_model(name, pictures):
    model = build(name)
    structure = find_structure(model)
    shared = SharedBlocks(model, structure, 2)
    expected, answers = [], []
    with torch.inference_mode():
        for block in [block for block in range(3) if structure.sites[block].operations]:
            pruned = ShiftTracker(model).prune({block: 1})
            expected.append(pruned(pictures))
            shared.take_over(pruned, block)
            with shared.remembered():
                model(pictures)
                answers.append(pruned(pictures))
    for answer, whole in zip(answers, expected, strict=True):
        assert torch.equal(answer, whole)


def test_what_one_model_takes_over_is_there_for_the_next(pictures):
    model = load_model("tiny_resnet")
    shared = SharedBlocks(model, find_structure(model), 2)
    pruned = [ShiftTracker(model).prune({2: 1}) for _ in range(2)]
    for one in pruned:
        shared.take_over(one, 2)
    with shared.remembered(), torch.inference_mode():
        model(pictures)
        first, second = (one(pictures) for one in pruned)
    assert torch.equal(first, second)


def test_blocks_before_the_cut_do_not_run_again(pictures):
    model = load_model("tiny_vit")
    shared = SharedBlocks(model, find_structure(model), 4)
    pruned = ShiftTracker(model).prune({3: 1})
    ran = []
    for index, block in enumerate(pruned.blocks):
        block.norm1.register_forward_hook(lambda *_, index=index: ran.append(index))
    shared.take_over(pruned, 3)
    with shared.remembered(), torch.inference_mode():
        model(pictures)
        pruned(pictures)
    assert ran == [3, 4, 5]


def test_each_batch_is_remembered_anew(pictures):
    model = load_model("tiny_vit")
    whole = ShiftTracker(model).prune({2: 0.5})
    shared, pruned = SharedBlocks(model, find_structure(model), 2), ShiftTracker(model).prune({2: 0.5})
    shared.take_over(pruned, 2)
    with shared.remembered(), torch.inference_mode():
        for batch in (pictures, pictures.flip(-1), pictures[:1]):
            model(batch)
            assert torch.equal(pruned(batch), whole(batch))


def test_the_dense_model_is_left_as_it_was(pictures):
    model = load_model("tiny_vit")
    blocks = list(model.blocks)
    shared = SharedBlocks(model, find_structure(model), 3)
    shared.take_over(ShiftTracker(model).prune({3: 1}), 3)
    with shared.remembered(), torch.inference_mode(), suppress(KeyboardInterrupt):
        model(pictures)
        assert len(shared.returned) == 3
        raise KeyboardInterrupt
    assert all(one is other for one, other in zip(model.blocks, blocks, strict=True))
    assert not any(module._forward_hooks for module in model.modules())
    assert shared.returned == {}
