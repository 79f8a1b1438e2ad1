"""Aligned pruning: dropped tokens still let the states of the scans decay."""

import itertools
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from repshift import ShiftTracker, UnsupportedModelError
from repshift.pruners import SequencePruner

ALIGNED = SequencePruner(align=True)
VIDEO = {"class_position": "head", "halve": False}  # as in VideoMamba


class Direction(NamedTuple):
    """One direction's operands over a sequence, in the sequence's own order."""

    u: Tensor  # (length, channels)
    steps: Tensor  # (length, channels)
    B: Tensor  # (length, states)
    C: Tensor  # (length, states)


def directions(mixer, tokens):
    """Work out the operands of both directions for one image, the backward one by really flipping."""
    inputs = F.linear(tokens, mixer.in_proj.weight).chunk(2, dim=-1)[0]
    for name, backward in (("", False), ("_b", True)):
        conv, x_proj, dt_proj = (getattr(mixer, f"{part}{name}") for part in ("conv1d", "x_proj", "dt_proj"))
        sequence = inputs.flip(0) if backward else inputs
        u = F.silu(F.conv1d(F.pad(sequence.T[None], (3, 0)), conv.weight, conv.bias, groups=32)[0].T)
        steps, B, C = F.linear(u, x_proj.weight).split([1, 4, 4], dim=-1)  # noqa: N806
        operands = (u, F.softplus(F.linear(steps, dt_proj.weight, dt_proj.bias)), B, C)
        yield Direction(*(operand.flip(0) if backward else operand for operand in operands))


def scan(u, steps, B, C, A, backward):  # noqa: N803
    state, outputs = torch.zeros_like(A), [None] * len(u)
    for t in reversed(range(len(u))) if backward else range(len(u)):
        state = torch.exp(steps[t, :, None] * A) * state + steps[t, :, None] * B[t] * u[t, :, None]
        outputs[t] = (state * C[t]).sum(-1)
    return torch.stack(outputs)


def masked_dense(model, image, drops):
    """Run one image without ever shortening a scan: dropped tokens add nothing, but their steps remain.

    Args:
        model: A dense Vision Mamba of float64.
        image: One image.
        drops: Layer to the original numbers of the patches that are dropped behind it.

    Returns:
        The logits of every token that is left, and where among them the class token is.
    """
    patches, index = list(model.patch_embed(image[None])[0]), model.class_index
    change = torch.stack([*patches[:index], model.cls_token[0, 0], *patches[index:]]) + model.pos_embed[0]
    names = [*range(index), "class", *range(index, len(patches))]
    stream, present = 0, [*range(len(names))]
    frozen = {False: {}, True: {}}  # direction -> place -> step size
    for layer, block in enumerate(model.layers):
        stream = stream + change
        normed = block.norm(stream)
        mixer, mixed, seen = block.mixer, 0, {}
        for backward, found in zip((False, True), directions(mixer, normed), strict=True):
            seen[backward] = found.steps
            full = [torch.zeros(len(names), operand.shape[1], dtype=operand.dtype) for operand in found]
            for whole, operand in zip(full, found, strict=True):
                whole[present] = operand
            for place, steps in frozen[backward].items():
                full[1][place] = steps  # u is zero there
            A = -torch.exp(mixer.A_b_log if backward else mixer.A_log)  # noqa: N806
            D = mixer.D_b if backward else mixer.D  # noqa: N806
            mixed = mixed + scan(*full, A, backward)[present] + D * found.u
        gate = F.linear(normed, mixer.in_proj.weight).chunk(2, dim=-1)[1]
        mixed = mixed * F.silu(gate) / (2 if mixer.halve else 1)
        change = F.linear(mixed, mixer.out_proj.weight)
        gone = [here for here, place in enumerate(present) if names[place] in drops.get(layer, ())]
        for backward, here in itertools.product((False, True), gone):
            frozen[backward][present[here]] = seen[backward][here]
        stay = [here for here in range(len(present)) if here not in gone]
        change, stream, present = change[stay], stream[stay], [present[here] for here in stay]
    return model.head(model.norm_f(stream + change)), [names[place] for place in present].index("class")


