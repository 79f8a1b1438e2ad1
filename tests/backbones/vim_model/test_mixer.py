"""The mixer of a Vision Mamba: two directions, and the convolution before each scan."""

import copy

import pytest
import torch
import torch.nn.functional as F

from repshift import UnknownNameError
from repshift.backbones.vim_mixer import causal_convolution


def silenced(mixer, backward):
    """Take one direction out of a mixer."""
    with torch.no_grad():
        for parameter in (mixer.conv1d_b if backward else mixer.conv1d).parameters():
            parameter.zero_()  # its inputs are then zero
    return mixer


@pytest.mark.parametrize("backward", [False, True])
def test_each_direction_sees_its_own_side_of_the_sequence_alone(backward, build):
    mixer = silenced(build().layers[0].mixer, backward=not backward)
    tokens = torch.randn(1, 9, 24, dtype=torch.float64)
    changed = tokens.clone()
    changed[:, 4] += 1
    with torch.no_grad():
        moved = (mixer(changed)[0] != mixer(tokens)[0]).any(-1)[0]
    assert moved.tolist() == ([True] * 5 + [False] * 4 if backward else [False] * 4 + [True] * 5)


def exchanged(state):
    """Give each direction of a mixer the parameters of the other."""
    pairs = {"A_log": "A_b_log", "D": "D_b"}
    for part in ("conv1d", "x_proj", "dt_proj"):
        pairs |= {f"{part}.{end}": f"{part}_b.{end}" for end in ("weight", "bias")}
    pairs |= {backward: forward for forward, backward in pairs.items()}
    return {name: state[pairs.get(name, name)] for name in state}


def test_a_flipped_sequence_through_exchanged_directions_is_the_flipped_result(build):
    mixer = build().layers[0].mixer
    other = copy.deepcopy(mixer)
    other.load_state_dict(exchanged(mixer.state_dict()))
    tokens = torch.randn(2, 7, 24, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(other(tokens.flip(1))[0].flip(1), mixer(tokens)[0], atol=1e-12, rtol=0)
        assert (other(tokens)[0] - mixer(tokens)[0]).abs().max() > 1e-2


def test_the_step_sizes_are_positive_and_one_for_each_token_and_inner_channel(build):
    _, steps = build().layers[0].mixer(torch.randn(2, 7, 24, dtype=torch.float64))
    assert [tuple(each.shape) for each in steps] == [(2, 7, 48)] * 2
    assert all((each > 0).all() for each in steps)


@pytest.mark.parametrize("length", [1, 2, 3, 9])
@pytest.mark.parametrize("kernel", [1, 2, 4])
@pytest.mark.parametrize("reverse", [False, True])
def test_the_convolution_is_the_causal_one_of_torch(kernel, length, reverse):
    inputs = torch.randn(2, length, 6, dtype=torch.float64)
    weight, bias = torch.randn(6, 1, kernel, dtype=torch.float64), torch.randn(6, dtype=torch.float64)
    sequence = inputs.flip(1) if reverse else inputs
    expected = F.conv1d(F.pad(sequence.mT, (kernel - 1, 0)), weight, bias, groups=6).mT
    expected = expected.flip(1) if reverse else expected
    torch.testing.assert_close(causal_convolution(inputs, weight, bias, reverse), expected, atol=1e-12, rtol=0)
    without = causal_convolution(inputs, weight, None, reverse)
    torch.testing.assert_close(without, expected - bias, atol=1e-12, rtol=0)


@pytest.mark.parametrize("scan", ["reference", "blocked"])
def test_the_chosen_scan_computes_what_the_default_does(scan, build, images_for):
    model = build(scan=scan)
    images = images_for(model)
    with torch.no_grad():
        torch.testing.assert_close(model(images), build()(images), atol=1e-12, rtol=0)


def test_an_unknown_scan_is_refused_with_the_closest_name(create):
    with pytest.raises(UnknownNameError, match=r"selective scan 'block'.*'blocked'"):
        create(scan="block")
