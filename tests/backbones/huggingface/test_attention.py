"""Attention of transformers' towers behind a cut: written out by hand, under masks, with each kernel, with padding."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch.profiler import profile

from repshift import Recipe, RepresentationError, ShiftTracker, attention, dense, load_model, recipe_of
from repshift.backbones.huggingface_blocks import why_no_bias
from repshift.pruners import PRUNERS
from repshift.testing import KeepAll


def pruned_by_hand(model, hidden, drop_after, rotary=None):
    """Run blocks of DINOv2 or DINOv3 one by one, and drop tokens by a sort of what their MLP adds."""
    prefix = hidden.shape[1] - 16
    blocks = model.encoder.layer if rotary is None else model.model.layer
    heads = model.config.num_attention_heads
    for number, block in enumerate(blocks):
        x = block.norm1(hidden)
        q, k, v = (
            project(x).unflatten(-1, (heads, -1)).transpose(1, 2)
            for project in (block.attention.q_proj, block.attention.k_proj, block.attention.v_proj)
        )
        if rotary is not None:
            q, k = (torch.stack([turned(each[i], rotary, i) for i in range(len(each))]) for each in (q, k))
        weights = (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1)
        attended = block.attention.o_proj((weights @ v).transpose(1, 2).flatten(2))
        hidden = hidden + block.layer_scale1(attended)
        change = block.layer_scale2(block.mlp(block.norm2(hidden)))
        scores = (change - hidden)[:, prefix:].norm(dim=-1)
        hidden = hidden + change
        if number in drop_after:
            left = scores.shape[1] - drop_after[number]
            kept = [sorted(row.topk(left).indices.tolist()) for row in scores]
            hidden = torch.stack(
                [torch.cat([h[:prefix], h[prefix:][row]]) for h, row in zip(hidden, kept, strict=True)]
            )
            if rotary is not None:
                rotary = [[table[row] for table, row in zip(tables, kept, strict=True)] for tables in rotary]
    return hidden


def turned(vectors, rotary, image):
    """Turn pairs of channels by the angles of each patch, of ``(heads, tokens, channels)``."""
    cosines, sines = (tables[image] for tables in rotary)
    front, patches = vectors[:, : -len(cosines)], vectors[:, -len(cosines) :]
    first, second = patches.chunk(2, -1)
    half = cosines.shape[-1] // 2
    pairs = (first * cosines[:, :half] - second * sines[:, :half], second * cosines[:, half:] + first * sines[:, half:])
    return torch.cat([front, torch.cat(pairs, -1)], 1)


@pytest.mark.parametrize("name", ["Dinov2Model", "DINOv3ViTModel"])
def test_a_pruned_forward_is_what_it_is_written_out(build, images, name):
    model, drops = build(name), {0: 4, 1: 3}
    with torch.no_grad():
        rotary = None
        if name.startswith("DINOv3"):
            rotary = [[table] * len(images) for table in model.rope_embeddings(images)]
        norm = model.layernorm if rotary is None else model.norm
        expected = norm(pruned_by_hand(model, model.embeddings(images), drops, rotary))
        found = ShiftTracker(model).prune(drops)(images).last_hidden_state
    assert torch.allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
@pytest.mark.parametrize("name", ["ViTModel", "Dinov2Model"])
def test_a_mask_is_shortened_with_the_tokens(build, images, kernel, name):
    model, prefix = build(name), 1
    model.set_attn_implementation(kernel)
    mask = torch.ones(2, 17, dtype=torch.long)
    mask[0, 3:6], mask[1, 10] = 0, 0
    pruned = ShiftTracker(model).prune({0: 4})
    tracker = ShiftTracker(pruned)
    with tracker, torch.no_grad():
        found = pruned(images, attention_mask=mask).last_hidden_state
    kept = tracker.kept[0]
    left = torch.cat([mask[:, :prefix], mask[:, prefix:].gather(1, kept)], 1)
    dense = []
    for block in (model.layers if name == "ViTModel" else model.encoder.layer)[:1]:
        block.register_forward_hook(lambda module, args, out: dense.append(out))
    with torch.no_grad():
        model(images, attention_mask=mask)
        x = torch.cat([dense[0][:, :prefix], dense[0][:, prefix:].gather(1, kept.unsqueeze(-1).expand(-1, -1, 16))], 1)
        for block in (model.layers if name == "ViTModel" else model.encoder.layer)[1:]:
            x = block(x, attention_mask=torch.where(left[:, None, None].bool(), 0.0, -torch.inf))
    assert torch.allclose(found, model.layernorm(x), atol=1e-5)


def test_merged_tokens_are_told_to_every_kernel_that_can_be_told(build, images):
    model = build("Dinov2Model")
    pruned = ShiftTracker(model).prune({0: 4}, pruner="mnn")
    with torch.no_grad():
        fused = pruned(images).last_hidden_state
        pruned.set_attn_implementation("eager")
        plain = pruned(images).last_hidden_state
        untold = (
            ShiftTracker(model)
            .prune({0: 4}, pruner=replace(PRUNERS.get("mnn"), size_attention=False))(images)
            .last_hidden_state
        )
    assert torch.allclose(plain, fused, atol=1e-5)
    assert not torch.allclose(untold, fused, atol=1e-3)


def test_the_kernel_of_a_pruned_model_is_its_own(build, images):
    model = build("ViTForImageClassification")
    pruned = ShiftTracker(model).prune({0: 4})
    pruned.set_attn_implementation("eager")
    kernels = [
        {m.config._attn_implementation for m in each.modules() if hasattr(m, "config")} for each in (model, pruned)
    ]
    assert kernels == [{"sdpa"}, {"eager"}]
    model.set_attn_implementation("flex_attention")
    assert pruned.config._attn_implementation == "eager"
    assert pruned(images).logits.shape == (2, 2)


def test_a_kernel_that_takes_no_mask_of_tokens_is_refused_where_it_is_needed(build, images, transformers):
    def maskless(module, query, key, value, attention_mask, **options):
        """Takes no mask, as flash attention, which is not there everywhere."""
        assert attention_mask is None
        return F.scaled_dot_product_attention(query, key, value).transpose(1, 2), None

    transformers.AttentionInterface.register("maskless", maskless)
    transformers.AttentionMaskInterface.register("maskless", lambda *args, **kwargs: kwargs.get("attention_mask"))
    model = build("Dinov2Model")
    dropping, merging = (ShiftTracker(model).prune({0: 4}, pruner=pruner) for pruner in (None, "mnn"))
    untold = ShiftTracker(model).prune({0: 4}, pruner=replace(PRUNERS.get("mnn"), size_attention=False))
    with torch.no_grad():
        expected = dropping(images).last_hidden_state
        for each in (dropping, merging, untold):
            each.set_attn_implementation("maskless")
        assert torch.allclose(dropping(images).last_hidden_state, expected, atol=1e-5)
        assert untold(images).last_hidden_state.shape == expected.shape
        with pytest.raises(
            RepresentationError, match=r"'maskless', which cannot be told how many.*'sdpa'\) or 'eager'"
        ):
            merging(images)
        with pytest.raises(RepresentationError, match=r"'maskless', which cannot be told"):
            dropping(images[:1], attention_mask=torch.ones(1, 17))
        merging.set_attn_implementation("sdpa")
        assert merging(images).last_hidden_state.shape == expected.shape


@pytest.mark.parametrize(("kernel", "refused"), [("sdpa", False), ("eager", False), ("flex_attention", True)])
def test_kernels_are_told_apart_by_name(build, kernel, refused):
    model = build("ViTModel")
    model.set_attn_implementation(kernel)
    assert (why_no_bias(model.config) is not None) == refused


def test_a_bias_that_is_resampled_to_the_tokens_that_are_left_is_refused(build, images):
    pruned = ShiftTracker(build("BeitModel")).prune({0: 4})
    with pytest.raises(RepresentationError, match=r"all 17 tokens has 13 entries.*interpolate_pos_encoding"):
        pruned(images, interpolate_pos_encoding=True)


def test_the_scale_of_a_block_is_part_of_its_change(build, images):
    model, seen = build("BeitModel"), {}
    block = model.layers[1]
    block.layernorm_after.register_forward_pre_hook(lambda module, args: seen.update(before=args[0]))
    block.register_forward_hook(lambda module, args, out: seen.update(after=out))
    shift = ShiftTracker(model).run(images).shifts[1]
    change = seen["after"] - seen["before"]
    assert torch.allclose(shift, (change - seen["before"])[:, 1:].norm(dim=-1), atol=1e-4)


# --- SigLIP 2, whose images are padded to one number of patches ---------------------------------------------------


@pytest.fixture
def padded():
    """Patches of an image of 4x4 and of one of 2x5, padded to 16."""
    shapes = torch.tensor([[4, 4], [2, 5]])
    return {
        "pixel_values": torch.randn(2, 16, 192, generator=torch.Generator().manual_seed(4)),
        "pixel_attention_mask": (torch.arange(16) < shapes.prod(1, keepdim=True)).long(),
        "spatial_shapes": shapes,
    }


@pytest.mark.parametrize("pruner", [None, "mnn"])
def test_padding_never_counts_as_a_token(build, padded, pruner):
    model = build("Siglip2VisionModel")
    pruned = ShiftTracker(model).prune({0: 6}, pruner=pruner)
    alone = {
        key: value[1:, :10] if value.ndim > 2 or key.endswith("mask") else value[1:] for key, value in padded.items()
    }
    with torch.no_grad():
        dense = model(**padded).pooler_output
        found = pruned(**padded).pooler_output
        expected = model(**alone).pooler_output
    assert torch.allclose(dense[1:], expected, atol=1e-4)
    # six of 16 go, which are the six that are no tokens of the second image
    assert torch.allclose(found[1:], dense[1:], atol=1e-5)
    assert not torch.allclose(found[:1], dense[:1], atol=1e-3)


def test_nothing_dropped_of_a_padded_batch_is_the_dense_model(build, padded):
    for name in ("Siglip2VisionModel", "Siglip2Model"):
        model = build(name)
        text = {} if name.endswith("VisionModel") else {"input_ids": torch.tensor([[1, 5, 6, 2], [1, 7, 2, 0]])}
        kept = ShiftTracker(model).prune({0: 6}, pruner=KeepAll())
        with torch.no_grad():
            found, expected = kept(**padded, **text), model(**padded, **text)
        output = "logits_per_image" if text else "pooler_output"
        assert torch.equal(found[output], expected[output])


def test_images_of_several_shapes_have_no_common_map(build, padded):
    tracker = ShiftTracker(build("Siglip2VisionModel"))
    with tracker, torch.no_grad():
        tracker.model(**padded)
    with pytest.raises(RepresentationError, match="no known rows and columns"):
        tracker.maps[0]


# --- a kernel that was chosen -------------------------------------------------------------------------------------

OPERATORS = "aten::_scaled_dot_product_"


def what_runs(model, images):
    """The operators of attention that a forward runs, by the profiler."""
    with profile() as seen, torch.no_grad():
        model(images)
    return {event.key.removeprefix(OPERATORS) for event in seen.key_averages() if event.key.startswith(OPERATORS)}


@pytest.mark.parametrize("name", ["ViTModel", "Dinov2Model", "DINOv3ViTModel", "SiglipVisionModel", "BeitModel"])
def test_a_kernel_that_was_chosen_is_that_of_all_blocks(build, images, name):
    model = build(name)
    before = model.config._attn_implementation
    pruned = ShiftTracker(model).prune({0: 4}, pruner="mnn")
    for kernel, runs in (("eager", set()), ("math", {"attention_math"})):
        chosen = attention(pruned, kernel)
        assert chosen.config._attn_implementation == ("eager" if kernel == "eager" else "sdpa")
        assert what_runs(chosen, images) == runs
        with torch.no_grad():
            found, expected = chosen(images).last_hidden_state, pruned(images).last_hidden_state
        assert torch.allclose(found, expected, atol=1e-4)
        assert dense(chosen).config._attn_implementation == before
    assert model.config._attn_implementation == before


def test_what_is_told_a_transformers_model_later_is_not_passed_by(build, images):
    chosen = attention(build("ViTModel"), "math")
    chosen.set_attn_implementation("eager")
    with pytest.raises(RepresentationError, match="did not ask torch for attention"):
        chosen(images)


def test_a_kernel_that_was_chosen_comes_back_from_a_folder(build, images, tmp_path):
    chosen = attention(build("ViTModel"), "math")
    chosen.save_pretrained(tmp_path / "model")
    loaded = load_model(tmp_path / "model")
    assert recipe_of(loaded) == Recipe(attention="math")
    assert what_runs(loaded, images) == {"attention_math"}
