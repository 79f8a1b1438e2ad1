"""``repshift answer``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from repshift.analysis.output import options
from repshift.analysis.output.terminal import (
    note,
    note_data,
    note_draws,
    note_random_weights,
    show_table,
    with_error,
)

Row = Mapping[str, Any]


def answer(
    questions: Annotated[Path, typer.Argument(help="JSON file of the data set: questions on videos.")],
    answers: Annotated[Path, typer.Argument(help="JSON file of the answers that are chosen among.")],
    videos: options.VideosFolder,
    model: options.VideoModel,
    vocab: options.Vocabulary,
    dataset: Annotated[
        str | None,
        typer.Option(
            help="How the data are read: msrvtt-qa, msvd-qa or activitynet-qa.",
            show_default=False,
        ),
    ] = None,
    question_length: Annotated[int, typer.Option(min=2, help="Word pieces of a question.")] = 25,
    answer_length: Annotated[int, typer.Option(min=2, help="Word pieces of an answer.")] = 5,
    candidates: Annotated[int, typer.Option(help="Answers of a question that are looked at as a whole.")] = 128,
    question_batch: Annotated[int, typer.Option(min=1, help="Questions a step.")] = 4,
    frames: options.Frames = None,
    pretrained: options.Pretrained = False,
    checkpoint: options.Checkpoint = None,
    use_ema: options.UseEma = None,
    img_size: options.ImgSize = None,
    model_kwargs: options.ModelKwargs = None,
    attention: options.Attention = None,
    drop: options.Drop = None,
    drop_r: options.DropR = None,
    recipe: options.RecipeFile = None,
    score: options.Score = "shift",
    operation: options.Operation = None,
    distance: options.Distance = "l2",
    residual: options.Residual = False,
    pruner: options.Pruner = None,
    keep: options.Keep = "top",
    compare_dense: options.CompareDense = False,
    methods: options.VideoMethods = None,
    compare: options.Compare = None,
    against: options.Against = None,
    seeds: options.Seeds = None,
    batch_size: options.BatchSize = 8,
    workers: options.Workers = None,
    device: options.Device = None,
    amp: options.Amp = False,
    amp_dtype: options.AmpDtype = "float16",
    seed: Annotated[int, typer.Option(help="Of the random score and of random weights.")] = 0,
    on_error: options.OnError = "stop",
    features: options.FeaturesFolder = None,
    per_question: Annotated[
        Path | None, typer.Option(help="Write each answer here, a line each question and method.")
    ] = None,
    results_file: options.ResultsFile = None,
    results_format: options.ResultsFormat = None,
    resume: options.Resume = None,
) -> None:
    """Answer questions on videos: accuracy of the dense and of pruned models, question by question.

    On several devices: accelerate launch -m repshift answer ... (or torchrun).
    """
    from repshift.analysis.answering.measuring import Answering, measure_answers, tokenise
    from repshift.analysis.subjects.models import ModelOptions, model_options
    from repshift.analysis.video.annotations import read_answers, read_questions
    from repshift.analysis.video.inputs import TextInput
    from repshift.analysis.video.presets import preset_named
    from repshift.analysis.video.running import VideoOptions, run_on_videos
    from repshift.analysis.video.subjects import VideoSubjects
    from repshift.errors import UnknownNameError

    preset = None if dataset is None else preset_named(dataset)
    if preset is not None and not preset.asks:
        raise UnknownNameError(f"{dataset} has no questions. Give it to repshift retrieve, or another --dataset.")
    asked, listed = read_questions(questions), read_answers(answers)

    def prepare(subjects: VideoSubjects, partial: Path | None) -> Answering:
        lengths = question_length, answer_length
        (ids, mask), (answer_ids, answer_mask) = tokenise(asked, listed, vocab, lengths, TextInput.of(subjects.model))
        return Answering(
            dataset or questions.stem,
            videos,
            asked,
            listed,
            ids,
            mask,
            answer_ids,
            answer_mask,
            candidates,
            question_batch,
            partial,
        )

    given = VideoOptions(
        kind="answer",
        task="answer_log_likelihood",
        model=model,
        built=ModelOptions(
            pretrained, checkpoint, use_ema, img_size, None, model_options(None, model_kwargs), attention
        ),
        drop=drop,
        drop_r=drop_r,
        recipe=recipe,
        scored={
            "score": score,
            "operation": operation,
            "distance": distance,
            "residual": residual,
            "pruner": pruner,
            "keep": keep,
        },
        compared={
            "methods": methods,
            "files": compare or (),
            "compare_dense": compare_dense,
            "against": against or (),
            "seeds": seeds,
        },
        frames=frames or (preset.frames if preset else None),
        seconds=preset.seconds if preset else None,
        batch_size=batch_size,
        workers=workers,
        device=device,
        amp=amp,
        amp_dtype=amp_dtype,
        seed=seed,
        on_error=on_error,
        features=features,
        results_file=results_file,
        results_format=results_format,
        per_query=per_question,
        resume=resume,
    )
    if (ended := run_on_videos(given, prepare, measure_answers)) is not None:
        found, notes = ended
        note_data([*notes, *found.notes])
        _show(found.rows)
        note_random_weights(pretrained, checkpoint, model)
        for file in filter(None, (results_file, per_question)):
            note(f"results: {file}")


def _show(rows: Sequence[Row]) -> None:
    first = rows[0]
    others = [name for name in first if name.startswith("accuracy_against_") and not name.endswith("_error")]
    cells = [
        {
            "method": row["method"],
            "GMACs": f"{row['gmacs']:.2f}",
            "accuracy %": with_error(row, "accuracy"),
            **{f"- {other.partition('_against_')[2]}": with_error(row, other, sign="+") for other in others},
        }
        for row in rows
    ]
    title = f"{first['model']}, {first['dataset']}: {first['questions']} questions on {first['videos']} videos"
    show_table(title, cells)
    note(f"accuracy: the very answer, of {first['answers']} in the list; a question without its video counts as wrong.")
    note("±: standard error over questions; columns with -: less that of another method, question by question.")
    note_draws(rows, "accuracy")
