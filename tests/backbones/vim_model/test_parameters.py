"""The parameters of a Vision Mamba: names and shapes of the published models, and initial values."""

import math

import pytest
import torch
import torch.nn.functional as F

from repshift.backbones.vim_model import VisionMamba


def published_shapes(channels, patches):
    """List the parameters of the published models, from their description."""
    inner, rank = 2 * channels, math.ceil(channels / 16)
    shapes = {
        "cls_token": (1, 1, channels),
        "pos_embed": (1, patches + 1, channels),
        "patch_embed.proj.weight": (channels, 3, 16, 16),
        "patch_embed.proj.bias": (channels,),
        "norm_f.weight": (channels,),
        "head.weight": (1000, channels),
        "head.bias": (1000,),
    }
    for layer in range(24):
        mixer = f"layers.{layer}.mixer"
        shapes |= {
            f"layers.{layer}.norm.weight": (channels,),
            f"{mixer}.in_proj.weight": (2 * inner, channels),
            f"{mixer}.out_proj.weight": (channels, inner),
            f"{mixer}.A_log": (inner, 16),
            f"{mixer}.A_b_log": (inner, 16),
            f"{mixer}.D": (inner,),
            f"{mixer}.D_b": (inner,),
        }
        for b in ("", "_b"):
            shapes |= {
                f"{mixer}.conv1d{b}.weight": (inner, 1, 4),
                f"{mixer}.conv1d{b}.bias": (inner,),
                f"{mixer}.x_proj{b}.weight": (rank + 32, inner),
                f"{mixer}.dt_proj{b}.weight": (inner, rank),
                f"{mixer}.dt_proj{b}.bias": (inner,),
            }
    return shapes


@pytest.mark.parametrize(("stride", "patches"), [(None, 14 * 14), (8, 27 * 27)])
@pytest.mark.parametrize(
    ("channels", "parameters"), [(192, 7_148_008), (384, 25_796_584), (768, 97_598_440)], ids=["tiny", "small", "base"]
)
def test_the_keys_and_shapes_are_those_of_the_published_models(channels, parameters, stride, patches):
    with torch.device("meta"):
        model = VisionMamba(embed_dim=channels, stride=stride)
    expected = published_shapes(channels, patches)
    assert len(expected) == 415
    assert {name: tuple(value.shape) for name, value in model.state_dict().items()} == expected
    if stride is None:
        assert sum(value.numel() for value in model.parameters()) == parameters


def test_the_rank_of_the_step_sizes_is_a_sixteenth_of_the_channels_rounded_up(create):
    ranks = [create(embed_dim=width).layers[0].mixer.dt_proj.in_features for width in (16, 17, 40)]
    assert ranks == [1, 2, 3]


def test_a_model_has_float32_parameters_alone_and_no_buffers(create):
    model = create()
    assert {value.dtype for value in model.state_dict().values()} == {torch.float32}
    assert not list(model.buffers())


# --- initial values ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fresh():
    torch.manual_seed(0)
    return VisionMamba(depth=4)


def test_the_initial_decays_are_minus_one_to_minus_sixteen_in_every_channel(fresh):
    for name in ("A_log", "A_b_log"):
        decays = -torch.exp(getattr(fresh.layers[1].mixer, name))
        torch.testing.assert_close(decays, -torch.arange(1.0, 17.0).expand(384, -1))


def test_the_initial_step_sizes_spread_evenly_in_the_logarithm_from_a_thousandth_to_a_tenth(fresh):
    for projection in (fresh.layers[1].mixer.dt_proj, fresh.layers[1].mixer.dt_proj_b):
        decades = F.softplus(projection.bias.detach().double()).log10()
        assert -3.001 < decades.min() < -2.95
        assert -1.05 < decades.max() < -0.999
        assert decades.mean().item() == pytest.approx(-2, abs=0.1)


def test_the_skip_connections_start_at_one_and_the_norms_too(fresh):
    ends = (".D", ".D_b", "norm.weight", "norm_f.weight")
    chosen = [value for name, value in fresh.named_parameters() if name.endswith(ends)]
    assert len(chosen) == 4 * 3 + 1
    assert all((value == 1).all() for value in chosen)


def test_the_two_directions_do_not_share_what_they_start_with(fresh):
    mixer = fresh.layers[0].mixer
    for name in ("conv1d", "x_proj", "dt_proj"):
        assert not torch.equal(getattr(mixer, name).weight, getattr(mixer, f"{name}_b").weight)
    assert mixer.A_log.data_ptr() != mixer.A_b_log.data_ptr()
    assert mixer.D.data_ptr() != mixer.D_b.data_ptr()


def test_deeper_models_start_with_smaller_changes(fresh):
    shallow = VisionMamba(depth=1)
    ratio = shallow.layers[0].mixer.out_proj.weight.std() / fresh.layers[0].mixer.out_proj.weight.std()
    assert ratio.item() == pytest.approx(2, rel=0.02)  # the root of 4 layers


def test_tokens_and_positions_start_small_and_the_classifier_without_bias(fresh):
    assert fresh.pos_embed.std().item() == pytest.approx(0.02, rel=0.05)
    assert fresh.cls_token.std().item() == pytest.approx(0.02, rel=0.3)
    assert fresh.head.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert not fresh.head.bias.any()
