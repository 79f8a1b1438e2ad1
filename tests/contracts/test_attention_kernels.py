"""A kernel that was chosen for a model: which one runs, whatever is done with the model."""

import copy
import io
import pickle
import sys
from types import ModuleType

import pytest
import torch
from timm.models.beit import Beit
from timm.models.cait import Cait
from timm.models.eva import Eva
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer_relpos import VisionTransformerRelPos
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import profile

from repshift import (
    Recipe,
    RepresentationError,
    ShiftTracker,
    UnknownNameError,
    UnsupportedModelError,
    attention,
    dense,
    kernels,
    load_model,
    recipe_of,
    save_model,
)
from repshift.analysis.subjects.models import ModelOptions
from repshift.analysis.subjects.sizes import build_model
from repshift.kernels import DEVICES, activate
from repshift.participants import participants

OPERATORS = "aten::_scaled_dot_product_"
RUNS = {  # on a CPU
    "eager": set(),
    "sdpa": {"flash_attention_for_cpu"},
    "flash": {"flash_attention_for_cpu"},
    "math": {"attention_math"},
    "flex": set(),
}
SMALL = {"img_size": 32, "patch_size": 4, "embed_dim": 16, "depth": 3, "num_heads": 2, "num_classes": 5}
BIASED = {
    "beit": lambda: Beit(**SMALL, use_rel_pos_bias=True),
    "relpos": lambda: VisionTransformerRelPos(**SMALL),
    "swin": lambda: SwinTransformer(
        img_size=32, patch_size=4, embed_dim=16, depths=(1, 1), num_heads=(2, 2), window_size=4, num_classes=5
    ),
}
FAMILIES = {
    "vit": lambda: None,
    "eva": lambda: Eva(**SMALL, use_rot_pos_emb=True),
    "cait": lambda: Cait(**SMALL),
    "zoo": lambda: load_model("tiny_vit", pretrained=True),
    **BIASED,
}


def what_runs(model, images):
    """The operators of attention that a forward runs, by the profiler."""
    with profile() as seen, torch.no_grad():
        model(images)
    return {event.key.removeprefix(OPERATORS) for event in seen.key_averages() if event.key.startswith(OPERATORS)}


@pytest.fixture(params=FAMILIES)
def model(request, vit):
    torch.manual_seed(0)
    return FAMILIES[request.param]().eval() if request.param != "vit" else vit


@pytest.fixture
def given(model):
    side = model.pretrained_cfg["input_size"][-1] if getattr(model, "pretrained_cfg", None) else 32
    return torch.randn(2, 3, side, side)


@pytest.fixture
def flash_attn(monkeypatch):
    """Stands for the package flash-attn on a CPU; computes plainly and counts its calls."""
    package = ModuleType("flash_attn")
    package.calls = []

    def flash_attn_func(q, k, v, dropout_p=0.0, softmax_scale=None, causal=False):
        package.calls.append(q.shape)
        q, k, v = (each.transpose(1, 2).double() for each in (q, k, v))
        weights = (q @ k.mT * (softmax_scale or q.shape[-1] ** -0.5)).softmax(-1)
        return (weights @ v).transpose(1, 2).bfloat16()

    package.flash_attn_func = flash_attn_func
    monkeypatch.setitem(sys.modules, "flash_attn", package)
    monkeypatch.setattr("repshift.kernels.find_spec", lambda name: object())
    monkeypatch.setitem(DEVICES, "flash2", ("cpu", "cuda"))
    return package


# --- which one runs -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kernel", ["eager", "flash", "math"])
def test_the_kernel_that_was_chosen_runs_and_says_the_same(model, given, kernel):
    chosen = attention(model, kernel)
    assert what_runs(chosen, given) == RUNS[kernel]
    assert recipe_of(chosen) == Recipe(attention=kernel)
    assert recipe_of(model) is None
    with torch.no_grad():
        assert torch.allclose(chosen(given), model(given), atol=1e-5)


