"""That a pruned model becomes a program in a file: of ONNX, which takes its packages, and of AOTInductor, a compiler."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch

from repshift.exporting import FORMATS, Batches
from repshift.testing.subjects import BackboneError, Subject, tensors_of

ACCURACY = 1e-5  # of the largest number


def onnx_files_prune_alike(subject: Subject) -> None:
    """Compare onnxruntime with the pruned model, at two sizes of batches.

    Raises:
        BackboneError: If they differ by more than 1e-5 of the largest number.
        MissingPackageError: If onnx, onnxscript or onnxruntime is not installed.
    """
    _files_prune_alike(subject, "onnx")


def aoti_packages_prune_alike(subject: Subject) -> None:
    """Compare what AOTInductor compiles with the pruned model, at two sizes of batches.

    Raises:
        BackboneError: If they differ by more than 1e-5 of the largest number.
        MissingPackageError: If there is no compiler.
    """
    _files_prune_alike(subject, "aoti")


def _files_prune_alike(subject: Subject, name: str) -> None:
    pruned, form = subject.pruned(), FORMATS[name]
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        path = Path(folder) / f"pruned{form.ending}"
        form.write(pruned, subject.images, Batches(), path, {})
        program = form.load(path)
        for images in (subject.images[:1], subject.images.repeat_interleave(2, 0)):
            for found, expected in zip(tensors_of(program(images)), tensors_of(pruned(images)), strict=True):
                largest = float(expected.abs().max())
                off = float((found - expected).abs().max()) if found.shape == expected.shape else torch.inf
                if not off <= ACCURACY * largest:
                    raise BackboneError(
                        f"other numbers of {name} at batch {images.shape[0]}: off by up to {off:.3g}, where the "
                        f"largest is {largest:.3g}"
                    )
