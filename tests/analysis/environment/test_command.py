"""``repshift env``."""

import platform

import pytest
import timm
import torch

import repshift
from repshift.analysis.environment import machine
from repshift.kernels import KERNELS


def test_it_says_what_there_is_and_why_not_the_rest(run_command):
    code, out, err = run_command("env")
    assert (code, err) == (0, "")
    lines = dict(line.split(maxsplit=1) for line in out.splitlines() if line.startswith("  "))
    assert lines["repshift"] == repshift.__version__
    assert lines["torch"] == torch.__version__
    assert lines["python"] == platform.python_version()
    assert "cores" in lines["cpu"]
    assert lines.keys() >= {*KERNELS, *machine.PACKAGES}
    assert lines["flash"].startswith("on cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_kernels_of_gpus_are_said_to_need_one(run_command):
    _, out, _ = run_command("env")
    assert "no: it needs a CUDA device" in out


def test_a_package_that_is_missing_is_said_to_be(monkeypatch):
    monkeypatch.setattr(machine, "PACKAGES", ("timm", "no-such-package"))
    found = machine.versions()
    assert found["no-such-package"] == "not installed"
    assert found["timm"] == timm.__version__
