"""Gradients of the selective scan, and what compilers ask of it as one operation."""

import pytest
import torch

from repshift.backbones.scan import blocked, selective_scan

DIRECTIONS = pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
EXTRAS = {"plain": (), "D": ("D",), "z": ("z",), "bias": ("delta_bias",), "all": ("D", "z", "delta_bias")}
SHAPES = {"u": "bdl", "delta": "bdl", "A": "dn", "B": "bnl", "C": "bnl", "D": "d", "z": "bdl", "delta_bias": "d"}


def leaves(batch=2, channels=3, states=2, length=5, extras=EXTRAS["all"], dtype=torch.float64):
    """Random operands that want gradients, by name."""
    generator = torch.Generator().manual_seed(length)
    sizes = {"b": batch, "d": channels, "n": states, "l": length}
    found = {}
    for name, letters in SHAPES.items():
        value = torch.randn(*(sizes[letter] for letter in letters), generator=generator, dtype=torch.float64)
        value = -value.abs() if name == "A" else value.abs() if name == "delta" else value
        found[name] = value.to(dtype).requires_grad_()
    return {name: value for name, value in found.items() if name in ("u", "delta", "A", "B", "C", *extras)}


def gradients(given, wanted=None, **options):
    """Gradients of an uneven sum of the outputs."""
    scanned = selective_scan(**given, **options)
    weights = torch.linspace(-1, 2, scanned.numel(), dtype=scanned.dtype).view(scanned.shape)
    wanted = list(given) if wanted is None else wanted
    return torch.autograd.grad((scanned * weights).sum(), [given[name] for name in wanted])


@pytest.fixture
def small_blocks(monkeypatch):
    """Several blocks in a short sequence."""
    monkeypatch.setattr(blocked, "STEPS", 2)


@DIRECTIONS
@pytest.mark.parametrize("softplus", [False, True], ids=["as they are", "softplus"])
@pytest.mark.parametrize("extras", EXTRAS)
def test_gradients_are_those_of_finite_differences(extras, softplus, reverse, small_blocks):
    given = leaves(extras=EXTRAS[extras])

    def scan(*tensors):
        return selective_scan(**dict(zip(given, tensors, strict=True)), delta_softplus=softplus, reverse=reverse)

    assert torch.autograd.gradcheck(scan, tuple(given.values()))


@DIRECTIONS
@pytest.mark.parametrize("length", [1, 16, 37])
def test_gradients_are_those_of_the_reference(length, reverse):
    given = leaves(3, 5, 4, length)
    options = {"delta_softplus": True, "reverse": reverse}
    expected = gradients(given, implementation="reference", **options)
    for actual, wanted in zip(gradients(given, **options), expected, strict=True):
        torch.testing.assert_close(actual, wanted, atol=1e-12, rtol=1e-12)


@DIRECTIONS
@pytest.mark.parametrize("wanted", SHAPES)
def test_an_operand_alone_gets_the_gradient_that_it_gets_among_others(wanted, reverse):
    given = leaves(length=17)
    (expected,) = gradients(given, [wanted], implementation="reference", reverse=reverse)
    alone = {name: value if name == wanted else value.detach() for name, value in given.items()}
    (actual,) = gradients(alone, [wanted], reverse=reverse)
    torch.testing.assert_close(actual, expected, atol=1e-12, rtol=1e-12)


def test_gradients_have_the_dtypes_of_their_operands():
    short = ("u", "B", "C", "z")
    given = {
        name: value.detach().to(torch.bfloat16 if name in short else torch.float32).requires_grad_()
        for name, value in leaves().items()
    }
    assert [value.dtype for value in gradients(given)] == [value.dtype for value in given.values()]


def test_autocast_does_not_round_the_gradients():
    given = leaves(length=17, dtype=torch.float32)
    expected = gradients(given)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = gradients(given)
    assert all(torch.equal(one, other) for one, other in zip(actual, expected, strict=True))


def test_without_operands_that_want_gradients_there_is_nothing_to_go_back_through():
    given = {name: value.detach() for name, value in leaves().items()}
    assert not selective_scan(**given).requires_grad


def test_gradients_of_gradients_are_refused_instead_of_silently_wrong():
    given = leaves()
    (first,) = torch.autograd.grad(selective_scan(**given).sum(), given["u"], create_graph=True)
    with pytest.raises(RuntimeError, match="no autograd formula"):
        torch.autograd.grad(first.sum(), given["delta"])


# --- as one operation -------------------------------------------------------------------------------------------


@DIRECTIONS
@pytest.mark.parametrize("extras", ["plain", "all"])
def test_the_operation_keeps_the_promises_that_compilers_rely_on(extras, reverse):
    given = leaves(extras=EXTRAS[extras])
    arguments = [given.get(name) for name in SHAPES]
    torch.library.opcheck(torch.ops.repshift.selective_scan.default, (*arguments, True, reverse, "blocked"))


def test_the_backward_operation_keeps_the_promises_that_compilers_rely_on():
    given = [value.detach() for value in leaves().values()]
    arguments = (torch.randn(2, 3, 5).double(), list(range(8)), *given, True, False, "blocked")
    torch.library.opcheck(torch.ops.repshift.selective_scan_backward.default, arguments)


@pytest.mark.parametrize("wanted", ["output", "gradients"])
def test_sequences_come_out_with_channels_last_as_models_have_them(wanted):
    given = leaves(2, 3, 4, 5)
    scanned = selective_scan(**given)
    found = [scanned] if wanted == "output" else [value for value in gradients(given) if value.ndim == 3]
    assert all(value.mT.is_contiguous() for value in found)


@DIRECTIONS
@pytest.mark.usefixtures("fresh_dynamo")
def test_a_compiled_scan_equals_its_eager_form_and_so_do_its_gradients(reverse):
    given = leaves(length=17)

    def loss(given):
        scanned = selective_scan(**given, reverse=reverse)
        return (scanned * torch.linspace(-1, 2, scanned.numel(), dtype=scanned.dtype).view(scanned.shape)).sum()

    fast = torch.compile(loss, fullgraph=True, backend="aot_eager")(given)
    torch.testing.assert_close(fast, loss(given))
    actual = torch.autograd.grad(fast, list(given.values()))
    for one, other in zip(actual, gradients(given, reverse=reverse), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.usefixtures("fresh_dynamo")
def test_a_scan_is_one_node_of_the_graph_whatever_its_length():
    graphs = []

    def keep(graph, inputs):
        graphs.append([node.name for node in graph.graph.nodes if node.op == "call_function"])
        return graph

    given = {name: value.detach() for name, value in leaves(length=40).items()}
    torch.compile(lambda: selective_scan(**given), fullgraph=True, backend=keep)()
    assert [len(names) for names in graphs] == [1]


@pytest.mark.slow
@pytest.mark.usefixtures("fresh_dynamo")
def test_a_scan_compiled_to_machine_code_equals_its_eager_form():
    given = {name: value.detach().float() for name, value in leaves(length=17).items()}

    def two_ways(given):
        return selective_scan(**given) + selective_scan(**given, reverse=True).mT.exp().mT

    # graphs in the cache know nothing of changes of the operation
    with torch.no_grad(), torch._inductor.config.patch(force_disable_caches=True):
        torch.testing.assert_close(torch.compile(two_ways, fullgraph=True)(given), two_ways(given))
