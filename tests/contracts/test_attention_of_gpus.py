"""Kernels of GPUs that were chosen for a model: which one runs, with what, and what it refuses."""

import pytest
import torch
from timm.models.beit import Beit
from torch.profiler import profile

from repshift import RepresentationError, ShiftTracker, attention
from repshift.exporting import largest_difference

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]
OPERATORS = "aten::_scaled_dot_product_"
KERNELS_OF_GPUS = {"flash": "flash_attention", "efficient": "efficient_attention", "cudnn": "cudnn_attention"}
MERGED = {"pruner": "mnn"}


@pytest.fixture
def model(build_vit):
    return build_vit(embed_dim=128).cuda().bfloat16()  # heads of 64 channels


def shown(count=2):
    return torch.randn(count, 3, 32, 32, device="cuda", dtype=torch.bfloat16)


def what_runs(model, images):
    """The operators of attention that a forward runs, by the profiler."""
    with profile() as seen, torch.no_grad():
        model(images)
    return {event.key.removeprefix(OPERATORS) for event in seen.key_averages() if event.key.startswith(OPERATORS)}


def check_alike(run, pruned, images):
    with torch.no_grad():
        # what is rounded otherwise may let another token go
        assert largest_difference(run(images), attention(pruned, "eager")(images)) < 0.1


@pytest.mark.parametrize("options", [{}, MERGED], ids=str)
@pytest.mark.parametrize("kernel", [*KERNELS_OF_GPUS, "math", "flex"])
def test_kernels_of_gpus_run_and_say_the_same(model, kernel, options):
    images, pruned = shown(), ShiftTracker(model).prune("0.3@0", **options)
    chosen = attention(pruned, kernel)
    for run in (chosen, torch.export.export(chosen, (images,)).module()) if kernel != "flex" else (chosen,):
        if kernel in KERNELS_OF_GPUS:
            assert what_runs(run, images) == {KERNELS_OF_GPUS[kernel]}
        check_alike(run, pruned, images)


@pytest.mark.slow
@pytest.mark.usefixtures("fresh_dynamo")
@pytest.mark.parametrize("options", [{}, MERGED], ids=str)
@pytest.mark.parametrize("kernel", [*KERNELS_OF_GPUS, "flex"])
def test_compiled_models_keep_them(model, kernel, options):
    images, pruned = shown(), ShiftTracker(model).prune("0.3@0", **options)
    compiled = torch.compile(attention(pruned, kernel), fullgraph=True)
    check_alike(compiled, pruned, images)
    if kernel in KERNELS_OF_GPUS:
        assert what_runs(compiled, images) == {KERNELS_OF_GPUS[kernel]}


@pytest.mark.parametrize("kernel", ["efficient", "cudnn"])
def test_biases_of_positions_that_lost_tokens_are_taken(kernel):
    beit = Beit(img_size=32, patch_size=4, embed_dim=128, depth=3, num_heads=2, num_classes=5, use_rel_pos_bias=True)
    images, pruned = shown(), ShiftTracker(beit.cuda().bfloat16().eval()).prune("0.3@0")
    chosen = attention(pruned, kernel)
    assert what_runs(chosen, images) == {KERNELS_OF_GPUS[kernel]}
    check_alike(chosen, pruned, images)


def test_flex_attention_stays_a_kernel_for_more_forms_than_dynamo_holds_graphs_for(model):
    for count in range(1, torch._dynamo.config.recompile_limit + 3):
        pruned = ShiftTracker(model).prune({0: count, 1: count})
        chosen, images = attention(pruned, "flex"), shown(count)
        with profile() as seen, torch.no_grad():
            chosen(images)
        assert not any(event.key == "aten::softmax" for event in seen.key_averages())
        check_alike(chosen, pruned, images)


def test_flex_attention_says_which_heads_it_does_not_take(build_vit):
    narrow = attention(build_vit(embed_dim=16).cuda().bfloat16(), "flex")
    with pytest.raises(RepresentationError, match="heads of 16 channels or more, not 8"), torch.no_grad():
        narrow(shown())


def test_flash_attention_of_gpus_refuses_float32(vit, images):
    with pytest.raises(RepresentationError, match=r"float16 and bfloat16, and the queries are torch\.float32"):
        attention(vit.cuda(), "flash")(images.cuda())
