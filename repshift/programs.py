"""Programs of a model in files: for ``torch.export``, for AOTInductor, and in ONNX; how they are written and run."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from repshift.errors import MissingPackageError, UnknownNameError, UnsupportedModelError
from repshift.exporting import Batches, capture, explained, modules_of, quiet
from repshift.registry import suggest

SAID = "repshift.json"  # what a file says of itself, where its format has a place for that
INPUT = "images"  # its name in ONNX
MOST_OF_ONNX = 2**31 - 2**24  # bytes of weights; a file of ONNX is one message, of which protobuf reads 2 GiB
Program = Callable[[Tensor], Any]


class Write(Protocol):
    """Writes a program of a model to a file."""

    def __call__(
        self, model: nn.Module, images: Tensor, batches: Batches, path: Path, said: Mapping[str, Any], /
    ) -> tuple[str, ...]:
        """Write it.

        Args:
            model: See :func:`repshift.exporting.capture`.
            images: ``(batch, ...)``, see there.
            batches: See there.
            path: Has the format's ending.
            said: Plain values to say in the file.

        Returns:
            Modules to import before it is loaded, since they have operators that it calls.

        Raises:
            MissingPackageError: If a package or a compiler is missing.
            UnsupportedModelError: If the model cannot be captured, or has what the format lacks.
        """
        ...


def write_pt2(
    model: nn.Module, images: Tensor, batches: Batches, path: Path, said: Mapping[str, Any]
) -> tuple[str, ...]:
    """Write what ``torch.export.load`` reads, for images ``(batch, ...)``; see :class:`Write`.

    Raises:
        UnsupportedModelError: If the model cannot be captured.
    """
    program = capture(model, images, batches)
    file = BytesIO()  # torch's own writer ends the process where the disk is full
    with explained(model, "pt2"), quiet():
        torch.export.save(program, file, extra_files={SAID: json.dumps(dict(said))})
    path.write_bytes(file.getbuffer())
    return modules_of(program)


def write_aoti(
    model: nn.Module, images: Tensor, batches: Batches, path: Path, said: Mapping[str, Any]
) -> tuple[str, ...]:
    """Write what ``torch._inductor.aoti_load_package`` reads: compiled code for this kind of machine and its weights.

    For images ``(batch, ...)``; see :class:`Write`.

    Raises:
        MissingPackageError: If there is no compiler.
        UnsupportedModelError: If the model cannot be captured or compiled.
    """
    _require_compiler()
    program = capture(model, images, batches, "aoti")
    told = {"aot_inductor.metadata": {SAID: json.dumps(dict(said))}}
    with tempfile.TemporaryDirectory() as folder:  # as above
        package = Path(folder) / path.name
        with explained(model, "aoti"), torch.no_grad(), quiet():
            torch._inductor.aoti_compile_and_package(program, package_path=str(package), inductor_configs=told)
        shutil.copyfile(package, path)
    return modules_of(program)


def write_onnx(
    model: nn.Module, images: Tensor, batches: Batches, path: Path, said: Mapping[str, Any]
) -> tuple[str, ...]:
    """Write an ONNX file, whose input is called ``images``; what is said of it are its ``metadata_props``.

    For images ``(batch, ...)``; see :class:`Write`.

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
    with explained(model, "onnx"), torch.no_grad(), quiet():
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
        write: Writes a program.
        load: Makes a function of images of the file.
        lines: Python that loads and runs it, with ``{path}`` for the file's name.
    """

    ending: str
    write: Write
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