@pytest.mark.parametrize("kernel", ["eager", "math"])
@pytest.mark.parametrize("options", [{}, {"pruner": "mnn", "restore": True}], ids=str)
def test_pruning_keeps_it_in_either_order_and_in_one_step(vit, images, kernel, options):
    pruned = ShiftTracker(vit).prune("0.3@0,2", **options)
    first = ShiftTracker(attention(vit, kernel)).prune("0.3@0,2", **options)
    last = attention(pruned, kernel)
    at_once = ShiftTracker(vit).prune("0.3@0,2", attention=kernel, **options)
    assert recipe_of(first) == recipe_of(last) == recipe_of(at_once)
    assert recipe_of(first).attention == kernel
    with torch.no_grad():
        expected = pruned(images)
        for each in (first, last, at_once):
            assert torch.allclose(each(images), expected, atol=1e-5)
    assert what_runs(first, images) == what_runs(last, images) == RUNS[kernel]


def test_flex_attention_is_told_the_sizes_and_the_bias(build_vit, images):
    for model in (build_vit(depth=2), Beit(**SMALL | {"depth": 2}, use_rel_pos_bias=True).eval()):
        pruned = ShiftTracker(model).prune("0.3@0", pruner="mnn")
        chosen = attention(pruned, "flex")
        assert what_runs(chosen, images) == set()
        with torch.no_grad():
            assert torch.allclose(chosen(images), pruned(images), atol=1e-5)


def test_an_explicit_choice_replaces_the_one_before(vit, images):
    chosen = attention(attention(attention(vit, "math"), "eager"), "flash")
    assert what_runs(chosen, images) == RUNS["flash"]
    again = ShiftTracker(chosen).prune("0.3@0", attention="math")
    assert what_runs(again, images) == RUNS["math"]
    assert recipe_of(again).attention == "math"
    assert what_runs(chosen, images) == RUNS["flash"]


@pytest.mark.parametrize("fused", [True, False])
def test_the_dense_model_has_its_own_attention_back(vit, images, fused):
    for block in vit.blocks[1:]:
        block.attn.fused_attn = fused
    before = what_runs(vit, images)
    chosen = ShiftTracker(attention(vit, "eager" if fused else "math")).prune("0.3@0")
    back = dense(chosen)
    assert [block.attn.fused_attn for block in back.blocks] == [True, fused, fused, fused]
    assert what_runs(back, images) == what_runs(vit, images) == before
    assert recipe_of(back) is None
    assert not list(participants(back))
    assert [vars(module).keys() for module in back.modules()] == [vars(module).keys() for module in vit.modules()]


def test_the_model_itself_is_not_touched(vit):
    kinds, held = [type(module) for module in vit.modules()], [dict(vars(module)) for module in vit.modules()]
    chosen = attention(vit, "eager")
    assert [type(module) for module in vit.modules()] == kinds
    assert all(block.attn.fused_attn for block in vit.blocks)
    assert chosen.state_dict().keys() == vit.state_dict().keys()
    assert chosen.head.weight is vit.head.weight
    assert [dict(vars(module)) for module in vit.modules()] == held


def test_a_context_outside_says_nothing(vit, images):
    chosen = attention(vit, "math")
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        assert what_runs(chosen, images) == RUNS["math"]


def test_scores_by_attention_do_not_depend_on_it(vit, images):
    kept = []
    for kernel in ("eager", "flash", "flex"):
        pruned = ShiftTracker(vit, score="cls_attention").prune("0.3@0,2", attention=kernel)
        kept.append(ShiftTracker(pruned).run(images).kept[0])
    assert torch.equal(kept[0], kept[1])
    assert torch.equal(kept[0], kept[2])


def test_the_last_block_that_reads_for_the_head_computes_by_it(vit, images):
    pruned = ShiftTracker(attention(vit, "math")).prune(None, read="head")
    assert what_runs(pruned, images) == RUNS["math"]
    with torch.no_grad():
        assert torch.allclose(pruned(images), vit(images), atol=1e-5)


def test_other_sizes_of_images_go_with_it(vit, images):
    pruned = ShiftTracker(attention(vit, "math")).prune("0.3@0", input_size=24)
    assert what_runs(pruned, images) == RUNS["math"]
    back = dense(pruned)
    with torch.no_grad():
        assert torch.equal(back(images), vit(images))


def test_gradients_reach_every_parameter(vit, images, reached):
    assert reached(attention(vit, "math"), images) == reached(vit, images)


# --- copies, files, graphs ----------------------------------------------------------------------------------------


def saved(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model)), saved])
def test_copies_have_it(vit, images, copied):
    for model in (attention(vit, "math"), ShiftTracker(attention(vit, "math")).prune("0.3@0,2")):
        again = copied(model)
        assert what_runs(again, images) == RUNS["math"]
        assert recipe_of(again) == recipe_of(model)
        assert [type(module) for module in again.modules()] == [type(module) for module in model.modules()]


