import pytest
import torch

from repshift import ShiftTracker, load_model
from repshift.analysis.macs import count_macs

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


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_model_on_a_gpu_stays_there_and_counts_the_same(small_vit):
    expected = count_macs(small_vit, (3, 24, 40))
    small_vit.cuda()
    assert count_macs(small_vit, (3, 24, 40)) == expected
    assert all(tensor.is_cuda for tensor in small_vit.state_dict().values())
