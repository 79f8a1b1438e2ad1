"""Whatever the API is given, it answers rightly or with an error of ours."""

import functools
import json
import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from repshift import (
    PRUNERS,
    SCORES,
    Recipe,
    RepshiftError,
    Schedule,
    Selection,
    ShiftTracker,
    dense,
    describe,
    load_model,
    recipe_of,
    repeated_blocks,
)

MODELS = ("tiny_vit", "tiny_resnet", "tiny_vim")
NUMBERS = st.integers(-3, 400) | st.floats() | st.sampled_from([0, 1, 0.5, 10**30, -(10**30)])
PLAIN = st.none() | st.booleans() | NUMBERS | st.text(max_size=8)
JUNK = st.recursive(
    PLAIN | st.binary(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(PLAIN, inner, max_size=3) | st.tuples(inner, inner),
    max_leaves=4,
) | st.sampled_from(
    [object(), range(6), {1, 2}, memoryview(b"ab"), np.ones(2), torch.ones(2), torch.tensor(1), int, 1j]
)
JSON = st.recursive(PLAIN, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner))
BLOCKS = st.integers(0, 4)
DROPS = st.integers(0, 70) | st.floats(0.01, 0.99) | st.floats(allow_nan=True)
SCHEDULES = st.one_of(
    st.dictionaries(BLOCKS, DROPS, max_size=3),
    st.lists(DROPS, max_size=4),
    st.builds("{}@{}".format, DROPS, BLOCKS),
    st.builds("{}@{}::{}".format, DROPS, BLOCKS, st.integers(-1, 3)),
    st.text("0123456789.@,;:[]- ", max_size=12),
)


@functools.cache
def model_named(name):
    torch.manual_seed(0)
    options = {} if name == "tiny_resnet" else {"depth": 3}
    return load_model(name, **({"img_size": 32} | options if options else {}))


def images(count=2, seed=0):
    return torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(seed))


def answered(call):
    """Return the answer, or nothing where the error is one of ours and says something."""
    said = ""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return call()
    except RepshiftError as error:
        said = str(error)
    assert said.strip()
    return None


def sound(output, count=2):
    assert output.shape == (count, 10)
    assert output.isfinite().all()


@given(SCHEDULES | JUNK)
def test_schedules(given_):
    schedule = answered(lambda: Schedule.of(given_))
    if schedule is not None:
        assert isinstance(hash(schedule), int)
        assert Schedule.of(str(schedule)).drops == schedule.drops
        left = answered(lambda: schedule.over(5).kept(64))
        assert left is None or (min(left.values()) >= 1 and sorted(left.values(), reverse=True) == list(left.values()))


@given(JUNK, JUNK, JUNK)
def test_schedules_made_by_hand(drops, entries, repeated):
    schedule = answered(lambda: Schedule(drops, entries, repeated))
    for call in ("kept", "over"):
        answered(lambda call=call: getattr(Schedule.of("0.2@0::2" if call == "over" else "2@0"), call)(entries))
    answered(lambda: Schedule.of("0.2@0").check(entries, drops))
    answered(lambda: Schedule.every(drops, entries))
    assert schedule is None or isinstance(hash(schedule), int)


@given(st.sampled_from(MODELS), SCHEDULES, st.data())
def test_pruned_models(within, name, schedule, data):
    draw, model = data.draw, model_named(name)
    options = {
        "pruner": st.sampled_from(PRUNERS.names()) | JUNK,
        "score": st.sampled_from(["shift", *SCORES.names()]) | JUNK.filter(lambda value: not callable(value)),
        "keep": st.sampled_from(["top", "bottom"]) | JUNK,
        "restore": st.sampled_from([False, True, "left"]) | JUNK,
    }
    chosen = {option: draw(options[option]) for option in draw(st.sets(st.sampled_from(sorted(options)), max_size=2))}
    watched = {
        "operation": st.sampled_from(["attn", "mlp", "block", "stage", "mixer", None]) | JUNK,
        "distance": st.sampled_from(["l2", "l1", "cosine"]) | JUNK.filter(lambda value: not callable(value)),
        "residual": st.booleans() | JUNK,
    }
    asked = {option: draw(watched[option]) for option in draw(st.sets(st.sampled_from(sorted(watched)), max_size=1))}
    with within(60):
        pruned = answered(lambda: ShiftTracker(model, **asked).prune(schedule, **chosen))
        if pruned is None:
            return
        tracker = answered(lambda: ShiftTracker(pruned).run(images()))
        if tracker is None:
            return
        sound(tracker.output)
        recipe, tokens = recipe_of(pruned), describe(model).tokens
        assert Recipe.from_json(recipe.to_json()) == recipe
        assert torch.equal(dense(pruned)(images()), model(images()))
        if tokens is not None:
            left = recipe.schedule.kept(tokens)
            for block, kept in tracker.kept.items():
                assert kept.shape == (2, left[int(block.rpartition(".")[2])])


