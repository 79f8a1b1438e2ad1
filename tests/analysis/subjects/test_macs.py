import gc
import weakref

import pytest
import torch
from torch import nn

from repshift import ShiftTracker, attention, load_model
from repshift.analysis.subjects.macs import count_macs, count_work

PAPERS_SCHEDULE = {0: 0.2, 3: 0.2, 6: 0.2}


def deit_by_hand(width, tokens):
    """Blocks of 12 n d^2 + 2 n^2 d, a patch embedding of 16x16 pixels, a head of 1000 classes."""
    blocks = sum(12 * n * width**2 + 2 * n**2 * width for n in tokens)
    return 196 * 3 * 16 * 16 * width + blocks + width * 1000


@pytest.fixture(scope="module")
def deit_base():
    return load_model("deit_base_patch16_224")


def test_dense_deit_small_counts_as_by_hand():
    counted = count_macs(load_model("deit_small_patch16_224"), (3, 224, 224))
    assert counted == pytest.approx(deit_by_hand(384, [197] * 12), rel=0.01)
    assert round(counted / 1e9, 1) == 4.6


def test_dense_deit_base_counts_as_by_hand(deit_base):
    counted = count_macs(deit_base, (3, 224, 224))
    assert counted == pytest.approx(deit_by_hand(768, [197] * 12), rel=0.01)
    assert round(counted / 1e9, 1) == 17.6


def test_deit_base_at_the_papers_schedule_counts_as_by_hand(deit_base):
    counted = count_macs(ShiftTracker(deit_base).prune(PAPERS_SCHEDULE), (3, 224, 224))
    tokens = [197] + [158] * 3 + [127] * 3 + [102] * 5  # a block's own tokens; they go when it ends
    assert counted == pytest.approx(deit_by_hand(768, tokens), rel=0.01)
    assert round(counted / 1e9, 1) == 11.5


@pytest.mark.parametrize("kernel", ["eager", "flash", "math", "flex"])
def test_work_does_not_depend_on_what_computes_attention(kernel):
    pruned = ShiftTracker(load_model("tiny_vit")).prune("0.2@0,2", pruner="mnn")
    assert count_work(attention(pruned, kernel), (3, 64, 64)) == count_work(pruned, (3, 64, 64))


def test_tiny_vit_counts_as_by_hand():
    stem = 32 * 32 * 16 * 27 + 16 * 16 * 32 * (9 * 16) + 16 * 16 * 48 * (9 * 32) + 16 * 16 * 48 * 48
    blocks = 6 * (12 * 257 * 48**2 + 2 * 257**2 * 48)
    assert count_macs(load_model("tiny_vit"), (3, 64, 64)) == pytest.approx(stem + blocks + 48 * 10, rel=0.01)


def test_counting_is_for_one_image_of_the_given_size(small_vit):
    small_vit.set_input_size((48, 40))
    patches = 6 * 5
    by_hand = patches * 3 * 64 * 16 + 4 * (12 * (patches + 1) * 16**2 + 2 * (patches + 1) ** 2 * 16) + 16 * 5
    assert count_macs(small_vit, (3, 48, 40)) == pytest.approx(by_hand, rel=0.01)


def test_counting_leaves_the_model_as_it_was(small_vit):
    small_vit.train()
    before = {key: value.clone() for key, value in small_vit.state_dict().items()}
    parameters = [(parameter, parameter.requires_grad) for parameter in small_vit.parameters()]
    images = torch.rand(2, 3, 24, 40)
    expected = small_vit(images)

    count_macs(small_vit, (3, 24, 40))

    assert small_vit.training
    assert all(torch.equal(value, before[key]) for key, value in small_vit.state_dict().items())
    assert all(
        now is then and now.requires_grad == required
        for now, (then, required) in zip(small_vit.parameters(), parameters, strict=True)
    )
    assert torch.equal(small_vit(images), expected)


def test_a_half_precision_model_counts_the_same(small_vit):
    assert count_macs(small_vit.bfloat16(), (3, 24, 40)) == count_macs(small_vit.float(), (3, 24, 40))


def test_deit_small_at_the_papers_schedule_counts_as_by_hand():
    counted = count_macs(ShiftTracker(load_model("deit_small_patch16_224")).prune(PAPERS_SCHEDULE), (3, 224, 224))
    assert counted == pytest.approx(deit_by_hand(384, [197] + [158] * 3 + [127] * 3 + [102] * 5), rel=0.01)
    assert round(counted / 1e9, 1) == 3.0