@pytest.mark.parametrize("schedule", [None, "0.3@0,2"])
def test_folders_bring_it_back(tmp_path, schedule):
    chosen = attention(load_model("tiny_vit", pretrained=True), "math")
    chosen = chosen if schedule is None else ShiftTracker(chosen).prune(schedule)
    save_model(chosen, tmp_path / "model", "tiny_vit")
    loaded = load_model(tmp_path / "model")
    assert recipe_of(loaded) == recipe_of(chosen)
    assert what_runs(loaded, torch.rand(1, 3, 64, 64)) == RUNS["math"]


@pytest.mark.parametrize("schedule", [None, "0.3@0,2"])
def test_a_folder_with_a_kernel_that_is_not_here_is_loaded_with_another(tmp_path, monkeypatch, schedule):
    saved_pruned = attention(load_model("tiny_vit", pretrained=True), "math")
    saved_pruned = saved_pruned if schedule is None else ShiftTracker(saved_pruned).prune(schedule)
    save_model(saved_pruned, tmp_path, "tiny_vit")
    description = tmp_path / "repshift.json"
    description.write_text(description.read_text().replace('"math"', '"flash2"'))
    monkeypatch.setattr(kernels, "find_spec", lambda name: None)
    with pytest.raises(UnsupportedModelError, match=r"not installed.*attention='sdpa', --attention sdpa"):
        load_model(tmp_path)
    loaded = load_model(tmp_path, attention="flash")
    assert recipe_of(loaded).attention == "flash"
    assert recipe_of(loaded).schedule == recipe_of(saved_pruned).schedule
    assert what_runs(loaded, torch.rand(1, 3, 64, 64)) == RUNS["flash"]
    assert recipe_of(build_model(str(tmp_path), ModelOptions(attention="flash"))) == Recipe(attention="flash")


def test_loading_by_name_chooses_it():
    assert recipe_of(load_model("tiny_vit", attention="math")) == Recipe(attention="math")
    with pytest.raises(UnsupportedModelError, match="no attention"):
        load_model("tiny_resnet", attention="math")


def test_compiled_models_keep_theirs(build_vit, images, fresh_dynamo):
    vit = build_vit(depth=1)
    chosen = {kernel: attention(vit, kernel) for kernel in ("flash", "math")}
    compiled = {name: torch.compile(each, fullgraph=True, backend="aot_eager") for name, each in chosen.items()}
    with torch.no_grad():
        found = {name: each(images) for name, each in compiled.items()}
        for name, each in compiled.items():
            assert torch.allclose(found[name], chosen[name](images), atol=1e-5)
            for backend in (SDPBackend.MATH, SDPBackend.FLASH_ATTENTION):  # which changes nothing any more
                with sdpa_kernel(backend):
                    # the plain kernel is products and a softmax by now
                    assert what_runs(each, images) == (set() if name == "math" else RUNS["flash"])


