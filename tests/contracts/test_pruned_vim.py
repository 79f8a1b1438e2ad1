"""Pruned state space models against a written-out forward that takes one image at a time and lists of tokens."""

import copy
import itertools
import pickle
from dataclasses import dataclass
from itertools import chain
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._inductor.utils import fresh_inductor_cache

from repshift import BACKBONES, RepresentationError, ScheduleError, ShiftTracker, UnsupportedModelError
from repshift.backbones.vim_model import VisionMamba
from repshift.layouts import ResidualPair
from repshift.pruners import SequencePruner
from repshift.sites import Operation, Site, Structure

SMALL = {"img_size": 32, "patch_size": 4, "embed_dim": 16, "depth": 4, "d_state": 4, "num_classes": 10}
VIDEO = {"class_position": "head", "halve": False}  # as in VideoMamba
# 64 patches -> 48 -> 37 -> 19, written out so that no rounding rule is shared with the product
DROPS = {0: 0.25, 1: 11, 2: 0.5}
COUNTS = {0: 16, 1: 11, 2: 18}
ALIGNED = SequencePruner(align=True)


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


def build_vim(**options):
    return spread(VisionMamba(**(SMALL | options)))


@pytest.fixture
def vim():
    """A tiny Vision Mamba: 4 layers, 64 patches, the class token between the 32nd and the 33rd."""
    return build_vim()


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
        value = torch.cat([self.cls_token.expand(len(images), -1, -1), patches], dim=1) + self.pos_embed
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


def written_out(model, images, counts, score=SCORES["l2", False]):
    """Return the logits, and for each image and cut the original numbers of the patches that are left."""
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


def assert_equals_written_out(model, pruned, images, counts, score=SCORES["l2", False]):
    with torch.no_grad():
        expected, _ = written_out(model, images, counts, score)
        torch.testing.assert_close(pruned(images), expected, atol=2e-5, rtol=1e-5)
        assert (model(images) - expected).abs().max() > 1e-2, "pruning has to matter"


SCHEDULES = {
    "shares and a count": (DROPS, COUNTS),
    "one share": ({0: 0.2}, {0: 12}),
    "counts": ({0: 5, 1: 1, 2: 30}, {0: 5, 1: 1, 2: 30}),
    "a list": ([0, 0.3, 0, 0.5], {1: 19, 3: 22}),
    "all but one patch": ({0: 63}, {0: 63}),
    "every layer": ("0.2@0,1,2,3", {0: 12, 1: 10, 2: 8, 3: 6}),
}


@pytest.mark.parametrize("options", [{}, VIDEO], ids=["middle", "head"])
@pytest.mark.parametrize(("schedule", "counts"), SCHEDULES.values(), ids=SCHEDULES)
def test_pruned_logits_equal_a_written_out_forward(images, schedule, counts, options):
    model = build_vim(**options)
    assert_equals_written_out(model, ShiftTracker(model).prune(schedule), images, counts)


@pytest.mark.parametrize(("distance", "residual"), SCORES)
def test_every_score_equals_a_written_out_forward(vim, images, distance, residual):
    pruned = ShiftTracker(vim, distance=distance, residual=residual).prune(DROPS)
    assert_equals_written_out(vim, pruned, images, COUNTS, SCORES[distance, residual])


def test_every_score_keeps_different_patches_so_the_comparison_can_tell_them_apart(vim, images):
    with torch.no_grad():
        choices = [[left[0] for left in written_out(vim, images, COUNTS, score)[1]] for score in SCORES.values()]
    for one, other in itertools.combinations(choices, 2):
        assert one != other


@pytest.mark.parametrize("distance", ["l2", "cosine"])
def test_the_whole_layer_is_scored_as_its_mixer_with_the_stream(vim, images, distance):
    pruned = ShiftTracker(vim, operation="block", distance=distance).prune(DROPS)
    assert_equals_written_out(vim, pruned, images, COUNTS, SCORES[distance, True])


