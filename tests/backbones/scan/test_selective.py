"""Every implementation against the plain reference, and the reference against a formula without a recurrence."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from repshift import RepresentationError, UnknownNameError
from repshift.backbones.scan import IMPLEMENTATIONS, aligned_scan, blocked, selective_scan
from repshift.backbones.scan.reference import Operands

FORMS = ["reference", "blocked"]
DIRECTIONS = pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
# lengths about the 16 steps that the blocked form holds at once
SIZES = [(1, 5, 1, 1), (3, 5, 4, 7), (1, 33, 16, 8), (3, 33, 4, 9), (3, 5, 16, 15), (1, 5, 4, 16), (3, 33, 1, 33)]
EXTRAS = {
    "plain": (),
    "D": ("D",),
    "z": ("z",),
    "bias": ("delta_bias",),
    "softplus": ("delta_softplus",),
    "all": ("D", "z", "delta_bias", "delta_softplus"),
}


def operands(batch=2, channels=5, states=4, length=9, extras=EXTRAS["all"], dtype=torch.float64):
    """Random operands; the steps are positive without softplus too."""
    generator = torch.Generator().manual_seed(batch + channels + states + length)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    found = {
        "u": normal(batch, channels, length),
        "delta": 0.5 * normal(batch, channels, length).abs(),
        "A": -2 * normal(channels, states).abs(),
        "B": normal(batch, states, length),
        "C": normal(batch, states, length),
        "D": normal(channels),
        "z": normal(batch, channels, length),
        "delta_bias": normal(channels).abs() - (2 if "delta_softplus" in extras else 0),
        "delta_softplus": True,
    }
    return {name: value for name, value in found.items() if name in ("u", "delta", "A", "B", "C", *extras)}


def direct_sum(u, delta, A, B, C, D=None, z=None, delta_bias=None, delta_softplus=False, reverse=False):
    """y[t] = sum over s up to t of C[t] . exp(A * (steps after s up to t)) step[s] B[s] u[s], then D and z."""
    u, delta, A, B, C = (tensor.double() for tensor in (u, delta, A, B, C))
    step = delta if delta_bias is None else delta + delta_bias.double()[:, None]
    step = torch.logaddexp(step, torch.zeros_like(step)) if delta_softplus else step
    clock = step.flip(-1).cumsum(-1).flip(-1) if reverse else step.cumsum(-1)
    elapsed = clock[..., :, None] - clock[..., None, :]
    times = torch.arange(u.shape[-1])
    past = times[:, None] <= times if reverse else times[:, None] >= times
    weights = torch.exp(torch.where(past, elapsed, 0)[..., None] * A[:, None, None]) * past[..., None]
    y = torch.einsum("bnt,bdtsn,bns,bds->bdt", C, weights, B, step * u)
    y = y if D is None else y + u * D.double()[:, None]
    return y if z is None else y * z.double() / (1 + torch.exp(-z.double()))


def assert_exact(actual, expected):
    torch.testing.assert_close(actual, expected, atol=1e-13, rtol=1e-13)


# --- the reference and the others -------------------------------------------------------------------------------


@DIRECTIONS
@pytest.mark.parametrize("extras", EXTRAS)
@pytest.mark.parametrize("form", FORMS)
def test_a_scan_equals_the_direct_sum(form, extras, reverse):
    given = operands(extras=EXTRAS[extras], length=19)
    expected = direct_sum(**given, reverse=reverse)
    assert_exact(selective_scan(**given, reverse=reverse, implementation=form), expected)


@DIRECTIONS
@pytest.mark.parametrize("size", SIZES)
def test_the_blocked_form_equals_the_reference_at_any_size(size, reverse):
    given = operands(*size)
    expected = selective_scan(**given, reverse=reverse, implementation="reference")
    assert_exact(selective_scan(**given, reverse=reverse, implementation="blocked"), expected)


@DIRECTIONS
@pytest.mark.parametrize("form", FORMS)
def test_float32_is_as_close_to_the_direct_sum_as_float32_can_be(form, reverse):
    given = operands(3, 33, 16, 33, dtype=torch.float32)
    scanned = selective_scan(**given, reverse=reverse, implementation=form)
    assert scanned.dtype == torch.float32
    torch.testing.assert_close(scanned.double(), direct_sum(**given, reverse=reverse), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_a_reverse_scan_is_a_scan_of_the_flipped_sequence_flipped_back(form):
    given = operands(length=17)
    sequences = ("u", "delta", "B", "C", "z")
    flipped = {name: value.flip(-1) if name in sequences else value for name, value in given.items()}
    expected = selective_scan(**flipped, implementation=form).flip(-1)
    assert_exact(selective_scan(**given, reverse=True, implementation=form), expected)


@DIRECTIONS
@pytest.mark.parametrize("form", FORMS)
def test_operands_of_any_layout_give_the_same(form, reverse):
    given = operands(length=17)
    # channels last, as a model hands them in, and every second number of something wider
    moved = {
        name: value.mT.contiguous().mT if name in ("u", "B", "z") else value.repeat_interleave(2, -1)[..., ::2]
        for name, value in given.items()
        if isinstance(value, torch.Tensor)
    }
    assert not any(value.is_contiguous() for value in moved.values())
    expected = selective_scan(**given, reverse=reverse, implementation=form)
    assert_exact(selective_scan(**(given | moved), reverse=reverse, implementation=form), expected)


@pytest.mark.parametrize("steps", [1, 3, 64])
def test_the_number_of_steps_held_at_once_does_not_matter(monkeypatch, steps):
    expected = selective_scan(**(given := operands(length=17)), implementation="reference")
    monkeypatch.setattr(blocked, "STEPS", steps)
    assert_exact(selective_scan(**given, implementation="blocked"), expected)


def test_fewer_steps_are_held_the_more_states_there_are():
    few, many = (blocked._Recurrence(Operands(**operands(size, 64, 16, 20, ()))) for size in (1, 200))
    assert few.states.numel() == blocked.STEPS * 64 * 16
    assert 0.5 * blocked.HELD < many.states.numel() <= blocked.HELD


def test_auto_is_the_blocked_form_on_a_cpu():
    given = operands(dtype=torch.float32)
    assert torch.equal(selective_scan(**given), selective_scan(**given, implementation="blocked"))


def test_operands_are_left_as_they_were():
    given, before = operands(), operands()
    selective_scan(**given)
    assert all(torch.equal(given[name], before[name]) for name in given if name != "delta_softplus")


# --- precision --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("form", FORMS)
def test_short_floats_are_scanned_in_float32_and_rounded_once(form, dtype):
    given = operands(2, 5, 16, 33, dtype=dtype)
    wide = {name: value.float() if name != "delta_softplus" else value for name, value in given.items()}
    expected = selective_scan(**wide, implementation=form).to(dtype)
    assert torch.equal(selective_scan(**given, implementation=form), expected)


@pytest.mark.parametrize("form", FORMS)
def test_steps_of_float32_beside_tokens_of_bfloat16_keep_their_precision(form):
    given = operands(dtype=torch.float32) | {"u": torch.ones(2, 5, 9, dtype=torch.bfloat16)}
    wide = given | {"u": torch.ones(2, 5, 9)}
    expected = selective_scan(**wide, implementation=form).bfloat16()
    assert torch.equal(selective_scan(**given, implementation=form), expected)


@pytest.mark.parametrize("form", FORMS)
def test_autocast_does_not_round_the_states(form):
    given = operands(dtype=torch.float32)
    expected = selective_scan(**given, implementation=form)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(selective_scan(**given, implementation=form), expected)


@DIRECTIONS
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("form", FORMS)
def test_large_steps_neither_overflow_nor_lose_exactness(form, dtype, reverse):
    given = operands(length=33, extras=(), dtype=dtype)
    # states that are wiped out beside ones that hardly decay
    steps = torch.logspace(-3, 2, 33, dtype=dtype)[torch.randperm(33)]
    given |= {"delta": steps.expand(2, 5, 33), "A": -torch.logspace(-3, 1.2, 20, dtype=dtype).view(5, 4)}
    scanned = selective_scan(**given, reverse=reverse, implementation=form)
    tolerance = 1e-12 if dtype == torch.float64 else 2e-5
    expected = direct_sum(**given, reverse=reverse)
    torch.testing.assert_close(scanned.double(), expected, atol=tolerance * expected.abs().max().item(), rtol=tolerance)


# --- dropped tokens ---------------------------------------------------------------------------------------------

KEPT = {
    "gap at the start": [3, 4, 5, 6, 7, 8],
    "gap in the middle": [0, 1, 6, 7, 8],
    "gap at the end": [0, 1, 2, 3],
    "gaps everywhere": [1, 4, 5, 7],
    "one token": [4],
    "no gap": list(range(9)),
}


def steps_dropped_before(steps, kept, reverse):
    """Sum by hand the steps between each kept token and the one that the scan keeps before it."""
    gaps = torch.zeros_like(steps[..., kept])
    order = list(range(steps.shape[-1]))[:: -1 if reverse else 1]
    waiting = torch.zeros_like(steps[..., 0])
    for token in order:
        if token in kept:
            gaps[..., kept.index(token)] = waiting
            waiting = torch.zeros_like(waiting)
        else:
            waiting = waiting + steps[..., token]
    return gaps


@DIRECTIONS
@pytest.mark.parametrize("kept", KEPT)
@pytest.mark.parametrize("form", FORMS)
def test_an_aligned_scan_is_that_of_the_whole_sequence_in_which_dropped_tokens_add_nothing(form, kept, reverse):
    kept = KEPT[kept]
    given = operands(extras=("D",))
    stays = torch.zeros(9).index_fill(0, torch.tensor(kept), 1).bool()
    whole = selective_scan(**(given | {"u": given["u"] * stays}), reverse=reverse, implementation="reference")
    left = {name: given[name][..., kept] for name in ("u", "delta", "B", "C")}
    gap = steps_dropped_before(given["delta"], kept, reverse)
    scanned = aligned_scan(**(given | left), gap=gap, reverse=reverse, implementation=form)
    torch.testing.assert_close(scanned, whole[..., kept], atol=5e-15, rtol=5e-15)


def test_an_aligned_scan_of_short_floats_returns_their_dtype():
    given = operands(extras=("D",), dtype=torch.bfloat16)
    assert aligned_scan(**given, gap=torch.zeros(2, 5, 9)).dtype == torch.bfloat16


def test_an_aligned_scan_has_gradients_where_steps_are_zero():
    given = operands(extras=())
    given["delta"][..., 2:4] = 0
    aligned, plain = (given["delta"].clone().requires_grad_() for _ in range(2))
    aligned_scan(**(given | {"delta": aligned}), gap=torch.zeros_like(aligned)).sum().backward()
    selective_scan(**(given | {"delta": plain})).sum().backward()
    assert_exact(aligned.grad, plain.grad)


@DIRECTIONS
@pytest.mark.parametrize("form", FORMS)
def test_a_step_of_zero_is_as_good_as_no_token(form, reverse):
    given = operands(extras=("D", "z"))
    kept = [0, 2, 3, 7]
    given["delta"][..., [token for token in range(9) if token not in kept]] = 0
    left = {name: given[name][..., kept] for name in ("u", "delta", "B", "C", "z")}
    expected = selective_scan(**(given | left), reverse=reverse, implementation=form)
    assert_exact(selective_scan(**given, reverse=reverse, implementation=form)[..., kept], expected)


# --- without numbers --------------------------------------------------------------------------------------------


def on_meta(given):
    return {name: value.to("meta") if name != "delta_softplus" else value for name, value in given.items()}


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_the_meta_device_gives_the_shape(implementation):
    scanned = selective_scan(**on_meta(operands(3, 5, 4, 7, dtype=torch.bfloat16)), implementation=implementation)
    assert (scanned.shape, scanned.dtype, scanned.device.type) == ((3, 5, 7), torch.bfloat16, "meta")


def test_four_multiply_accumulates_are_counted_a_state_and_step():
    with FlopCounterMode(display=False) as counter:
        selective_scan(**on_meta(operands(3, 5, 4, 7)))
    assert counter.get_total_flops() == 2 * 4 * (3 * 5 * 4 * 7)


# --- what is refused --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["delta", "A", "B", "C", "D", "z", "delta_bias"])
def test_an_operand_of_the_wrong_shape_is_refused_with_both_shapes(name):
    given = operands()
    wrong = given[name][:-1]
    with pytest.raises(RepresentationError) as caught:
        selective_scan(**(given | {name: wrong}))
    assert f"got {name} of shape {tuple(wrong.shape)}, expected {tuple(given[name].shape)}" in str(caught.value)


def test_gaps_of_the_wrong_shape_are_refused():
    with pytest.raises(RepresentationError, match=r"got gap of shape \(2, 1, 9\), expected \(2, 5, 9\)"):
        aligned_scan(**operands(extras=()), gap=torch.zeros(2, 1, 9))


@pytest.mark.parametrize("name", ["u", "A"])
def test_an_operand_of_the_wrong_rank_is_refused_with_what_it_should_be(name):
    with pytest.raises(RepresentationError, match=r"u as \(batch, channels, length\) and A as \(channels, states\)"):
        selective_scan(**(operands() | {name: operands()[name][0]}))


def test_a_sequence_without_tokens_is_refused():
    with pytest.raises(RepresentationError, match=r"length 0\. Keep at least one token"):
        selective_scan(**operands(length=0))


def test_an_unknown_implementation_names_the_closest():
    with pytest.raises(UnknownNameError, match=r"'blokced'\. Did you mean 'blocked'\?"):
        selective_scan(**operands(), implementation="blokced")
