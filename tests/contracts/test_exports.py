"""Pruned models of each kind in files for other runtimes, and as one graph of a GPU."""

import pytest
import torch
from timm.models import Eva
from timm.models.resnet import Bottleneck, ResNet
from torch import nn

from repshift import Recipe, load_model
from repshift.backbones.vim_model import VisionMamba
from repshift.candidates import Candidates
from repshift.exporting import largest_difference
from repshift.layouts import TokenSequence
from repshift.merging import MutualNearestPruner
from repshift.merging.groups import Distances
from repshift.pruners import TokenPruner
from repshift.testing import CHECKS, EXPORTS, BackboneError, make_subject

EXACT = MutualNearestPruner(exact=True)  # half precision is another one in each runtime
VIT = {"img_size": 32, "patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2, "num_classes": 10}
VIM = {"img_size": 32, "patch_size": 4, "stride": 4, "embed_dim": 16, "depth": 2, "num_classes": 10}


def spread(model):
    """Give a model weights under which scores differ well."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.copy_(1.2 * torch.randn(parameter.shape, generator=generator) / parameter[0].numel() ** 0.5)
    return model.eval()


BUILD = {
    "EVA": (lambda: Eva(**VIT, use_rot_pos_emb=True), (3, 32, 32)),
    "ResNet": (lambda: ResNet(Bottleneck, (1, 1, 1, 1), channels=(8, 8, 16, 16), num_classes=10), (3, 64, 64)),
    "Vim": (lambda: VisionMamba(**VIM), (3, 32, 32)),
    "UMT": (lambda: load_model("tiny_umt", frames=2, img_size=16, patch_size=8).vision_encoder, (2, 3, 16, 16)),
}
RECIPES = {
    "dropped": Recipe("0.3@0;0.2@1"),
    "merged": Recipe("0.3@0", pruner=EXACT),
    "tome": Recipe("0.3@0", pruner="tome"),
    "saliency_merge": Recipe("0.3@0", pruner="saliency_merge", operation="attn"),
    "restored": Recipe("0.3@0", restore=True),
    "positions": Recipe("0.3@0", pruner="positions"),
    "aligned": Recipe("0.3@0", pruner="sequence_aligned"),
}
KINDS = [
    *[("ViT", recipe) for recipe in ("dropped", "merged", "tome", "saliency_merge", "restored")],
    *[("EVA", recipe) for recipe in ("dropped", "merged")],
    *[("ResNet", recipe) for recipe in ("dropped", "positions")],
    *[("Vim", recipe) for recipe in ("dropped", "merged", "aligned")],
    *[("UMT", recipe) for recipe in ("dropped", "merged")],
]

# some of them, since each takes seconds
IN_ONNX = [
    *[("ViT", recipe) for recipe in ("dropped", "merged", "restored")],
    *[("EVA", "merged"), ("ResNet", "dropped"), ("ResNet", "positions"), ("Vim", "dropped"), ("UMT", "merged")],
]


@pytest.fixture
def subject(request, build_vit):
    """A small model of a kind, pruned by a recipe."""
    kind, recipe = request.param
    if kind == "ViT":
        model, size = build_vit(depth=2, embed_dim=16, global_pool="avg"), (3, 32, 32)
    else:
        build, size = BUILD[kind]
        model = spread(build())
    return make_subject(model, torch.randn(2, *size, generator=torch.Generator().manual_seed(1)), RECIPES[recipe])


def of(*kinds):
    return pytest.mark.parametrize("subject", kinds, ids=" ".join, indirect=True)


@pytest.mark.slow
@of(*IN_ONNX)
def test_onnx_files_prune_alike(subject):
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    EXPORTS["ONNX files prune alike"](subject)


@pytest.fixture
def compiler():
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        pytest.skip("no compiler of C++")


@pytest.mark.slow
@pytest.mark.usefixtures("compiler")
@of(("ViT", "merged"))
def test_aoti_packages_prune_alike(subject):
    EXPORTS["AOTInductor packages prune alike"](subject)


@pytest.mark.slow
@of(("EVA", "dropped"), ("EVA", "merged"), ("UMT", "merged"), ("Vim", "merged"))
def test_compiled_models_make_one_more_graph_for_other_batches(subject):
    CHECKS["compiled models make one more graph for other batches"](subject)


@of(("UMT", "dropped"))
def test_a_video_encoder_is_exported_for_any_batch(subject):
    CHECKS["exports take any batch"](subject)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.usefixtures("fresh_dynamo")
@of(*KINDS)
def test_a_pruned_model_is_one_graph_of_a_gpu(subject):
    pruned, images = subject.pruned().to("cuda"), subject.images.to("cuda")
    # a graph that is parted at what runs elsewhere would not be skipped
    whole = torch._inductor.config.patch(graph_partition=False)
    with torch.no_grad(), whole, torch.backends.cudnn.flags(allow_tf32=False):
        compiled = torch.compile(pruned, mode="reduce-overhead", fullgraph=True)
        for _ in range(3):
            assert largest_difference(compiled(images), pruned(images)) < 1e-3
    assert not torch._dynamo.utils.counters["inductor"]["cudagraph_skips"]


# --- what the promises find ---------------------------------------------------------------------------------------


class MakesPlaces(TokenPruner):
    """Makes a tensor on the CPU, wherever the tokens are."""

    def choose(self, candidates, drop):
        selection = super().choose(candidates, drop)
        return selection if torch.arange(3).shape == (3,) else None


class Draws(TokenPruner):
    def choose(self, candidates, drop):
        torch.rand(3, device=candidates.tokens.device)
        return super().choose(candidates, drop)


class CountsImages(TokenPruner):
    """Asks for the number of images in a way that makes it a constant of the graph."""

    def choose(self, candidates, drop):
        drop = drop if len(candidates.tokens) else 1
        return super().choose(candidates, drop)


@pytest.mark.parametrize(("pruner", "words"), [(MakesPlaces(), "runs on another device"), (Draws(), "draws random")])
def test_what_leaves_its_device_is_found_out(build_vit, images, pruner, words):
    subject = make_subject(build_vit(depth=2), images, Recipe("0.2@0", pruner=pruner))
    with pytest.raises(BackboneError, match=words):
        CHECKS["a forward stays on its device"](subject)


def test_random_scores_may_be_drawn(build_vit, images):
    CHECKS["a forward stays on its device"](make_subject(build_vit(depth=2), images, Recipe("0.2@0", score="random")))


def test_what_takes_one_batch_only_is_found_out(build_vit, images):
    subject = make_subject(build_vit(depth=1), images, Recipe("0.2@0", pruner=CountsImages()))
    with pytest.raises(BackboneError, match="exported for one batch, the dense one for any"):
        CHECKS["exports take any batch"](subject)


class OfThisBatch(nn.Module):
    def forward(self, images):
        return images + torch.zeros(len(images), 1, 1, 1)


def test_a_dense_model_of_one_batch_promises_no_more_of_a_pruned_one(build_vit, images):
    model = nn.Sequential(OfThisBatch(), build_vit(depth=1)).eval()
    CHECKS["exports take any batch"](make_subject(model, images, Recipe("0.2@0")))


# --- what is written otherwise while a model is captured ----------------------------------------------------------


def test_no_token_is_joined_with_itself_in_a_graph_either():
    tokens, sizes = torch.randn(2, 9, 4), torch.rand(2, 9) + 0.5

    def distances(tokens, sizes):
        between = Distances.between(tokens)
        return *between.nearest(), between.costs(sizes)

    compiled = torch.compile(distances, backend="eager", fullgraph=True)(tokens, sizes)
    for one, other in zip(compiled, distances(tokens, sizes), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("share", [0.29, 0.2, 1 / 3, 0.999])
def test_padded_tokens_keep_as_many_of_each_image_as_it_keeps_alone(share):
    counts = range(2, 120)
    tokens = torch.zeros(len(counts), 120, 1)
    there = torch.arange(120).expand(len(counts), -1) < torch.tensor(counts).unsqueeze(1)
    scores = torch.rand(len(counts), 120).masked_fill(~there, -torch.inf)
    candidates = Candidates(tokens, TokenSequence(), scores, sizes=there.float(), padded=True)
    left = (~candidates.highest_of_each(share).absent).sum(1)
    alone = [max(1, count - int(share * count + 1e-9)) for count in counts]
    assert left.tolist() == [min(each, left.max()) for each in alone]
