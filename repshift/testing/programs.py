"""That a pruned model becomes a program in a file: of ONNX, which takes packages, and of AOTInductor, a compiler."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch

from repshift.exporting import Batches, largest_difference
from repshift.programs import FORMATS
from repshift.testing.subjects import BackboneError, Subject

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
            off = largest_difference(program(images), pruned(images))
            if off > ACCURACY:
                raise BackboneError(
                    f"other numbers of {name} at batch {images.shape[0]}: off by {off:.1e} of the largest at most"
                )
