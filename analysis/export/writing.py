"""A model is exported, loaded again, compared with itself, and described; the files appear together or not at all."""

from __future__ import annotations

import json
import platform
from copy import deepcopy
from dataclasses import dataclass, fields, is_dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from repshift import DataError, Recipe, UnsupportedModelError, __version__, attention, recipe_of
from repshift.analysis.output.files import all_or_none, output_file, write_text, write_whole
from repshift.analysis.output.overwriting import check_outputs
from repshift.analysis.samples.images import data_config, input_size
from repshift.analysis.subjects.limits import check_batch
from repshift.analysis.subjects.models import ModelOptions
from repshift.analysis.subjects.recipes import apply, whole_recipe
from repshift.analysis.subjects.sizes import build_model
from repshift.errors import UnknownNameError
from repshift.exporting import Batches, largest_difference
from repshift.kernels import EVERYWHERE
from repshift.programs import FORMATS, INPUT, the_format
from repshift.pruners import PRUNERS
from repshift.registry import suggest

VERSION = 1  # of the layout of the description
# Differences that rounding may make, of the largest answer. In half precision a token that nearly ties with another may
# go in its place; a program that is wrong is off by about one.
LARGEST = {"float32": 1e-3, "float16": 0.25, "bfloat16": 0.25}
PREPROCESSING = ("mean", "std", "interpolation", "crop_pct", "crop_mode")
PACKAGES = {"onnx": ("onnx", "onnxscript", "onnxruntime")}


@dataclass(frozen=True)
class Export:
    """What is asked for.

    Attributes:
        model: A name or a folder.
        given: How it is built.
        recipe: How it is pruned; ``None`` for the dense model.
        form: Any of :data:`repshift.programs.FORMATS`.
        batches: How many images at once.
        device: Where the program runs.
        precision: Of its weights and of the images that it takes, a key of :data:`LARGEST`.

    Raises:
        UnknownNameError: If there is no such precision.
        UnsupportedModelError: If the recipe draws random scores, or ONNX is asked for on a GPU, with a kernel or in
            bfloat16.
    """

    model: str
    given: ModelOptions
    recipe: Recipe | None
    form: str
    batches: Batches
    device: str = "cpu"
    precision: str = "float32"

    def __post_init__(self) -> None:
        object.__setattr__(self, "batches", self.batches.on(self.device))
        if self.precision not in LARGEST:
            raise UnknownNameError(f"Unknown --precision {self.precision!r}. {suggest(self.precision, LARGEST)}")
        if self.recipe is not None and self.recipe.scores and self.recipe.score == "random":
            raise UnsupportedModelError(
                "Random scores differ from run to run, so what is exported could not be checked. Choose another "
                "--score, or a pruner that goes by places (even, centre)."
            )
        if self.form == "onnx" and not self.device.startswith("cpu"):
            raise UnsupportedModelError(
                "A file of ONNX is for any device and is written and checked on the CPU. Leave --device out."
            )
        kernel = self.given.attention or (self.recipe and self.recipe.attention)
        if self.form == "onnx" and kernel not in (None, "eager", "sdpa"):
            raise UnsupportedModelError(
                f"What runs a file of ONNX chooses its own kernels, so {kernel!r} would say nothing. Leave --attention "
                "out; if a recipe has it, give --attention sdpa."
            )
        if self.form == "onnx" and self.precision == "bfloat16":
            raise UnsupportedModelError(
                "onnxruntime has no bfloat16 on a CPU, so the file could not be checked. Give --precision float16 or "
                "float32, or another --format."
            )

    @property
    def dtype(self) -> torch.dtype:
        """The precision, as torch calls it."""
        dtype: torch.dtype = getattr(torch, self.precision)
        return dtype


@dataclass(frozen=True)
class Written:
    """What was written.

    Attributes:
        description: The file that says what is in the other.
        difference: The largest from the model, as a share of the largest answer.
        rounding: That from the model in float32; ``None`` for a program in float32.
        lines: Python that loads and runs the program.
        remarks: What a user should know.
    """

    description: Path
    difference: float
    rounding: float | None
    lines: tuple[str, ...]
    remarks: tuple[str, ...]


def read_batches(text: str) -> Batches:
    """Read ``--batch``: ``8``, ``1:64`` or ``1:``.

    Raises:
        DataError: If it is none of these.
    """
    least, colon, most = text.partition(":")
    numbers = [least, *([most] if most else [])]
    if not all(number.isascii() and number.isdecimal() and int(number) > 0 for number in numbers):
        raise DataError(f"--batch got {text!r}, expected a number of images, as 8, or a range, as 1:64 or 1: for any.")
    fewest = int(least)
    largest = (int(most) if most else None) if colon else fewest
    for number in (fewest, *([largest] if largest else [])):
        check_batch(number, "--batch")
    if largest is not None and largest < fewest:
        raise DataError(f"--batch got {text!r}, whose end lies before its beginning. Give the fewest images first.")
    return Batches(fewest, largest)


