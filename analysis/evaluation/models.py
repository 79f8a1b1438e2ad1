"""The models of an evaluation: dense and pruned, at the size, in the precision and on the device asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from timm.utils import random_seed
from torch import nn

from repshift import DataError
from repshift.analysis.evaluation.settings import DTYPES, EvaluationSettings
from repshift.analysis.samples.preprocessing import evaluation_config
from repshift.analysis.subjects.macs import count_work
from repshift.analysis.subjects.methods import RANDOM, choose_methods, method_name
from repshift.analysis.subjects.models import ModelOptions
from repshift.analysis.subjects.recipes import apply, measured_columns, pruning_of, schedule_of, whole_recipe
from repshift.analysis.subjects.sizes import build_model
from repshift.errors import ScheduleError, first_line


@dataclass(frozen=True)
class Candidate:
    """One way to run the model of an evaluation: pruned, dense, or on a smaller input.

    Attributes:
        model: In evaluation mode.
        draws: How often it is evaluated: several times where it is drawn what goes.
        facts: What the results say of it, by timm's names.
    """

    model: nn.Module
    draws: int
    facts: dict[str, Any]


@dataclass(frozen=True)
class Subject:
    """What is evaluated.

    Attributes:
        candidates: The methods that are compared, at least one; without a comparison the model as it was asked for.
        dense: The dense model that they are compared with, if they are.
        classifier: The dense model as it was loaded, which knows its classes.
        config: timm's data configuration, see
            :func:`repshift.analysis.samples.preprocessing.evaluation_config`.
        classes: How many classes it tells apart.
        dense_facts: What the results say of the dense model, where it has a line of its own.
        remarks: What was left out, and why.
    """

    candidates: tuple[Candidate, ...]
    dense: nn.Module | None
    classifier: nn.Module
    config: dict[str, Any]
    classes: int
    dense_facts: dict[str, Any] | None = None
    remarks: tuple[str, ...] = ()

    @property
    def columns(self) -> list[tuple[int, int]]:
        """What is predicted for every sample, in order: the number of the candidate, and that of the draw."""
        numbered = enumerate(self.candidates)
        return [(place, draw) for place, candidate in numbered for draw in range(candidate.draws)]


def load_classifier(name: str, settings: EvaluationSettings) -> tuple[nn.Module, dict[str, Any]]:
    """Load a dense model and say how its images are preprocessed.

    Raises:
        RepshiftError: If there is no such model, or its weights or preprocessing cannot be had.
    """
    random_seed(settings.seed)  # weights that are not loaded are the same in every process, and after a resumption
    weights = (settings.pretrained, settings.checkpoint, settings.use_ema)
    img_size, input_size = (settings.preprocessing.get(option) for option in ("img_size", "input_size"))
    given = ModelOptions(*weights, img_size, input_size, settings.model_options, settings.attention)
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
    remarks: list[str] = []
    if settings.methods is None:
        chosen = [apply(settings.recipe, model)]
    else:
        methods, remarks = choose_methods(model, settings.recipe, settings.methods, config["input_size"])
        chosen = list(methods.values())[1:]
    candidates = tuple(_candidate(name, model, pruned.eval(), config, settings) for pruned in chosen)
    compares = settings.compare_dense or settings.methods is not None
    subject = Subject(
        candidates or (_candidate(name, model, model, config, settings),),
        model if compares and candidates else None,
        model,
        config,
        getattr(model, "num_classes", 0),
        _facts(name, model, model, config) if settings.methods is not None and candidates else None,
        tuple(remarks),
    )
    return _compiled(subject) if settings.torchcompile else subject


def _candidate(
    name: str, model: nn.Module, pruned: nn.Module, config: Mapping[str, Any], settings: EvaluationSettings
) -> Candidate:
    recipe = pruning_of(pruned)
    drawn = recipe is not None and recipe.scores and recipe.score == RANDOM
    return Candidate(pruned, settings.draws_of_each if drawn else 1, _facts(name, model, pruned, config))


def _facts(name: str, model: nn.Module, pruned: nn.Module, config: Mapping[str, Any]) -> dict[str, Any]:
    recipe = pruning_of(pruned)
    try:
        work, dense = (count_work(counted, config["input_size"]) for counted in (pruned, model))
    except ScheduleError:
        raise
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
    # all methods share the code of one class, and beyond a few graphs for it dynamo would run the rest eagerly
    limits: Any = torch._dynamo.config
    limits.recompile_limit = max(limits.recompile_limit, 4 * (len(subject.candidates) + 1))
    return replace(
        subject,
        candidates=tuple(
            replace(candidate, model=cast("nn.Module", torch.compile(candidate.model)))
            for candidate in subject.candidates
        ),
        dense=None if subject.dense is None else cast("nn.Module", torch.compile(subject.dense)),
    )
