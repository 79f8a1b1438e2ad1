"""Which implementation runs where, and how mamba-ssm's kernel is called, by a stand-in that runs on a CPU."""

import sys
from types import SimpleNamespace

import pytest
import torch

from repshift import UnsupportedModelError
from repshift.backbones.scan import implementations, selective_scan
from repshift.backbones.scan.implementations import choose_implementation
from repshift.backbones.scan.reference import Operands, reference

DIRECTIONS = pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
ON_CUDA = SimpleNamespace(is_cuda=True, dtype=torch.float32, device="cuda:0")
IN_FLOAT64 = SimpleNamespace(is_cuda=True, dtype=torch.float64, device="cuda:0")


@pytest.fixture(autouse=True)
def look_again():
    """What could be imported is looked up once a process."""

    def forget():
        implementations.mamba_kernel.cache_clear()
        implementations.why_no_triton.cache_clear()

    forget()
    yield
    forget()


def raising(error):
    def fail():
        raise error

    return fail


@pytest.fixture
def mamba_works(monkeypatch):
    monkeypatch.setattr(implementations, "import_mamba_scan", lambda: "its function")


@pytest.fixture
def mamba_is_broken(monkeypatch):
    error = ImportError("selective_scan_cuda.so: undefined symbol: _ZN3c104cuda\nmore")
    monkeypatch.setattr(implementations, "import_mamba_scan", raising(error))


@pytest.fixture
def triton_works(monkeypatch):
    monkeypatch.setattr(implementations, "why_no_triton", lambda: None)


@pytest.fixture
def no_triton(monkeypatch):
    monkeypatch.setitem(sys.modules, "repshift.backbones.scan.triton_kernel", None)


# --- the choice -------------------------------------------------------------------------------------------------


def test_auto_takes_mamba_ssm_on_cuda_if_it_works(mamba_works):
    assert choose_implementation("auto", ON_CUDA) == "mamba_ssm"


def test_auto_takes_triton_on_cuda_if_mamba_ssm_is_broken(mamba_is_broken, triton_works):
    assert choose_implementation("auto", ON_CUDA) == "triton"


def test_auto_takes_triton_for_float64_which_mamba_ssm_does_not_compute_in(mamba_works, triton_works):
    assert choose_implementation("auto", IN_FLOAT64) == "triton"


def test_auto_takes_the_blocked_form_on_cuda_if_there_is_no_kernel(mamba_is_broken, no_triton):
    assert choose_implementation("auto", ON_CUDA) == "blocked"


def test_auto_on_a_cpu_does_not_look_for_kernels(monkeypatch):
    monkeypatch.setattr(implementations, "import_mamba_scan", raising(AssertionError("looked for mamba-ssm")))
    assert choose_implementation("auto", torch.zeros(1)) == "blocked"


def test_mamba_ssm_is_looked_for_once(monkeypatch):
    looked = []
    monkeypatch.setattr(implementations, "import_mamba_scan", lambda: looked.append("here"))
    for _ in range(3):
        choose_implementation("auto", ON_CUDA)
    assert looked == ["here"]


def test_a_broken_mamba_ssm_is_refused_with_the_first_line_of_its_error(mamba_is_broken):
    with pytest.raises(UnsupportedModelError) as caught:
        choose_implementation("mamba_ssm", ON_CUDA)
    assert str(caught.value) == (
        "The selective scan cannot run as 'mamba_ssm': the package cannot be imported (ImportError: "
        "selective_scan_cuda.so: undefined symbol: _ZN3c104cuda). Choose implementation='auto'."
    )


def test_an_absent_mamba_ssm_is_refused(monkeypatch):
    monkeypatch.setitem(sys.modules, "selective_scan_cuda", None)
    monkeypatch.setitem(sys.modules, "mamba_ssm", None)
    with pytest.raises(UnsupportedModelError, match=r"cannot be imported \(ModuleNotFoundError: .*selective_scan_cuda"):
        choose_implementation("mamba_ssm", ON_CUDA)


def test_an_extension_without_its_package_is_refused(monkeypatch):
    monkeypatch.setitem(sys.modules, "selective_scan_cuda", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "mamba_ssm", None)
    with pytest.raises(UnsupportedModelError, match=r"cannot be imported \(ModuleNotFoundError: .*mamba_ssm"):
        choose_implementation("mamba_ssm", ON_CUDA)


def test_mamba_ssm_is_refused_in_float64(mamba_works):
    with pytest.raises(UnsupportedModelError, match="does not compute in float64"):
        choose_implementation("mamba_ssm", IN_FLOAT64)


