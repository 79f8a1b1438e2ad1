"""The models of an evaluation: dense and pruned, at the size, in the precision and on the device asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from timm.utils import random_seed
from torch import nn

from repshift import DataError, recipe_of
from repshift.analysis.evaluation.settings import DTYPES, EvaluationSettings
from repshift.analysis.samples.preprocessing import evaluation_config
from repshift.analysis.subjects.macs import count_work
from repshift.analysis.subjects.models import ModelOptions
from repshift.analysis.subjects.recipes import apply, measured_columns, method_name, schedule_of, whole_recipe
from repshift.analysis.subjects.sizes import build_model
from repshift.errors import first_line


@dataclass(frozen=True)
class Subject:
    """What is evaluated.

    Attributes:
        model: Pruned, or dense if nothing is dropped; in evaluation mode.
        dense: The dense model that it is compared with, if it is.
        classifier: The dense model as it was loaded, which knows its classes.
        config: timm's data configuration, see
            :func:`repshift.analysis.samples.preprocessing.evaluation_config`.
        classes: How many classes it tells apart.
        facts: What the results say of it, by timm's names.
    """

    model: nn.Module
    dense: nn.Module | None
    classifier: nn.Module
    config: dict[str, Any]
    classes: int
    facts: dict[str, Any]


def load_classifier(name: str, settings: EvaluationSettings) -> tuple[nn.Module, dict[str, Any]]:
    """Load a dense model and say how its images are preprocessed.

    Raises:
        RepshiftError: If there is no such model, or its weights or preprocessing cannot be had.
    """
    random_seed(settings.seed)  # weights that are not loaded are the same in every process, and after a resumption
    weights = (settings.pretrained, settings.checkpoint, settings.use_ema)
    img_size, input_size = (settings.preprocessing.get(option) for option in ("img_size", "input_size"))
    given = ModelOptions(*weights, img_size, input_size, settings.model_options)
    model = build_model(name, given)
    return model, evaluation_config(model, **settings.preprocessing)


def build_subject(name: str, settings: EvaluationSettings, device: torch.device) -> Subject:
    """Build a model as it is evaluated.

    Raises:
        RepshiftError: If it cannot be built, pruned or given this size; the message says why.
    """
    model, config = load_classifier(name, settings)
    model = model.to(device, DTYPES[settings.model_dtype])
    if settings.channels_last:
        model = model.to(memory_format=torch.channels_last)
    # pruning comes after moving: a model moved later would part from its copy's buffers
    pruned = apply(settings.recipe, model).eval()
    facts = _facts(name, model, pruned, config)
    subject = Subject(
        pruned, model if settings.compare_dense else None, model, config, getattr(model, "num_classes", 0), facts
    )
    return _compiled(subject) if settings.torchcompile else subject


def _facts(name: str, model: nn.Module, pruned: nn.Module, config: Mapping[str, Any]) -> dict[str, Any]:
    recipe = recipe_of(pruned)
    try:
        work, dense = (count_work(counted, config["input_size"]) for counted in (pruned, model))
    except (RuntimeError, AssertionError, ValueError) as error:
        raise DataError(
            f"{name} does not take images of {config['input_size']} ({type(error).__name__}: {first_line(error)}). "
            "Give another --img-size."
        ) from error
    facts = {
        "param_count": round(sum(parameter.numel() for parameter in model.parameters()) / 1e6, 2),
        "img_size": config["input_size"][-1],
        "crop_pct": config["crop_pct"],
        "interpolation": config["interpolation"],
        "method": method_name(recipe),
        "schedule": schedule_of(recipe),
        **measured_columns(pruned),
        "kept_tokens": list(work.tokens) if work.tokens is not None and recipe is not None else None,
        "gmacs": round(work.macs / 1e9, 4),
        "recipe": whole_recipe(pruned),
    }
    return facts if recipe is None else {**facts, "dense_gmacs": round(dense.macs / 1e9, 4)}


def _compiled(subject: Subject) -> Subject:
    torch._dynamo.reset()  # graphs of the models before count against the limit of recompilations
    model = cast("nn.Module", torch.compile(subject.model))
    if subject.dense is None:
        return replace(subject, model=model)
    return replace(subject, model=model, dense=cast("nn.Module", torch.compile(subject.dense)))
