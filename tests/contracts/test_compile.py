"""Dense and differently pruned models compiled in one process each equal their own eager form."""

import copy
import itertools
import re
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch._dynamo.testing import CompileCounter
from torch._inductor.utils import run_and_get_code

from repshift import ShiftTracker, load_model

pytestmark = pytest.mark.usefixtures("fresh_dynamo")

SETTINGS = {
    "shares": ({}, {0: 0.2, 1: 0.2}),
    "counts": ({}, {0: 5}),
    "attention": ({"operation": "attn", "distance": "cosine"}, {0: 0.2, 1: 0.2}),
    "whole blocks": ({"operation": "block", "distance": "l1"}, {1: 0.5}),
    "with the residual": ({"residual": True}, {0: 0.2, 1: 0.2}),
}


@pytest.fixture
def vit(build_vit):
    # average pooling, so that a cut after the last block shows in the logits
    return build_vit(depth=2, embed_dim=16, global_pool="avg")


def compiled(model, backend="aot_eager"):
    return torch.compile(model, fullgraph=True, backend=backend)


def prune(model, name):
    options, schedule = SETTINGS[name]
    return ShiftTracker(model, **options).prune(schedule)


def assert_equals_eager(model, fast, images):
    with torch.no_grad():
        torch.testing.assert_close(fast(images), model(images), atol=1e-5, rtol=0)


def test_the_models_of_these_tests_differ_by_more_than_the_tolerance(vit, images):
    models = [vit, *(prune(vit, name) for name in SETTINGS)]
    with torch.no_grad():
        logits = [model(images) for model in models]
    for one, other in itertools.combinations(logits, 2):
        assert (one - other).abs().max() > 1e-3


@pytest.mark.slow
def test_models_of_all_settings_compiled_after_the_dense_one_equal_their_eager_forms(vit, images):
    models = [vit, *(prune(vit, name) for name in SETTINGS)]
    fast = [compiled(model) for model in models]
    for model, call in zip([*models, models[0]], [*fast, fast[0]], strict=True):
        assert_equals_eager(model, call, images)


def test_models_that_differ_by_the_share_alone_each_equal_their_eager_form(vit, images):
    models = [ShiftTracker(vit).prune({0: share}) for share in (0.2, 0.5)]
    for model in models:
        assert_equals_eager(model, compiled(model), images)


def test_models_that_differ_by_the_distance_alone_each_equal_their_eager_form(vit, images):
    models = [ShiftTracker(vit, distance=distance).prune({0: 0.5}) for distance in ("l2", "cosine")]
    for model in models:
        assert_equals_eager(model, compiled(model), images)


def test_other_batch_sizes_afterwards_equal_the_eager_form(vit, images):
    pruned = prune(vit, "shares")
    fast = compiled(pruned)
    for batch in (3, 1, 2, 5):
        assert_equals_eager(pruned, fast, images.repeat(2, 1, 1, 1)[:batch])


def test_a_model_compiled_in_place_equals_its_eager_form(vit, images):
    pruned = prune(vit, "shares")
    with torch.no_grad():
        expected = pruned(images)
    pruned.compile(fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        torch.testing.assert_close(pruned(images), expected, atol=1e-5, rtol=0)


def test_gradients_of_the_compiled_model_equal_the_eager_ones(vit, images):
    pruned = prune(vit, "shares")
    parameters = list(pruned.parameters())
    expected = torch.autograd.grad(pruned(images).square().sum(), parameters)
    actual = torch.autograd.grad(compiled(pruned)(images).square().sum(), parameters)
    for one, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


def test_a_pruned_model_that_was_tracked_compiles(vit, images):
    pruned = prune(vit, "shares")
    with ShiftTracker(pruned):
        pruned(images)
    assert_equals_eager(pruned, compiled(pruned), images)


@pytest.mark.slow
def test_the_default_compiler_equals_the_eager_form_for_dense_and_pruned(build_vit, images):
    vit = build_vit(depth=1, embed_dim=16, global_pool="avg")
    pruned = ShiftTracker(vit).prune({0: 0.2})
    for model in (vit, pruned):
        assert_equals_eager(model, compiled(model, backend="inductor"), images)


@pytest.mark.parametrize("strict", [True, False], ids=["strict", "non-strict"])
@pytest.mark.parametrize("setting", ["shares", "whole blocks"])
def test_an_exported_model_with_any_batch_size_equals_its_eager_form(vit, images, setting, strict):
    pruned = prune(vit, setting)
    batch = torch.export.Dim("batch")
    program = torch.export.export(pruned, (images,), dynamic_shapes=({0: batch},), strict=strict)
    assert_equals_eager(pruned, program.module(), images)
    assert_equals_eager(pruned, program.module(), images.repeat(3, 1, 1, 1))


def test_the_eager_model_still_works_after_its_export(vit, images):
    pruned = prune(vit, "shares")
    expected = pruned(images)
    torch.export.export(pruned, (images,), strict=False)
    assert torch.equal(pruned(images), expected)


@pytest.fixture
def compile_counter():
    return CompileCounter()


def run_three_times(model, images, counter):
    compiled = torch.compile(model, fullgraph=True, backend=counter)
    with torch.no_grad():
        return [compiled(images) for _ in range(3)]


def test_a_pruned_model_that_never_ran_eagerly_compiles_once_and_runs_again(vit, images, compile_counter):
    outputs = run_three_times(prune(vit, "shares"), images, compile_counter)
    assert compile_counter.frame_count == 1
    with torch.no_grad():
        expected = prune(vit, "shares")(images)
    for output in outputs:
        torch.testing.assert_close(output, expected, atol=1e-5, rtol=0)


def test_a_copy_of_a_used_pruned_model_compiles_once(vit, images, compile_counter):
    pruned = prune(vit, "shares")
    pruned(images)
    run_three_times(copy.deepcopy(pruned), images, compile_counter)
    assert compile_counter.frame_count == 1


def test_a_model_that_ran_in_one_thread_compiles_in_another(vit, images, compile_counter):
    pruned = prune(vit, "shares")
    pruned(images)
    with ThreadPoolExecutor(1) as pool:
        outputs = pool.submit(run_three_times, pruned, images, compile_counter).result()
    assert compile_counter.frame_count == 1
    torch.testing.assert_close(outputs[-1], pruned(images), atol=1e-5, rtol=0)


@pytest.mark.slow
def test_the_compiler_joins_distance_and_residual_addition_and_gathers_on_the_way_into_the_next_norm():
    model = load_model("tiny_vit")
    model.blocks = model.blocks[:1]
    kernels = [_kernels(each) for each in (model, ShiftTracker(model).prune("0.2@0"))]
    dense, pruned = map(len, kernels)
    assert pruned == dense + 1  # so a kernel written by hand has no pass over memory to save
    # torch 2.8 adds behind the gather, to what is kept alone
    assert any(re.search("add_linalg_vector_norm|linalg_vector_norm_sub", name) for name in kernels[1])
    assert any("index_select" in name and "native_layer_norm" in name for name in kernels[1])


def _kernels(model):
    """Name the joined kernels of the compiled model; the names list the operations in them."""
    torch._dynamo.reset()
    with torch.no_grad():
        _, code = run_and_get_code(torch.compile(model, fullgraph=True), torch.rand(2, 3, 64, 64))
    return re.findall(r"^(cpp_fused\w*) = ", "\n".join(code), re.MULTILINE)
