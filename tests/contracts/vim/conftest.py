"""Small state space models, and their pruned forward written out for one image at a time and lists of tokens."""

from typing import NamedTuple

import pytest
import torch
from torch import nn

from repshift import BACKBONES, ShiftTracker
from repshift.backbones.vim_model import VisionMamba
from repshift.pruners import SequencePruner
from repshift.residual_pairs import ResidualPair
from repshift.sites import Operation, Site, Structure

SMALL = {"img_size": 32, "patch_size": 4, "embed_dim": 16, "depth": 4, "d_state": 4, "num_classes": 10}


def spread(model):
    """Give a model weights under which all parts matter and scores differ well."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if name in ("cls_token", "pos_embed"):
                parameter.copy_(noise)
            elif "A_" in name:
                parameter.add_(0.3 * noise)
            elif "norm" in name or name.endswith((".D", ".D_b")):
                parameter.copy_(1 + 0.3 * noise)
            elif name.endswith("out_proj.weight"):  # so that changes are as large as the stream
                parameter.copy_(3 * noise / parameter[0].numel() ** 0.5)
            elif parameter.ndim >= 2:
                parameter.copy_(1.2 * noise / parameter[0].numel() ** 0.5)
            else:
                parameter.copy_(0.3 * noise)
    return model.eval()


@pytest.fixture
def build_vim():
    """Build tiny Vision Mambas of 64 patches, with 4 layers if nothing else is said."""
    return lambda **options: spread(VisionMamba(**(SMALL | options)))


@pytest.fixture
def vim(build_vim):
    """A tiny Vision Mamba: 4 layers, 64 patches, the class token between the 32nd and the 33rd."""
    return build_vim()


@pytest.fixture
def drops():
    """64 patches -> 48 -> 37 -> 19."""
    return {0: 0.25, 1: 11, 2: 0.5}


@pytest.fixture
def counts():
    """What `drops` comes to, written out so that no rounding rule is shared with the product."""
    return {0: 16, 1: 11, 2: 18}


@pytest.fixture(params=[None, SequencePruner(align=True)], ids=["plain", "aligned"])
def pruner(request):
    """The default pruner, and the one that lets dropped tokens decay the states."""
    return request.param


@pytest.fixture
def pruned(vim, drops, pruner):
    return ShiftTracker(vim).prune(drops, pruner=pruner)


# --- another model whose layers pass a pair on, with the class token first --------------------------------------------


class Averaging(nn.Module):
    """Adds to each token the mean of those behind it: depends on the order, as scans do."""

    def __init__(self, channels, arguments):
        super().__init__()
        self.arguments = arguments
        self.norm = nn.LayerNorm(channels)
        self.mixer = nn.Linear(channels, channels)

    def mixed(self, tokens):
        tokens = torch.tanh(self.mixer(self.norm(tokens)))
        return tokens + (tokens.flip(1).cumsum(1) / torch.arange(1, tokens.shape[1] + 1).unsqueeze(1)).flip(1)

    def forward(self, value, residual=None):
        hidden = value
        if self.arguments == "a tuple" and isinstance(value, tuple):
            hidden, residual = value
        residual = hidden if residual is None else residual + hidden
        return self.mixed(residual), residual


class ClassFirst(nn.Module):
    """Plain tuples ``(hidden, residual)`` between the layers, which take them as one argument or as two."""

    def __init__(self, arguments):
        super().__init__()
        self.arguments = arguments
        self.patch_embed = nn.Conv2d(3, 16, 4, 4)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, 16))
        self.pos_embed = nn.Parameter(torch.zeros(1, 65, 16))
        self.layers = nn.ModuleList(Averaging(16, arguments) for _ in range(4))
        self.head = nn.Linear(16, 10)

    def forward(self, images):
        patches = self.patch_embed(images).flatten(2).transpose(1, 2)
        value = torch.cat([self.cls_token.expand(images.shape[0], -1, -1), patches], dim=1) + self.pos_embed
        value = (value, None) if self.arguments == "a tuple" else (value,)
        for layer in self.layers:
            value = layer(value) if self.arguments == "a tuple" else layer(*value)
        hidden, residual = value
        return self.head((hidden + residual)[:, 0])


class ClassFirstBackbone:
    def matches(self, model):
        return isinstance(model, ClassFirst)

    def structure(self, model):
        stream = ResidualPair(prefix=1, part="residual")
        names = [f"layers.{index}" for index in range(4)]
        return Structure(
            sites=tuple(
                Site(name, {"mixer": Operation(name, (name,), from_output=True, before=stream)}) for name in names
            ),
            layout=ResidualPair(prefix=1),
            embedding="patch_embed",
            grid=lambda image: (8, 8),
            tokens=64,
            operation="mixer",
            pruner="sequence",
            unit="layer",
        )


@pytest.fixture
def build_class_first(monkeypatch):
    """Build the other model, served by a backbone of its own."""
    targets = {name: BACKBONES.get(name) for name in BACKBONES.names()}
    monkeypatch.setattr(BACKBONES, "_targets", targets | {"class first": ClassFirstBackbone()})
    return lambda arguments: spread(ClassFirst(arguments))


# --- the definition, written out --------------------------------------------------------------------------------------


class Parts(NamedTuple):
    """What the definition takes from a model."""

    embed: object  # image -> (patches, channels)
    index: int  # where the class token goes
    mixers: list  # each: stream (tokens, channels) -> change
    answer: object  # the class token's stream -> logits


def parts_of(model):
    if isinstance(model, ClassFirst):
        return Parts(
            lambda image: model.patch_embed(image[None])[0].flatten(1).T,
            0,
            [lambda stream, layer=layer: layer.mixed(stream[None])[0] for layer in model.layers],
            model.head,
        )
    return Parts(
        lambda image: model.patch_embed(image[None])[0],
        model.class_index,
        [lambda stream, layer=layer: layer.mixer(layer.norm(stream[None]))[0][0] for layer in model.layers],
        lambda token: model.head(model.norm_f(token)),
    )


SCORES = {
    ("l2", False): lambda stream, change: (change - stream).square().sum().sqrt(),
    ("l2", True): lambda stream, change: change.square().sum().sqrt(),
    ("l1", False): lambda stream, change: (change - stream).abs().sum(),
    ("cosine", False): lambda stream, change: 1 - torch.cosine_similarity(change, stream, dim=0),
    ("cosine", True): lambda stream, change: 1 - torch.cosine_similarity(stream + change, stream, dim=0),
}


def _written_out(model, images, counts, distance="l2", residual=False):
    score = SCORES[distance, residual]
    parts, logits, kept = parts_of(model), [], []
    for image in images:
        patches = list(parts.embed(image))
        sequence = [*patches[: parts.index], model.cls_token[0, 0], *patches[parts.index :]]
        names = [*range(parts.index), "class", *range(parts.index, len(patches))]
        change, stream = torch.stack(sequence) + model.pos_embed[0], 0
        left = {}
        for layer, mixer in enumerate(parts.mixers):
            stream = stream + change
            change = mixer(stream)
            if layer in counts:
                scores = {
                    place: score(stream[place], change[place]).item()
                    for place, name in enumerate(names)
                    if name != "class"
                }
                order = sorted(scores, key=scores.get)
                last, first = scores[order[counts[layer] - 1]], scores[order[counts[layer]]]
                assert first - last > 1e-5 * first, "the scores nearly tie: the comparison would depend on rounding"
                stay = sorted({*range(len(names))} - {*order[: counts[layer]]})
                names = [names[place] for place in stay]
                change, stream = change[stay], stream[stay]
                left[layer] = [name for name in names if name != "class"]
        logits.append(parts.answer((stream + change)[names.index("class")]))
        kept.append(left)
    return torch.stack(logits), kept


@pytest.fixture
def written_out():
    """Return the logits, and for each image and cut the original numbers of the patches that are left."""
    return _written_out