def dropping(*rows):
    """Make a score that drops the named patches: one mapping of layers to patches for each image."""
    cuts = sorted(rows[0])
    left = [list(range(64)) for _ in rows]
    tables = {}
    for layer in cuts:
        tables[len(left[0])] = torch.tensor(
            [
                [0.0 if number in row[layer] else 1.0 for number in numbers]
                for row, numbers in zip(rows, left, strict=True)
            ]
        )
        left = [
            [number for number in numbers if number not in row[layer]] for row, numbers in zip(rows, left, strict=True)
        ]
    return lambda before, after: tables[before.shape[1]]


# what each image loses behind which layer; the class token stands between patches 31 and 32, or first
ENDS = {
    "the head": [{0: range(7)}, {0: range(7)}],
    "the tail": [{0: range(57, 64)}, {0: range(57, 64)}],
    "head and tail": [{0: [0, 1, 2, 62, 63]}, {0: [0, 60, 61, 62, 63]}],
    "two cuts at the ends": [{0: [0, 1, 62, 63], 2: [2, 3, 60, 61]}, {0: [0, 1, 2, 3], 2: [60, 61, 62, 63]}],
}
INSIDE = {
    "one": [{0: [20]}, {0: [50]}],
    "several in a row": [{0: range(10, 22)}, {0: range(40, 52)}],
    "around the class token": [{0: range(28, 36)}, {0: range(30, 38)}],
    "next to the class token on one side": [{0: [30, 31]}, {0: [32, 33]}],
    "every other": [{0: range(0, 64, 2)}, {0: range(1, 64, 2)}],
    "ends and inside": [{0: [0, 1, 20, 63]}, {0: [0, 40, 41, 63]}],
    "all but two": [
        {0: [number for number in range(64) if number not in (5, 60)]},
        {0: [number for number in range(64) if number not in (10, 20)]},
    ],
    "behind a later layer": [{2: range(10, 30)}, {2: range(0, 60, 3)}],
    "two cuts, one beside the other": [{0: range(10, 15), 1: range(15, 20)}, {0: range(45, 50), 1: range(40, 45)}],
    "two cuts, one around the other": [{0: [20, 22, 24], 1: [19, 21, 23, 25]}, {0: [41, 43, 45], 1: [40, 42, 44, 46]}],
    "two cuts far apart": [{0: range(10, 15), 2: range(45, 50)}, {0: range(45, 50), 2: range(10, 15)}],
    "three cuts": [
        {0: range(0, 20), 1: range(20, 40), 2: range(41, 60)},
        {0: range(0, 60, 3), 1: range(1, 60, 3), 2: range(2, 59, 3)},
    ],
}


def pruned_by(model, rows, pruner=None):
    schedule = {layer: len(patches) for layer, patches in rows[0].items()}
    return ShiftTracker(model, distance=dropping(*rows)).prune(schedule, pruner=pruner)


def masked_logits(model, images, rows):
    logits = []
    for image, row in zip(images, rows, strict=True):
        with torch.no_grad():
            answers, index = masked_dense(model, image, row)
        logits.append(answers[index])
    return torch.stack(logits)


@pytest.fixture
def pair_of_images(images):
    return images[:2].double()


