"""What travels between the layers of a Vision Mamba: changes, the stream, and where the class token stands."""

import itertools

import pytest
import torch

from repshift import RepresentationError, UnknownNameError
from repshift.backbones.vim_model import VisionMamba


def test_a_layer_passes_its_change_and_the_stream_that_it_started_from(states, build, images_for):
    model = build()
    seen = states(model, images_for(model))
    for earlier, later in itertools.pairwise(seen):
        assert torch.equal(later.residual, earlier.residual + earlier.hidden)


@pytest.mark.parametrize("autocast", [False, True])
def test_the_stream_stays_in_float32_where_layers_compute_in_bfloat16(autocast, states, build, images_for):
    model = build().float() if autocast else build().bfloat16()
    images = images_for(model).to(torch.float32 if autocast else torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        seen = states(model, images)
    assert {state.residual.dtype for state in seen} == {torch.float32}
    assert {state.hidden.dtype for state in seen} == {torch.bfloat16}


def test_the_stream_of_a_bfloat16_model_keeps_what_bfloat16_would_lose(states, build, images_for):
    model = build(depth=2)
    with torch.no_grad():
        model.layers[0].mixer.out_proj.weight.mul_(1e-5)
    model.bfloat16()
    first, second = states(model, images_for(model).bfloat16())
    assert first.hidden.abs().max() > 0
    assert torch.equal(second.residual - first.residual, (first.residual + first.hidden.float()) - first.residual)
    assert not torch.equal(second.residual, first.residual)


@pytest.mark.parametrize(
    ("options", "index"),
    [({}, 98), ({"stride": 8}, 364), ({"class_position": "head"}, 0), ({"class_position": "middle"}, 98)],
)
def test_the_class_token_stands_behind_half_of_the_patches_or_at_the_head(options, index, states):
    model = VisionMamba(depth=1, **options).eval()
    with torch.no_grad():
        model.patch_embed.proj.weight.zero_()
        model.patch_embed.proj.bias.zero_()
        model.cls_token.fill_(5)
    (state,) = states(model, torch.randn(2, 3, 224, 224))
    assert state.protected.tolist() == [[index], [index]]
    placed = state.residual - model.pos_embed
    assert [tuple(place) for place in (placed[:, :, 0] > 4).nonzero().tolist()] == [(0, index), (1, index)]


@pytest.mark.parametrize("size", [(24, 32), (32, 24), (8, 8)])
def test_images_of_another_size_are_refused_with_both_sizes(size, build):
    with pytest.raises(RepresentationError, match=rf"images of 24x24 pixels, got \(2, 3, {size[0]}, {size[1]}\)"):
        build()(torch.zeros(2, 3, *size, dtype=torch.float64))


@pytest.mark.parametrize("depth", [0, 1, 4])
def test_a_model_has_the_layers_that_were_asked_for(depth, create):
    model = create(depth=depth).eval()
    assert len(model.layers) == depth
    assert model(torch.randn(1, 3, 24, 24)).isfinite().all()


def test_an_unknown_class_position_is_refused_with_the_choices(create):
    with pytest.raises(UnknownNameError, match="'head' or 'middle', got 'tail'"):
        create(class_position="tail")
