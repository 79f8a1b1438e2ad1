"""The main job on embedded defaults: prune a small model of each kind, show what that costs and what it keeps."""

from __future__ import annotations

import json
import math
import platform
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from repshift import Recipe, ShiftTracker, load_model, recipe_of
from repshift.analysis.demo import timing
from repshift.analysis.heatmap.maps import shift_maps
from repshift.analysis.heatmap.shown_blocks import block_names
from repshift.analysis.output.figures import ImageColumn, MapColumn, draw_columns, save_figure
from repshift.analysis.output.files import all_or_none, output_folder, write_text
from repshift.analysis.output.overlays import dim_dropped, kept_mask
from repshift.analysis.output.paired import MEANING, gain, verdict
from repshift.analysis.samples.canvases import Canvases, batches, evaluation_canvases
from repshift.analysis.samples.images import data_config, normalised, pixels
from repshift.analysis.subjects.macs import count_macs
from repshift.analysis.subjects.methods import CONTROLS, DENSE, LOWRES, RANDOM, SHIFT, choose_methods
from repshift.analysis.subjects.recipes import schedule_of, size_in_words
from repshift.finding import find_structure
from repshift.participants import cuts

# Each model with a schedule, after blocks, stages and layers counted from zero, and what is compared there
SCHEDULES = {"tiny_vit": "0.2@0,2,4", "tiny_resnet": "10@0", "tiny_vim": "0.2@0,2,4"}
METHODS = {
    "tiny_vit": (SHIFT, *CONTROLS, "mnn", LOWRES),
    "tiny_resnet": (SHIFT, *CONTROLS, "even", "centre", LOWRES),
    "tiny_vim": (SHIFT, *CONTROLS, "mnn", LOWRES),
}
BATCH = 50
SHOWN = (0, 1, 2, 3)  # canvases in the figure, in order: not chosen
DRAWS = 3  # of the random control, whose seeds are 0, 1, 2


@dataclass(frozen=True)
class Result:
    """What one model did on the 2,000 canvases.

    Attributes:
        model: Its name.
        schedule: What was dropped where, as a string, or the size of a smaller input; "none" for the dense model.
        method: By what, see :func:`repshift.analysis.subjects.methods.known_methods`.
        accuracy: Share of the canvases that are classified rightly; at random the mean of several draws.
        images_per_second: Median over timed batches, models taken in turn.
        gmacs: Billions of multiply-accumulates an image.
        on_digit: Share of the tokens (positions, for a network of feature maps) kept by the last cut that lie on the
            digit: their centre is in its box. A token that others have joined counts as one.
        by_chance: The same for all tokens there, which is what dropping at random keeps on average.
        against_shift: Gain of the shift over this method, and its standard error, both in points of accuracy; the two
            models are compared canvas by canvas. ``None`` for the dense model.
        spread: Standard deviation of the accuracy over several draws at random.
    """

    model: str
    schedule: str
    method: str
    accuracy: float
    images_per_second: float
    gmacs: float
    on_digit: float
    by_chance: float
    against_shift: tuple[float, float] | None = None
    spread: float | None = None


@dataclass(frozen=True)
class _Evaluation:
    """Which canvases were classified rightly, ``(draws, canvases)`` float, and where the finally kept tokens lie."""

    right: Tensor
    on_digit: float
    by_chance: float


def run_demo(output: Path, observe: Callable[[int, int], None] = lambda done, steps: None) -> list[Result]:
    """Run the demo and write a figure for each model, ``results.json`` and ``results.md`` to ``output``.

    Args:
        output: Folder, made if needed.
        observe: Called with the steps done and all steps.

    Returns:
        For each model the dense one's result first, then one for each method.

    Raises:
        DataError: If the folder cannot be written to; nothing has been computed then.
    """
    output_folder(output)
    canvases = evaluation_canvases()
    models = sum(1 + len(methods) for methods in METHODS.values())
    evaluated = models + len(METHODS) * (DRAWS - 1)
    steps = evaluated * math.ceil(len(canvases.images) / BATCH) + models * timing.ROUNDS
    done = 0

    def step() -> None:
        nonlocal done
        done += 1
        observe(done, steps)

    results = []
    for name in SCHEDULES:
        model = load_model(name, pretrained=True)
        results += _measure(name, model, canvases, step)
        draw_demo(name, model, canvases, output / f"{name}.png")
    _write(results, output)
    return results


def _measure(name: str, model: nn.Module, canvases: Canvases, step: Callable[[], None]) -> list[Result]:
    """Evaluate and time a model, dense and by every method."""
    size = data_config(model)["input_size"]
    models, _ = choose_methods(model, Recipe(SCHEDULES[name]), METHODS[name], size)
    measured = {
        method: _joined(
            [_evaluate(candidate, canvases, seed, step) for seed in range(DRAWS if method == RANDOM else 1)]
        )
        for method, candidate in models.items()
    }
    batch = normalised(model, canvases.images[:BATCH])
    speeds = timing.images_per_second(list(models.values()), [batch] * len(models), step)
    by_shift = measured[SHIFT].right.mean(0)
    return [
        Result(
            model=name,
            schedule=_schedule(recipe_of(candidate)),
            method=method,
            accuracy=float(found.right.double().mean()),
            images_per_second=speed,
            gmacs=count_macs(candidate, size) / 1e9,
            on_digit=found.on_digit,
            by_chance=found.by_chance,
            against_shift=None if method == DENSE else gain(by_shift, found.right.mean(0)),
            spread=float(found.right.mean(1).std()) if len(found.right) > 1 else None,
        )
        for (method, candidate), found, speed in zip(models.items(), measured.values(), speeds, strict=True)
    ]


