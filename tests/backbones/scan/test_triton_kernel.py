"""The Triton kernel: on a CPU by Triton's interpreter, compiled for a GPU without having one, and on a GPU."""

import os
import subprocess
import sys

import pytest
import torch

from repshift.backbones.scan import selective_scan

triton = pytest.importorskip("triton")

ALL = ("D", "z", "delta_bias", "delta_softplus")
# batch, channels, states, length, which of the optional operands, dtype
CASES = {
    "one step": (1, 5, 1, 1, ALL, torch.float32),
    "one state": (3, 5, 1, 7, ALL, torch.float32),
    "states that are no power of two": (1, 5, 5, 8, ALL, torch.float32),
    "channels beyond one program": (1, 33, 4, 9, ALL, torch.float32),
    "many": (2, 33, 16, 33, ALL, torch.float32),
    "float64": (2, 5, 4, 9, ALL, torch.float64),
    "bfloat16": (2, 5, 4, 9, ALL, torch.bfloat16),
    "plain": (2, 5, 4, 9, (), torch.float32),
    **{f"only {name}": (2, 5, 4, 9, (name,), torch.float32) for name in ALL},
}
DIRECTIONS = {"forward": False, "reverse": True}
TOLERANCES = {torch.float32: 5e-6, torch.float64: 1e-13, torch.bfloat16: 8e-3}


def operands(batch, channels, states, length, extras, dtype):
    generator = torch.Generator().manual_seed(batch + channels + states + length)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    found = {
        # channels last, as a model hands them in
        "u": normal(batch, length, channels).mT,
        "delta": 0.5 * normal(batch, channels, length).abs(),
        "A": -2 * normal(channels, states).abs().float(),
        "B": normal(batch, length, states + 3).mT[:, 3:],
        "C": normal(batch, states, length),
        "D": normal(channels).repeat_interleave(2)[::2],
        "z": normal(batch, length, 2 * channels).mT[:, channels:],
        "delta_bias": normal(channels).abs() - (5 if "delta_softplus" in extras else 0),
        "delta_softplus": True,
    }
    return {name: value for name, value in found.items() if name in ("u", "delta", "A", "B", "C", *extras)}


def assert_equals_the_reference(scanned, given, reverse, tolerance=None):
    dtype = given["u"].dtype
    expected = selective_scan(**given, reverse=reverse, implementation="reference")
    assert scanned.dtype == dtype
    tolerance = tolerance or TOLERANCES[dtype]
    torch.testing.assert_close(scanned, expected, atol=tolerance, rtol=tolerance)


# --- on a CPU ---------------------------------------------------------------------------------------------------

INTERPRET = """
import sys, torch
from repshift.backbones.scan import selective_scan
cases = torch.load(sys.argv[1])
torch.save(
    {
        (case, reverse): selective_scan(**given, reverse=reverse, implementation="triton")
        for case, given in cases.items() for reverse in (False, True)
    },
    sys.argv[2],
)
"""
SOFTPLUS = torch.cat([torch.linspace(-30, 30, 121), torch.tensor([-1e4, -100.0, 100.0, 1e4])])


@pytest.fixture(scope="module")
def given():
    """The operands of all cases, and a scan of one step whose output is the softplus of its step."""
    found = {name: operands(*case) for name, case in CASES.items()}
    one = torch.ones(1, 1, 1)
    found["softplus"] = {
        "u": one.expand(1, len(SOFTPLUS), 1),
        "delta": SOFTPLUS.view(1, -1, 1),
        "A": -torch.ones(len(SOFTPLUS), 1),
        "B": one,
        "C": one,
        "delta_softplus": True,
    }
    found["large steps"] = found["many"] | {
        "delta": torch.logspace(-3, 2, 33).expand(2, 33, 33),
        "delta_softplus": False,
        "delta_bias": None,
    }
    return found


