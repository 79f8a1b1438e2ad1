"""Vision Mamba against a forward written out from its description: patches, flips, a loop over the steps."""

import pytest
import torch
import torch.nn.functional as F

from repshift.backbones.vim_model import VisionMamba

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


@pytest.mark.parametrize("options", MODELS.values(), ids=MODELS)
def test_the_logits_equal_a_written_out_forward(options, build, images_for):
    model = build(**options)
    images = images_for(model)
    with torch.no_grad():
        expected = written_out(model, images, **reading(options))
        torch.testing.assert_close(model(images), expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("misread", MISREADINGS)
def test_the_comparison_would_see_a_misread_description(misread, build, images_for):
    model = build(img_size=(16, 40))
    images = images_for(model)
    with torch.no_grad():
        assert (model(images) - written_out(model, images, misread=misread)).abs().max() > 1e-2


@pytest.mark.parametrize("halve", [True, False])
def test_the_comparison_would_see_a_halving_too_many_or_too_few(halve, build, images_for):
    model = build(halve=halve)
    images = images_for(model)
    with torch.no_grad():
        assert (model(images) - written_out(model, images, halve=not halve)).abs().max() > 1e-2


@pytest.mark.parametrize("options", MODELS.values(), ids=MODELS)
def test_the_logits_in_float32_are_close_to_those_in_float64(options, build, images_for):
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


def test_gradients_are_those_of_the_written_out_forward(build, images_for):
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