def output_place(output: Path | None, form: str | None) -> tuple[Path, str]:
    """Settle where a program goes and its format, and check that it can be written.

    Args:
        output: What was given.
        form: The format that was asked for; by default what the ending says.

    Raises:
        UnknownNameError: If there is no such format.
        DataError: If the ending is that of none, or nothing can be written there.
    """
    by_ending = {".pt2": "pt2", ".onnx": "onnx"}
    if form is None:
        form = "pt2" if output is None else by_ending.get(output.suffix.lower(), "")
        if not form:
            raise DataError(f"--output {output} ends as no format does. Give .pt2 or .onnx, or --format too.")
    ending = the_format(form).ending
    place = Path(f"model{ending}") if output is None else output
    if place.suffix != ending:
        raise DataError(f"A file of the format {form} ends in {ending}, got --output {place}. Give that ending.")
    check_outputs("export", {"output": place})
    for path in (place, description_of(place)):
        output_file(path)
    return place, form


def description_of(place: Path) -> Path:
    """Return the file that says what is in a program."""
    return place.with_name(f"{place.name}.json")


def write(export: Export, place: Path) -> Written:
    """Build, export, check and describe a model.

    Args:
        export: What is asked for.
        place: The file of the program.

    Raises:
        RepshiftError: If the model cannot be built, pruned or exported, a package is missing, or a file cannot be
            written.
        DataError: If the program answers otherwise than the model.
    """
    recipe, remarks = compared_exactly(export.recipe)
    dense = build_model(export.model, export.given)
    made, form, batches = apply(recipe, dense).eval().to(export.device), FORMATS[export.form], export.batches
    model = made if export.precision == "float32" else deepcopy(made).to(export.dtype)
    said = _said(export, dense, model)
    imports: list[str] = []
    differences: list[float] = []
    roundings: list[float] = []

    def images(count: int) -> Tensor:
        drawn = torch.randn(count, *input_size(dense), generator=torch.Generator().manual_seed(count))
        return drawn.to(export.device, export.dtype)

    def write_and_check(unfinished: Path) -> None:
        example = images(batches.least if batches.fixed else max(2, *batches.samples))
        imports.extend(form.write(model, example, batches, unfinished, said))
        program, full = form.load(unfinished), None if model is made else _in_float32(made)
        with torch.no_grad():
            for given in map(images, batches.samples):
                answer = program(given)
                differences.append(_checked(largest_difference(answer, model(given)), export))
                if full is not None:
                    roundings.append(largest_difference(answer, full(given.float())))

    with all_or_none():
        write_whole(place, write_and_check)
        found = {"largest_difference": max(differences), "difference_from_float32": max(roundings, default=None)}
        told = {**said, "file": place.name, "imports": imports, **found}
        write_text(description_of(place), json.dumps(told, indent=2) + "\n")
    lines = [*(f"import {module}  # an operator in the program" for module in imports), *form.lines]
    located = tuple(line.format(path=repr(str(place))) for line in lines)
    return Written(description_of(place), max(differences), max(roundings, default=None), located, remarks)


def _in_float32(model: nn.Module) -> nn.Module:
    """Let attention be computed by what serves float32 everywhere, if that was chosen."""
    recipe = recipe_of(model)
    half = recipe is not None and recipe.attention is not None and recipe.attention not in EVERYWHERE
    return attention(model, "sdpa") if half else model


def _checked(difference: float, export: Export) -> float:
    """Refuse a program that answers otherwise than the model."""
    largest = LARGEST[export.precision]
    if difference > largest:
        raise DataError(
            f"The program answers otherwise than the model: by {difference:.3g} of the largest answer, more than "
            f"{largest:g}. Nothing was written; choose another --format than {export.form}, another recipe, or "
            "--precision float32."
        )
    return difference


def compared_exactly(recipe: Recipe | None) -> tuple[Recipe | None, tuple[str, ...]]:
    """Let merging compare tokens in float32, since half precision is of the machine: what it chooses would be, too.

    Returns:
        The recipe, and what is to be said of it.
    """
    if recipe is None or recipe.pruner is None:
        return recipe, ()
    pruner = PRUNERS.get(recipe.pruner) if isinstance(recipe.pruner, str) else recipe.pruner
    exact = _exact(pruner)
    if exact == pruner:
        return recipe, ()
    return replace(recipe, pruner=exact), ("tokens are compared in float32, so that every machine merges the same.",)


def _exact(pruner: Any) -> Any:
    if not is_dataclass(pruner) or isinstance(pruner, type):
        return pruner
    changed: dict[str, Any] = {}
    for field in fields(pruner):
        value = getattr(pruner, field.name)
        changed[field.name] = True if field.name == "exact" else _exact(value)
    return replace(pruner, **changed)


def _said(export: Export, dense: nn.Module, model: nn.Module) -> dict[str, Any]:
    """Say what one needs to know to use a program, in plain values."""
    config = data_config(dense)
    packages = {name: metadata.version(name) for name in ("timm", *PACKAGES.get(export.form, ()))}
    classes, recipe = getattr(dense, "num_classes", None), recipe_of(model)
    return {
        "repshift_export": VERSION,
        "model": export.model,
        "format": export.form,
        "input": INPUT,
        "input_size": list(input_size(dense)),
        "batch": str(export.batches),
        "dtype": export.precision,
        "device": export.device,
        **{name: list(value) if isinstance(value := config[name], tuple) else value for name in PREPROCESSING},
        "num_classes": classes if isinstance(classes, int) else None,
        "recipe": whole_recipe(model),
        "attention": recipe and recipe.attention,
        "versions": {
            "repshift": __version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            **packages,
        },
    }