@pytest.mark.parametrize("arguments", ["a tuple", "two arguments"])
@pytest.mark.parametrize(("distance", "residual"), [("l2", False), ("l2", True)])
def test_another_model_with_the_class_token_first_is_pruned_by_the_same_layout(
    build_class_first, images, arguments, distance, residual
):
    model = build_class_first(arguments)
    pruned = ShiftTracker(model, distance=distance, residual=residual).prune(DROPS)
    assert_equals_written_out(model, pruned, images, COUNTS, SCORES[distance, residual])


@pytest.mark.parametrize("arguments", ["a tuple", "two arguments"])
def test_another_model_with_the_class_token_first_tells_what_it_kept(build_class_first, images, arguments):
    model = build_class_first(arguments)
    pruned = ShiftTracker(model).prune(DROPS)
    with ShiftTracker(pruned) as tracker, torch.no_grad():
        pruned(images)
        _, left = written_out(model, images, COUNTS)
    for layer in DROPS:
        assert tracker.kept[f"layers.{layer}"].tolist() == [row[layer] for row in left]
    assert tracker.maps["layers.3"].isnan().sum((1, 2)).tolist() == [64 - 19] * 3


# --- where the class token stands, and what is kept -------------------------------------------------------------------


def states(model, images):
    """Record what every layer returns, behind the cut if there is one."""
    seen = []
    handles = [layer.register_forward_hook(lambda *call: seen.append(call[2])) for layer in model.layers]
    with torch.no_grad():
        model(images)
    for handle in handles:
        handle.remove()
    return seen


def test_the_class_token_is_found_again_in_each_image_at_its_own_place(vim, images):
    seen = states(ShiftTracker(vim).prune(DROPS), images)
    with torch.no_grad():
        _, left = written_out(vim, images, COUNTS)
    for layer in COUNTS:
        before = [sum(number < 32 for number in row[layer]) for row in left]
        assert len(set(before)) > 1, "the images have to differ for this test"
        assert seen[layer].protected.tolist() == [[place] for place in before]


def test_change_and_stream_of_a_token_stay_together(vim, images):
    dense, cut = states(vim, images)[0], states(ShiftTracker(vim).prune({0: 0.25}), images)[0]
    with torch.no_grad():
        _, left = written_out(vim, images, {0: 16})
    for index, row in enumerate(left):
        places = sorted([32, *(number + (number >= 32) for number in row[0])])
        assert torch.equal(cut.hidden[index], dense.hidden[index, places])
        assert torch.equal(cut.residual[index], dense.residual[index, places])


def test_layers_behind_a_cut_really_run_on_the_shorter_sequence(vim, images):
    lengths = [state.hidden.shape[1] for state in states(ShiftTracker(vim).prune(DROPS), images)]
    assert lengths == [49, 38, 20, 20]


def test_kept_positions_equal_the_definition_and_ascend(vim, images):
    pruned = ShiftTracker(vim).prune(DROPS)
    with ShiftTracker(pruned) as tracker, torch.no_grad():
        pruned(images)
        _, left = written_out(vim, images, COUNTS)
    for layer, number in {0: 48, 1: 37, 2: 19}.items():
        kept = tracker.kept[f"layers.{layer}"]
        assert kept.shape == (3, number)
        assert (kept[:, 1:] > kept[:, :-1]).all()
        assert kept.tolist() == [row[layer] for row in left]


def test_maps_are_empty_exactly_where_patches_were_dropped_before(vim, images):
    pruned = ShiftTracker(vim).prune(DROPS)
    with ShiftTracker(pruned) as tracker, torch.no_grad():
        pruned(images)
    assert not tracker.maps["layers.0"].isnan().any()  # measured before its own cut
    for layer in (1, 2, 3):
        there = ~tracker.maps[f"layers.{layer}"].flatten(1).isnan()
        kept = tracker.kept[f"layers.{layer - 1}"]
        assert [row.nonzero().flatten().tolist() for row in there] == kept.tolist()


