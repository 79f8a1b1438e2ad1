"""The main job on video: prune small models for retrieval and question answering, show what that costs."""

from __future__ import annotations

import json
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from repshift import Recipe, load_model
from repshift.analysis.demo.timing import images_per_second
from repshift.analysis.heatmap.strips import moving_pictures, save_animation, strip_figure
from repshift.analysis.heatmap.videos import video_input, video_strip
from repshift.analysis.output.figures import save_figure
from repshift.analysis.output.files import all_or_none, output_folder, write_text
from repshift.analysis.output.paired import MEANING, gain, verdict
from repshift.analysis.samples.images import data_config
from repshift.analysis.samples.moving_digits import Moves
from repshift.analysis.subjects.macs import count_macs
from repshift.analysis.subjects.methods import CONTROLS, DENSE, RANDOM, SHIFT, recipe_for
from repshift.analysis.subjects.recipes import apply
from repshift.analysis.video.decoding import read_clip
from repshift.analysis.video.digit_files import write_videos
from repshift.analysis.video.frames import preprocess
from repshift.analysis.zoo.video_scores import CANDIDATES, answered, encoded, evaluation_videos, found

RETRIEVAL, ANSWERING = "tiny_umt", "tiny_umt_qa"
SCHEDULES = ("0.2@0,1,2", "0.5@0")  # after blocks counted from zero
FEWER = "fewer frames"
METHODS = (SHIFT, *CONTROLS, "mnn", FEWER)
DRAWS = 3  # of the random control, whose seeds are 0, 1, 2
TIMED = 20  # videos in a batch that is timed
# What is measured of each video, in the words of the verdicts
MEASURES = {"similar": "R@1", "matched": "matched", "answers": "answers"}


@dataclass(frozen=True)
class VideoResult:
    """What one method did on the evaluation videos.

    Attributes:
        schedule: What was dropped where, or how many frames were seen; "none" for the dense models.
        method: By what; ``fewer frames`` is the dense model on so many frames that its work is at most that of
            dropping by the shift.
        similar: R@1 by similarity, the mean of both directions; at random the mean of several draws, as all here.
        matched: The same after the best candidates were matched.
        answers: Share of the questions that are answered rightly.
        videos_per_second: Of the retrieval model's video encoder: median over timed batches, models taken in turn.
        gmacs: Billions of multiply-accumulates that this encoder spends on a video.
        against_shift: By measure, the gain of the shift over this method and its standard error, both in points; the
            two are compared video by video. Empty for the dense models.
    """

    schedule: str
    method: str
    similar: float
    matched: float
    answers: float
    videos_per_second: float
    gmacs: float
    against_shift: Mapping[str, tuple[float, float]]


@dataclass(frozen=True, eq=False)
class _Compared:
    """The models of one method, and how many frames they see."""

    schedule: str
    method: str
    retrieval: nn.Module
    answering: nn.Module
    frames: int


def run_video_demo(
    output: Path, observe: Callable[[int, int], None] = lambda done, steps: None, videos: int | None = None
) -> list[VideoResult]:
    """Run the demo on mp4 files that it makes, and write them, figures, ``video.json`` and ``video.md`` to ``output``.

    Args:
        output: Folder, made if needed.
        observe: Called with the steps done and all steps.
        videos: How many; by default all evaluation videos.

    Returns:
        The dense models' result first, then for each schedule one for each method.

    Raises:
        DataError: If the folder cannot be written to; nothing has been computed then.
        MissingPackageError: If PyAV is not installed.
    """
    output_folder(output)
    shown = evaluation_videos() if videos is None else evaluation_videos(videos)
    moves = [video.moves for video in shown]
    models = {name: load_model(name, pretrained=True) for name in (RETRIEVAL, ANSWERING)}
    compared = _compared(models[RETRIEVAL], models[ANSWERING])
    steps = len(shown) + sum(DRAWS if each.method == RANDOM else 1 for each in compared)
    done = 0

    def step(*_: int) -> None:
        nonlocal done
        done += 1
        observe(done, steps)

    files = write_videos(shown, output, step)
    inputs = {frames: read_inputs(models[RETRIEVAL], files, frames) for frames in {each.frames for each in compared}}
    measured = [_measure(each, inputs[each.frames], moves, step) for each in compared]
    speeds = images_per_second(
        [each.retrieval for each in compared], [inputs[each.frames][:TIMED] for each in compared]
    )
    by_shift = {each.schedule: values for each, values in zip(compared, measured, strict=True) if each.method == SHIFT}
    results = [
        _result(each, values, speed, by_shift.get(each.schedule))
        for each, values, speed in zip(compared, measured, speeds, strict=True)
    ]
    draw_video(models[RETRIEVAL], files[0], output)
    _write(results, output)
    return results


def draw_video(model: nn.Module, file: Path, output: Path) -> None:
    """Draw the shift over the frames of a video, and what pruning keeps, as ``video.png`` and ``video.gif``."""
    pruned = apply(Recipe(SCHEDULES[-1]), model)
    strip = video_strip(pruned, file, video_input(model), blocks=[0], kept=True)
    save_figure(strip_figure(strip), output / "video.png")
    save_animation(moving_pictures(strip), strip.times, output / "video.gif")


