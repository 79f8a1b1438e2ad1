"""Fine-tuning of a pruned model, on one device or several: resumable after every epoch, the best weights kept.

Optimiser, schedule, loaders, mixup, moving average and checkpoints are timm's; devices, precision, accumulation and the
exact state are Accelerate's (``pip install "repshift[train]"``).

A run that is stopped at any moment and started again with the same command goes on after its last whole epoch. What is
random (order, canvases, augmentation, mixup, dropout) follows from the seed, the epoch and the process, so on the CPU
the weights are those of an uninterrupted run, bit for bit, with as many processes, as many loader workers and threads,
and the same versions. On a GPU they are as equal as its kernels are: not all of them are deterministic.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timm.utils import ModelEmaV3, distribute_bn, random_seed
from torch import Tensor, nn

from repshift import DataError, Recipe, RepshiftError
from repshift.analysis.finetuning.accelerators import make_accelerator
from repshift.analysis.finetuning.checkpoints import Checkpoints, Epoch, Progress
from repshift.analysis.finetuning.loaders import Data, as_raised_by_worker, load_data
from repshift.analysis.finetuning.settings import (
    TrainingSettings,
    build_models,
    create_loss,
    create_optimizer,
    create_scheduler,
)
from repshift.analysis.output.files import all_or_none, output_folder, write_text
from repshift.analysis.subjects.recipes import in_words, pruning_of
from repshift.analysis.subjects.sizes import size_option
from repshift.folders import describe_folder

# Called with what is being done, how many of its steps are done, and how many there are
Observer = Callable[[str, int, int], None]


class DivergenceError(RepshiftError, ArithmeticError):
    """A training run whose loss or weights are no longer finite."""


@dataclass(frozen=True)
class Outcome:
    """A finished run.

    Attributes:
        dense: Share of the validation images that the dense model classified rightly, with the weights as loaded.
        pruned: The same of the pruned model.
        finetuned: The same of the pruned model with the best weights.
        best_epoch: The epoch (from one) that they are from.
        weights: These weights, for ``repshift.load_model(name, checkpoint=weights)``; ``repshift.load_model(folder)``
            of their folder gives the pruned model.
        recipe: How the model is pruned.
        notes: What a user should be told of how the data were found and labelled.
    """

    dense: float
    pruned: float
    finetuned: float
    best_epoch: int
    weights: Path
    recipe: Recipe
    notes: Sequence[str] = ()


def finetune(
    settings: TrainingSettings,
    output: Path,
    *,
    digits: Path | None = None,
    workers: int = 4,
    device: str | None = None,
    resume: bool = True,
    observe: Observer = lambda what, step, steps: None,
) -> Outcome:
    """Prune a model, train it as it is pruned, and measure it before and after.

    Under ``accelerate launch`` or ``torchrun`` every process calls this; only the first one writes.

    Args:
        settings: Model, recipe, data, and how it is trained.
        output: Folder of the weights, the summary and the state to resume from, made if needed.
        digits: For the embedded data, the folder with MNIST's two t10k files; by default torchvision downloads them.
        workers: Processes that load images, for each process that trains.
        device: ``cpu`` or ``cuda``; by default a GPU if there is one.
        resume: Go on from the state in ``output`` if there is one; otherwise it is deleted.
        observe: Called after every step of training and evaluation.

    Raises:
        MissingPackageError: If Accelerate is not installed.
        DataError: If the data cannot be used, the device is not there, or the folder cannot be written to.
        CheckpointError: If the state in ``output`` cannot be read or belongs to a run with other settings.
        DivergenceError: If the loss or the weights are no longer finite; the state of the last whole epoch is kept.
        UnknownNameError: If a model, an optimiser or an augmentation does not exist.
    """
    accelerator = make_accelerator(settings, device)
    try:
        # the same in every process: a new classifier, and the order of the images
        random_seed(settings.seed)
        models = build_models(settings, accelerator.device)
        with accelerator.main_process_first():  # what has to be downloaded is downloaded once
            data = load_data(settings, models[0], digits, workers, pin_memory=accelerator.device.type == "cuda")
        if accelerator.is_main_process:
            output_folder(output)
        accelerator.wait_for_everyone()
        return FineTuning(settings, accelerator, models, data, output).run(resume, observe)
    except DataError as error:
        raise as_raised_by_worker(error) from error
    finally:
        accelerator.end_training()


def is_main_process() -> bool:
    """Say whether this process is the one that reports; launchers of several processes number them."""
    return int(os.environ.get("RANK", "0")) == 0


class FineTuning:
    """One run: models, optimiser, schedule, data and checkpoints.

    Args:
        settings: Those of a resumed run must be the same.
        accelerator: Accelerate's, for this precision and accumulation.
        models: The dense model and the pruned one, on the accelerator's device.
        data: Loaders, not yet prepared.
        output: Folder of the results.
    """

    def __init__(
        self,
        settings: TrainingSettings,
        accelerator: Any,
        models: tuple[nn.Module, nn.Module],
        data: Data,
        output: Path,
    ) -> None:
        self.settings, self.accelerator, self.data, self.output = settings, accelerator, data, output
        self.dense, self.pruned = models
        self.ema = ModelEmaV3(self.pruned, decay=settings.model_ema_decay) if settings.model_ema else None
        optimizer = create_optimizer(settings, self.pruned)
        self.model, self.optimizer, self.training, self.validation = accelerator.prepare(
            self.pruned, optimizer, data.training, data.validation
        )
        if not len(self.training):
            raise DataError(
                f"{len(data.training)} batches of {settings.batch_size} images are fewer than one for each of "
                f"{accelerator.num_processes} processes. Give a smaller --batch-size."
            )
        self.updates_an_epoch = math.ceil(len(self.training) / settings.grad_accum_steps)
        self.scheduler = create_scheduler(settings, optimizer, self.updates_an_epoch)
        self.mix, self.loss = create_loss(settings, self.pruned)
        self.checkpoints = Checkpoints(output, accelerator, self.pruned, optimizer, self.ema)

    def run(self, resume: bool, observe: Observer) -> Outcome:
        """Train to the end, from the state of an earlier run if there is one; see :func:`finetune`."""
        if not resume:
            self.checkpoints.forget()
        progress = self.checkpoints.resume(self.settings) or self._start(observe)
        for epoch in range(len(progress.epochs), self.settings.epochs):
            self._seed(epoch)
            loss = self._train_epoch(epoch, observe)
            kept = self.pruned if self.ema is None else self.ema.module
            accuracy = self._accuracy(kept, f"epoch {epoch + 1}, evaluation", observe)
            progress.epochs.append(Epoch(loss, self.optimizer.param_groups[0]["lr"], accuracy))
            self.checkpoints.save(progress)
        return self._finish(progress)

    def _start(self, observe: Observer) -> Progress:
        random_seed(self.settings.seed, self.accelerator.process_index)
        models = {"dense": self.dense, "pruned": self.pruned}
        before = {name: self._accuracy(model, f"{name}, as loaded", observe) for name, model in models.items()}
        return Progress(self.settings.as_dict(), self.accelerator.num_processes, before)

    def _seed(self, epoch: int) -> None:
        """Let everything random in an epoch follow from the seed, the epoch and the process."""
        numbers = (self.settings.seed, epoch, self.accelerator.process_index)
        random_seed(int(np.random.SeedSequence(numbers).generate_state(1)[0]))
        self.training.set_epoch(epoch)
        self.data.draw(epoch)

    def _train_epoch(self, epoch: int, observe: Observer) -> float:
        self.model.train()
        update, losses = epoch * self.updates_an_epoch, 0.0
        for step, (images, labels) in enumerate(self.training, 1):
            with self.accelerator.accumulate(self.model):
                self.scheduler.step_update(update)
                loss = self._step(images, labels)
            if self.accelerator.sync_gradients:
                update += 1
                if self.ema is not None:
                    self.ema.update(self.pruned, step=update)
            losses += loss
            observe(f"epoch {epoch + 1} of {self.settings.epochs}, loss {loss:.3f}", step, len(self.training))
        if self.accelerator.num_processes > 1:
            for model in filter(None, (self.pruned, self.ema)):
                # each process has seen other images; all evaluate, and the first one saves
                distribute_bn(model, self.accelerator.num_processes, reduce=True)
        _require_finite_weights(self.pruned)
        return losses / len(self.training)

    def _step(self, images: Tensor, labels: Tensor) -> float:
        if self.mix is not None:
            images, labels = self.mix(images, labels)
        loss = self.loss(self.model(images), labels)
        # the mean over all processes, so that all of them stop if one of them has to
        value = float(self.accelerator.reduce(loss.detach(), reduction="mean"))
        if not math.isfinite(value):
            raise DivergenceError(
                f"The loss is {value}. Give a lower --lr, --clip-grad 1 or --amp-dtype bfloat16, and --no-resume or "
                f"another --output; the state of the last whole epoch is kept in {self.output}."
            )
        self.accelerator.backward(loss)
        if self.settings.clip_grad is not None and self.accelerator.sync_gradients:
            self.accelerator.clip_grad_norm_(self.model.parameters(), self.settings.clip_grad)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return value

    def _accuracy(self, model: nn.Module, what: str, observe: Observer) -> float:
        """Return the share of the validation images that a model classifies rightly, each counted once."""
        model.eval()
        right = seen = 0
        for step, (images, labels) in enumerate(self.validation, 1):
            with torch.no_grad(), self.accelerator.autocast():
                hits = (model(images).argmax(1) == labels).long()
            # of the images that fill up the last batches of several processes, none is left in what is gathered
            hits = self.accelerator.gather_for_metrics(hits)
            right, seen = right + int(hits.sum()), seen + len(hits)
            observe(what, step, len(self.validation))
        return right / seen

    def _finish(self, progress: Progress) -> Outcome:
        best = progress.best
        target = self.output / "model_best.safetensors"
        recipe = pruning_of(self.pruned) or self.settings.recipe
        # what computed attention here may not be there where the weights go
        recipe = replace(recipe, attention=self.settings.recipe.attention)
        outcome = Outcome(
            **progress.before,
            finetuned=progress.epochs[best].accuracy,
            best_epoch=best + 1,
            weights=target,
            recipe=recipe,
            notes=self.data.notes,
        )
        if self.accelerator.is_main_process:
            settings = self.settings
            name, options = settings.built_from
            if settings.img_size or settings.input_size:
                options |= size_option(self.dense)
            summary = {
                "accuracy": {"dense": outcome.dense, "pruned": outcome.pruned, "finetuned": outcome.finetuned},
                "best_epoch": outcome.best_epoch,
                "weights": target.name,
                **{key: value for key, value in progress.as_dict().items() if key != "before"},
                "versions": {name: version(name) for name in ("repshift", "torch", "timm", "accelerate")},
            }
            with all_or_none():
                self.checkpoints.write_best(f"{settings.model}, fine-tuned with {in_words(recipe)}", target)
                describe_folder(self.output, name, recipe, **options)
                write_text(self.output / "summary.json", json.dumps(summary, indent=2) + "\n")
        self.accelerator.wait_for_everyone()
        return outcome


def _require_finite_weights(model: nn.Module) -> None:
    """Refuse to save weights that no later epoch could mend."""
    if not all(bool(tensor.isfinite().all()) for tensor in model.state_dict().values()):
        raise DivergenceError(
            "The weights are no longer finite. Give a lower --lr or --clip-grad 1, and --no-resume or another "
            "--output; the state of the last whole epoch is kept."
        )