def _schedule(recipe: Recipe | None) -> str:
    if recipe is None or recipe.input_size is None:
        return schedule_of(recipe) or "none"
    return f"{size_in_words(recipe.input_size)} px"


def _evaluate(model: nn.Module, canvases: Canvases, seed: int, step: Callable[[], None]) -> _Evaluation:
    right, on_digit, kept_tokens, by_chance = [], 0.0, 0, 0.0
    cut = _last_site(model)
    tracker = ShiftTracker(model, cut)  # for the kept positions; one watched block costs little
    torch.manual_seed(seed)
    for images, labels, boxes in batches(canvases, BATCH):
        with tracker, torch.inference_mode():
            predicted = model(normalised(model, images)).argmax(1)
        right.append((predicted == labels).float())
        rows, columns = tracker.maps[cut].shape[1:]
        digit = tokens_on_digit(boxes, (rows, columns), (images.shape[2], images.shape[3]))
        kept_digit = digit.gather(1, tracker.kept[cut]) if tracker.kept else digit
        on_digit += float(kept_digit.sum())
        kept_tokens += kept_digit.numel()
        by_chance += float(digit.float().mean(1).sum())
        step()
    return _Evaluation(torch.cat(right).unsqueeze(0), on_digit / kept_tokens, by_chance / len(canvases.labels))


def _joined(draws: Sequence[_Evaluation]) -> _Evaluation:
    """Put several draws together."""
    shares = torch.tensor([[draw.on_digit, draw.by_chance] for draw in draws], dtype=torch.float64).mean(0)
    return _Evaluation(torch.cat([draw.right for draw in draws]), float(shares[0]), float(shares[1]))


def _last_site(model: nn.Module) -> str:
    """Name where a pruned model drops last; of a dense model, its first block."""
    structure = find_structure(model)
    if structure is None:
        raise TypeError(f"the demo needs a model with a known backbone, got {type(model).__name__}")
    return [*cuts(model), structure.sites[0].name][len(cuts(model)) - 1]


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


def draw_demo(name: str, model: nn.Module, canvases: Canvases, path: Path) -> None:
    """Draw some canvases, their shift at an early, a middle and a late block, and the tokens that pruning keeps."""
    inputs = normalised(model, canvases.images[list(SHOWN)])
    seen = pixels(model, inputs)
    names = block_names(model, inputs)
    maps = shift_maps(model, inputs, names)
    columns: list[ImageColumn | MapColumn] = [ImageColumn("image", seen)]
    columns += [MapColumn(f"shift, {block}", maps[block], "shift (l2)") for block in names]
    pruned = ShiftTracker(model).prune(SCHEDULES[name])
    cut = _last_site(pruned)
    with ShiftTracker(pruned, cut) as tracker, torch.inference_mode():
        pruned(inputs)
    rows, columns_of_map = tracker.maps[cut].shape[1:]
    mask = kept_mask(tracker.kept[cut], (rows, columns_of_map))
    columns.append(ImageColumn(f"kept, {SCHEDULES[name]}", dim_dropped(seen, mask)))
    labels = [f"digit {int(canvases.labels[index])}" for index in SHOWN]
    save_figure(draw_columns(columns, labels), path)


def verdicts(results: Sequence[Result]) -> list[str]:
    """Say in words how the shift compares with the other methods, for better or worse.

    A difference of less than two standard errors is no difference.
    """
    lines = []
    for result in results:
        if result.against_shift is not None and result.method != SHIFT:
            found = verdict(*result.against_shift, result.method)
            lines.append(f"{result.model} {SCHEDULES[result.model]}: the shift {found}")
    return lines


def cells(result: Result) -> list[str]:
    """Write a result as the cells of a table, in the order of :data:`HEADINGS`."""
    spread = "" if result.spread is None else f" ± {100 * result.spread:.1f}"
    return [
        result.schedule,
        result.method,
        f"{100 * result.accuracy:.1f}{spread}",
        f"{result.images_per_second:.0f}",
        f"{result.gmacs:.3f}",
        f"{100 * result.on_digit:.1f}",
        f"{100 * result.by_chance:.1f}",
    ]


HEADINGS = ("drop", "method", "accuracy %", "images/s", "GMACs", "on digit %", "chance %")
LEGEND = (
    "drop: share of the tokens, or rows and columns of the map, @ the blocks, layers or stages after which they go "
    "(none: the dense model); random: mean and standard deviation of three draws; even, centre: lines by their places "
    "alone; mnn: tokens are merged instead; lowres: the dense model on a smaller input, for at most the GMACs of "
    "dropping; on digit: share of what the last of them keeps that lies on the digit; chance: that share among all "
    "tokens there. "
    f"{MEANING}"
)


def _write(results: Sequence[Result], output: Path) -> None:
    environment = {
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "processor": platform.machine(),
        "batch": BATCH,
    }
    content = {"environment": environment, "results": [asdict(result) for result in results]}
    headings = ("model", *HEADINGS)
    rows = [headings, ["---"] * len(headings), *([result.model, *cells(result)] for result in results)]
    lines = [f"| {' | '.join(row)} |" for row in rows]
    with all_or_none():
        write_text(output / "results.json", json.dumps(content, indent=2) + "\n")
        write_text(output / "results.md", "\n".join(lines) + "\n")
