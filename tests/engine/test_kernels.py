"""What is said of kernels that this machine has not."""

import sys
from types import ModuleType

import pytest
import torch

from repshift import UnknownNameError, UnsupportedModelError, attention, available_attention
from repshift.kernels import KERNELS, require_kernel

NO_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")


def test_every_kernel_is_listed_with_nothing_or_a_reason():
    found = available_attention("cpu")
    assert list(found) == list(KERNELS)
    assert [name for name, why in found.items() if not why] == ["eager", "sdpa", "flash", "math", "flex"]


@NO_GPU
def test_by_default_it_is_asked_for_what_there_is():
    assert available_attention() == available_attention("cpu")
    assert set(available_attention("cuda").values()) == {"there is no CUDA device"}


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("flash2", "flash-attn is not installed (pip install 'repshift[flash]')"),
        ("flash3", "flash_attn_interface cannot be imported"),
        ("flash4", "flash_attn.cute cannot be imported"),
    ],
)
def test_a_package_that_is_missing_is_named(monkeypatch, name, why):
    listed = lambda: ["FA3", "FA4"]  # noqa: E731
    monkeypatch.setattr("torch.nn.attention.list_flash_attention_impls", listed, raising=False)
    monkeypatch.setattr("repshift.kernels.find_spec", lambda package: None)
    for package in ("flash_attn", "flash_attn.cute", "flash_attn_interface"):
        monkeypatch.setitem(sys.modules, package, None)  # so that importing it fails, as if it were not there
    assert why in available_attention("cpu")[name]


def test_a_package_that_is_broken_is_named(monkeypatch):
    monkeypatch.setattr("repshift.kernels.find_spec", lambda package: object())
    monkeypatch.setitem(sys.modules, "flash_attn", None)
    assert "flash-attn cannot be imported" in available_attention("cpu")["flash2"]


def test_a_package_that_is_there_needs_a_gpu_all_the_same(monkeypatch):
    monkeypatch.setattr("repshift.kernels.find_spec", lambda package: object())
    package = ModuleType("flash_attn")  # as flash-attn-4 leaves it
    monkeypatch.setitem(sys.modules, "flash_attn", package)
    assert "there is no flash_attn_func" in available_attention("cpu")["flash2"]
    package.flash_attn_func = None
    assert available_attention("cpu")["flash2"] == "it needs a CUDA device"
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda: (7, 5))
    assert "from compute capability 8.0 on" in available_attention("cuda")["flash2"]


def test_a_torch_that_cannot_replace_its_kernel_is_named(monkeypatch):
    monkeypatch.delattr("torch.nn.attention.list_flash_attention_impls", raising=False)
    assert f"torch {torch.__version__} cannot put FA4" in available_attention("cpu")["flash4"]


def test_an_unknown_name_has_the_closest_ones(vit):
    with pytest.raises(UnknownNameError, match=r"Unknown attention 'flesh'\. Did you mean 'flash'"):
        attention(vit, "flesh")


@NO_GPU
@pytest.mark.parametrize("name", ["efficient", "cudnn"])
def test_what_no_device_here_can_do_is_refused_with_what_to_do(vit, name):
    with pytest.raises(UnsupportedModelError, match=r"cannot be had: .*CUDA device\. Choose another .attention='sdpa'"):
        attention(vit, name)


@pytest.mark.parametrize("name", ["eager", "sdpa", "flash", "math", "flex"])
def test_what_any_device_can_do_is_not_refused(name):
    require_kernel(name)
