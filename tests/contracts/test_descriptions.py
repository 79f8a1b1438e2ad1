"""A stranger's backbone that says something wrong of its model is found out, whatever it says; a right one is not."""

from dataclasses import dataclass, replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from repshift.companions import Companion
from repshift.layouts import TokenSequence
from repshift.sites import Operation, Site, Structure
from repshift.testing import CHECKS, BackboneError, check_backbone, make_subject


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv, self.out = nn.Linear(32, 96), nn.Linear(32, 32)

    def forward(self, x, bias):
        q, k, v = self.qkv(x).view(*x.shape[:2], 3, 2, 16).permute(2, 0, 3, 1, 4)
        return self.out(F.scaled_dot_product_attention(q, k, v, attn_mask=bias).transpose(1, 2).flatten(2))


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.before, self.attend = nn.LayerNorm(32), Attention()
        self.between, self.think = nn.LayerNorm(32), nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 32))

    def forward(self, x, bias=None):
        x = x + self.attend(self.before(x), bias)
        return x + self.think(self.between(x))


class Strange(nn.Module):
    """A class token, 64 patches, a relative bias that is always given (by position or by name), average pooling."""

    def __init__(self, relative=True, by_position=False):
        super().__init__()
        self.embed, self.first = nn.Conv2d(3, 32, 4, 4), nn.Parameter(torch.randn(1, 1, 32))
        self.layers = nn.ModuleList(Layer() for _ in range(3))
        self.last, self.head = nn.LayerNorm(32), nn.Linear(32, 5)
        self.relative = nn.Parameter(2 * torch.randn(2, 65, 65)) if relative else None
        self.by_position = by_position

    def forward(self, images):
        x = self.embed(images).flatten(2).mT
        x = torch.cat([self.first.expand(x.shape[0], -1, -1), x], 1)
        for layer in self.layers:
            x = layer(x, self.relative) if self.by_position else layer(x, bias=self.relative)
        return self.head(self.last(x).mean(1))


@dataclass
class Described:
    """Describes it, with something said otherwise."""

    otherwise: dict

    def matches(self, model):
        return isinstance(model, Strange)

    def structure(self, model):
        right = Structure(
            sites=tuple(map(site, range(3))),
            layout=TokenSequence(1),
            embedding="embed",
            grid=lambda image: (image[0] // 4, image[1] // 4),
            tokens=64,
            companions=(Companion("bias", "batch heads token token", 1, optional=model.relative is None),),
            bias="bias",
            weighs="last",
            weighs_prefix=True,
            restores="layers.2",
        )
        return replace(right, **self.otherwise)


def site(number):
    name = f"layers.{number}"
    return Site(name, {"mlp": Operation(f"{name}.between", (f"{name}.think",))})


@pytest.fixture
def check(register, images, monkeypatch):
    """Check it, described in some way, by everything that needs no compiler and no threads."""
    left_out = ("compiled", "graph breaks", "threads", "trackers")
    quick = {name: check for name, check in CHECKS.items() if not any(word in name for word in left_out)}
    monkeypatch.setattr("repshift.testing.CHECKS", quick)

    def run(model=None, **otherwise):
        register(Described(otherwise))
        torch.manual_seed(0)
        check_backbone((model or Strange()).eval(), images)

    return run


@pytest.mark.parametrize("by_position", [False, True])
@pytest.mark.parametrize("relative", [False, True])
def test_what_is_right_keeps_every_promise(check, relative, by_position):
    check(Strange(relative, by_position))


def test_a_bias_that_hides_by_false_keeps_every_promise(check):
    model = Strange()
    del model.relative
    model.register_buffer("relative", torch.rand(1, 2, 65, 65) < 0.7)
    check(model)


WRONG = {
    "a class token that is not said": (
        {"layout": TokenSequence(0)},
        "64 tokens are described, and the layout reads 65",
    ),
    "a prefix that is too long": ({"layout": TokenSequence(2)}, "64 tokens are described, and the layout reads 63"),
    "too few tokens": ({"tokens": 49}, "49 tokens are described, and the layout reads 64"),
    "a grid that is too small": ({"grid": lambda image: (4, 4)}, r"a grid of \(4, 4\) is described, .* 64 tokens"),
    "blocks out of order": (
        {"sites": (site(1), site(0), site(2))},
        r"does not run each of the blocks layers\.1, layers\.0",
    ),
    "a block that is left out": ({"sites": (site(0), site(2))}, "other numbers where tokens were merged"),
    "no blocks": ({"sites": ()}, "described without any blocks"),
    "an embedding behind the blocks": ({"embedding": "last"}, "the embedding 'last' took"),
    "an embedding that is not there": ({"embedding": "none"}, "as it is described cannot be pruned"),
    "a bias of another name": ({"bias": "mask"}, "merged tokens count for all that they are: TypeError"),
    "no average": ({"weighs": None}, "other numbers where tokens were merged"),
    "an average elsewhere": ({"weighs": "layers.2.between"}, "other numbers where tokens were merged"),
    "an average without the class token": ({"weighs_prefix": False}, "other numbers where tokens were merged"),
    "places given back too early": ({"restores": "layers.0"}, "should have their places back behind the last block"),
    "places given back too late": ({"restores": "head"}, "restored tokens have their places back: Rep"),
    "companions left out": ({"companions": ()}, "cannot be pruned .RuntimeError.*Look at the prefix"),
    "a companion of another name": (
        {"companions": (Companion("biased", "batch heads token token", 1),)},
        "cannot be pruned .RuntimeError.*Look at the prefix",
    ),
    "a companion without the class token": (
        {"companions": (Companion("bias", "batch heads token token", 0),)},
        "cannot be pruned .RepresentationError.*Look at the prefix",
    ),
    "an operation that is not there": (
        {"sites": tuple(Site(f"layers.{n}", {"mlp": Operation(f"layers.{n}.no", ())}) for n in range(3))},
        "cannot be pruned .AttributeError",
    ),
}


@pytest.mark.parametrize("otherwise", WRONG)
def test_what_is_wrong_is_found_out(check, otherwise):
    said, message = WRONG[otherwise]
    with pytest.raises(BackboneError, match=message):
        check(Strange(relative="companions" in said), **said)


def test_a_backbone_that_fails_is_a_backbone_s_error(register, images):
    class Failing(Described):
        def structure(self, model):
            return model.no_such_thing

    register(Failing({}))
    with pytest.raises(BackboneError, match="Strange cannot be described"):
        make_subject(Strange().eval(), images)
