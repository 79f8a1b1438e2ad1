"""Vision Mamba against a forward written out from its description: patches, flips, a loop over the steps."""

import copy
import itertools
import math
import pickle

import pytest
import torch
import torch.nn.functional as F
from timm.optim import create_optimizer_v2
from torch import nn

from repshift import RepresentationError, UnknownNameError
from repshift.backbones.vim_mixer import causal_convolution
from repshift.backbones.vim_model import VisionMamba

# 24 channels: the rank of the step sizes, a sixteenth of them, has to be rounded up
SMALL = {"img_size": 24, "patch_size": 8, "embed_dim": 24, "depth": 3, "d_state": 4, "num_classes": 5}
MODELS = {
    "class token in the middle": {},
    "an even number of patches": {"img_size": (16, 32)},
    "an image that is not square": {"img_size": (16, 40)},
    "class token at the head": {"class_position": "head"},
    "class token at the head, directions added up": {"class_position": "head", "halve": False},
    "overlapping patches": {"stride": 4},
    "patches with a gap at the border": {"img_size": (30, 27), "stride": 5},
    "other widths": {"d_state": 7, "d_conv": 3, "expand": 3, "in_chans": 1},
    "one layer": {"depth": 1},
}


def build(**options):
    """Build a model in float64 whose parameters all matter."""
    model = VisionMamba(**(SMALL | options)).eval().double()
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            if name in ("cls_token", "pos_embed"):
                parameter.copy_(noise)
            elif "A_" in name:
                parameter.add_(0.3 * noise)
            elif name.endswith(("norm.weight", "norm_f.weight", "D", "D_b")):
                parameter.copy_(1 + 0.3 * noise)
            elif parameter.ndim >= 2:
                parameter.copy_(1.2 * noise / parameter[0].numel() ** 0.5)
            else:
                parameter.copy_(0.3 * noise)
    return model


def images_for(model, batch=2):
    rows, columns = model.patch_embed.img_size
    channels = model.patch_embed.proj.in_channels
    generator = torch.Generator().manual_seed(3)
    return torch.randn(batch, channels, rows, columns, generator=generator, dtype=torch.float64)


# --- the definition, written out ---------------------------------------------------------------------------------


def embed(state, images, stride, position, misread):
    weight, bias = state["patch_embed.proj.weight"], state["patch_embed.proj.bias"]
    size = weight.shape[-1]
    rows = range(0, images.shape[2] - size + 1, stride)
    columns = range(0, images.shape[3] - size + 1, stride)
    places = [(row, column) for row in rows for column in columns]
    if misread == "patches column by column":
        places = [(row, column) for column in columns for row in rows]
    tokens = [
        torch.einsum("bchw,dchw->bd", images[:, :, row : row + size, column : column + size], weight) + bias
        for row, column in places
    ]
    token = state["cls_token"][0].expand(len(images), -1)
    table = state["pos_embed"]
    if misread == "the class token's position is row 0":
        table = torch.cat([table[:, 1 : position + 1], table[:, :1], table[:, position + 1 :]], dim=1)
    return torch.stack([*tokens[:position], token, *tokens[position:]], dim=1) + table


def rms_norm(x, weight):
    return x / torch.sqrt((x * x).mean(-1, keepdim=True) + 1e-5) * weight


