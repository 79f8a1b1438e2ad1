"""What a fine-tuning run is: the model, what it drops, the data, and how it is trained."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any

import torch
from timm.data import Mixup
from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from timm.optim import create_optimizer_v2, list_optimizers
from timm.scheduler import create_scheduler_v2
from timm.scheduler.scheduler import Scheduler
from torch import nn

from repshift import DataError, Recipe, UnknownNameError
from repshift.analysis.samples.canvases import CANVASES
from repshift.analysis.subjects.limits import check_batch, check_seed
from repshift.analysis.subjects.models import ModelOptions, saved_model
from repshift.analysis.subjects.recipes import apply, settings_of
from repshift.analysis.subjects.sizes import build_model
from repshift.errors import first_line
from repshift.registry import suggest

SEEDS = 1_000_000  # canvases are drawn from 1,000 times the seed plus the epoch, in NumPy's 32 bits
_ADDED = ("attention", "use_ema", "img_size", "input_size", "model_kwargs")
AMP_DTYPES = {"bfloat16": "bf16", "float16": "fp16"}  # what timm calls them, and Accelerate


@dataclass(frozen=True)
class TrainingSettings:
    """Which model is pruned how, and how it is trained; a resumed run must have the same.

    Where timm's ``train.py`` has an option, the name and the meaning are its own, with one difference: ``epochs``
    counts *all* epochs, the last ``cooldown_epochs`` of them at the lowest rate ``min_lr`` (timm adds the cool-down).
    ``batch_size`` and ``lr`` are those of one process and are not scaled by the number of processes.

    Attributes:
        model: A name that :func:`repshift.load_model` takes, or a folder with a model, whose dense weights are taken.
        recipe: How it is pruned.
        img_size: Pixels a side of the images; ``None`` for the model's own. ``input_size`` instead has channels, rows
            and columns.
        model_kwargs: Passed on to the model.
        data: A folder with ``train`` and ``validation`` (or ``val``) inside, one folder a class in each; with
            ``dataset`` its root; or the word ``cluttered-mnist`` for the embedded data.
        dataset: A dataset by timm's name and prefix, such as ``torch/cifar10`` or ``hfds/...``, instead of folders.
        suffixes: Endings of the images' files in folders, between commas; by default timm's.
        skip_other_files: Leave out files of other endings, and say so.
        opt: Any optimiser of :func:`timm.optim.list_optimizers`.
        grad_accum_steps: How many batches make one update.
        smoothing: Label smoothing; 0 is none.
        mixup: Alpha of mixup (``cutmix``: of CutMix); 0 is none.
        aa: timm's AutoAugment policy, such as ``rand-m9-mstd0.5-inc1``.
        model_ema: Evaluate and keep the moving average of the weights instead of the weights.
        amp_dtype: ``bfloat16`` or ``float16``; the latter needs a GPU.

    Raises:
        DataError: If a number is out of its range; the message names it.

    Source: arXiv 2508.00367, section 4: 100 epochs, 10 of them cool-down. It states no learning rate.
    """

    model: str
    recipe: Recipe
    data: str
    pretrained: bool = False
    checkpoint: str | None = None
    use_ema: bool | None = None
    num_classes: int | None = None
    img_size: int | None = None
    input_size: tuple[int, int, int] | None = None
    model_kwargs: dict[str, Any] | None = None
    attention: str | None = None
    dataset: str = ""
    train_split: str = "train"
    val_split: str = "validation"
    suffixes: str | None = None
    skip_other_files: bool = False
    epochs: int = 100
    cooldown_epochs: int = 10
    warmup_epochs: int = 0
    lr: float = 1e-4
    min_lr: float = 1e-6
    warmup_lr: float = 1e-6
    opt: str = "adamw"
    weight_decay: float = 0.05
    batch_size: int = 128
    grad_accum_steps: int = 1
    clip_grad: float | None = None
    smoothing: float = 0.1
    mixup: float = 0.0
    cutmix: float = 0.0
    no_aug: bool = False
    hflip: float = 0.5
    color_jitter: float = 0.4
    aa: str | None = None
    reprob: float = 0.0
    model_ema: bool = False
    model_ema_decay: float = 0.9998
    amp: bool = False
    amp_dtype: str = "bfloat16"
    seed: int = 42

    def __post_init__(self) -> None:
        for holds, problem in (*self._schedule_rules(), *self._value_rules()):
            if not holds:
                raise DataError(problem)
        check_batch(self.batch_size)
        check_seed(self.seed, SEEDS)

    def as_dict(self) -> dict[str, Any]:
        """Return all settings as plain values, those of the recipe by the names of the options.

        Raises:
            RecipeError: If the recipe cannot be written down.
        """
        own = {setting.name: getattr(self, setting.name) for setting in fields(self) if setting.name != "recipe"}
        if self.input_size is not None:
            own["input_size"] = list(self.input_size)  # as it comes back from a file
        # left out where they say nothing, so that states from before they could be said are still equal
        own = {name: value for name, value in own.items() if name not in _ADDED or value is not None}
        return {**own, **settings_of(self.recipe)}

    @property
    def built_from(self) -> tuple[str, dict[str, Any]]:
        """What builds the dense model: its name for :func:`repshift.load_model`, and its options.

        Raises:
            RepshiftError: If the model is a folder that cannot be read.
        """
        saved, own = saved_model(self.model), {} if self.num_classes is None else {"num_classes": self.num_classes}
        own |= self.model_kwargs or {}
        return (self.model, own) if saved is None else (saved.name, {**saved.options, **own})

    @property
    def mixes(self) -> bool:
        """Whether images are mixed in pairs."""
        return self.mixup > 0 or self.cutmix > 0

    @property
    def mixed_precision(self) -> str:
        """What Accelerate calls the precision of the forward."""
        return AMP_DTYPES[self.amp_dtype] if self.amp else "no"

    def _schedule_rules(self) -> list[tuple[bool, str]]:
        held = self.cooldown_epochs + self.warmup_epochs
        return [
            (self.epochs >= 1, f"{self.epochs} epochs train nothing. Give at least 1 epoch (--epochs)."),
            (
                min(self.cooldown_epochs, self.warmup_epochs) >= 0,
                f"{self.cooldown_epochs} epochs of cool-down and {self.warmup_epochs} of warm-up were given; neither "
                "can be negative.",
            ),
            (
                held < self.epochs,
                f"{self.cooldown_epochs} epochs of cool-down and {self.warmup_epochs} of warm-up leave none of "
                f"{self.epochs} between them. Give more --epochs or fewer --cooldown-epochs or --warmup-epochs.",
            ),
            (self.lr > 0, f"The learning rate {self.lr} trains nothing. Give one above 0 (--lr)."),
            (
                0 <= self.min_lr <= self.lr and 0 <= self.warmup_lr <= self.lr,
                f"--min-lr {self.min_lr} and --warmup-lr {self.warmup_lr} must lie from 0 to --lr {self.lr}.",
            ),
        ]

    def _value_rules(self) -> list[tuple[bool, str]]:
        drawn_anew = self.data == CANVASES
        shares = {"smoothing": self.smoothing, "hflip": self.hflip, "reprob": self.reprob}
        own = {field.name.replace("_", "-"): getattr(self, field.name) for field in fields(self)}
        return [
            *(
                (not isinstance(value, float) or math.isfinite(value), f"--{name} {value} is no finite number.")
                for name, value in own.items()
            ),
            (self.weight_decay >= 0, f"--weight-decay {self.weight_decay} lets weights grow. Give 0 or more."),
            (self.color_jitter >= 0, f"--color-jitter {self.color_jitter} is no strength. Give 0 (none) or more."),
            *((0 <= share <= 1, f"--{name} {share} is no share. Give 0 to 1.") for name, share in shares.items()),
            (
                self.grad_accum_steps >= 1,
                f"--grad-accum-steps {self.grad_accum_steps} makes no update. Give at least 1.",
            ),
            (self.clip_grad is None or self.clip_grad > 0, f"--clip-grad {self.clip_grad} stops every step."),
            (min(self.mixup, self.cutmix) >= 0, "--mixup and --cutmix are alphas. Give 0 (none) or more."),
            (
                not self.mixes or self.batch_size % 2 == 0,
                f"Mixing pairs the images of a batch, and {self.batch_size} is odd. Give an even --batch-size.",
            ),
            (0 < self.model_ema_decay < 1, f"--model-ema-decay {self.model_ema_decay} must lie between 0 and 1."),
            (self.amp_dtype in AMP_DTYPES, f"Unknown --amp-dtype {self.amp_dtype!r}. Give {' or '.join(AMP_DTYPES)}."),
            (
                not (drawn_anew and (self.aa or self.reprob)),
                f"The canvases of {CANVASES} are drawn anew in every epoch and not augmented. Leave out --aa and "
                "--reprob.",
            ),
            (not (drawn_anew and self.dataset), f"--data {CANVASES} is a dataset itself. Leave out --dataset."),
        ]


def build_models(settings: TrainingSettings, device: torch.device) -> tuple[nn.Module, nn.Module]:
    """Build the dense model and the pruned one, which trains the same parameters.

    Args:
        settings: Names the model, its weights, and what is dropped.
        device: Where both go; pruning comes last, because a model moved later would part from its copy's buffers.
    """
    weights = (settings.pretrained, settings.checkpoint, settings.use_ema)
    given = ModelOptions(*weights, settings.img_size, settings.input_size, settings.built_from[1], settings.attention)
    dense = build_model(settings.model, given).to(device)
    return dense, apply(settings.recipe, dense)


def create_optimizer(settings: TrainingSettings, model: nn.Module) -> torch.optim.Optimizer:
    """Create timm's optimiser of this name, without weight decay for biases and norms.

    Raises:
        UnknownNameError: If there is none; the message has the closest names.
    """
    try:
        optimizer: torch.optim.Optimizer = create_optimizer_v2(
            model, opt=settings.opt, lr=settings.lr, weight_decay=settings.weight_decay
        )
    except (ValueError, AssertionError, ImportError, RuntimeError) as error:
        raise UnknownNameError(
            f"timm cannot make the optimiser {settings.opt!r} ({first_line(error)}). "
            f"{suggest(settings.opt, map(str, list_optimizers()))}"
        ) from error
    return optimizer


def create_scheduler(settings: TrainingSettings, optimizer: torch.optim.Optimizer, updates_an_epoch: int) -> Scheduler:
    """Create timm's cosine schedule, which sets the rate of every update and ends with the cool-down."""
    scheduler: Scheduler
    scheduler, _ = create_scheduler_v2(
        optimizer,
        sched="cosine",
        num_epochs=settings.epochs - settings.cooldown_epochs,  # timm adds the cool-down
        cooldown_epochs=settings.cooldown_epochs,
        warmup_epochs=settings.warmup_epochs,
        min_lr=settings.min_lr,
        warmup_lr=settings.warmup_lr,
        step_on_epochs=False,
        updates_per_epoch=updates_an_epoch,
    )
    return scheduler


def create_loss(settings: TrainingSettings, model: nn.Module) -> tuple[Mixup | None, nn.Module]:
    """Create timm's mixup, if images are mixed, and the loss for the labels that it makes."""
    if settings.mixes:
        mix = Mixup(settings.mixup, settings.cutmix, label_smoothing=settings.smoothing, num_classes=model.num_classes)
        return mix, SoftTargetCrossEntropy()
    return None, LabelSmoothingCrossEntropy(settings.smoothing) if settings.smoothing else nn.CrossEntropyLoss()
