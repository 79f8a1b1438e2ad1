"""What there is on this machine: versions, devices, and the kernels of attention that can be used here."""

from __future__ import annotations

import os
import platform
from importlib import metadata

import torch

from repshift import __version__, available_attention

# What is asked for its version, by the names of the distributions
PACKAGES = ("torchvision", "timm", "transformers", "flash-attn", "mamba-ssm", "triton", "onnxruntime")
MISSING = "not installed"


def versions() -> dict[str, str]:
    """Return the version of each package, or that it is missing; none is imported for it."""
    found = {"repshift": __version__, "python": platform.python_version(), "torch": torch.__version__}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = MISSING
    return found


def devices() -> dict[str, str]:
    """Describe the devices by the names that ``--device`` takes, the CPU first."""
    found = {"cpu": f"{os.cpu_count()} cores, torch computes with {torch.get_num_threads()} threads"}
    for number in range(torch.cuda.device_count()):
        known = torch.cuda.get_device_properties(number)
        memory, capability = known.total_memory / 2**30, f"{known.major}.{known.minor}"
        found[f"cuda:{number}"] = f"{known.name}, {memory:.0f} GiB, compute capability {capability}"
    return found


def kernels() -> dict[str, dict[str, str]]:
    """Say for each kind of device why each kernel of attention cannot be used there; empty where it can."""
    kinds = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)
    return {kind: available_attention(kind) for kind in kinds}
