"""Programs of a model in files: for ``torch.export``, for AOTInductor, and in ONNX; how they are written and run.

All are captured with images of one size; the batch may vary.
"""

from __future__ import annotations

import json
import logging
import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from repshift.errors import MissingPackageError, RepshiftError, UnknownNameError, UnsupportedModelError, first_line
from repshift.registry import suggest

SAID = "repshift.json"  # what a file says of itself, where its format has a place for that
INPUT, BATCH = "images", "batch"  # names in the program
MOST_OF_ONNX = 2**31 - 2**24  # bytes of weights; a file of ONNX is one message, of which protobuf reads 2 GiB
OPERATORS = {"repshift.selective_scan": "repshift.backbones.scan.operator"}  # our own, and where they are registered
Program = Callable[[Tensor], Any]


@dataclass(frozen=True)
class Batches:
    """How many images a program takes at once.

    Attributes:
        least: The fewest.
        most: The most; ``None`` for any number. The same as ``least`` is a program for that batch alone.

    Raises:
        UnknownNameError: If these are no such numbers.
    """

    least: int = 1
    most: int | None = None

    def __post_init__(self) -> None:
        if self.least < 1 or (self.most is not None and self.most < self.least):
            raise UnknownNameError(f"A batch of {self} cannot be. Give a number from 1, or the fewest and the most.")

    @property
    def fixed(self) -> bool:
        """Whether it is one number."""
        return self.least == self.most

    @property
    def samples(self) -> tuple[int, ...]:
        """Batches to try: one for a fixed size, else two that differ."""
        further = self.least + 2 if self.most is None else min(self.most, self.least + 2)
        return (self.least,) if self.fixed else (self.least, further)

    def __str__(self) -> str:
        """Write the number, or ``1:64``; ``1:`` for any from 1."""
        return str(self.least) if self.fixed else f"{self.least}:{self.most or ''}"

    def shapes(self) -> tuple[dict[int, Any], ...] | None:
        """Say to torch which dimension of the images may vary; ``None`` if none may."""
        if self.fixed:
            return None
        return ({0: torch.export.Dim(BATCH, min=self.least, max=self.most)},)


def capture(model: nn.Module, images: Tensor, batches: Batches) -> torch.export.ExportedProgram:
    """Capture a model as a graph of torch's operations.

    Args:
        model: Dense or pruned, in evaluation mode.
        images: ``(batch, ...)``, what the model takes; two at least, unless the batch is fixed.
        batches: How many the program takes.

    Raises:
        UnsupportedModelError: If the model cannot be captured; the message says why.
    """
    with _explained(model, "pt2"), torch.no_grad(), _quiet():
        return torch.export.export(model, (images,), dynamic_shapes=batches.shapes(), strict=False)


def largest_difference(found: Any, expected: Any) -> float:
    """Compare all floating-point tensors of two answers.

    Returns:
        The largest difference, as a share of the largest number of its tensor; infinite if the shapes differ, or
        something is no number.
    """
    largest = 0.0
    for one, other in zip(_tensors(found), _tensors(expected), strict=True):
        if one.shape != other.shape:
            return math.inf
        off = float((one - other).abs().max()) / max(float(other.abs().max()), torch.finfo(other.dtype).tiny)
        largest = max(largest, off) if math.isfinite(off) else math.inf
    return largest


def _tensors(answer: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(answer) if isinstance(leaf, Tensor) and leaf.is_floating_point()]


def _modules_of(program: torch.export.ExportedProgram) -> tuple[str, ...]:
    """List the modules of the operators of our own that a program calls."""
    names = {str(node.target).removesuffix(".default") for node in program.graph.nodes if node.op == "call_function"}
    return tuple(sorted({OPERATORS[name] for name in names if name in OPERATORS}))


# --- the formats --------------------------------------------------------------------------------------------------


def write_pt2(
    model: nn.Module, images: Tensor, batches: Batches, path: Path, said: Mapping[str, Any]
) -> tuple[str, ...]:
    """Write what ``torch.export.load`` reads; see :data:`FORMATS`.

    Args:
        model: See :func:`capture`.
        images: ``(batch, ...)``, see there.
        batches: See there.
        path: Ends in ``.pt2``.
        said: Plain values to say in the file.

    Returns:
        Modules to import before it is loaded, since they have operators that it calls.

    Raises:
        UnsupportedModelError: If the model cannot be captured.
    """
    program = capture(model, images, batches)
    with _quiet():
        torch.export.save(program, path, extra_files={SAID: json.dumps(dict(said))})
    return _modules_of(program)


def write_aoti(
    model: nn.Module, images: Tensor, batches: Batches, path: Path, said: Mapping[str, Any]
) -> tuple[str, ...]:
    """Write what ``torch._inductor.aoti_load_package`` reads: compiled code for this kind of machine and its weights.

    Args:
        model: See :func:`capture`.
        images: ``(batch, ...)``, see there.
        batches: See there.
        path: Ends in ``.pt2``.
        said: Plain values to say in the file.

    Returns:
        Modules to import before it is loaded, since they have operators that it calls.

    Raises:
        MissingPackageError: If there is no compiler.
        UnsupportedModelError: If the model cannot be captured or compiled.
    """
    _require_compiler()
    program = capture(model, images, batches)
    told = {"aot_inductor.metadata": {SAID: json.dumps(dict(said))}}
    with _explained(model, "aoti"), torch.no_grad(), _quiet():
        torch._inductor.aoti_compile_and_package(program, package_path=str(path), inductor_configs=told)
    return _modules_of(program)


