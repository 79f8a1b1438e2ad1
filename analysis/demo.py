"""The main job on an embedded default: prune a small ViT, show what that costs and what it keeps."""

from __future__ import annotations

import json
import logging
import platform
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import torch
from torch import Tensor, nn

from repshift import ShiftTracker, load_model
from repshift.analysis.datasets import Canvases, batches, evaluation_canvases
from repshift.analysis.figures import ImageColumn, MapColumn, dim_dropped, draw_columns, save_figure
from repshift.analysis.files import output_folder, write_text
from repshift.analysis.heatmaps import block_names, kept_mask, shift_maps
from repshift.analysis.macs import count_macs
from repshift.analysis.preprocessing import data_config, normalised, pixels
from repshift.sites import Structure, find_structure

MODEL = "tiny_vit"
SCHEDULES = ("0.2@0,2,4", "0.5@0")
SCORES = ("shift", "random", "norm")
BATCH = 50
ROUNDS = 3  # each model is timed so often, in turn with the others
SHOWN = (0, 1, 2, 3)  # canvases in the figure, in order: not chosen
SEED = 0  # of the random control


@dataclass(frozen=True)
class Result:
    """What one model did on the 2,000 canvases.

    Attributes:
        schedule: What was dropped where, as a string; "none" for the dense model.
        score: By which score.
        accuracy: Share of the canvases that are classified rightly.
        images_per_second: Median over timed batches, models taken in turn.
        gmacs: Billions of multiply-accumulates an image.
        on_digit: Share of the kept tokens that lie on the digit: their centre is in its box.
        by_chance: The same for all tokens, which is what dropping at random keeps on average.
        against_shift: Gain of the shift with the same schedule over this score, and its standard error, both in
            points of accuracy; the two models are compared canvas by canvas. ``None`` for the dense model.
    """

    schedule: str
    score: str
    accuracy: float
    images_per_second: float
    gmacs: float
    on_digit: float
    by_chance: float
    against_shift: tuple[float, float] | None = None


@dataclass(frozen=True)
class _Evaluation:
    """Which canvases were classified rightly, ``(canvases,)`` bool, and where the finally kept tokens lie."""

    right: Tensor
    on_digit: float
    by_chance: float


def run_demo(output: Path, observe: Callable[[int, int], None] = lambda done, steps: None) -> list[Result]:
    """Run the demo and write ``demo.png``, ``results.json`` and ``results.md`` to ``output``.

    Args:
        output: Folder, made if needed.
        observe: Called with the steps done and all steps.

    Returns:
        The dense model's result first, then one for each schedule and score.

    Raises:
        DataError: If the folder cannot be written to; nothing has been computed then.
    """
    output_folder(output)
    model = load_model(MODEL, pretrained=True)
    canvases = evaluation_canvases()
    settings: list[tuple[str, str]] = [("none", "none")]
    models: list[nn.Module] = [model]
    for schedule in SCHEDULES:
        for score in SCORES:
            settings.append((schedule, score))
            models.append(ShiftTracker(model).prune(schedule, score=score))
    steps = len(models) * len(canvases.images) // BATCH + ROUNDS * len(models)
    done = 0

    def step() -> None:
        nonlocal done
        done += 1
        observe(done, steps)

    torch.manual_seed(SEED)
    measured = [_evaluate(candidate, canvases, step) for candidate in models]
    speeds = _images_per_second(models, normalised(model, canvases.images[:BATCH]), step)
    size = data_config(model)["input_size"]
    by_shift = {
        schedule: evaluation.right
        for (schedule, score), evaluation in zip(settings, measured, strict=True)
        if score == "shift"
    }
    results = [
        Result(
            schedule=schedule,
            score=score,
            accuracy=int(evaluation.right.sum()) / len(evaluation.right),
            images_per_second=speed,
            gmacs=count_macs(candidate, size) / 1e9,
            on_digit=evaluation.on_digit,
            by_chance=evaluation.by_chance,
            against_shift=gain(by_shift[schedule], evaluation.right) if schedule in by_shift else None,
        )
        for (schedule, score), candidate, evaluation, speed in zip(settings, models, measured, speeds, strict=True)
    ]
    _write(results, output)
    draw_demo(model, canvases, output / "demo.png")
    return results


def gain(ours: Tensor, theirs: Tensor) -> tuple[float, float]:
    """Compare two models on the same canvases.

    Args:
        ours: Which canvases the one classifies rightly, ``(canvases,)`` bool.
        theirs: The same of the other.

    Returns:
        How many points of accuracy the first is better, and the standard error of this paired difference.
    """
    difference = 100 * (ours.float() - theirs.float())
    return float(difference.mean()), float(difference.std(unbiased=False)) / len(difference) ** 0.5