def scan_branch(state, x, gate, names, misread):
    """Mix a sequence in its own order with one direction's parameters."""
    A_log, D, conv, x_proj, dt_proj = names  # noqa: N806
    kernel, bias = state[f"{conv}.weight"], state[f"{conv}.bias"]
    pad = (0, kernel.shape[-1] - 1) if misread == "the convolution looks ahead" else (kernel.shape[-1] - 1, 0)
    u = F.silu(F.conv1d(F.pad(x.mT, pad), kernel, bias, groups=x.shape[-1]).mT)
    states = state[A_log].shape[1]
    rank = state[f"{dt_proj}.weight"].shape[1]
    projected = u @ state[f"{x_proj}.weight"].T
    dt, B, C = projected.split([rank, states, states], dim=-1)  # noqa: N806
    if misread == "C before B":
        B, C = C, B  # noqa: N806
    delta = torch.log1p(torch.exp(dt @ state[f"{dt_proj}.weight"].T + state[f"{dt_proj}.bias"]))
    A = -torch.exp(state[A_log])  # noqa: N806
    h = torch.zeros(len(x), x.shape[-1], states, dtype=x.dtype)
    outputs = []
    for t in range(x.shape[1]):
        step = delta[:, t, :, None]
        h = torch.exp(step * A) * h + step * B[:, t, None, :] * u[:, t, :, None]
        outputs.append((h * C[:, t, None, :]).sum(-1) + state[D] * u[:, t])
    return torch.stack(outputs, dim=1) * F.silu(gate)


def mix(state, prefix, x, halve, misread):
    def names(backward):
        b = "_b" if backward else ""
        return [f"{prefix}.{name}" for name in (f"A{b}_log", f"D{b}", f"conv1d{b}", f"x_proj{b}", f"dt_proj{b}")]

    x, gate = (x @ state[f"{prefix}.in_proj.weight"].T).chunk(2, dim=-1)
    swapped = misread == "directions swapped"
    forward = scan_branch(state, x, gate, names(backward=swapped), misread)
    if misread == "the backward branch is not flipped":
        backward = scan_branch(state, x, gate, names(backward=True), misread)
    else:
        backward = scan_branch(state, x.flip(1), gate.flip(1), names(backward=not swapped), misread).flip(1)
    mixed = forward + backward
    if halve:
        mixed = mixed / 2
    return mixed @ state[f"{prefix}.out_proj.weight"].T


def written_out(model, images, *, stride=None, position=None, halve=True, misread=None):
    """Return the logits from the parameters alone."""
    state = {name: value.double() for name, value in model.state_dict().items()}
    stride = stride or state["patch_embed.proj.weight"].shape[-1]
    if position is None:
        position = (state["pos_embed"].shape[1] - 1) // 2
    depth = 1 + max(int(name.split(".")[1]) for name in state if name.startswith("layers."))
    hidden = embed(state, images.double(), stride, position, misread)
    residual = torch.zeros_like(hidden)
    for layer in range(depth):
        residual = residual + hidden
        normed = rms_norm(residual, state[f"layers.{layer}.norm.weight"])
        hidden = mix(state, f"layers.{layer}.mixer", normed, halve, misread)
    stream = residual + hidden
    if misread == "the last change is left out":
        stream = residual
    read = 0 if misread == "the first token is read" else position
    return rms_norm(stream[:, read], state["norm_f.weight"]) @ state["head.weight"].T + state["head.bias"]


def reading(options):
    """Say how the definition has to read a model that was built with these options."""
    position = 0 if options.get("class_position") == "head" else None
    return {"stride": options.get("stride"), "position": position, "halve": options.get("halve", True)}


MISREADINGS = (
    "directions swapped",
    "the backward branch is not flipped",
    "the convolution looks ahead",
    "C before B",
    "the class token's position is row 0",
    "patches column by column",
    "the last change is left out",
    "the first token is read",
)