def test_a_part_that_counts_the_class_token_too_has_no_map(vim, images):
    pruned = ShiftTracker(vim).prune(DROPS)
    tracker = ShiftTracker(pruned, "layers.3.norm")
    with tracker, torch.no_grad():
        pruned(images)
    with pytest.raises(RepresentationError, match=r"gave 20 shifts where 19 tokens are left"):
        tracker.maps["layers.3.norm"]


def test_alignment_can_be_asked_for_by_name(vim, images):
    tracker = ShiftTracker(vim)
    assert torch.equal(
        tracker.prune(DROPS, pruner="sequence_aligned")(images), tracker.prune(DROPS, pruner=ALIGNED)(images)
    )


def test_a_map_has_every_shift_at_the_place_of_its_patch(vim, images):
    pruned = ShiftTracker(vim).prune({0: 0.25})
    with ShiftTracker(pruned) as tracker, torch.no_grad():
        pruned(images)
    found = tracker.maps["layers.1"].flatten(1).gather(1, tracker.kept["layers.0"])
    assert torch.equal(found, tracker.shifts["layers.1"])


@pytest.mark.parametrize("pruner", [None, ALIGNED], ids=["plain", "aligned"])
def test_logits_and_kept_positions_of_a_batch_equal_those_of_its_images_alone(vim, images, pruner):
    pruned = ShiftTracker(vim).prune(DROPS, pruner=pruner)
    tracker = ShiftTracker(pruned)
    with tracker, torch.no_grad():
        logits = pruned(images)
    together = tracker.kept
    for index, image in enumerate(images):
        with tracker, torch.no_grad():
            torch.testing.assert_close(pruned(image[None])[0], logits[index], atol=1e-5, rtol=1e-5)
        for name, kept in tracker.kept.items():
            assert torch.equal(kept[0], together[name][index])


def test_the_class_token_is_never_dropped_and_never_scored(vim, images):
    seen = []

    def watching(before, after):
        seen.append(before.shape[1])
        return (after - before).norm(dim=-1)

    logits = ShiftTracker(vim, distance=watching).prune({0: 63, 1: 0.5})(images)
    assert seen == [64, 1]
    assert torch.equal(logits, ShiftTracker(vim).prune({0: 63})(images))


def test_no_patch_at_all_cannot_be_left(vim):
    with pytest.raises(ScheduleError, match="fewer than one of the 64 tokens"):
        ShiftTracker(vim).prune({0: 64})


# --- dropping nothing is the dense model, bit for bit -----------------------------------------------------------------


@dataclass(frozen=True)
class KeepAll:
    """Takes every position as kept, through the layout, instead of leaving the value alone."""

    def shorten(self, value, scores, drop, layout):
        kept = torch.arange(scores.shape[1]).expand(scores.shape[0], -1)
        return layout.keep(value, kept), kept


@pytest.mark.parametrize("options", [{}, VIDEO, {"class_position": "head"}], ids=["middle", "video", "head"])
@pytest.mark.parametrize("operation", ["mixer", "block"])
@pytest.mark.parametrize("residual", [False, True])
def test_keeping_every_token_is_the_dense_model_bit_for_bit(images, options, operation, residual):
    model = build_vim(**options)
    tracker = ShiftTracker(model, operation=operation, residual=residual)
    pruned = tracker.prune({0: 0.2, 1: 5, 3: 0.5}, pruner=KeepAll())
    assert torch.equal(pruned(images), model(images))


@pytest.mark.parametrize("arguments", ["a tuple", "two arguments"])
def test_keeping_every_token_is_another_model_bit_for_bit(build_class_first, images, arguments):
    model = build_class_first(arguments)
    assert torch.equal(ShiftTracker(model).prune(DROPS, pruner=KeepAll())(images), model(images))