def read_inputs(model: nn.Module, files: Sequence[Path], frames: int) -> Tensor:
    """Read frames of video files as a model takes them, ``(videos, frames, 3, rows, columns)`` float32."""
    config = data_config(model)
    size, mean, std = config["input_size"][-1], config["mean"], config["std"]
    return torch.stack([preprocess(read_clip(file, frames), size, mean, std) for file in files])


def _compared(retrieval: Any, answering: Any) -> list[_Compared]:
    frames = retrieval.settings.vision.frames
    compared = [_Compared("none", DENSE, retrieval, answering, frames)]
    for schedule in SCHEDULES:
        recipes = {method: recipe_for(method, Recipe(schedule)) for method in METHODS if method != FEWER}
        for method, recipe in recipes.items():
            compared.append(_Compared(schedule, method, apply(recipe, retrieval), apply(recipe, answering), frames))
        fewer = frames_of_equal_work(retrieval, apply(recipes[SHIFT], retrieval))
        compared.append(_Compared(schedule, FEWER, retrieval, answering, fewer))
    return compared


def frames_of_equal_work(dense: Any, pruned: nn.Module) -> int:
    """Return of how many frames the dense model has at most the work of the pruned one on all of them."""
    most = count_macs(pruned, _size(dense, dense.settings.vision.frames))
    frames = range(1, dense.settings.vision.frames + 1)
    return max(1, *(number for number in frames if count_macs(dense, _size(dense, number)) <= most))


def _size(model: Any, frames: int) -> tuple[int, ...]:
    side = model.settings.vision.image
    return (frames, 3, side, side)


def _measure(each: _Compared, inputs: Tensor, moves: Sequence[Moves], step: Callable[[], None]) -> dict[str, Tensor]:
    """Measure every video by every measure, ``(videos,)`` float in 0..1; at random the mean of several draws."""
    draws = []
    for seed in range(DRAWS if each.method == RANDOM else 1):
        torch.manual_seed(seed)
        hits = found(each.retrieval, *encoded(each.retrieval, inputs), moves)
        right = answered(each.answering, encoded(each.answering, inputs)[0], moves)
        similar = (hits.text.float() + hits.video.float()) / 2
        matched = (hits.matched_text.float() + hits.matched_video.float()) / 2
        draws.append((similar, matched, right.float().mean(1)))
        step()
    return {name: torch.stack(values).mean(0) for name, *values in zip(MEASURES, *draws, strict=True)}


def _result(
    each: _Compared, measured: Mapping[str, Tensor], speed: float, by_shift: Mapping[str, Tensor] | None
) -> VideoResult:
    against = {} if by_shift is None else {name: gain(by_shift[name], measured[name]) for name in MEASURES}
    means = {name: float(values.double().mean()) for name, values in measured.items()}
    gmacs = count_macs(each.retrieval, _size(each.retrieval, each.frames)) / 1e9
    return VideoResult(each.schedule, each.method, **means, videos_per_second=speed, gmacs=gmacs, against_shift=against)


def verdicts(results: Sequence[VideoResult]) -> list[str]:
    """Say in words how the shift compares with the other methods, for better or worse.

    A difference of less than two standard errors is no difference.
    """
    return [
        f"{result.schedule} {words}: the shift {verdict(*result.against_shift[name], result.method)}"
        for name, words in MEASURES.items()
        for result in results
        if result.against_shift and result.method != SHIFT
    ]


def cells(result: VideoResult) -> list[str]:
    """Write a result as the cells of a table, in the order of :data:`HEADINGS`."""
    return [
        result.schedule,
        result.method,
        *(f"{100 * value:.1f}" for value in (result.similar, result.matched, result.answers)),
        f"{result.videos_per_second:.0f}",
        f"{result.gmacs:.4f}",
    ]


HEADINGS = ("drop", "method", "R@1 %", "matched %", "answers %", "videos/s", "GMACs")
LEGEND = (
    "drop: share of the tokens @ the blocks after which they go (none: the dense models); R@1: of videos that look for "
    "their captions and captions that look for their videos, the mean of both, by similarity; matched: the same after "
    f"the best {CANDIDATES} were looked at by the matching head; answers: questions answered rightly, of 14 answers; "
    f"random: mean of {DRAWS} draws; mnn: tokens are merged instead; fewer frames: the dense models on so many frames "
    f"that they have at most the GMACs of dropping. {MEANING}"
)


def _write(results: Sequence[VideoResult], output: Path) -> None:
    environment = {
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "processor": platform.machine(),
        "batch": TIMED,
    }
    content = {"environment": environment, "results": [asdict(result) for result in results]}
    rows = [HEADINGS, ["---"] * len(HEADINGS), *(cells(result) for result in results)]
    lines = [f"| {' | '.join(row)} |" for row in rows]
    with all_or_none():
        write_text(output / "video.json", json.dumps(content, indent=2) + "\n")
        write_text(output / "video.md", "\n".join(lines) + "\n")