def _evaluate(model: nn.Module, canvases: Canvases, step: Callable[[], None]) -> _Evaluation:
    structure = _structure(model)
    right, on_digit, kept_tokens, by_chance = [], 0.0, 0, 0.0
    tracker = ShiftTracker(model, structure.sites[0].name)  # for the kept positions; one watched block costs little
    for images, labels, boxes in batches(canvases, BATCH):
        with tracker, torch.inference_mode():
            predicted = model(normalised(model, images)).argmax(1)
        right.append(predicted == labels)
        digit = tokens_on_digit(boxes, structure.grid((64, 64)), (64, 64))
        kept = list(tracker.kept.values())
        kept_digit = digit.gather(1, kept[-1]) if kept else digit
        on_digit += float(kept_digit.sum())
        kept_tokens += kept_digit.numel()
        by_chance += float(digit.float().mean(1).sum())
        step()
    return _Evaluation(torch.cat(right), on_digit / kept_tokens, by_chance / len(canvases.labels))


def tokens_on_digit(boxes: Tensor, grid: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """Say which tokens lie on the digit: those whose centre is in its box.

    Args:
        boxes: ``(images, 4)`` top, left, bottom, right in pixels, ends exclusive.
        grid: Rows and columns of the tokens.
        size: Rows and columns of the image in pixels.

    Returns:
        ``(images, tokens)`` bool, in row-major order.
    """
    rows, columns = ((torch.arange(count) + 0.5) * length / count for count, length in zip(grid, size, strict=True))
    top, left, bottom, right = boxes.unsqueeze(-1).unbind(1)
    in_rows = (rows >= top) & (rows < bottom)
    in_columns = (columns >= left) & (columns < right)
    return (in_rows.unsqueeze(2) & in_columns.unsqueeze(1)).flatten(1)


def _images_per_second(models: Sequence[nn.Module], batch: Tensor, step: Callable[[], None]) -> list[float]:
    """Time the models in turn, so that a machine that slows down slows all of them."""
    # importing the timer warns of a CUDA toolkit without a GPU, as if something were to be compiled
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    from torch.utils.benchmark import Timer

    seconds: list[list[float]] = [[] for _ in models]
    with torch.inference_mode():
        for _ in range(ROUNDS):
            for model, taken in zip(models, seconds, strict=True):
                timer = Timer(
                    "model(batch)", globals={"model": model, "batch": batch}, num_threads=torch.get_num_threads()
                )
                taken.append(timer.timeit(2).mean)
                step()
    return [len(batch) / median(taken) for taken in seconds]


def draw_demo(model: nn.Module, canvases: Canvases, path: Path) -> None:
    """Draw some canvases, their shift at an early, a middle and a late block, and the tokens that pruning keeps."""
    structure = _structure(model)
    inputs = normalised(model, canvases.images[list(SHOWN)])
    seen = pixels(model, inputs)
    names = block_names(model, inputs)
    maps = shift_maps(model, inputs, names)
    columns: list[ImageColumn | MapColumn] = [ImageColumn("image", seen)]
    columns += [MapColumn(f"shift, {name}", maps[name], "shift (l2)") for name in names]
    for schedule in SCHEDULES:
        pruned = ShiftTracker(model).prune(schedule)
        with ShiftTracker(pruned) as tracker, torch.inference_mode():
            pruned(inputs)
        kept = list(tracker.kept.values())[-1]
        mask = kept_mask(kept, structure.grid((seen.shape[1], seen.shape[2])))
        columns.append(ImageColumn(f"kept, {schedule}", dim_dropped(seen, mask)))
    labels = [f"digit {int(canvases.labels[index])}" for index in SHOWN]
    save_figure(draw_columns(columns, labels), path)


def verdicts(results: Sequence[Result]) -> list[str]:
    """Say in words how the shift compares with its two controls, for better or worse.

    A difference of less than two standard errors is no difference.
    """
    lines = []
    for result in results:
        if result.against_shift is not None and result.score != "shift":
            points, error = result.against_shift
            verb = "is as good as" if abs(points) <= 2 * error else "beats" if points > 0 else "LOSES to"
            lines.append(f"{result.schedule}: the shift {verb} {result.score} ({points:+.2f} points, +-{error:.2f})")
    return lines


def cells(result: Result) -> list[str]:
    """Write a result as the cells of a table, in the order of :data:`HEADINGS`."""
    return [
        result.schedule,
        result.score,
        f"{100 * result.accuracy:.1f}",
        f"{result.images_per_second:.0f}",
        f"{result.gmacs:.3f}",
        f"{100 * result.on_digit:.1f}",
        f"{100 * result.by_chance:.1f}",
    ]


HEADINGS = ("drop", "score", "accuracy %", "images/s", "GMACs", "on digit %", "chance %")
LEGEND = (
    "drop: share of the tokens @ the blocks after which they go (none: the dense model); "
    "on digit: share of the tokens kept at the end that lie on the digit; chance: that share among all tokens."
)


def _write(results: Sequence[Result], output: Path) -> None:
    environment = {
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "processor": platform.machine(),
        "batch": BATCH,
    }
    content = {"model": MODEL, "environment": environment, "results": [asdict(result) for result in results]}
    lines = [f"| {' | '.join(row)} |" for row in (HEADINGS, ["---"] * len(HEADINGS), *map(cells, results))]
    write_text(output / "results.json", json.dumps(content, indent=2) + "\n")
    write_text(output / "results.md", "\n".join(lines) + "\n")


def _structure(model: nn.Module) -> Structure:
    structure = find_structure(model)
    if structure is None:
        raise TypeError(f"the demo needs a model with a known backbone, got {type(model).__name__}")
    return structure