@pytest.mark.parametrize("options", MODELS.values(), ids=MODELS)
def test_the_logits_equal_a_written_out_forward(options):
    model = build(**options)
    images = images_for(model)
    with torch.no_grad():
        expected = written_out(model, images, **reading(options))
        torch.testing.assert_close(model(images), expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("misread", MISREADINGS)
def test_the_comparison_would_see_a_misread_description(misread):
    model = build(img_size=(16, 40))
    images = images_for(model)
    with torch.no_grad():
        assert (model(images) - written_out(model, images, misread=misread)).abs().max() > 1e-2


@pytest.mark.parametrize("halve", [True, False])
def test_the_comparison_would_see_a_halving_too_many_or_too_few(halve):
    model = build(halve=halve)
    images = images_for(model)
    with torch.no_grad():
        assert (model(images) - written_out(model, images, halve=not halve)).abs().max() > 1e-2


@pytest.mark.parametrize("options", MODELS.values(), ids=MODELS)
def test_the_logits_in_float32_are_close_to_those_in_float64(options):
    model = build(**options)
    images = images_for(model)
    with torch.no_grad():
        expected = model(images)
        torch.testing.assert_close(model.float()(images.float()).double(), expected, atol=2e-5, rtol=0)


def test_vim_tiny_of_full_size_equals_a_written_out_forward():
    model = VisionMamba().eval()
    images = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        torch.testing.assert_close(model(images).double(), written_out(model, images), atol=1e-5, rtol=0)


# --- one layer -----------------------------------------------------------------------------------------------------


def silenced(mixer, backward):
    """Take one direction out of a mixer."""
    with torch.no_grad():
        for parameter in (mixer.conv1d_b if backward else mixer.conv1d).parameters():
            parameter.zero_()  # its inputs are then zero
    return mixer


@pytest.mark.parametrize("backward", [False, True])
def test_each_direction_sees_its_own_side_of_the_sequence_alone(backward):
    mixer = silenced(build().layers[0].mixer, backward=not backward)
    tokens = torch.randn(1, 9, 24, dtype=torch.float64)
    changed = tokens.clone()
    changed[:, 4] += 1
    with torch.no_grad():
        moved = (mixer(changed)[0] != mixer(tokens)[0]).any(-1)[0]
    assert moved.tolist() == ([True] * 5 + [False] * 4 if backward else [False] * 4 + [True] * 5)


def exchanged(state):
    """Give each direction of a mixer the parameters of the other."""
    pairs = {"A_log": "A_b_log", "D": "D_b"}
    for part in ("conv1d", "x_proj", "dt_proj"):
        pairs |= {f"{part}.{end}": f"{part}_b.{end}" for end in ("weight", "bias")}
    pairs |= {backward: forward for forward, backward in pairs.items()}
    return {name: state[pairs.get(name, name)] for name in state}


def test_a_flipped_sequence_through_exchanged_directions_is_the_flipped_result():
    mixer = build().layers[0].mixer
    other = copy.deepcopy(mixer)
    other.load_state_dict(exchanged(mixer.state_dict()))
    tokens = torch.randn(2, 7, 24, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(other(tokens.flip(1))[0].flip(1), mixer(tokens)[0], atol=1e-12, rtol=0)
        assert (other(tokens)[0] - mixer(tokens)[0]).abs().max() > 1e-2


def test_the_step_sizes_are_positive_and_one_for_each_token_and_inner_channel():
    _, steps = build().layers[0].mixer(torch.randn(2, 7, 24, dtype=torch.float64))
    assert [tuple(each.shape) for each in steps] == [(2, 7, 48)] * 2
    assert all((each > 0).all() for each in steps)


@pytest.mark.parametrize("length", [1, 2, 3, 9])
@pytest.mark.parametrize("kernel", [1, 2, 4])
@pytest.mark.parametrize("reverse", [False, True])
def test_the_convolution_is_the_causal_one_of_torch(kernel, length, reverse):
    inputs = torch.randn(2, length, 6, dtype=torch.float64)
    weight, bias = torch.randn(6, 1, kernel, dtype=torch.float64), torch.randn(6, dtype=torch.float64)
    sequence = inputs.flip(1) if reverse else inputs
    expected = F.conv1d(F.pad(sequence.mT, (kernel - 1, 0)), weight, bias, groups=6).mT
    expected = expected.flip(1) if reverse else expected
    torch.testing.assert_close(causal_convolution(inputs, weight, bias, reverse), expected, atol=1e-12, rtol=0)
    without = causal_convolution(inputs, weight, None, reverse)
    torch.testing.assert_close(without, expected - bias, atol=1e-12, rtol=0)


def test_a_layer_passes_its_change_and_the_stream_that_it_started_from(states):
    model = build()
    seen = states(model, images_for(model))
    for earlier, later in itertools.pairwise(seen):
        assert torch.equal(later.residual, earlier.residual + earlier.hidden)


@pytest.mark.parametrize("autocast", [False, True])
def test_the_stream_stays_in_float32_where_layers_compute_in_bfloat16(autocast, states):
    model = build().float() if autocast else build().bfloat16()
    images = images_for(model).to(torch.float32 if autocast else torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        seen = states(model, images)
    assert {state.residual.dtype for state in seen} == {torch.float32}
    assert {state.hidden.dtype for state in seen} == {torch.bfloat16}


def test_the_stream_of_a_bfloat16_model_keeps_what_bfloat16_would_lose(states):
    model = build(depth=2)
    with torch.no_grad():
        model.layers[0].mixer.out_proj.weight.mul_(1e-5)
    model.bfloat16()
    first, second = states(model, images_for(model).bfloat16())
    assert first.hidden.abs().max() > 0
    assert torch.equal(second.residual - first.residual, (first.residual + first.hidden.float()) - first.residual)
    assert not torch.equal(second.residual, first.residual)


# --- keys and sizes ------------------------------------------------------------------------------------------------


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


def test_the_rank_of_the_step_sizes_is_a_sixteenth_of_the_channels_rounded_up():
    ranks = [
        VisionMamba(**(SMALL | {"embed_dim": width})).layers[0].mixer.dt_proj.in_features for width in (16, 17, 40)
    ]
    assert ranks == [1, 2, 3]


def test_a_model_has_float32_parameters_alone_and_no_buffers():
    model = VisionMamba(**SMALL)
    assert {value.dtype for value in model.state_dict().values()} == {torch.float32}
    assert not list(model.buffers())


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


# --- training ------------------------------------------------------------------------------------------------------


def test_gradients_reach_every_parameter():
    model = build().train()
    model(images_for(model)).square().sum().backward()
    assert [name for name, value in model.named_parameters() if value.grad is None or not value.grad.any()] == []


def test_gradients_are_those_of_the_written_out_forward():
    model = build(depth=2)
    images = images_for(model)
    names = [name for name, _ in model.named_parameters()]
    parameters = dict(model.named_parameters())
    found = torch.autograd.grad(model(images).square().sum(), list(parameters.values()))

    class Parameters:
        def state_dict(self):
            return parameters

    expected = torch.autograd.grad(written_out(Parameters(), images).square().sum(), list(parameters.values()))
    for name, one, other in zip(names, found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-10, rtol=1e-10, msg=name)


def test_whole_layers_are_dropped_while_training_only():
    model = build(drop_path_rate=0.5)
    images = images_for(model, batch=8)
    with torch.no_grad():
        assert torch.equal(model(images), build()(images))
        model.train()
        assert not torch.equal(model(images), model(images))


def test_without_stochastic_depth_training_computes_what_evaluation_does():
    model = build()
    images = images_for(model)
    with torch.no_grad():
        assert torch.equal(model.train()(images), model.eval()(images))


def test_the_rates_rise_linearly_from_the_first_change_to_the_last():
    model = VisionMamba(**(SMALL | {"depth": 4, "drop_path_rate": 0.3}))
    # a layer drops the change of the one before it, the last change is dropped behind them all
    parts = [*(layer.drop_path for layer in model.layers), model.drop_path]
    rates = [getattr(part, "drop_prob", 0.0) for part in parts]
    assert rates == pytest.approx([0, 0, 0.1, 0.2, 0.3])


def test_the_embedding_itself_is_never_dropped(states):
    model = build(drop_path_rate=0.9).train()
    images = images_for(model, batch=16)
    streams = [state.residual for state in states(model, images)[:1]]
    assert torch.equal(streams[0], states(model.eval(), images)[0].residual)


@pytest.mark.parametrize("build_copy", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_computes_the_same(build_copy):
    model = build()
    images = images_for(model)
    assert torch.equal(build_copy(model)(images), model(images))


# --- what timm's tools expect ----------------------------------------------------------------------------------------


def test_forward_features_and_head_add_up_to_the_forward():
    model = build()
    images = images_for(model)
    features = model.forward_features(images)
    assert features.shape == (2, 24)
    assert torch.equal(model.forward_head(features), model(images))
    assert torch.equal(model.forward_head(features, pre_logits=True), features)


def test_the_features_are_normalised():
    model = build()
    with torch.no_grad():
        features = model.forward_features(images_for(model)) / model.norm_f.weight
    torch.testing.assert_close(features.square().mean(1), torch.ones(2, dtype=torch.float64), atol=1e-4, rtol=0)


def test_a_model_without_classes_answers_with_the_features():
    model = build(num_classes=0)
    images = images_for(model)
    assert isinstance(model.get_classifier(), nn.Identity)
    assert torch.equal(model(images), model.forward_features(images))


def test_the_classifier_can_be_replaced():
    model = build().bfloat16()
    images = images_for(model).bfloat16()
    features = model.forward_features(images)
    model.reset_classifier(3)
    assert model.num_classes == 3
    assert model.get_classifier() is model.head
    assert model(images).shape == (2, 3)
    assert model(images).dtype == torch.bfloat16
    assert torch.equal(model.forward_features(images), features)


def test_the_classifier_can_be_taken_off():
    model = build()
    images = images_for(model)
    model.reset_classifier(0)
    assert model.num_classes == 0
    assert torch.equal(model(images), model.forward_features(images))


def test_timm_s_optimisers_spare_states_tokens_biases_and_norms_from_decay():
    model = VisionMamba(**SMALL)
    optimizer = create_optimizer_v2(model, "adamw", lr=1e-3, weight_decay=0.1)
    decays = {id(value): group["weight_decay"] for group in optimizer.param_groups for value in group["params"]}
    decaying = {name for name, value in model.named_parameters() if decays[id(value)]}
    parts = ("in_proj", "out_proj", "conv1d", "conv1d_b", "x_proj", "x_proj_b", "dt_proj", "dt_proj_b")
    assert decaying == {
        "patch_embed.proj.weight",
        "head.weight",
        *(f"layers.{layer}.mixer.{part}.weight" for layer in range(3) for part in parts),
    }


# --- input that does not fit ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(24, 32), (32, 24), (8, 8)])
def test_images_of_another_size_are_refused_with_both_sizes(size):
    with pytest.raises(RepresentationError, match=rf"images of 24x24 pixels, got \(2, 3, {size[0]}, {size[1]}\)"):
        build()(torch.zeros(2, 3, *size, dtype=torch.float64))


@pytest.mark.parametrize("depth", [0, 1, 4])
def test_a_model_has_the_layers_that_were_asked_for(depth):
    model = VisionMamba(**(SMALL | {"depth": depth})).eval()
    assert len(model.layers) == depth
    assert model(torch.randn(1, 3, 24, 24)).isfinite().all()


def test_an_unknown_class_position_is_refused_with_the_choices():
    with pytest.raises(UnknownNameError, match="'head' or 'middle', got 'tail'"):
        VisionMamba(**SMALL, class_position="tail")


def test_an_unknown_scan_is_refused_with_the_closest_name():
    with pytest.raises(UnknownNameError, match=r"selective scan 'block'.*'blocked'"):
        VisionMamba(**SMALL, scan="block")


@pytest.mark.parametrize("scan", ["reference", "blocked"])
def test_the_chosen_scan_computes_what_the_default_does(scan):
    model = build(scan=scan)
    images = images_for(model)
    with torch.no_grad():
        torch.testing.assert_close(model(images), build()(images), atol=1e-12, rtol=0)