@pytest.mark.parametrize("pruner", [None, ALIGNED], ids=["plain", "aligned"])
def test_a_share_of_less_than_one_token_is_the_dense_model_bit_for_bit(vim, images, pruner):
    # a hundredth of 64 patches is none; what goes behind the last layer is read by nobody
    pruned = ShiftTracker(vim).prune({0: 0.01, 2: 0.01, 3: 5}, pruner=pruner)
    assert torch.equal(pruned(images), vim(images))


@pytest.mark.parametrize("schedule", [{0: 0.0}, {0: 0}, [0, 0, 0, 0], {0: 0.01, 3: 0.01}])
def test_a_schedule_that_drops_nothing_at_all_is_refused(vim, schedule):
    with pytest.raises(ScheduleError, match="drops no"):
        ShiftTracker(vim).prune(schedule)


def test_a_share_of_nothing_beside_another_drops_nothing_there(vim, images):
    with_zero, without = ShiftTracker(vim).prune({0: 0.0, 2: 0.5}), ShiftTracker(vim).prune({2: 0.5})
    assert torch.equal(with_zero(images), without(images))


def test_gradients_of_keeping_every_token_are_the_dense_model_s_bit_for_bit(vim, images):
    pruned = ShiftTracker(vim).prune(DROPS, pruner=KeepAll())
    parameters = list(vim.parameters())
    dense = torch.autograd.grad(vim(images).square().sum(), parameters)
    kept_all = torch.autograd.grad(pruned(images).square().sum(), parameters)
    assert all(map(torch.equal, dense, kept_all))


# --- a model like any other -------------------------------------------------------------------------------------------


@pytest.fixture(params=[None, ALIGNED], ids=["plain", "aligned"])
def pruned(vim, request):
    return ShiftTracker(vim).prune(DROPS, pruner=request.param)


def test_pruned_has_the_class_the_keys_and_the_storage_of_the_model(vim, pruned):
    assert type(pruned) is VisionMamba
    assert list(pruned.state_dict()) == list(vim.state_dict())
    own, shared = (dict(chain(model.named_parameters(), model.named_buffers())) for model in (vim, pruned))
    assert all(shared[name].data_ptr() == own[name].data_ptr() for name in own)


def test_the_model_is_untouched_by_pruning_running_and_tracking_the_pruned(vim, images):
    expected = vim(images)
    classes = {name: type(module) for name, module in vim.named_modules()}
    attributes = {name: set(vars(module)) for name, module in vim.named_modules()}
    pruned = ShiftTracker(vim).prune(DROPS, pruner=ALIGNED)
    with ShiftTracker(pruned):
        pruned(images)
    assert {name: type(module) for name, module in vim.named_modules()} == classes
    assert {name: set(vars(module)) for name, module in vim.named_modules()} == attributes
    assert torch.equal(vim(images), expected)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_of_the_pruned_gives_the_same(pruned, images, copied):
    assert torch.equal(copied(pruned)(images), pruned(images))


def test_forward_features_and_head_add_up_to_the_forward(pruned, images):
    features = pruned.forward_features(images)
    assert features.shape == (3, 16)
    assert torch.equal(pruned.forward_head(features), pruned(images))


def test_pruned_runs_in_inference_mode(pruned, images):
    with torch.inference_mode():
        logits = pruned(images)
    assert torch.equal(logits, pruned(images))


def test_gradients_are_those_of_the_written_out_forward(vim, images):
    pruned = ShiftTracker(vim).prune(DROPS).train()
    parameters = list(vim.parameters())
    found = torch.autograd.grad(pruned(images).square().sum(), parameters)
    expected = torch.autograd.grad(written_out(vim, images, COUNTS)[0].square().sum(), parameters)
    for (name, _), one, other in zip(vim.named_parameters(), found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-3, rtol=1e-3, msg=name)


