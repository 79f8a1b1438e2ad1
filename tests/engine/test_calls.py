"""The arguments of a forward, by position and by name."""

import pytest
from torch import nn

from repshift import RepresentationError
from repshift.calls import Call, positional_names

NAMES = ("x", "mask", "scale")


def call(*args, **kwargs):
    return Call(args, kwargs, NAMES)


@pytest.mark.parametrize(
    ("given", "first"), [(call(1, 2), 1), (call(1, mask=2), 1), (call(mask=2, x=1), 1), (call(other=3), 3)]
)
def test_the_first_argument_is_that_of_the_first_parameter_given(given, first):
    assert given.first == first


def test_a_call_without_anything_has_no_first_argument():
    with pytest.raises(RepresentationError, match="called without an input"):
        _ = call().first


@pytest.mark.parametrize("given", [call(1, 2), call(1, mask=2), call(x=1, mask=2)])
def test_an_argument_is_found_however_it_was_given(given):
    assert given.get("mask") == 2
    assert given.get("scale") is None
    assert given.get("unheard of") is None


@pytest.mark.parametrize(
    ("given", "args", "kwargs"),
    [
        (call(1, 2, 3), (1, 9, 3), {}),
        (call(1, mask=2), (1,), {"mask": 9}),
        (call(1), (1,), {"mask": 9}),
        (call(x=1), (), {"x": 1, "mask": 9}),
    ],
)
def test_a_replaced_argument_goes_where_it_was_given_or_else_by_name(given, args, kwargs):
    changed = given.replaced("mask", 9)
    assert (changed.args, dict(changed.kwargs)) == (args, kwargs)
    assert changed.get("mask") == 9


def test_replacing_changes_nothing_of_the_call_itself():
    given = call(1, mask=2)
    given.replaced("mask", 9)
    assert given.get("mask") == 2


def test_parameters_that_can_be_given_by_position_are_listed():
    class Layer(nn.Module):
        def forward(self, x, mask=None, *others, scale=1, **rest):
            return x

    assert positional_names(Layer().forward) == ("x", "mask")