def test_an_absent_triton_is_refused(no_triton):
    with pytest.raises(UnsupportedModelError, match=r"as 'triton': triton cannot be imported \(ModuleNotFoundError"):
        choose_implementation("triton", ON_CUDA)


def small_operands(**options):
    generator = torch.Generator().manual_seed(0)
    shapes = {
        "u": (2, 3, 9),
        "delta": (2, 3, 9),
        "A": (3, 4),
        "B": (2, 4, 9),
        "C": (2, 4, 9),
        "D": (3,),
        "z": (2, 3, 9),
    }
    found = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    found["A"] = -found["A"].abs()
    return Operands(**found, delta_bias=torch.randn(3, generator=generator), delta_softplus=True)._replace(**options)


def test_mamba_ssm_is_refused_on_a_cpu():
    with pytest.raises(UnsupportedModelError, match=r"kernel runs on CUDA devices, the input is on cpu.*'auto'"):
        selective_scan(*small_operands()[:9], implementation="mamba_ssm")


def test_triton_is_refused_on_a_cpu_without_its_interpreter(monkeypatch):
    pytest.importorskip("triton")
    monkeypatch.setattr("repshift.backbones.scan.triton_kernel.INTERPRETED", False)
    with pytest.raises(UnsupportedModelError, match=r"runs on GPUs .*TRITON_INTERPRET=1.*the input is on cpu"):
        selective_scan(*small_operands()[:9], implementation="triton")


# --- how mamba-ssm is called ------------------------------------------------------------------------------------


class StandIn(torch.autograd.Function):
    """Takes what the kernel takes, knows one direction only, and has gradients of its own."""

    @staticmethod
    def forward(ctx, *arguments):
        u, delta, A, B, C, D, z, bias, softplus = arguments
        sequences = [value for value in (u, delta, B, C, z) if value is not None]
        assert all(value.is_contiguous() and value.dtype == u.dtype for value in sequences)
        assert all(value is None or value.dtype == torch.float32 for value in (A, D, bias))
        ctx.save_for_backward(*arguments[:8])
        ctx.softplus = softplus
        return reference(Operands(*arguments))

    @staticmethod
    def backward(ctx, gradient):
        assert gradient.is_contiguous()
        given = Operands(*ctx.saved_tensors, ctx.softplus)
        found = implementations.blocked_gradients(given, gradient)
        wide = zip(given[:8], found, strict=True)
        return *(None if value is None else value.to(tensor.dtype) for tensor, value in wide), None


@pytest.fixture
def stand_in(monkeypatch):
    """Choose mamba-ssm everywhere, whose kernel is the stand-in."""
    monkeypatch.setattr(implementations, "import_mamba_scan", lambda: StandIn.apply)
    monkeypatch.setattr(implementations, "choose_implementation", lambda implementation, u: "mamba_ssm")


def scan(operands):
    return selective_scan(*operands[:9], reverse=operands.reverse, implementation="mamba_ssm")


@DIRECTIONS
@pytest.mark.parametrize("absent", [(), ("D", "z", "delta_bias")], ids=["all operands", "the needed operands"])
def test_mamba_ssm_scans_in_both_directions(stand_in, absent, reverse):
    given = small_operands(reverse=reverse, **dict.fromkeys(absent))
    torch.testing.assert_close(scan(given), reference(given))


@DIRECTIONS
def test_mamba_ssm_is_given_contiguous_sequences_of_one_dtype_and_parameters_of_float32(stand_in, reverse):
    given = small_operands(reverse=reverse)
    short = {name: getattr(given, name).bfloat16() for name in ("u", "B", "C", "z", "A", "D")}
    moved = {name: value.mT.contiguous().mT if value.ndim == 3 else value for name, value in short.items()}
    scanned = scan(given._replace(**moved))
    assert scanned.dtype == torch.bfloat16
    torch.testing.assert_close(scanned, reference(given._replace(**short)))


@DIRECTIONS
@pytest.mark.parametrize("absent", [(), ("D", "z", "delta_bias")], ids=["all operands", "the needed operands"])
def test_gradients_come_back_from_mamba_ssm_in_both_directions(stand_in, absent, reverse):
    given = small_operands(reverse=reverse, **dict.fromkeys(absent))
    leaves = [value.requires_grad_() for value in given[:8] if value is not None]
    weights = torch.randn(2, 3, 9)
    expected = torch.autograd.grad((reference(given) * weights).sum(), leaves)
    actual = torch.autograd.grad((scan(given) * weights).sum(), leaves)
    for one, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(one, other)