@pytest.fixture(scope="module")
def interpreted(given, tmp_path_factory):
    """What the interpreter makes of all cases; it has to be chosen before triton is imported."""
    folder = tmp_path_factory.mktemp("interpreted")
    torch.save(given, folder / "cases.pt")
    done = subprocess.run(
        [sys.executable, "-c", INTERPRET, "cases.pt", "scanned.pt"],
        cwd=folder,
        env=os.environ | {"TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return torch.load(folder / "scanned.pt")


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("case", CASES)
def test_the_interpreted_kernel_equals_the_reference(given, interpreted, case, direction):
    reverse = DIRECTIONS[direction]
    assert_equals_the_reference(interpreted[case, reverse], given[case], reverse)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_large_steps_do_not_overflow_in_the_kernel(given, interpreted, direction):
    reverse = DIRECTIONS[direction]
    assert_equals_the_reference(interpreted["large steps", reverse], given["large steps"], reverse, 2e-5)


def test_small_steps_pass_the_kernel_s_softplus_without_losing_digits(interpreted):
    exact = torch.log1p(torch.exp(-SOFTPLUS.double().abs())) + SOFTPLUS.double().clamp(min=0)
    torch.testing.assert_close(interpreted["softplus", False].view(-1).double(), exact, atol=1e-30, rtol=4e-6)


def test_the_kernel_lays_its_output_out_as_the_blocked_form_does(given, interpreted):
    expected = selective_scan(**given["many"], implementation="blocked")
    assert interpreted["many", False].stride() == expected.stride()


# --- for a GPU --------------------------------------------------------------------------------------------------


@pytest.fixture
def compile_kernel(monkeypatch, tmp_path):
    """Compile the kernel for an NVIDIA GPU; a machine needs none for that."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile

    from repshift.backbones.scan import triton_kernel

    if triton_kernel.INTERPRETED:
        pytest.skip("what is interpreted is not compiled")

    def compile_kernel(element, precise, absent=(), reverse=False):
        # triton compiles strides of 1 into the code; these are those of the operands that a model has
        unit = ("u_channel", "delta_channel", "rates_channel", "B_state", "C_state", "z_channel", "out_channel")
        constants = dict.fromkeys(absent) | dict.fromkeys(unit, 1)
        constants |= {
            "SOFTPLUS": True,
            "REVERSE": reverse,
            "BLOCK_D": triton_kernel.BLOCK_D,
            "BLOCK_N": 16,
            "DTYPE": getattr(triton.language, precise),
            "TERMS": 8,
        }
        pointers = dict.fromkeys(("u", "delta", "B", "C", "D", "z", "bias", "out"), f"*{element}")
        pointers["rates"] = "*fp64" if precise == "float64" else "*fp32"
        kernel = triton_kernel._kernel
        signature = {name: "constexpr" if name in constants else pointers.get(name, "i32") for name in kernel.arg_names}
        options = {"num_warps": 1, "enable_fp_fusion": True}
        return compile(ASTSource(kernel, signature, constants), target=GPUTarget("cuda", 90, 32), options=options)

    return compile_kernel


@pytest.mark.parametrize(("element", "precise"), [("fp32", "float32"), ("bf16", "float32"), ("fp64", "float64")])
@pytest.mark.parametrize("absent", [(), ("D", "z", "bias")], ids=["all operands", "the needed operands"])
def test_the_kernel_compiles_for_a_gpu(compile_kernel, element, precise, absent):
    assert compile_kernel(element, precise, absent).asm["cubin"]


def test_the_states_of_a_channel_stay_in_one_lane(compile_kernel):
    # sums across lanes would go through shuffles, and values that change lanes through shared memory
    instructions = compile_kernel("bf16", "float32", reverse=True).asm["ptx"]
    assert "ex2.approx" in instructions
    assert not any(name in instructions for name in ("shfl", "st.shared", "bar.sync", "st.local"))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("case", CASES)
def test_the_kernel_on_a_gpu_equals_the_reference(given, case, direction):
    reverse = DIRECTIONS[direction]
    moved = {name: value.cuda() if isinstance(value, torch.Tensor) else value for name, value in given[case].items()}
    scanned = selective_scan(**moved, reverse=reverse, implementation="triton")
    # exp2 is approximate there
    tolerance = 1e-4 if scanned.dtype == torch.float32 else None
    assert_equals_the_reference(scanned.cpu(), given[case], reverse, tolerance)
