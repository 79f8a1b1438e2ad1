"""What an evaluation is asked for: models, weights, data, precision, and what happens when something goes wrong."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch

from repshift import MODELS, DataError, Recipe, UnknownNameError
from repshift.analysis.output.partial import content_of, versions
from repshift.analysis.samples.preprocessing import OVERRIDES
from repshift.analysis.subjects.limits import check_batch, check_seed, check_seeds, check_workers
from repshift.analysis.subjects.methods import RANDOM, SEEDS
from repshift.analysis.subjects.models import own_recipe, saved_model
from repshift.analysis.subjects.recipes import settings_of
from repshift.errors import first_line
from repshift.registry import suggest

DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
ON_ERROR = ("stop", "skip")
# weights in timm that are not for ImageNet's 1,000 classes, as validate.py leaves them out
NOT_IMAGENET = ["*_in21k", "*_in22k", "*in12k", "*_dino", "*fcmae", "*seer"]


@dataclass(frozen=True)
class EvaluationSettings:
    """How models are evaluated; where timm's ``validate.py`` has an option, name and meaning are its own.

    Attributes:
        data: A folder of class folders, a tar file, the root of ``dataset``, or ``cluttered-mnist``.
        recipe: How the models are pruned; ``None`` leaves them dense, but for those in folders with a recipe of their
            own.
        methods: Names of methods that are compared at the recipe's schedule, on the same batches and with the dense
            model, see :func:`repshift.analysis.subjects.methods.choose_methods`; ``None`` evaluates the recipe alone.
        seeds: How many draws of a random score are evaluated; by default three beside other methods, else one.
        compare_dense: Evaluate the dense model on the same batches.
        preprocessing: Overrides of the model's own, see
            :func:`repshift.analysis.samples.preprocessing.evaluation_config`.
        labels: A file of labels, instead of class folders.
        suffixes: Endings of the images' files, between commas; by default timm's.
        skip_other_files: Leave out files of other endings, and say so.
        dataset_options: Passed on to :func:`timm.data.create_dataset`.
        model_options: Passed on to the model.
        attention: The kernel of its attention, see :func:`repshift.attention`.
        real_labels: A file of ImageNet's reassessed labels, or ``timm`` for those that it ships.
        valid_labels: A file with the numbers of the model's classes that the data have, one a line.
        amp_dtype: ``float16`` or ``bfloat16``, for ``amp``.
        model_dtype: Of the weights, without ``amp``.
        seed: Of ``score="random"``, and of weights that are not loaded.
        retry: Go on with a smaller batch when memory runs out.
        on_error: ``stop`` at a sample that cannot be read, or ``skip`` and count it.

    Raises:
        DataError: If settings are out of range or contradict each other.
    """

    data: str | None = None
    recipe: Recipe | None = None
    methods: tuple[str, ...] | None = None
    seeds: int | None = None
    compare_dense: bool = False
    dataset: str = ""
    split: str = "validation"
    class_map: str | None = None
    labels: str | None = None
    suffixes: str | None = None
    skip_other_files: bool = False
    num_samples: int | None = None
    dataset_options: dict[str, Any] = field(default_factory=dict)
    pretrained: bool = False
    checkpoint: str | None = None
    use_ema: bool | None = None
    model_options: dict[str, Any] = field(default_factory=dict)
    attention: str | None = None
    preprocessing: dict[str, Any] = field(default_factory=dict)
    real_labels: str | None = None
    valid_labels: str | None = None
    batch_size: int = 256
    workers: int | None = None
    amp: bool = False
    amp_dtype: str = "float16"
    model_dtype: str = "float32"
    channels_last: bool = False
    torchcompile: bool = False
    device: str | None = None
    seed: int = 42
    retry: bool = False
    on_error: str = "stop"

    def __post_init__(self) -> None:
        unknown = set(self.preprocessing) - set(OVERRIDES)
        for holds, problem in (
            (not unknown, f"Unknown preprocessing {sorted(unknown)}. Give {', '.join(OVERRIDES)}."),
            (
                self.num_samples is None or self.num_samples >= 1,
                f"{self.num_samples} samples are none. Give 1 or more (--num-samples).",
            ),
            (self.on_error in ON_ERROR, f"Unknown --on-error {self.on_error!r}. Give {' or '.join(ON_ERROR)}."),
            (
                self.amp_dtype in ("float16", "bfloat16"),
                f"Unknown --amp-dtype {self.amp_dtype!r}. Give float16 or bfloat16.",
            ),
            (self.model_dtype in DTYPES, f"Unknown --model-dtype {self.model_dtype!r}. Give {', '.join(DTYPES)}."),
            (
                self.labels is None or self.valid_labels is None,
                "--labels and --valid-labels both number the classes. Give one of them.",
            ),
            (
                not self.amp or self.model_dtype == "float32",
                f"--amp keeps the weights in float32, --model-dtype {self.model_dtype} does not. Give one of them.",
            ),
        ):
            if not holds:
                raise DataError(problem)
        check_batch(self.batch_size)
        check_workers(self.workers)
        check_seed(self.seed)
        check_seeds(self.seeds)

    def of_model(self, model: str) -> EvaluationSettings:
        """Return the settings for one model, which may be a folder with a recipe of its own.

        Raises:
            DataError: If it would be compared with itself.
            RepshiftError: If a folder cannot be read.
        """
        recipe = self.recipe or own_recipe(model)
        if self.compare_dense and self.methods is None and recipe is None:
            raise DataError(
                "--compare-dense compares a pruned model, and nothing is dropped. Give --drop or --recipe, or leave it "
                "out."
            )
        return replace(self, recipe=recipe)

    @property
    def draws(self) -> bool:
        """Whether what is dropped is drawn at random, by any method."""
        if self.methods is not None:
            return RANDOM in self.methods
        return self.recipe is not None and self.recipe.score == RANDOM

    @property
    def draws_of_each(self) -> int:
        """How many draws of a random score are evaluated."""
        return (SEEDS if self.methods else 1) if self.seeds is None else self.seeds

    def fingerprint(self, model: str, device: torch.device, processes: int) -> dict[str, Any]:
        """Return what must be the same for a resumed evaluation to end with the same result; files by content."""
        saved = saved_model(model)
        files = {"class_map": self.class_map, "checkpoint": self.checkpoint if saved is None else str(saved.weights)}
        files |= {"labels": self.labels, "valid_labels": self.valid_labels, "real_labels": self.real_labels}
        return {
            "model": model,
            "data": None if self.data is None else str(self.data),
            **{f"pruning_{name}": value for name, value in settings_of(self.recipe).items()},
            **{name: value and content_of(Path(value)) for name, value in files.items()},
            **{name: repr(getattr(self, name)) for name in _AS_GIVEN},
            # left out where it says nothing, so that runs from before it could be said are still equal
            **({} if self.attention is None else {"attention": self.attention}),
            "precision": self.precision,
            "device": device.type,
            "versions": versions(),
            # a random score is drawn batch by batch
            "batches": [self.batch_size, processes] if self.draws else None,
        }

    @property
    def precision(self) -> str:
        """Name the precision: that of autocast or of the weights."""
        return f"amp_{self.amp_dtype}" if self.amp else self.model_dtype


_AS_GIVEN = (
    "compare_dense",
    "methods",
    "draws_of_each",
    "dataset",
    "split",
    "num_samples",
    "suffixes",
    "skip_other_files",
    "dataset_options",
    "pretrained",
    "use_ema",
    "model_options",
    "preprocessing",
    "channels_last",
    "torchcompile",
    "seed",
)


def read_valid_labels(path: str | None) -> list[int] | None:
    """Read a file with one number a line.

    Raises:
        DataError: If it is missing or holds anything else.
    """
    if path is None:
        return None
    try:
        return [int(line) for line in Path(path).read_text(encoding="utf-8").split()]
    except (OSError, ValueError) as error:
        raise DataError(
            f"--valid-labels {path} cannot be read ({first_line(error)}). Give a text file with the number of one "
            "class a line."
        ) from error


def model_names(given: Sequence[str], pretrained: bool = False) -> list[str]:
    """Settle which models are evaluated.

    Args:
        given: Names, several of them between commas, patterns such as ``deit_*``, text files with one name a line, or
            ``all`` for timm's models with weights for ImageNet.
        pretrained: Patterns find models of timm that have weights only.

    Raises:
        UnknownNameError: If a pattern or a file names none.
    """
    names: list[str] = []
    for part in (part.strip() for text in given for part in text.split(",")):
        names += _resolve(part, pretrained)
    if not names:
        raise UnknownNameError("No model was given. Give a name, a pattern or a file of names (--model).")
    return list(dict.fromkeys(names))


def _resolve(text: str, pretrained: bool) -> list[str]:
    import timm

    if text == "all":
        return list(timm.list_models(pretrained=True, exclude_filters=NOT_IMAGENET))
    if any(sign in text for sign in "*?["):
        found = [name for name in MODELS.names() if fnmatchcase(name, text)]
        found += timm.list_models(text, pretrained=pretrained)
        if not found:
            raise UnknownNameError(f"No model is called like {text!r}. {suggest(text, timm.list_models())}")
        return found
    path = Path(text)
    if text in MODELS or ":" in text or timm.is_model(text.partition(".")[0]) or not path.is_file():
        return [text]
    lines = [line.strip() for line in path.read_text(encoding="utf-8", errors="replace").splitlines()]
    if names := [line for line in lines if line and not line.startswith("#")]:
        return names
    raise UnknownNameError(f"{path} names no model. Write one name a line.")
