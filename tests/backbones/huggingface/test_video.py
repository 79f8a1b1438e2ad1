"""Video models of transformers: maps have frames, and V-JEPA 2 is told where the tokens stood."""

from functools import partial

import pytest
import torch

from repshift import ShiftTracker, describe
from repshift.errors import RepresentationError, UnsupportedModelError
from repshift.positions import pick
from repshift.testing import CHECKS, make_subject

transformers = pytest.importorskip("transformers")

SIZES = {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2}
FRAMES, SIDE, PATCH = 8, 16, 8  # 4x2x2 tokens, a square number


def videomae(**changes):
    config = transformers.VideoMAEConfig(
        **SIZES, intermediate_size=32, image_size=SIDE, patch_size=PATCH, num_frames=FRAMES, num_labels=3, **changes
    )
    return transformers.VideoMAEForVideoClassification(config)


def vivit():
    config = transformers.VivitConfig(
        **SIZES, intermediate_size=32, image_size=SIDE, tubelet_size=(2, PATCH, PATCH), num_frames=FRAMES, num_labels=3
    )
    return transformers.VivitForVideoClassification(config)


def vjepa2_config():
    return transformers.VJEPA2Config(
        **SIZES,
        crop_size=SIDE,
        patch_size=PATCH,
        frames_per_clip=FRAMES,
        mlp_ratio=2,
        pred_hidden_size=24,
        pred_num_attention_heads=2,
        pred_num_hidden_layers=1,
        num_pooler_layers=1,
        num_labels=3,
    )


def vjepa2():
    return transformers.VJEPA2ForVideoClassification(vjepa2_config())


MODELS = {
    "videomae": videomae,
    "videomae without pooling": partial(videomae, use_mean_pooling=False),
    "vivit": vivit,
    "vjepa2": vjepa2,
}


@pytest.fixture(params=MODELS)
def model(request, strong):
    return strong(MODELS[request.param]())


@pytest.fixture
def videos():
    torch.manual_seed(1)
    return torch.randn(2, FRAMES, 3, SIDE, SIDE)


# V-JEPA 2's pooling attends without any bias, so there a merged token counts once
SKIPPED = {"vjepa2": ("merged tokens count for all that they are",)}
SLOW = ("compiled", "graph breaks", "exports", "threads", "fails", "own thread")  # other families hold these


@pytest.mark.parametrize("name", [name for name in MODELS if "without" not in name])
def test_every_promise_is_kept(name, strong, videos):
    subject = make_subject(strong(MODELS[name]()), videos)
    for promise, check in CHECKS.items():
        if not any(word in promise for word in SLOW) and promise not in SKIPPED.get(name, ()):
            check(subject)


def test_maps_have_frames_rows_and_columns(model, videos):
    # one tubelet, at frame 2, row 1, column 0, differs from a video that is otherwise black
    spot = torch.zeros_like(videos)
    spot[:, 4:6, :, PATCH:, :PATCH] = 1.0
    dark, bright = (ShiftTracker(model, operation="attn").run(video).maps[0] for video in (spot * 0, spot))
    assert bright.shape == (2, 4, 2, 2)
    assert ((bright - dark).abs().flatten(1).argmax(1) == torch.tensor(2 * 4 + 1 * 2)).all()
    assert describe(model).grid(FRAMES, SIDE, 2 * SIDE) == (4, 2, 4)


def test_maps_of_a_pruned_model_have_frames(model, videos):
    tracker = ShiftTracker(ShiftTracker(model).prune("0.25@0")).run(videos)
    assert tracker.maps[2].shape == (2, 4, 2, 2)
    assert tracker.maps[2].isnan().sum() == 2 * 4


def test_a_video_of_another_rank_is_refused(model, videos):
    with pytest.raises(RepresentationError, match=r"videos \(batch, frames, 3, rows, columns\).*batch of one"):
        ShiftTracker(model).prune("0.25@0")(videos[0])


def test_pruners_that_ask_for_rows_and_columns_are_refused(model):
    with pytest.raises(UnsupportedModelError, match="rows and columns"):
        ShiftTracker(model).prune("0.25@0", pruner="cells")
    assert "cells" not in describe(model).pruners


# --- V-JEPA 2 counts positions in its blocks -------------------------------------------------------------------------


@torch.no_grad()
def encoded_at_places(encoder, videos, kept):
    """Run V-JEPA 2's encoder by hand: behind the first block only the kept tokens, turned by their own places."""
    x = encoder.layer[0](encoder.embeddings(videos))[0]
    x = pick(x, kept)
    for layer in encoder.layer[1:]:
        attention, normed = layer.attention, layer.norm1(x)
        q, k, v = (
            project(normed).unflatten(2, (attention.num_attention_heads, -1)).transpose(1, 2)
            for project in (attention.query, attention.key, attention.value)
        )
        q, k = (turned(each, kept, attention) for each in (q, k))
        mixed = (q @ k.mT * attention.scaling).softmax(-1) @ v
        x = x + attention.proj(mixed.transpose(1, 2).flatten(2))
        x = x + layer.mlp(layer.norm2(x))
    return encoder.layernorm(x)