@pytest.mark.parametrize("options", [{}, {"pruner": "tome"}, {"pruner": "mnn", "restore": True}], ids=str)
def test_compiled_flex_attention_loses_nothing_of_what_blocks_tell_each_other(vit, images, options, fresh_dynamo):
    pruned = ShiftTracker(attention(vit, "flex")).prune("0.3@0,2", **options)
    with torch.no_grad():
        found = torch.compile(pruned, fullgraph=True, backend="eager")(images)
        torch.testing.assert_close(found, pruned(images), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_compiled_models_that_merge_keep_theirs(vit, images, fresh_dynamo):
    pruned = ShiftTracker(attention(vit, "flash")).prune("0.3@0", pruner="mnn")
    compiled = torch.compile(pruned, fullgraph=True)
    with torch.no_grad():
        assert torch.allclose(compiled(images), pruned(images), atol=1e-5)
        with sdpa_kernel(SDPBackend.MATH):
            assert what_runs(compiled, images) == RUNS["flash"]


@pytest.mark.parametrize("kernel", ["flash", "math"])
def test_exported_programs_keep_theirs(build_vit, images, kernel):
    pruned = ShiftTracker(attention(build_vit(depth=2), kernel)).prune("0.3@0", pruner="mnn")
    with torch.no_grad():
        program = torch.export.export(pruned, (images,)).module()
        assert what_runs(program, images) == RUNS[kernel]
        assert torch.allclose(program(images), pruned(images), atol=1e-5)


# --- the package --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"pruner": "mnn"}], ids=str)
def test_the_package_is_called_in_every_block_and_told_the_sizes(vit, images, flash_attn, options):
    vit, images = vit.bfloat16(), images.bfloat16()
    pruned = ShiftTracker(vit).prune("0.3@0,2", **options)
    with torch.no_grad():
        found, expected = attention(pruned, "flash2")(images), pruned(images)
    merges = bool(options)
    assert [shape[-1] for shape in flash_attn.calls] == [16, *[24 if merges else 16] * 3]
    assert all(shape[2] == 2 for shape in flash_attn.calls)
    assert torch.allclose(found.float(), expected.float(), atol=0.15 * expected.float().abs().max())


def test_the_package_refuses_the_weights_as_they_are(vit, images, flash_attn):
    chosen = attention(vit, "flash2")
    with pytest.raises(RepresentationError, match=r"float16 and bfloat16, and the queries are torch\.float32"):
        chosen(images)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        chosen(images)
    assert len(flash_attn.calls) == 4


@pytest.mark.parametrize("name", BIASED)
def test_a_bias_of_positions_is_refused_at_once(name, flash_attn):
    with pytest.raises(UnsupportedModelError, match="adds a bias for each pair of a query and a key"):
        attention(BIASED[name](), "flash2")


def test_a_bias_that_is_given_from_outside_is_refused_in_the_forward(images, flash_attn):
    model = attention(Beit(**SMALL, use_shared_rel_pos_bias=True).eval().bfloat16(), "flash2")
    with pytest.raises(RepresentationError, match="it takes no bias of queries and keys"):
        model(images.bfloat16())


def test_heads_that_are_too_wide_are_refused_at_once(build_vit, flash_attn):
    with pytest.raises(UnsupportedModelError, match="its heads have 288 channels, and the kernel takes up to 256"):
        attention(build_vit(embed_dim=288, num_heads=1, depth=1), "flash2")


def test_an_implementation_is_put_in_the_place_of_torchs_own_and_taken_away(monkeypatch):
    put = [None]
    monkeypatch.setattr("torch.nn.attention.activate_flash_attention_impl", put.append, raising=False)
    monkeypatch.setattr("torch.nn.attention.restore_flash_attention_impl", lambda: put.append(None), raising=False)
    monkeypatch.setattr("torch.nn.attention.current_flash_attention_impl", lambda: put[-1], raising=False)
    for kernel in ("flash", "flash4", "sdpa", "flash", "flash"):
        activate(kernel)
    assert put == [None, "FA4", None]


# --- what is refused ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["tiny_resnet", "tiny_vim"])
def test_a_model_without_attention_is_refused(name):
    with pytest.raises(UnsupportedModelError, match="has no attention that could run as 'flash'"):
        attention(load_model(name), "flash")


def test_what_is_no_kernel_is_refused_in_a_recipe():
    with pytest.raises(UnknownNameError, match=r"attention is None .* or one of .*, got 'flesh'"):
        Recipe("0.2@0", attention="flesh")


def test_a_patched_forward_is_refused(vit):
    vit.blocks[1].attn.forward = lambda x, **options: x
    with pytest.raises(UnsupportedModelError, match=r"The forward of 'blocks\.1\.attn' was replaced"):
        attention(vit, "math")


def test_a_compiled_model_is_refused(vit):
    with pytest.raises(UnsupportedModelError, match="already compiled"):
        attention(torch.compile(vit), "math")


def test_what_was_pruned_is_not_pruned_again_because_of_it(vit):
    with pytest.raises(UnsupportedModelError, match="is already pruned"):
        ShiftTracker(attention(ShiftTracker(vit).prune("0.3@0"), "math")).prune("0.3@0")


def test_models_that_cannot_be_pruned_have_it_and_its_recipe():
    model = nn.Sequential(SwinTransformer(img_size=32, depths=(1,), num_heads=(2,), embed_dim=16, window_size=4))
    chosen = attention(model.eval(), "math")
    assert recipe_of(chosen) == Recipe(attention="math")
    assert what_runs(chosen, torch.randn(1, 3, 32, 32)) == RUNS["math"]
    assert recipe_of(dense(chosen)) is None
