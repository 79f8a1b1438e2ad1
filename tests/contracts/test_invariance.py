"""What must not matter: the company of other images, the order of patches, the precision, the thread."""

import threading

import pytest
import torch
from torch import nn

from repshift import ShiftTracker

SCHEDULE = {0: 0.2, 1: 5, 2: 0.3}


class Meet(nn.Module):
    """Holds every thread inside a block until all of them are there."""

    barrier = None

    def forward(self, x):
        if self.barrier is not None:
            self.barrier.wait(timeout=30)
        return x


@pytest.mark.parametrize("operation", ["attn", "mlp", "block"])
def test_shifts_of_a_batch_equal_those_of_its_images_alone(vit, images, operation):
    tracker = ShiftTracker(vit, operation=operation)
    with tracker, torch.no_grad():
        vit(images)
    together = tracker.shifts
    for index, image in enumerate(images):
        with tracker, torch.no_grad():
            vit(image[None])
        for name, shift in tracker.shifts.items():
            torch.testing.assert_close(shift[0], together[name][index], atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("operation", ["attn", "mlp", "block"])
def test_logits_and_kept_positions_of_a_batch_equal_those_of_its_images_alone(vit, images, operation):
    pruned = ShiftTracker(vit, operation=operation).prune(SCHEDULE)
    tracker = ShiftTracker(pruned)
    with tracker, torch.no_grad():
        logits = pruned(images)
    together = tracker.kept
    assert not torch.equal(together["blocks.0"][0], together["blocks.0"][1])
    for index, image in enumerate(images):
        with tracker, torch.no_grad():
            torch.testing.assert_close(pruned(image[None])[0], logits[index], atol=1e-5, rtol=1e-5)
        for name, kept in tracker.kept.items():
            assert torch.equal(kept[0], together[name][index])


def test_permuting_the_patch_tokens_permutes_the_shifts(vit, images):
    with torch.no_grad():
        tokens = vit._pos_embed(vit.patch_embed(images))
    order = torch.randperm(64)
    shuffled = torch.cat([tokens[:, :1], tokens[:, 1:][:, order]], dim=1)
    tracker = ShiftTracker(vit)
    with tracker, torch.no_grad():
        vit.blocks(tokens)
    expected = tracker.shifts
    with tracker, torch.no_grad():
        vit.blocks(shuffled)
    assert len(expected) == 4
    for name, shift in tracker.shifts.items():
        torch.testing.assert_close(shift, expected[name][:, order], atol=1e-4, rtol=1e-5)


def test_permuting_the_patch_tokens_keeps_the_same_patches(vit, images):
    with torch.no_grad():
        tokens = vit._pos_embed(vit.patch_embed(images))
    order = torch.randperm(64)
    shuffled = torch.cat([tokens[:, :1], tokens[:, 1:][:, order]], dim=1)
    pruned = ShiftTracker(vit).prune({0: 0.5})
    tracker = ShiftTracker(pruned)
    with tracker, torch.no_grad():
        pruned.blocks(tokens)
    expected = tracker.kept["blocks.0"]
    with tracker, torch.no_grad():
        pruned.blocks(shuffled)
    assert torch.equal(order[tracker.kept["blocks.0"]].sort(dim=1).values, expected)


@pytest.mark.parametrize("distance", ["l2", "l1", "cosine"])
@pytest.mark.parametrize("residual", [False, True])
def test_shifts_of_a_bfloat16_model_are_float32(vit, images, distance, residual):
    vit.bfloat16()
    with ShiftTracker(vit, distance=distance, residual=residual) as tracker:
        vit(images.bfloat16())
    assert {shift.dtype for shift in tracker.shifts.values()} == {torch.float32}


def small_branches(vit):
    with torch.no_grad():
        for block in vit.blocks:
            block.mlp.fc2.weight.mul_(1e-3)  # far below the stream's last bfloat16 digit
            block.mlp.fc2.bias.zero_()
    return vit.bfloat16()


def test_a_bfloat16_residual_shift_is_the_norm_of_what_the_branch_adds(vit, images):
    small_branches(vit)
    added = []
    handle = vit.blocks[0].drop_path2.register_forward_hook(lambda module, args, output: added.append(output))
    with ShiftTracker(vit, residual=True) as tracker, torch.no_grad():
        vit(images.bfloat16())
    handle.remove()
    expected = added[0][:, 1:].double().square().sum(-1).sqrt().float()
    torch.testing.assert_close(tracker.shifts["blocks.0"], expected, atol=0, rtol=1e-2)


def test_bfloat16_residual_scores_keep_the_tokens_to_which_the_branch_adds_most(vit, images):
    small_branches(vit)
    added = []
    pruned = ShiftTracker(vit, residual=True).prune({0: 0.5})
    handle = pruned.blocks[0].drop_path2.register_forward_hook(lambda module, args, output: added.append(output))
    with ShiftTracker(pruned) as tracker, torch.no_grad():
        pruned(images.bfloat16())
    handle.remove()
    length = added[0][:, 1:].double().square().sum(-1)
    dropped = torch.ones(3, 64).scatter(1, tracker.kept["blocks.0"], 0).bool()
    # up to rounding: no dropped token was changed clearly more than a kept one
    assert all(row[gone].max() < 1.01 * row[~gone].min() for row, gone in zip(length, dropped, strict=True))


def test_a_bfloat16_model_prunes_and_returns_bfloat16(vit, images):
    pruned = ShiftTracker(vit.bfloat16()).prune({0: 0.5})
    features = pruned.forward_features(images.bfloat16())
    assert features.dtype == torch.bfloat16
    assert features.shape[1] == 1 + 32


def test_shifts_under_autocast_are_float32_and_close_to_those_without(vit, images):
    tracker = ShiftTracker(vit)
    with tracker, torch.no_grad():
        vit(images)
    expected = tracker.shifts["blocks.0"]
    with tracker, torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        vit(images)
    assert tracker.shifts["blocks.0"].dtype == torch.float32
    torch.testing.assert_close(tracker.shifts["blocks.0"], expected, atol=0, rtol=0.05)


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("operation", ["attn", "mlp", "block"])
def test_pruned_under_autocast_is_close_to_the_pruned_without(vit, images, operation, residual):
    pruned = ShiftTracker(vit, operation=operation, residual=residual).prune({0: 5})
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        features = pruned.forward_features(images)
    assert features.shape == (3, 1 + 59, 32)
    # the class token has seen nearly the same patches, whichever of them tie within bfloat16
    cosine = torch.cosine_similarity(features[:, 0].float(), pruned.forward_features(images)[:, 0])
    assert cosine.min() > 0.98


def test_threads_that_share_a_pruned_model_give_what_they_give_alone(vit):
    vit.blocks[0].drop_path1, vit.blocks[2].drop_path1 = Meet(), Meet()
    pruned = ShiftTracker(vit, operation="block").prune(SCHEDULE)
    batches = [torch.randn(2, 3, 32, 32), torch.randn(2, 3, 32, 32)]
    with torch.no_grad():
        alone = [pruned(batch) for batch in batches]
    together = [None, None]
    barrier = threading.Barrier(2)
    for index in (0, 2):
        pruned.blocks[index].drop_path1.barrier = barrier  # both are between entering and leaving a block

    def run(index):
        with torch.no_grad():
            together[index] = pruned(batches[index])

    threads = [threading.Thread(target=run, args=(index,)) for index in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for index in range(2):
        assert torch.equal(together[index], alone[index])