def turned(x, places, attention):
    """Turn pairs of channels by frame, row and column, ``(batch, heads, tokens, channels)``."""
    side = SIDE // PATCH
    parts = []
    for number, place in enumerate((places // side**2, places % side**2 // side, places % side)):
        part = x[..., number * attention.d_dim : (number + 1) * attention.d_dim]
        speeds = 10000 ** -(torch.arange(part.shape[-1] // 2) / (part.shape[-1] / 2))
        angles = place[:, None, :, None] * speeds
        # the library repeats the angles one after the other, and turns neighbouring channels
        cos, sin = angles.cos().repeat(1, 1, 1, 2), angles.sin().repeat(1, 1, 1, 2)
        even, odd = part[..., ::2], part[..., 1::2]
        parts.append(part * cos + torch.stack([-odd, even], -1).flatten(-2) * sin)
    return torch.cat([*parts, x[..., 3 * attention.d_dim :]], -1)


@pytest.fixture
def jepa(strong):
    return strong(transformers.VJEPA2Model(vjepa2_config()))


def test_vjepa2_turns_the_tokens_that_are_left_by_their_own_places(jepa, videos):
    pruned = ShiftTracker(jepa).prune("0.5@0")
    with torch.no_grad(), ShiftTracker(pruned) as tracker:
        found = pruned(videos, skip_predictor=True).last_hidden_state
    kept = tracker.kept[0]
    assert (kept != torch.arange(8)).any(1).all()
    expected = encoded_at_places(jepa.encoder, videos, kept)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    # what a cut without positions would give
    wrong = encoded_at_places_counted(jepa.encoder, videos, kept)
    assert (found - wrong).abs().max() > 0.1


@torch.no_grad()
def encoded_at_places_counted(encoder, videos, kept):
    x = pick(encoder.layer[0](encoder.embeddings(videos))[0], kept)
    for layer in encoder.layer[1:]:
        x = layer(x)[0]
    return encoder.layernorm(x)


def test_the_predictor_is_not_run_on_fewer_tokens(jepa, videos):
    with pytest.raises(UnsupportedModelError, match=r"skip_predictor=True.*restore=True"):
        ShiftTracker(jepa).prune("0.5@0")(videos)
    whole = ShiftTracker(jepa).prune("0.5@0", restore=True)(videos)
    assert whole.predictor_output.last_hidden_state.shape[1] == whole.last_hidden_state.shape[1] == 16


def test_attention_weights_of_vjepa2_are_left_alone(jepa, videos):
    jepa.set_attn_implementation("eager")
    pruned = ShiftTracker(jepa).prune("0.5@0")
    answer = pruned(videos, skip_predictor=True, output_attentions=True, output_hidden_states=True)
    assert [each.shape[-1] for each in answer.attentions] == [16, 8, 8]
    assert [each.shape[1] for each in answer.hidden_states[:2]] == [16, 8]


# --- refused -------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_videomae_for_pretraining_needs_all_tokens(strong, videos, keep_all):
    model = strong(transformers.VideoMAEForPreTraining(videomae(decoder_num_hidden_layers=1).config))
    with pytest.raises(UnsupportedModelError, match=r"decoder.*restore=True"):
        ShiftTracker(model).prune("0.25@0")
    assert "needs: restore=True, since its decoder" in str(describe(model))
    hidden = torch.arange(16).expand(2, -1) % 4 == 0
    expected = model(videos, bool_masked_pos=hidden).logits
    kept, pruned = (ShiftTracker(model).prune("0.25@0", restore=True, pruner=each) for each in (keep_all, None))
    assert torch.equal(kept(videos, bool_masked_pos=hidden).logits, expected)
    assert pruned(videos, bool_masked_pos=hidden).logits.shape == expected.shape


def test_timesformer_is_tracked_without_maps_and_not_pruned(videos):
    config = transformers.TimesformerConfig(
        **SIZES, intermediate_size=32, image_size=SIDE, patch_size=PATCH, num_frames=FRAMES
    )
    model = transformers.TimesformerModel(config).eval()
    with pytest.raises(UnsupportedModelError, match=r"TimesformerModel can be tracked but not pruned.*frames"):
        ShiftTracker(model)
    tracker = ShiftTracker(model, sites="encoder.layer.*").run(videos)
    with pytest.raises(RepresentationError, match="no known rows and columns"):
        tracker.maps[0]
