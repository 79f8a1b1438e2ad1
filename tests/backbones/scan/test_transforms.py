import pytest
import torch
from torch.func import grad, vmap

from repshift import UnsupportedModelError
from repshift.backbones.scan import selective_scan
from repshift.backbones.scan.reference import Operands, reference
from repshift.backbones.scan.transforms import doubled

BATCH, CHANNELS, STATES = 2, 5, 3
NAMES = Operands._fields[:8]


def operands(length, *leading, dtype=torch.float64):
    """Draw all operands, with further dimensions in front if wanted."""
    torch.manual_seed(0)
    sequence, moments = (BATCH, CHANNELS, length), (BATCH, STATES, length)
    shapes = (sequence, sequence, (CHANNELS, STATES), moments, moments, (CHANNELS,), sequence, (CHANNELS,))
    drawn = [torch.randn(*leading, *shape, dtype=dtype) for shape in shapes]
    drawn[2] = -drawn[2].abs()
    return drawn


@pytest.mark.parametrize("length", [1, 2, 3, 8, 13])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("softplus", [False, True])
@pytest.mark.parametrize("given", [8, 5])
def test_the_scan_written_out_for_exporters_is_the_scan(length, reverse, softplus, given):
    tensors = operands(length)[:given] + [None] * (8 - given)
    scan = Operands(*tensors, softplus, reverse)
    torch.testing.assert_close(doubled(scan), reference(scan))


def test_long_sequences_neither_overflow_nor_fade():
    tensors = operands(300, dtype=torch.float32)
    tensors[1] = tensors[1].abs() * 30
    scan = Operands(*tensors)
    torch.testing.assert_close(doubled(scan), reference(scan), rtol=1e-4, atol=1e-4)


# which operands have the further dimension, by their indices
SPREAD = {"all": range(8), "sequences": (0, 1, 3, 4, 6), "parameters": (2, 5, 7), "one": (0,), "one parameter": (2,)}


def spread(which, size=3):
    many, one = operands(6, size), operands(6)
    tensors = [many[index] if index in which else one[index] for index in range(8)]
    return tensors, tuple(0 if index in which else None for index in range(8))


def each(tensors, dims, size=3):
    return [[value if dim is None else value[i] for value, dim in zip(tensors, dims, strict=True)] for i in range(size)]


@pytest.mark.parametrize("which", SPREAD)
@pytest.mark.parametrize("reverse", [False, True])
def test_vmap_gives_what_a_loop_gives(which, reverse):
    tensors, dims = spread(SPREAD[which])

    def run(*given):
        return selective_scan(*given, delta_softplus=True, reverse=reverse)

    expected = torch.stack([run(*one) for one in each(tensors, dims)])
    torch.testing.assert_close(vmap(run, dims)(*tensors), expected)


@pytest.mark.parametrize("which", SPREAD)
@pytest.mark.parametrize("of", [(0, 1, 3, 4, 6), (2, 5, 7), tuple(range(8))], ids=["sequences", "parameters", "all"])
def test_gradients_under_vmap_are_those_of_a_loop(which, of):
    tensors, dims = spread(SPREAD[which])

    def loss(*given):
        return selective_scan(*given, delta_softplus=True).square().sum()

    found = vmap(grad(loss, of), dims)(*tensors)
    for number, one in enumerate(each(tensors, dims)):
        leaves = [value.clone().requires_grad_() for value in one]
        expected = torch.autograd.grad(loss(*leaves), [leaves[index] for index in of])
        for mine, right in zip(found, expected, strict=True):
            torch.testing.assert_close(mine[number], right)


def test_parameters_that_want_gradients_of_their_own_do_not_disturb():
    tensors = [value.requires_grad_() for value in operands(6)]

    def loss(u):
        return selective_scan(u, *tensors[1:]).sum()

    (expected,) = torch.autograd.grad(loss(tensors[0]), [tensors[0]])
    torch.testing.assert_close(grad(loss)(tensors[0]), expected)


def test_gradients_of_gradients_are_refused_with_the_way_out():
    u, *others = operands(4)

    def slope(implementation):
        inner = grad(lambda u: selective_scan(u, *others, implementation=implementation).square().sum())
        return grad(lambda u: inner(u).square().sum())(u)

    with pytest.raises(UnsupportedModelError, match="scan='reference'"):
        slope("auto")
    assert slope("reference").isfinite().all()