def write_onnx(
    model: nn.Module, images: Tensor, batches: Batches, path: Path, said: Mapping[str, Any]
) -> tuple[str, ...]:
    """Write an ONNX file, whose input is called ``images``; what is said of it are its ``metadata_props``.

    Args:
        model: See :func:`capture`.
        images: ``(batch, ...)``, see there.
        batches: See there.
        path: Ends in ``.onnx``.
        said: Plain values to say in the file.

    Returns:
        Modules to import before it is loaded, since they have operators that it calls.

    Raises:
        MissingPackageError: If a package is not installed.
        UnsupportedModelError: If the model cannot be captured, has an operation that ONNX lacks, or is too large.
    """
    _require_packages("onnx", "onnxscript")
    held = sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
    if held > MOST_OF_ONNX:
        raise UnsupportedModelError(
            f"This {type(model).__name__} holds {held / 2**30:.1f} GiB of weights, and a file of ONNX takes less than "
            "2 GiB. Choose the format pt2."
        )
    with _explained(model, "onnx"), torch.no_grad(), _quiet():
        program = torch.onnx.export(
            model,
            (images,),
            dynamo=True,
            dynamic_shapes=batches.shapes(),
            input_names=[INPUT],
            verbose=False,
            external_data=False,
        )
        assert program is not None
        program.model.metadata_props[SAID] = json.dumps(dict(said))
        program.save(str(path), external_data=False)
    return ()


def load_pt2(path: Path) -> Program:
    """Load what :func:`write_pt2` wrote."""
    program: Program = torch.export.load(path).module()
    return program


def load_aoti(path: Path) -> Program:
    """Load what :func:`write_aoti` wrote."""
    program: Program = torch._inductor.aoti_load_package(str(path))
    return program


def load_onnx(path: Path) -> Program:
    """Load what :func:`write_onnx` wrote into onnxruntime, for the CPU, with as many threads as torch has.

    Raises:
        MissingPackageError: If onnxruntime is not installed.
    """
    _require_packages("onnxruntime")
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])

    def run(images: Tensor) -> Any:
        found = [torch.from_numpy(array) for array in session.run(None, {INPUT: images.numpy()})]
        return found[0] if len(found) == 1 else tuple(found)

    return run


@dataclass(frozen=True)
class Format:
    """How programs are written, loaded and run.

    Attributes:
        ending: Of the files.
        write: Writes a program: model, images, batches, path, what is said in the file; see :func:`write_pt2`.
        load: Makes a function of images of the file.
        lines: Python that loads and runs it, with ``{path}`` for the file's name.
    """

    ending: str
    write: Callable[[nn.Module, Tensor, Batches, Path, Mapping[str, Any]], tuple[str, ...]]
    load: Callable[[Path], Program]
    lines: tuple[str, str]


FORMATS = {
    "pt2": Format(
        ".pt2",
        write_pt2,
        load_pt2,
        ("import torch; program = torch.export.load({path}).module()", "answers = program(images)"),
    ),
    "aoti": Format(
        ".pt2",
        write_aoti,
        load_aoti,
        ("import torch; program = torch._inductor.aoti_load_package({path})", "answers = program(images)"),
    ),
    "onnx": Format(
        ".onnx",
        write_onnx,
        load_onnx,
        (
            "import onnxruntime; session = onnxruntime.InferenceSession({path})",
            'answers = session.run(None, {{"images": images}})  # of NumPy',
        ),
    ),
}


def the_format(name: str) -> Format:
    """Return a format by its name.

    Raises:
        UnknownNameError: If there is none.
    """
    if name not in FORMATS:
        raise UnknownNameError(f"Unknown format {name!r}. {suggest(name, FORMATS)}")
    return FORMATS[name]


# --- what can go wrong --------------------------------------------------------------------------------------------


@contextmanager
def _explained(model: nn.Module, form: str) -> Iterator[None]:
    """Say in one line why a model cannot be exported; what the system refuses is said elsewhere."""
    try:
        yield
    except (RepshiftError, OSError, MemoryError):
        raise
    except Exception as error:  # whatever exporters raise
        while error.__cause__ is not None and isinstance(error.__cause__, Exception):  # theirs is advice of many lines
            error = error.__cause__
        raise UnsupportedModelError(
            f"This {type(model).__name__} cannot be exported as {form} ({type(error).__name__}: {first_line(error)}). "
            f"Choose another format ({', '.join(name for name in FORMATS if name != form)}) or another recipe."
        ) from error


def _require_compiler() -> None:
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except (InvalidCxxCompiler, OSError) as error:
        raise MissingPackageError(
            "AOTInductor compiles C++, and there is no compiler. Install g++ (or set CXX), or choose pt2 or onnx."
        ) from error


def _require_packages(*names: str) -> None:
    from importlib.util import find_spec

    if missing := [name for name in names if find_spec(name) is None]:
        raise MissingPackageError(
            f'ONNX needs {" and ".join(missing)}, which is not installed: pip install "repshift[onnx]".'
        )


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep what exporters tell their developers away from users."""
    names = ("torch.onnx", "torch.export", "torch.utils.cpp_extension", "onnxscript", "onnx_ir")
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
