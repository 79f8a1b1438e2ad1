import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

from repshift.hooks import attached


def hooks_of(model):
    return [hook for module in model.modules() for hook in (*module._forward_hooks, *module._forward_pre_hooks)]


def nothing(*arguments):
    return None


@pytest.fixture
def model():
    return nn.Sequential(nn.Linear(2, 2), nn.ReLU())


def test_hooks_are_there_while_the_context_lasts(model):
    with attached([(model[0], "before", nothing), (model[1], "after", nothing)]):
        assert len(hooks_of(model)) == 2
    assert hooks_of(model) == []


def test_a_hook_before_sees_arguments_and_keywords(model):
    seen = []
    with attached([(model[0], "before", lambda module, args, kwargs: seen.append((module, args, kwargs)))]):
        model[0](input=torch.ones(1, 2))
    [(module, args, kwargs)] = seen
    assert module is model[0]
    assert args == ()
    assert list(kwargs) == ["input"]


def test_a_hook_after_sees_arguments_and_output(model):
    seen = []
    with attached([(model[1], "after", lambda module, args, output: seen.append((args[0], output)))]):
        model[1](torch.tensor([-1.0, 2.0]))
    [(given, output)] = seen
    assert given.tolist() == [-1, 2]
    assert output.tolist() == [0, 2]


@pytest.mark.parametrize("when", ["before", "after"])
def test_what_a_hook_returns_changes_nothing(model, when):
    images = torch.randn(1, 2)
    expected = model(images)
    with attached([(model[0], when, lambda *arguments: torch.zeros(1, 2))]):
        assert torch.equal(model(images), expected)


def test_one_hook_that_cannot_be_attached_leaves_none(model):
    with pytest.raises(AttributeError), attached([(model[0], "before", nothing), (None, "after", nothing)]):
        pytest.fail("the context must not begin")
    assert hooks_of(model) == []


def test_a_list_of_hooks_that_fails_half_way_leaves_none(model):
    def failing():
        yield model[0], "before", nothing
        yield model[1], "after", nothing
        raise KeyError

    with pytest.raises(KeyError), attached(failing()):
        pytest.fail("the context must not begin")
    assert hooks_of(model) == []


def test_hooks_are_removed_after_an_exception_inside(model):
    with pytest.raises(KeyError), attached([(model[0], "before", nothing)]):
        raise KeyError
    assert hooks_of(model) == []


def test_hooks_of_others_stay(model):
    model[0].register_forward_hook(nothing)
    with attached([(model[0], "after", nothing)]):
        pass
    assert len(hooks_of(model)) == 1


# --- compiled models ----------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("fresh_dynamo")
def test_hooks_see_nothing_of_a_compiled_model_whenever_it_was_compiled():
    seen = []
    layer = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    layer[0].register_forward_hook(lambda module, args, output: torch._dynamo.graph_break())
    for compiled_before in (True, False):
        torch._dynamo.reset()
        fast = torch.compile(layer, backend="eager")
        if compiled_before:
            fast(torch.zeros(1, 2))
        with attached([(part, "after", lambda *call: seen.append(call)) for part in layer]):
            fast(torch.zeros(1, 2))
    assert not seen


def test_hooks_see_the_thread_that_attached_them_and_no_other():
    seen = []
    layer = nn.Linear(2, 2)
    with attached([(layer, "after", lambda module, args, output: seen.append(threading.get_ident()))]):
        layer(torch.zeros(1, 2))
        with ThreadPoolExecutor(1) as pool:
            pool.submit(layer, torch.zeros(1, 2)).result()
    assert seen == [threading.get_ident()]
