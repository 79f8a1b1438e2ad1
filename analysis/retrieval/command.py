"""``repshift retrieve``."""

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
USUAL_LENGTH = 64  # word pieces of a text


def retrieve(
    annotations: Annotated[Path, typer.Argument(help="JSON file of the data set: which texts belong to which videos.")],
    videos: options.VideosFolder,
    model: options.VideoModel,
    vocab: options.Vocabulary,
    dataset: Annotated[
        str | None,
        typer.Option(
            help="How the data are read: msrvtt, msvd, activitynet, didemo, lsmdc, ssv2-label or ssv2-template.",
            show_default=False,
        ),
    ] = None,
    text_length: Annotated[
        int | None, typer.Option(min=2, help="Word pieces of a text. [default: the data set's, or 64]")
    ] = None,
    candidates: Annotated[int, typer.Option(help="How many are looked at twice, in either direction.")] = 128,
    pair_batch: Annotated[int, typer.Option(min=1, help="Pairs of a video and a text a step.")] = 128,
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
    per_query: Annotated[
        Path | None, typer.Option(help="Write the rank of each query here, a line each query and method.")
    ] = None,
    results_file: options.ResultsFile = None,
    results_format: options.ResultsFormat = None,
    resume: options.Resume = None,
) -> None:
    """Find texts of videos and videos of texts: recall of the dense and of pruned models, query by query.

    On several devices: accelerate launch -m repshift retrieve ... (or torchrun).
    """
    from repshift.analysis.retrieval.measuring import Retrieval, measure_retrieval, tokenise
    from repshift.analysis.retrieval.queries import Queries
    from repshift.analysis.subjects.models import ModelOptions, model_options
    from repshift.analysis.video.annotations import read_retrieval
    from repshift.analysis.video.inputs import TextInput
    from repshift.analysis.video.presets import preset_named
    from repshift.analysis.video.running import VideoOptions, run_on_videos
    from repshift.analysis.video.subjects import VideoSubjects
    from repshift.errors import UnknownNameError

    preset = None if dataset is None else preset_named(dataset)
    if preset is not None and preset.asks:
        raise UnknownNameError(f"{dataset} is a set of questions. Give it to repshift answer, or another --dataset.")
    queries = Queries.of(read_retrieval(annotations, preset))

    def prepare(subjects: VideoSubjects, partial: Path | None) -> Retrieval:
        taken = TextInput.of(subjects.model)
        length = text_length or (preset.text_length if preset else min(USUAL_LENGTH, taken.length or USUAL_LENGTH))
        ids, mask = tokenise(queries, vocab, length, taken)
        return Retrieval(dataset or annotations.stem, videos, queries, ids, mask, candidates, pair_batch, partial)

    given = VideoOptions(
        kind="retrieve",
        task="match",
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
        per_query=per_query,
        resume=resume,
    )
    if (ended := run_on_videos(given, prepare, measure_retrieval)) is not None:
        found, notes = ended
        note_data([*notes, *found.notes])
        _show(found.rows)
        note_random_weights(pretrained, checkpoint, model)
        for file in filter(None, (results_file, per_query)):
            note(f"results: {file}")


def _show(rows: Sequence[Row]) -> None:
    first = rows[0]
    others = [name for name in first if name.startswith("t2v_r1_against_") and not name.endswith("_error")]
    cells = []
    for row in rows:
        shown = {"method": row["method"], "GMACs": f"{row['gmacs']:.2f}"}
        for direction, heading in (("t2v", "T2V"), ("v2t", "V2T")):
            shown[f"{heading} R@1"] = with_error(row, f"{direction}_r1")
            shown[f"{heading} R@5, R@10"] = f"{row[f'{direction}_r5']:.2f}, {row[f'{direction}_r10']:.2f}"
        shown["mean R@1"] = with_error(row, "mean_r1")
        shown["harmonic"] = f"{row['harmonic_r1']:.2f}"
        shown["ITC alone T2V, V2T"] = f"{row['t2v_r1_emb']:.2f}, {row['v2t_r1_emb']:.2f}"
        for other in others:
            name = other.partition("_against_")[2]
            shown[f"T2V - {name}"] = with_error(row, other, sign="+")
            shown[f"V2T - {name}"] = with_error(row, other.replace("t2v", "v2t"), sign="+")
        cells.append(shown)
    title = f"{first['model']}, {first['dataset']}: {first['videos']} videos, {first['texts']} texts"
    show_table(title, cells)
    note(f"R@1 in %, after the matching head has looked at the best {first['candidates']} of either direction.")
    note("±: standard error over queries; columns with -: less that of another method, query by query.")
    note("mean: of both directions, which the paper's column fits (it says harmonic).")
    note_draws(rows, "t2v_r1")
