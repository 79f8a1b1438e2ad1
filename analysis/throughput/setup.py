"""How a benchmark runs a model: device, precision, attention kernel, memory format, compiler."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from repshift import Recipe, attention, recipe_of
from repshift.analysis.samples.images import input_size
from repshift.analysis.subjects.devices import choose_device
from repshift.analysis.subjects.methods import ATTENTION, PLAIN, SHIFT, recipe_for
from repshift.analysis.subjects.models import ModelOptions
from repshift.analysis.subjects.recipes import apply
from repshift.analysis.subjects.sizes import build_model
from repshift.errors import ScheduleError, UnknownNameError, UnsupportedModelError
from repshift.kernels import KERNELS
from repshift.registry import suggest

# Names of timm's benchmark: the dtype of the weights, and that of autocast
PRECISIONS = {
    "float32": (torch.float32, None),
    "bfloat16": (torch.bfloat16, None),
    "float16": (torch.float16, None),
    "amp": (torch.float32, torch.float16),
    "amp_float16": (torch.float32, torch.float16),
    "amp_bfloat16": (torch.float32, torch.bfloat16),
}
FLASH = "flash"


@dataclass(frozen=True)
class Setup:
    """How all methods of one benchmark are run.

    Attributes:
        model: A name that :func:`repshift.load_model` takes, or a folder that holds a model. Random weights take as
            long as trained ones.
        built: How it is built: weights, size of the images, settings.
        precision: Any of :data:`PRECISIONS`.
        attention: What computes attention, see :func:`repshift.attention`; ``None`` leaves it as the model has it.
        channels_last: Let the channels of images and maps lie together in memory.
        torchcompile: Compile every method.
        device: ``cpu`` or ``cuda``.

    Raises:
        UnknownNameError: If there is no such precision or attention.
        DataError: If there is no such device.
    """

    model: str
    built: ModelOptions = field(default_factory=ModelOptions)
    precision: str = "float32"
    attention: str | None = None
    channels_last: bool = False
    torchcompile: bool = False
    device: str = "cpu"

    def __post_init__(self) -> None:
        for what, given, known in (
            ("precision", self.precision, PRECISIONS),
            ("attention", self.attention, KERNELS),
        ):
            if given is not None and given not in known:
                raise UnknownNameError(f"Unknown --{what} {given!r}. {suggest(given, known)}")
        choose_device(self.device)

    def load(self) -> nn.Module:
        """Build the dense model as it is run, but not compiled.

        Raises:
            UnknownNameError: If no model has this name.
            UnsupportedModelError: If it has no attention to choose a kernel for.
        """
        model = build_model(self.model, replace(self.built, attention=self.attention))
        model = model.to(self.device, PRECISIONS[self.precision][0])
        return model.to(memory_format=torch.channels_last) if self.channels_last else model

    def input_size(self, model: nn.Module) -> tuple[int, ...]:
        """Return channels, rows and columns of the images; of videos the frames before them."""
        return input_size(model)

    def images(self, model: nn.Module, batch_size: int, frames: int | None = None) -> Tensor:
        """Draw images ``(batch, channels, rows, columns)`` as the model takes them, or videos of so many frames."""
        size = self.input_size(model) if frames is None else (frames, *self.input_size(model)[1:])
        drawn = torch.randn(batch_size, *size, generator=torch.Generator().manual_seed(0))
        drawn = drawn.to(self.device, PRECISIONS[self.precision][0])
        last = self.channels_last and drawn.ndim == 4  # each frame of a video has its channels by itself
        return drawn.contiguous(memory_format=torch.channels_last) if last else drawn

    def attention_of(self, model: nn.Module) -> str | None:
        """Name the attention that the model runs with; ``None`` if it has none."""
        recipe = recipe_of(model)
        if recipe is not None and recipe.attention is not None:
            return recipe.attention
        fused = [bool(module.fused_attn) for module in model.modules() if hasattr(module, "fused_attn")]
        return None if not fused else "sdpa" if any(fused) else "eager"

    @contextmanager
    def running(self) -> Iterator[None]:
        """Run what is inside without gradients, in this precision."""
        autocast = PRECISIONS[self.precision][1]
        with ExitStack() as stack:
            stack.enter_context(torch.inference_mode())
            if autocast is not None:
                stack.enter_context(torch.autocast(torch.device(self.device).type, autocast))
            yield


def with_plain_attention(model: nn.Module) -> nn.Module:
    """Return a copy of a model that shares its weights and holds the maps of its attention.

    Raises:
        UnsupportedModelError: If it has no attention whose kernel can be chosen.
    """
    return attention(model, PLAIN)


def as_in_the_paper(dense: nn.Module, pruned: Recipe | None) -> dict[str, nn.Module]:
    """Make the three models whose speed the paper compares, by the names of their rows.

    These are the dense model with plain attention; the same pruned by the attention score, which it takes from the maps
    that plain attention holds; and pruned by the shift with FlashAttention.

    Args:
        dense: The model, with whatever attention.
        pruned: Schedule, pruner, and what the shift measures.

    Raises:
        ScheduleError: If there is no schedule.
        UnsupportedModelError: If the model has no attention of which kernels can be chosen, or none scores.

    Source: arXiv 2508.00367, tables 1 and 2.
    """
    if pruned is None or pruned.schedule is None:
        raise ScheduleError("--paper compares what prunes. Give --drop 0.2@0,3,6, or a --recipe that drops.")
    made = {PLAIN: with_plain_attention(dense)}
    for score in ATTENTION:
        with suppress(UnsupportedModelError):
            made[f"{score} ({PLAIN})"] = attention(apply(recipe_for(score, pruned), dense), PLAIN)
            break
    else:
        raise UnsupportedModelError(
            f"{type(dense).__name__} can be scored by none of {', '.join(ATTENTION)}. Leave --paper out."
        )
    return made | {f"{SHIFT} ({FLASH})": attention(apply(recipe_for(SHIFT, pruned), dense), FLASH)}