@pytest.mark.parametrize("options", [{}, VIDEO], ids=["middle", "head"])
@pytest.mark.parametrize("rows", (ENDS | INSIDE).values(), ids=ENDS | INSIDE)
def test_aligned_pruning_equals_dense_scans_in_which_dropped_tokens_only_decay(
    pair_of_images, rows, options, build_vim
):
    model = build_vim(**options).double()
    with torch.no_grad():
        logits = pruned_by(model, rows, ALIGNED)(pair_of_images)
    torch.testing.assert_close(logits, masked_logits(model, pair_of_images, rows), atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("rows", INSIDE.values(), ids=INSIDE)
def test_alignment_matters_for_what_is_dropped_inside(pair_of_images, rows, build_vim):
    model = build_vim().double()
    with torch.no_grad():
        moved = pruned_by(model, rows, ALIGNED)(pair_of_images) - pruned_by(model, rows)(pair_of_images)
    assert moved.abs().amax(1).min() > 1e-4


@pytest.mark.parametrize("rows", ENDS.values(), ids=ENDS)
def test_there_is_nothing_to_decay_before_the_first_and_behind_the_last_token(pair_of_images, rows, build_vim):
    model = build_vim().double()
    with torch.no_grad():
        aligned, plain = (pruned_by(model, rows, pruner)(pair_of_images) for pruner in (ALIGNED, None))
    torch.testing.assert_close(aligned, plain, atol=1e-12, rtol=0)


@pytest.mark.parametrize("backward", [False, True])
def test_alignment_is_exact_and_matters_in_either_direction_alone(pair_of_images, backward, build_vim):
    model, rows = build_vim().double(), [{0: [20, 22, 42, 44], 1: [21, 43]}, {0: [20, 30, 34, 40], 1: [31, 33]}]
    with torch.no_grad():
        for layer in model.layers:
            silent = layer.mixer.conv1d if backward else layer.mixer.conv1d_b
            silent.weight.zero_()
            silent.bias.zero_()
        logits, plain = (pruned_by(model, rows, pruner)(pair_of_images) for pruner in (ALIGNED, None))
    torch.testing.assert_close(logits, masked_logits(model, pair_of_images, rows), atol=1e-12, rtol=1e-12)
    assert (logits - plain).abs().amax(1).min() > 1e-4


@pytest.mark.parametrize("pattern", ["several in a row", "around the class token", "two cuts, one around the other"])
def test_every_token_behind_a_cut_is_that_of_the_masked_dense_scans(pair_of_images, pattern, build_vim, states):
    # the logits show no more than the class token
    model = build_vim().double()
    last = states(pruned_by(model, INSIDE[pattern], ALIGNED), pair_of_images)[-1]
    with torch.no_grad():
        found = model.head(model.norm_f(last.residual + last.hidden))
        expected = [
            masked_dense(model, image, row)[0] for image, row in zip(pair_of_images, INSIDE[pattern], strict=True)
        ]
    torch.testing.assert_close(found, torch.stack(expected), atol=1e-12, rtol=1e-12)


def test_the_masked_dense_forward_without_drops_is_the_dense_model(vim, pair_of_images):
    vim.double()
    with torch.no_grad():
        expected = vim(pair_of_images)
    torch.testing.assert_close(masked_logits(vim, pair_of_images, [{}, {}]), expected, atol=1e-12, rtol=0)


def test_alignment_keeps_what_plain_pruning_keeps_at_the_first_cut(vim, images):
    kept = []
    for pruner in (None, ALIGNED):
        pruned = ShiftTracker(vim).prune({0: 0.25}, pruner=pruner)
        with ShiftTracker(pruned) as tracker, torch.no_grad():
            pruned(images)
        kept.append(tracker.kept["layers.0"])
    assert torch.equal(*kept)


def test_alignment_can_be_asked_for_by_name(vim, images, drops):
    tracker = ShiftTracker(vim)
    assert torch.equal(
        tracker.prune(drops, pruner="sequence_aligned")(images), tracker.prune(drops, pruner=ALIGNED)(images)
    )


def test_a_model_that_does_not_pass_its_step_sizes_on_cannot_be_aligned(build_class_first, images, drops):
    pruned = ShiftTracker(build_class_first("a tuple")).prune(drops, pruner=ALIGNED)
    with pytest.raises(UnsupportedModelError, match=r"return tuple without the step sizes.*without align=True"):
        pruned(images)
