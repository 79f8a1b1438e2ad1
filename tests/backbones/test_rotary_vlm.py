"""The vision encoders of language models in timm: behind their blocks, every token must be at its place."""

import pytest
import torch

from repshift import ShiftTracker, UnsupportedModelError, dense
from repshift.testing import KeepAll, leftovers

SMALL = {"img_size": 64, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 2, "num_classes": 5}
QWEN, DEEPSEEK, GEMMA = "Qwen3Vit", "DeepseekVit", "Gemma4Vit"
OF_GEMMA = {"head_dim": 16, "intermediate_size": 64, "position_embedding_size": 16, "pooling_kernel_size": 2}
KINDS = {
    "Qwen3-VL, merged": (QWEN, "Encoder", {"out_features": 12, "global_pool": "merge"}),
    "Qwen3-VL, as they are": (QWEN, "Encoder", {"global_pool": ""}),
    "Qwen3-VL, classifier": (QWEN, "Classifier", {}),
    "DeepSeek, aligned": (DEEPSEEK, "Encoder", {"out_features": 12, "downsample_ratio": 3}),
    "DeepSeek, classifier": (DEEPSEEK, "Classifier", {}),
    "Gemma 4, pooled by places": (GEMMA, "Encoder", {**OF_GEMMA, "global_pool": "soft", "standardize": True}),
    "Gemma 4, averaged": (GEMMA, "Encoder", {**OF_GEMMA, "global_pool": "avg", "num_kv_heads": 1}),
    "Gemma 4, classifier": (GEMMA, "Classifier", OF_GEMMA),
}
FILES = {QWEN: "qwen3_vit", DEEPSEEK: "deepseek_vit", GEMMA: "gemma4_vit"}


def build(family, kind, options):
    module = pytest.importorskip(f"timm.models.{FILES[family]}")
    torch.manual_seed(0)
    settings = {**SMALL, **options}
    if kind == "Encoder":
        del settings["num_classes"]
    if family == QWEN:
        settings["pos_embed_grid_size"] = 5
    model = getattr(module, family + kind)(**settings).eval()
    for parameter in model.parameters():
        if parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=1.2 * parameter.shape[1] ** -0.5)
    return model


@pytest.fixture(params=KINDS.values(), ids=KINDS)
def model(request):
    return build(*request.param)


@pytest.fixture
def images():
    return torch.rand(2, 3, 32, 48, generator=torch.Generator().manual_seed(1))


def test_tokens_that_have_no_places_are_refused_with_what_would_serve(model):
    message = r"must have their places back: they are (laid out|pooled) .* behind the blocks\. Prune with restore=True"
    with pytest.raises(UnsupportedModelError, match=message):
        ShiftTracker(model).prune({0: 4})


@torch.no_grad()
def test_nothing_dropped_is_the_dense_model_bit_for_bit(model, images):
    expected = model(images)
    for operation in ("attn", "mlp", "block"):
        kept = ShiftTracker(model, operation=operation).prune({0: 4, 1: 4}, pruner=KeepAll(), restore=True)
        assert torch.equal(kept(images), expected)
    assert torch.equal(dense(kept)(images), expected)


@pytest.mark.parametrize("pruner", ["tokens", "mnn"])
@torch.no_grad()
def test_what_is_pruned_has_the_dense_shape_and_images_do_not_disturb_each_other(model, images, pruner):
    pruned = ShiftTracker(model).prune({0: 6, 1: 4}, pruner=pruner, restore=True)
    tracker = ShiftTracker(pruned).run(images)
    assert [each.shape[1] for each in tracker.kept.values()] == [18, 14]
    assert tracker.output.shape == model(images).shape
    torch.testing.assert_close(pruned(images[1:]), tracker.output[1:], atol=1e-5, rtol=1e-4)
    assert next(iter(ShiftTracker(model).run(images).maps.values())).shape == (2, 4, 6)
    maps = pruned.forward_intermediates(images, intermediates_only=True)
    assert {tuple(each.shape) for each in maps} == {(2, 32, 4, 6)}
    assert not leftovers(pruned)


@torch.no_grad()
def test_tables_follow_the_tokens_and_tokens_come_back_to_their_places(model, images):
    """The dense blocks, run by hand on what is left with what belongs to it, and each token put where it stood."""
    encoder = getattr(model, "encoder", model)
    pruned = ShiftTracker(model).prune({0: 6}, restore="left")
    kept = next(iter(ShiftTracker(pruned).run(images).kept.values()))
    calls = []
    hook = encoder.blocks[1].register_forward_pre_hook(lambda *call: calls.append(call[1:]), with_kwargs=True)
    model(images)
    hook.remove()
    [((left, *args), kwargs)] = calls

    def of_kept(value):
        if value is None or value.shape[-2] != left.shape[1]:
            return value
        every = value.expand(2, *value.shape[-2:])
        chosen = every.gather(1, kept[..., None].expand(-1, -1, value.shape[-1]))
        return chosen if value.ndim == 3 else chosen[:, None]

    x = left.gather(1, kept[..., None].expand(-1, -1, 32))
    for block in encoder.blocks[1:]:
        x = block(x, *map(of_kept, args), **{name: of_kept(value) for name, value in kwargs.items()})
    whole = left.scatter(1, kept[..., None].expand_as(x), x)
    hook = encoder.blocks[-1].register_forward_hook(lambda *call: whole)
    expected = model(images)
    hook.remove()
    torch.testing.assert_close(pruned(images), expected, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_a_smaller_input_is_the_resized_image(model, images):
    smaller = ShiftTracker(model).prune(input_size=(32, 32))
    resized = torch.nn.functional.interpolate(images, size=(32, 32), mode="bicubic", antialias=True)
    torch.testing.assert_close(smaller(images), model(resized), atol=1e-5, rtol=1e-4)
    with pytest.raises(UnsupportedModelError, match=r"does not come to whole patches.*Give multiples"):
        ShiftTracker(model).prune(input_size=(36, 32))


@pytest.mark.parametrize("kind", [name for name in KINDS if name.startswith("Gemma")])
@torch.no_grad()
def test_padded_patches_of_gemma_are_not_there(kind):
    model, generator = build(*KINDS[kind]), torch.Generator().manual_seed(2)
    drawn = torch.rand(2, 16, 192, generator=generator)
    places = torch.cartesian_prod(torch.arange(4), torch.arange(4)).expand(2, -1, -1)
    there = torch.ones(2, 16, dtype=torch.bool)
    there[1, 8:] = False
    padded = {"patches": drawn, "patch_coord": torch.where(there[..., None], places, 0), "patch_valid": there}
    single = {key: value[1:, :8] for key, value in padded.items()}
    pruned = ShiftTracker(model).prune({0: 8, 1: 2}, restore=True)
    found, alone = pruned(padded)[1], ShiftTracker(model).prune({1: 2}, restore=True)(single)[0]
    torch.testing.assert_close(found[: len(alone)], alone, atol=1e-5, rtol=1e-4)