@pytest.mark.parametrize("schedule", [None, {0: 8, 1: 4}], ids=["dense", "pruned"])
def test_a_resnet_counts_as_the_sum_of_its_convolutions(schedule):
    model = load_model("resnet18")
    if schedule:
        model = ShiftTracker(model).prune(schedule)
    by_hand = [512 * 1000]

    def add(module, args, output):
        by_hand.append(output[0].numel() * module.weight[0].numel())

    hooks = [module.register_forward_hook(add) for module in model.modules() if isinstance(module, nn.Conv2d)]
    with torch.no_grad():
        model(torch.zeros(1, 3, 224, 224))
    for hook in hooks:
        hook.remove()
    assert count_macs(model, (3, 224, 224)) == pytest.approx(sum(by_hand), rel=0.01)


def vim_by_hand(tokens, width=192, states=16, kernel=4):
    """A layer projects in, out and to the steps of two scans, each of which takes four products a state and step."""
    inner, rank = 2 * width, width // 16
    direction = inner * (kernel + rank + 2 * states) + rank * inner + 4 * inner * states
    layer = width * 2 * inner + inner * width + 2 * direction
    return 196 * 3 * 16 * 16 * width + sum(tokens) * layer + width * 1000


@pytest.mark.parametrize(
    ("schedule", "tokens"),
    [(None, [197] * 24), ({5: 0.2, 11: 40}, [197] * 6 + [158] * 6 + [118] * 12)],
    ids=["dense", "pruned"],
)
def test_vision_mamba_counts_as_by_hand(schedule, tokens):
    model = load_model("vim_tiny")
    counted = count_macs(ShiftTracker(model).prune(schedule) if schedule else model, (3, 224, 224))
    assert counted == pytest.approx(vim_by_hand(tokens), rel=0.01)


def test_a_dense_model_keeps_all_its_tokens(small_vit):
    assert count_work(small_vit, (3, 24, 40)).tokens == (15, 15, 15, 15)


def test_a_pruned_model_keeps_what_its_schedule_says(small_vit):
    assert count_work(ShiftTracker(small_vit).prune({0: 0.2, 2: 4}), (3, 24, 40)).tokens == (12, 12, 8, 8)


def test_of_smaller_images_and_of_what_the_head_reads_is_counted_what_is_computed():
    pruned = ShiftTracker(load_model("tiny_vit")).prune("0.5@0", input_size=48, read="head")
    assert count_work(pruned, (3, 64, 64)).tokens == (72, 72, 72, 72, 72, 0)
    whole = ShiftTracker(load_model("tiny_vit", img_size=48)).prune("0.5@0")
    # query, projection and MLP of 72 tokens, and their rows of the attention
    saved = 72 * (10 * 48**2 + 2 * 73 * 48)
    assert count_macs(whole, (3, 48, 48)) - count_macs(pruned, (3, 64, 64)) == saved


def test_the_positions_of_a_feature_map_count_as_tokens():
    pruned = ShiftTracker(load_model("tiny_resnet")).prune({0: 4})
    assert count_work(pruned, (3, 64, 64)).tokens == (28**2, 14**2, 7**2, 4**2)


def test_a_model_that_no_backbone_knows_has_no_count_of_tokens():
    work = count_work(nn.Sequential(nn.Flatten(), nn.Linear(12, 5)), (3, 2, 2))
    assert (work.macs, work.tokens) == (60, None)


@pytest.fixture
def count_forwards(small_vit):
    forwards = []
    small_vit.register_forward_pre_hook(lambda module, args: forwards.append(args[0].shape))
    return forwards


def test_a_count_is_remembered_for_the_same_size(small_vit, count_forwards):
    assert count_macs(small_vit, (3, 24, 40)) == count_macs(small_vit, (3, 24, 40))
    assert len(count_forwards) == 1


def test_a_model_that_was_changed_is_counted_anew(small_vit):
    before = count_macs(small_vit, (3, 24, 40))
    small_vit.reset_classifier(105)
    assert count_macs(small_vit, (3, 24, 40)) == before + 16 * 100


def test_a_changed_stride_is_counted_anew():
    model = nn.Conv2d(3, 4, 1)
    before = count_macs(model, (3, 8, 8))
    model.stride = (2, 2)
    assert (before, count_macs(model, (3, 8, 8))) == (8 * 8 * 12, 4 * 4 * 12)


def test_counts_are_forgotten_with_their_model():
    model = nn.Conv2d(3, 4, 1)
    count_macs(model, (3, 8, 8))
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_model_on_a_gpu_stays_there_and_counts_the_same(small_vit):
    expected = count_macs(small_vit, (3, 24, 40))
    small_vit.cuda()
    assert count_macs(small_vit, (3, 24, 40)) == expected
    assert all(tensor.is_cuda for tensor in small_vit.state_dict().values())