def test_gradients_reach_every_parameter_while_training(pruned, images):
    pruned.train()(images).square().sum().backward()
    assert [name for name, value in pruned.named_parameters() if value.grad is None or not value.grad.any()] == []


def test_training_the_pruned_lowers_its_loss(pruned, images):
    optimizer = torch.optim.AdamW(pruned.parameters(), lr=1e-3)
    losses = []
    for _ in range(5):
        loss = F.cross_entropy(pruned.train()(images), torch.tensor([0, 1, 2]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


def test_layers_can_be_dropped_while_the_pruned_trains(images):
    pruned = ShiftTracker(build_vim(drop_path_rate=0.5)).prune(DROPS).train()
    with torch.no_grad():
        assert pruned(images).isfinite().all()
        assert not torch.equal(pruned(images), pruned(images))


def test_a_bfloat16_model_prunes_and_returns_bfloat16(vim, images):
    with torch.no_grad():
        logits = ShiftTracker(vim.bfloat16()).prune(DROPS, pruner=ALIGNED)(images.bfloat16())
    assert logits.dtype == torch.bfloat16
    assert logits.isfinite().all()


@pytest.mark.parametrize("residual", [False, True])
def test_pruned_under_autocast_is_close_to_the_pruned_without(vim, images, residual):
    pruned = ShiftTracker(vim, residual=residual).prune({0: 3}, pruner=ALIGNED)
    with torch.no_grad():
        expected = pruned.forward_features(images)
        with torch.autocast("cpu", torch.bfloat16):
            features = pruned.forward_features(images)
    assert torch.cosine_similarity(features.float(), expected).min() > 0.98


def test_images_of_whole_numbers_are_refused(pruned):
    with pytest.raises(ValueError, match=r"torch\.uint8 images.*expected floating-point"):
        pruned(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))


# --- compiling --------------------------------------------------------------------------------------------------------


@pytest.fixture
def fresh_dynamo():
    torch._dynamo.reset()  # what other tests compiled counts against the limit of graphs for one function
    yield
    torch._dynamo.reset()


@pytest.mark.slow
@pytest.mark.usefixtures("fresh_dynamo")
def test_dense_and_pruned_models_compiled_in_one_process_each_equal_their_eager_form(images):
    dense = build_vim(depth=3)
    tracker = ShiftTracker(dense, residual=True)
    models = [dense, tracker.prune({0: 0.5}), tracker.prune({0: 5, 1: 0.25}, pruner=ALIGNED)]
    fast = [torch.compile(model, fullgraph=True, backend="aot_eager") for model in models]
    with torch.no_grad():
        eager = [model(images) for model in models]
        for _ in range(2):
            for call, expected in zip(fast, eager, strict=True):
                torch.testing.assert_close(call(images), expected, atol=1e-5, rtol=1e-5)
    for one, other in itertools.combinations(eager, 2):
        assert (one - other).abs().max() > 1e-2


@pytest.mark.slow
@pytest.mark.usefixtures("fresh_dynamo")
def test_the_default_compiler_equals_the_eager_form(images):
    pruned = ShiftTracker(build_vim(depth=2)).prune({0: 0.5}, pruner=ALIGNED)
    # what the compiler keeps on disk is not thrown away when the layout of the scan's results changes
    with torch.no_grad(), fresh_inductor_cache():
        expected = pruned(images)
        torch.testing.assert_close(torch.compile(pruned, fullgraph=True)(images), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.usefixtures("fresh_dynamo")
def test_gradients_of_the_compiled_model_equal_the_eager_ones(images):
    pruned = ShiftTracker(build_vim(depth=2)).prune({0: 0.5}, pruner=ALIGNED)
    parameters = list(pruned.parameters())
    expected = torch.autograd.grad(pruned(images).square().sum(), parameters)
    fast = torch.compile(pruned, fullgraph=True, backend="aot_eager")
    found = torch.autograd.grad(fast(images).square().sum(), parameters)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-3, rtol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("strict", [True, False], ids=["strict", "non-strict"])
def test_an_exported_model_with_any_batch_size_equals_its_eager_form(images, strict):
    pruned = ShiftTracker(build_vim(depth=2)).prune({0: 0.5}, pruner=ALIGNED)
    batch = torch.export.Dim("batch")
    program = torch.export.export(pruned, (images,), dynamic_shapes=({0: batch},), strict=strict).module()
    with torch.no_grad():
        for given in (images, images.repeat(2, 1, 1, 1)):
            torch.testing.assert_close(program(given), pruned(given), atol=1e-5, rtol=1e-5)


# --- alignment: dropped tokens still let the states decay -------------------------------------------------------------


class Direction(NamedTuple):
    """One direction's operands over a sequence, in the sequence's own order."""

    u: Tensor  # (length, channels)
    steps: Tensor  # (length, channels)
    B: Tensor  # (length, states)
    C: Tensor  # (length, states)


def directions(mixer, tokens):
    """Work out the operands of both directions for one image, the backward one by really flipping."""
    inputs = F.linear(tokens, mixer.in_proj.weight).chunk(2, dim=-1)[0]
    for name, backward in (("", False), ("_b", True)):
        conv, x_proj, dt_proj = (getattr(mixer, f"{part}{name}") for part in ("conv1d", "x_proj", "dt_proj"))
        sequence = inputs.flip(0) if backward else inputs
        u = F.silu(F.conv1d(F.pad(sequence.T[None], (3, 0)), conv.weight, conv.bias, groups=32)[0].T)
        steps, B, C = F.linear(u, x_proj.weight).split([1, 4, 4], dim=-1)  # noqa: N806
        operands = (u, F.softplus(F.linear(steps, dt_proj.weight, dt_proj.bias)), B, C)
        yield Direction(*(operand.flip(0) if backward else operand for operand in operands))


def scan(u, steps, B, C, A, backward):  # noqa: N803
    state, outputs = torch.zeros_like(A), [None] * len(u)
    for t in reversed(range(len(u))) if backward else range(len(u)):
        state = torch.exp(steps[t, :, None] * A) * state + steps[t, :, None] * B[t] * u[t, :, None]
        outputs[t] = (state * C[t]).sum(-1)
    return torch.stack(outputs)


def masked_dense(model, image, drops):
    """Run one image without ever shortening a scan: dropped tokens add nothing, but their steps remain.

    Args:
        model: A dense Vision Mamba of float64.
        image: One image.
        drops: Layer to the original numbers of the patches that are dropped behind it.

    Returns:
        The logits of every token that is left, and where among them the class token is.
    """
    patches, index = list(model.patch_embed(image[None])[0]), model.class_index
    change = torch.stack([*patches[:index], model.cls_token[0, 0], *patches[index:]]) + model.pos_embed[0]
    names = [*range(index), "class", *range(index, len(patches))]
    stream, present = 0, [*range(len(names))]
    frozen = {False: {}, True: {}}  # direction -> place -> step size
    for layer, block in enumerate(model.layers):
        stream = stream + change
        normed = block.norm(stream)
        mixer, mixed, seen = block.mixer, 0, {}
        for backward, found in zip((False, True), directions(mixer, normed), strict=True):
            seen[backward] = found.steps
            full = [torch.zeros(len(names), operand.shape[1], dtype=operand.dtype) for operand in found]
            for whole, operand in zip(full, found, strict=True):
                whole[present] = operand
            for place, steps in frozen[backward].items():
                full[1][place] = steps  # u is zero there
            A = -torch.exp(mixer.A_b_log if backward else mixer.A_log)  # noqa: N806
            D = mixer.D_b if backward else mixer.D  # noqa: N806
            mixed = mixed + scan(*full, A, backward)[present] + D * found.u
        gate = F.linear(normed, mixer.in_proj.weight).chunk(2, dim=-1)[1]
        mixed = mixed * F.silu(gate) / (2 if mixer.halve else 1)
        change = F.linear(mixed, mixer.out_proj.weight)
        gone = [here for here, place in enumerate(present) if names[place] in drops.get(layer, ())]
        for backward, here in itertools.product((False, True), gone):
            frozen[backward][present[here]] = seen[backward][here]
        stay = [here for here in range(len(present)) if here not in gone]
        change, stream, present = change[stay], stream[stay], [present[here] for here in stay]
    return model.head(model.norm_f(stream + change)), [names[place] for place in present].index("class")


def dropping(*rows):
    """Make a score that drops the named patches: one mapping of layers to patches for each image."""
    cuts = sorted(rows[0])
    left = [list(range(64)) for _ in rows]
    tables = {}
    for layer in cuts:
        tables[len(left[0])] = torch.tensor(
            [
                [0.0 if number in row[layer] else 1.0 for number in numbers]
                for row, numbers in zip(rows, left, strict=True)
            ]
        )
        left = [
            [number for number in numbers if number not in row[layer]] for row, numbers in zip(rows, left, strict=True)
        ]
    return lambda before, after: tables[before.shape[1]]


# what each image loses behind which layer; the class token stands between patches 31 and 32, or first
ENDS = {
    "the head": [{0: range(7)}, {0: range(7)}],
    "the tail": [{0: range(57, 64)}, {0: range(57, 64)}],
    "head and tail": [{0: [0, 1, 2, 62, 63]}, {0: [0, 60, 61, 62, 63]}],
    "two cuts at the ends": [{0: [0, 1, 62, 63], 2: [2, 3, 60, 61]}, {0: [0, 1, 2, 3], 2: [60, 61, 62, 63]}],
}
INSIDE = {
    "one": [{0: [20]}, {0: [50]}],
    "several in a row": [{0: range(10, 22)}, {0: range(40, 52)}],
    "around the class token": [{0: range(28, 36)}, {0: range(30, 38)}],
    "next to the class token on one side": [{0: [30, 31]}, {0: [32, 33]}],
    "every other": [{0: range(0, 64, 2)}, {0: range(1, 64, 2)}],
    "ends and inside": [{0: [0, 1, 20, 63]}, {0: [0, 40, 41, 63]}],
    "all but two": [
        {0: [number for number in range(64) if number not in (5, 60)]},
        {0: [number for number in range(64) if number not in (10, 20)]},
    ],
    "behind a later layer": [{2: range(10, 30)}, {2: range(0, 60, 3)}],
    "two cuts, one beside the other": [{0: range(10, 15), 1: range(15, 20)}, {0: range(45, 50), 1: range(40, 45)}],
    "two cuts, one around the other": [{0: [20, 22, 24], 1: [19, 21, 23, 25]}, {0: [41, 43, 45], 1: [40, 42, 44, 46]}],
    "two cuts far apart": [{0: range(10, 15), 2: range(45, 50)}, {0: range(45, 50), 2: range(10, 15)}],
    "three cuts": [
        {0: range(0, 20), 1: range(20, 40), 2: range(41, 60)},
        {0: range(0, 60, 3), 1: range(1, 60, 3), 2: range(2, 59, 3)},
    ],
}


def pruned_by(model, rows, pruner=None):
    schedule = {layer: len(patches) for layer, patches in rows[0].items()}
    return ShiftTracker(model, distance=dropping(*rows)).prune(schedule, pruner=pruner)


def masked_logits(model, images, rows):
    logits = []
    for image, row in zip(images, rows, strict=True):
        with torch.no_grad():
            answers, index = masked_dense(model, image, row)
        logits.append(answers[index])
    return torch.stack(logits)


@pytest.fixture
def pair_of_images(images):
    return images[:2].double()


@pytest.mark.parametrize("options", [{}, VIDEO], ids=["middle", "head"])
@pytest.mark.parametrize("rows", (ENDS | INSIDE).values(), ids=ENDS | INSIDE)
def test_aligned_pruning_equals_dense_scans_in_which_dropped_tokens_only_decay(pair_of_images, rows, options):
    model = build_vim(**options).double()
    with torch.no_grad():
        logits = pruned_by(model, rows, ALIGNED)(pair_of_images)
    torch.testing.assert_close(logits, masked_logits(model, pair_of_images, rows), atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("rows", INSIDE.values(), ids=INSIDE)
def test_alignment_matters_for_what_is_dropped_inside(pair_of_images, rows):
    model = build_vim().double()
    with torch.no_grad():
        moved = pruned_by(model, rows, ALIGNED)(pair_of_images) - pruned_by(model, rows)(pair_of_images)
    assert moved.abs().amax(1).min() > 1e-4


@pytest.mark.parametrize("rows", ENDS.values(), ids=ENDS)
def test_there_is_nothing_to_decay_before_the_first_and_behind_the_last_token(pair_of_images, rows):
    model = build_vim().double()
    with torch.no_grad():
        aligned, plain = (pruned_by(model, rows, pruner)(pair_of_images) for pruner in (ALIGNED, None))
    torch.testing.assert_close(aligned, plain, atol=1e-12, rtol=0)


@pytest.mark.parametrize("backward", [False, True])
def test_alignment_is_exact_and_matters_in_either_direction_alone(pair_of_images, backward):
    model, rows = build_vim().double(), [{0: [20, 22, 42, 44], 1: [21, 43]}, {0: [20, 30, 34, 40], 1: [31, 33]}]
    with torch.no_grad():
        for layer in model.layers:
            silent = layer.mixer.conv1d if backward else layer.mixer.conv1d_b
            silent.weight.zero_()
            silent.bias.zero_()
        logits, plain = (pruned_by(model, rows, pruner)(pair_of_images) for pruner in (ALIGNED, None))
    torch.testing.assert_close(logits, masked_logits(model, pair_of_images, rows), atol=1e-12, rtol=1e-12)
    assert (logits - plain).abs().amax(1).min() > 1e-4


@pytest.mark.parametrize("pattern", ["several in a row", "around the class token", "two cuts, one around the other"])
def test_every_token_behind_a_cut_is_that_of_the_masked_dense_scans(pair_of_images, pattern):
    # the logits show no more than the class token
    model = build_vim().double()
    last = states(pruned_by(model, INSIDE[pattern], ALIGNED), pair_of_images)[-1]
    with torch.no_grad():
        found = model.head(model.norm_f(last.residual + last.hidden))
        expected = [
            masked_dense(model, image, row)[0] for image, row in zip(pair_of_images, INSIDE[pattern], strict=True)
        ]
    torch.testing.assert_close(found, torch.stack(expected), atol=1e-12, rtol=1e-12)


def test_the_masked_dense_forward_without_drops_is_the_dense_model(vim, pair_of_images):
    vim.double()
    with torch.no_grad():
        expected = vim(pair_of_images)
    torch.testing.assert_close(masked_logits(vim, pair_of_images, [{}, {}]), expected, atol=1e-12, rtol=0)


def test_alignment_keeps_what_plain_pruning_keeps_at_the_first_cut(vim, images):
    kept = []
    for pruner in (None, ALIGNED):
        pruned = ShiftTracker(vim).prune({0: 0.25}, pruner=pruner)
        with ShiftTracker(pruned) as tracker, torch.no_grad():
            pruned(images)
        kept.append(tracker.kept["layers.0"])
    assert torch.equal(*kept)


def test_a_model_that_does_not_pass_its_step_sizes_on_cannot_be_aligned(build_class_first, images):
    pruned = ShiftTracker(build_class_first("a tuple")).prune(DROPS, pruner=ALIGNED)
    with pytest.raises(UnsupportedModelError, match=r"return tuple without the step sizes.*without align=True"):
        pruned(images)
