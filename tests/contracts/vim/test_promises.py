"""What every pruned model promises, held for state space models."""

import pytest

from repshift import Recipe
from repshift.testing import make_subject

RECIPES = {
    "the mixer": Recipe("0.25@0;5@1"),
    "whole layers": Recipe("0.25@0;5@1", operation="block", distance="l1"),
    "aligned": Recipe("0.25@0;5@1", pruner="sequence_aligned"),
    "cells": Recipe("0.25@0;5@1", pruner="cells"),
}


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_every_promise_is_kept(vim, images, promise, recipe):
    promise(make_subject(vim, images, recipe))


@pytest.mark.slow
def test_every_promise_about_compilation_is_kept(build_vim, images, promise_of_compilation):
    promise_of_compilation(make_subject(build_vim(depth=2), images, RECIPES["the mixer"]))


@pytest.mark.parametrize("arguments", ["a tuple", "one by one"])
def test_a_model_of_another_kind_keeps_every_promise(build_class_first, images, promise, arguments):
    promise(make_subject(build_class_first(arguments), images, RECIPES["the mixer"]))
