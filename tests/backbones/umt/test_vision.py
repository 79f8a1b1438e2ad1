"""The video encoder, against a forward that is written out, and its table of positions."""

import math

import pytest
import torch
import torch.nn.functional as F

from repshift import ShiftTracker, attention
from repshift.backbones.umt.positions import sinusoid
from repshift.backbones.umt.vision import FramePooling, frames_present


def written_out(state, videos, depth, heads, patch):
    """UMT's video encoder, with every step spelled out."""
    _, frames, _, rows, columns = videos.shape
    weight, bias = state["encoder.patch_embed.proj.weight"], state["encoder.patch_embed.proj.bias"]
    width = len(bias)
    tokens = []
    for frame in range(frames):
        for row in range(0, rows, patch):
            for column in range(0, columns, patch):
                pixels = videos[:, frame, :, row : row + patch, column : column + patch].flatten(1)
                tokens.append(pixels @ weight.flatten(1).T + bias)
    x = torch.stack(tokens, dim=1)
    for place in range(x.shape[1]):
        for channel in range(width):
            angle = place / 10000 ** (2 * (channel // 2) / width)
            x[:, place, channel] += math.sin(angle) if channel % 2 == 0 else math.cos(angle)

    def norm(name, value):
        return F.layer_norm(value, (width,), state[f"{name}.weight"], state[f"{name}.bias"], 1e-6)

    for number in range(depth):
        block = f"encoder.blocks.{number}"
        normed = norm(f"{block}.norm1", x)
        queries, keys, values = (normed @ part.T for part in state[f"{block}.attn.qkv.weight"].chunk(3))
        queries, values = queries + state[f"{block}.attn.q_bias"], values + state[f"{block}.attn.v_bias"]
        size = width // heads
        mixed = []
        for head in range(heads):
            part = slice(head * size, (head + 1) * size)
            logits = queries[..., part] @ keys[..., part].mT / size**0.5
            mixed.append(logits.softmax(-1) @ values[..., part])
        x = x + torch.cat(mixed, -1) @ state[f"{block}.attn.proj.weight"].T + state[f"{block}.attn.proj.bias"]
        hidden = F.gelu(norm(f"{block}.norm2", x) @ state[f"{block}.mlp.fc1.weight"].T + state[f"{block}.mlp.fc1.bias"])
        x = x + hidden @ state[f"{block}.mlp.fc2.weight"].T + state[f"{block}.mlp.fc2.bias"]
    x = norm("encoder.norm", x)
    each = x.shape[1] // frames
    means = torch.stack([x[:, number * each : (number + 1) * each].mean(1) for number in range(frames)], 1)
    return x, norm("pool_norm", means)


@pytest.mark.parametrize("fused", [True, False])
def test_it_computes_what_is_written_out(make, videos, fused):
    model = make().vision_encoder
    for block in model.encoder.blocks:
        block.attn.fused_attn = fused
    with torch.no_grad():
        depth, heads = len(model.encoder.blocks), model.encoder.blocks[0].attn.heads
        found, expected = model(videos), written_out(model.state_dict(), videos, depth, heads, patch=8)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_all_tokens_are_pooled_together_if_asked(make, videos):
    model = make(keep_temporal=False).vision_encoder
    tokens, pooled = model(videos)
    torch.testing.assert_close(pooled, model.pool_norm(tokens.mean(1, keepdim=True)))


def test_the_table_of_more_frames_begins_with_that_of_fewer():
    assert torch.equal(sinusoid(40, 8)[:20], sinusoid(20, 8))
    assert sinusoid(1, 4).tolist() == [[0.0, 1.0, 0.0, 1.0]]
    assert sinusoid(3, 4)[2, 2].item() == pytest.approx(math.sin(2 / 100))


@pytest.mark.parametrize("frames", [1, 3, 9])  # the model was built for 4
def test_videos_of_any_length_are_welcome(make, frames):
    videos = torch.randn(1, frames, 3, 16, 16)
    encoder = make().vision_encoder
    tokens, pooled = encoder(videos)
    assert tokens.shape == (1, 4 * frames, 24)
    assert pooled.shape == (1, frames, 24)
    longer = make(frames=frames).vision_encoder
    assert torch.equal(longer(videos)[0], tokens)


def test_the_table_is_not_saved_and_follows_the_weights(make):
    model = make()
    assert not any("table" in key for key in model.state_dict())
    assert model.to(torch.bfloat16)(torch.randn(1, 4, 3, 16, 16, dtype=torch.bfloat16))[1].dtype == torch.bfloat16


# --- pooling of what is left -----------------------------------------------------------------------------------------


def test_frames_are_averaged_over_the_tokens_that_they_have_left():
    tokens = torch.randn(1, 3, 5)
    held = torch.tensor([[0, -1, -1, -1, 1, 2]])  # three frames of two places; the second has nothing left
    pooled, present = FramePooling(True)(tokens, 3, 2, held)
    assert torch.equal(present, torch.tensor([[True, False, True]]))
    assert torch.equal(pooled[:, 1], torch.zeros(1, 5))
    torch.testing.assert_close(pooled[:, 0], tokens[:, 0])
    torch.testing.assert_close(pooled[:, 2], tokens[:, 1:].mean(1))


def test_a_merged_token_counts_in_every_frame_that_it_has_places_in():
    tokens = torch.randn(1, 2, 5)
    held = torch.tensor([[0, 0, 0, 1]])  # token 0 stands for both places of frame 0 and one of frame 1
    bias = torch.tensor([3.0, 1.0]).log().view(1, 1, 1, 2)
    pooled, present = FramePooling(True)(tokens, 2, 2, held, bias)
    assert present.all()
    torch.testing.assert_close(pooled, torch.stack([tokens[:, 0], tokens.mean(1)], 1))


def test_all_together_merged_tokens_count_for_their_sizes():
    tokens = torch.randn(1, 2, 5)
    bias = torch.tensor([3.0, 1.0]).log().view(1, 1, 1, 2)
    pooled, present = FramePooling(False)(tokens, 2, 2, None, bias)
    assert present is None
    torch.testing.assert_close(pooled[:, 0], 0.75 * tokens[:, 0] + 0.25 * tokens[:, 1])


def test_frames_without_tokens_are_left_out_of_the_comparison(make, videos):
    model = make()
    pruned = ShiftTracker(model).prune({0: 0.7}, pruner=OnlyFirstFrames())
    _, pooled = pruned.encode_vision(videos)
    present = frames_present(pooled)
    assert present.tolist() == [[True, False, False, False]] * 2
    first = torch.randn(5, 24)
    alone = model.itc(pooled[:, :1], first)
    torch.testing.assert_close(model.itc(pooled, first), alone)
    assert model.itc(pooled, first).isfinite().all()


class OnlyFirstFrames:
    """Keeps the first tokens of every video, which are those of its first frame."""

    drops_only = True

    def choose(self, candidates, drop):
        from repshift import Selection

        return Selection.first(4, candidates.tokens)


@pytest.mark.parametrize("kernel", ["eager", "math"])
def test_a_kernel_that_was_chosen_says_the_same_of_merged_tokens(make, videos, kernel):
    pruned = ShiftTracker(make().vision_encoder).prune("0.3@0", pruner="mnn")
    chosen = attention(pruned, kernel)
    assert all(block.attn.fused_attn is (kernel != "eager") for block in chosen.encoder.blocks)
    with torch.no_grad():
        for found, expected in zip(chosen(videos), pruned(videos), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
