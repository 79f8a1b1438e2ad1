import math

import pytest

from repshift import BACKBONES, DISTANCES, MODELS, PRUNERS, SCORES, UnknownNameError
from repshift.registry import Registry, suggest


def test_a_registered_object_is_returned_as_it_is():
    thing = object()
    assert Registry("thing", {"a": thing}).get("a") is thing


def test_a_target_by_path_is_imported_when_first_asked_for():
    registry = Registry("thing", {"sqrt": "math:sqrt", "missing": "no_such_module:nothing"})
    assert registry.get("sqrt") is math.sqrt
    with pytest.raises(ModuleNotFoundError, match="no_such_module"):
        registry.get("missing")


def test_a_target_by_path_is_the_same_object_every_time():
    registry = Registry("thing", {"ordered": "collections:OrderedDict"})
    assert registry.get("ordered") is registry.get("ordered")


def test_names_come_in_the_order_of_registration():
    registry = Registry("thing", {"b": 1})
    registry.register("a", 2)
    assert registry.names() == ["b", "a"]
    assert registry.get("a") == 2


def test_a_taken_name_is_not_replaced():
    registry = Registry("thing", {"a": 1})
    with pytest.raises(UnknownNameError, match=r"thing 'a' is already registered\. Choose another name"):
        registry.register("a", 2)
    assert registry.get("a") == 1


def test_an_unknown_name_suggests_the_closest():
    registry = Registry("thing", {"cosine": 1, "l2": 2})
    with pytest.raises(UnknownNameError, match=r"Unknown thing 'cosin'\. Did you mean 'cosine'\?"):
        registry.get("cosin")


def test_an_unknown_name_far_from_all_lists_the_known():
    with pytest.raises(UnknownNameError, match=r"Unknown thing 'zzz'\. Known: 'cosine', 'l2'\."):
        Registry("thing", {"cosine": 1, "l2": 2}).get("zzz")


def test_a_long_list_of_known_names_is_cut_off():
    message = suggest("zzz", [f"name{number}" for number in range(100)])
    assert "'name9'" in message
    assert "'name10'" not in message
    assert message.endswith(" and more.")


def test_changing_the_table_it_was_made_from_does_not_change_a_registry():
    table = {"a": 1}
    registry = Registry("thing", table)
    table["b"] = 2
    assert "b" not in registry


@pytest.mark.parametrize("registry", [BACKBONES, DISTANCES, MODELS, PRUNERS, SCORES], ids=lambda r: r.kind)
def test_every_name_that_ships_can_be_had(registry):
    assert registry.names()
    assert all(registry.get(name) is not None for name in registry.names())