@given(st.sampled_from(MODELS), st.data())
def test_forwards_of_odd_tensors(within, name, data):
    draw, model = data.draw, model_named(name)
    shape = draw(
        st.sampled_from([(2, 3, 32, 32), (1, 3, 32, 32)])
        | st.lists(st.sampled_from([0, 1, 2, 3, 16, 32, 33]), min_size=0, max_size=5).map(tuple)
    )
    assume(math.prod(shape) < 2**18)
    dtypes = [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.uint8, torch.bool]
    tensor = torch.rand(shape).to(draw(st.sampled_from([*dtypes[:1] * 4, *dtypes, torch.complex64])))
    change = draw(st.sampled_from(["", "", "meta", "transposed", "strided", "sparse", "nan", "inf", "numpy", "list"]))
    if change in ("nan", "inf"):
        assume(tensor.is_floating_point())
        tensor = torch.full_like(tensor, float(change))
    given_ = {
        "meta": lambda: tensor.to("meta"),
        "transposed": lambda: tensor.mT if tensor.ndim > 1 else tensor,
        "strided": lambda: torch.stack([tensor, tensor], -1)[..., 0],
        "sparse": tensor.to_sparse,
        "numpy": lambda: tensor.float().numpy() if not tensor.is_complex() else tensor.numpy(),
        "list": lambda: [tensor],
    }.get(change, lambda: tensor)()
    pruned = ShiftTracker(model).prune("1@0")
    with within(60), torch.no_grad():
        for call in (lambda: pruned(given_), lambda: ShiftTracker(model).run(given_).output):
            output = answered(call)
            if output is not None and change not in ("nan", "inf"):
                sound(output, shape[0])
                assert output.device.type == "cpu"


@given(st.data())
def test_masks_of_pruned_models(within, data):
    sizes = st.sampled_from([0, 1, 2, 3, 64, 65])
    shape = data.draw(
        st.lists(sizes, max_size=5).map(tuple) | st.sampled_from([(65, 65), (2, 1, 65, 65), (2, 3, 65, 65)])
    )
    dtype = data.draw(st.sampled_from([torch.bool, torch.float32, torch.float64, torch.int64]))
    mask = data.draw(st.just(torch.ones(shape, dtype=dtype, device=data.draw(st.sampled_from(["cpu", "meta"])))) | JUNK)
    assume(mask is not None)
    pruned = ShiftTracker(model_named("tiny_vit")).prune("0.5@0")
    with within(60), torch.no_grad():
        output = answered(lambda: pruned(images(), attn_mask=mask))
        assert output is None or output.shape == (2, 10)


OPTIONS = ("img_size", "num_classes", "in_chans", "depth", "embed_dim", "num_heads", "drop_rate", "nothing", "d_state")


@given(st.sampled_from([*MODELS, "vit_tiny_patch16_224", "resnet18"]), st.data())
def test_options_of_models(within, name, data):
    size = st.integers(1, 48) | st.tuples(st.integers(1, 48), st.integers(1, 48))
    values = size | st.sampled_from([None, 0, 0.5, 3, 48]) | JUNK.filter(lambda value: not isinstance(value, int))
    chosen = data.draw(st.dictionaries(st.sampled_from(OPTIONS), values, max_size=2))
    with within(60):
        model = answered(lambda: load_model(name, **({"depth": 1} if name.startswith("vit") else {}) | chosen))
        if model is not None and "in_chans" not in chosen:
            side = chosen.get("img_size") or (64 if name.startswith("tiny") else 224)
            rows, columns = (side, side) if isinstance(side, int) else side
            assert model(torch.rand(2, 3, rows, columns)).shape[0] == 2


@given(st.sampled_from(["checkpoint", "pretrained", "use_ema", "name"]), JUNK)
def test_what_is_loaded(option, value):
    if option == "name":
        answered(lambda: load_model(value))
    else:
        answered(lambda: load_model("tiny_resnet", **{option: value}))


@given(st.dictionaries(st.sampled_from([*Recipe.__dataclass_fields__, "other"]), JSON | SCHEDULES, max_size=4) | JUNK)
def test_recipes(plain):
    for recipe in (
        answered(lambda: Recipe.from_dict(plain)),
        answered(lambda: Recipe.from_json(json.dumps(plain, default=str, skipkeys=True))),
    ):
        if recipe is not None:
            written = answered(recipe.to_json)
            assert written is None or Recipe.from_json(written) == recipe


@given(st.text() | st.binary() | JUNK)
def test_texts_that_are_no_recipes(text):
    answered(lambda: Recipe.from_json(text))
    answered(lambda: Recipe.load(text))


@given(st.data())
def test_selections(data):
    tensors = st.builds(
        lambda shape, most, dtype: torch.randint(0, most, shape).to(dtype),
        st.lists(st.integers(0, 4), max_size=3).map(tuple),
        st.integers(1, 6),
        st.sampled_from([torch.int64, torch.int64, torch.float32]),
    )
    kept, joins = data.draw(tensors | JUNK), data.draw(st.none() | tensors)
    selection = answered(lambda: Selection(kept, joins))
    if selection is not None:
        values = torch.rand(data.draw(st.lists(st.integers(0, 4), max_size=3).map(tuple)))
        picked = answered(lambda: selection.take(values))
        assert picked is None or picked.shape == (*kept.shape, *values.shape[2:])
        if values.ndim == 3:
            answered(lambda: selection.add(values))


@given(JUNK, JUNK)
def test_everything_else_given_anything(thing, other):
    model = model_named("tiny_vit")
    tracker = ShiftTracker(model).run(images())
    for call in (
        lambda: ShiftTracker(thing),
        lambda: ShiftTracker(model, thing),
        lambda: ShiftTracker(model).run(thing),
        lambda: tracker.shifts[thing],
        lambda: tracker.maps[thing],
        lambda: thing in tracker.shifts,
        lambda: describe(thing),
        lambda: dense(thing),
        lambda: recipe_of(thing),
        lambda: repeated_blocks(thing, other),
        lambda: repeated_blocks(model, thing),
        lambda: SCORES.get(thing),
        lambda: Recipe(thing, score=other if not callable(other) else None),
    ):
        answered(call)


def test_the_profile_is_the_one_that_was_asked_for(request):
    from hypothesis import settings

    wanted = request.config.getoption("--fuzz")
    assert settings.default.max_examples == (wanted or 15)
    assert settings.default.derandomize == (not wanted)
    assert pytest.importorskip("hypothesis")
