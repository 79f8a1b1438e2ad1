"""``repshift statistics``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from repshift.analysis.output import options
from repshift.analysis.output.terminal import note, note_data, note_random_weights, progress_bar
from repshift.errors import RepshiftError


def statistics(
    model: options.Model,
    data: options.Data = "cluttered-mnist",
    dataset: options.Dataset = "",
    split: options.Split = "validation",
    suffixes: options.Suffixes = None,
    skip_other_files: options.SkipOtherFiles = False,
    masks: Annotated[
        Path | None,
        typer.Option(help="Folder with a mask for each image, laid out like the data; not black is the object."),
    ] = None,
    num_samples: Annotated[int, typer.Option(min=1, help="Images, evenly spread.")] = 300,
    curve_samples: Annotated[
        int, typer.Option(min=0, help="Of these, so many whose pixels are removed; 0 leaves that out.")
    ] = 32,
    blocks: Annotated[
        str | None,
        typer.Option(help="Where matrices are drawn and pixels removed, as 0,4,8. [default: first, middle, last]"),
    ] = None,
    pretrained: options.Pretrained = False,
    checkpoint: options.Checkpoint = None,
    use_ema: options.UseEma = None,
    num_classes: options.NumClasses = None,
    img_size: options.ImgSize = None,
    input_size: options.InputSize = None,
    model_kwargs: options.ModelKwargs = None,
    attention: options.Attention = None,
    batch_size: Annotated[int, typer.Option("--batch-size", "-b", min=1, help="Images a process and step.")] = 50,
    workers: options.Workers = None,
    device: options.Device = None,
    seed: Annotated[int, typer.Option(help="Of the random score and of the noise in filled-in pixels.")] = 0,
    output: options.ResultsFolder = Path("repshift-statistics"),
) -> None:
    """Measure the shift over a data set: distributions, rank agreement, foreground, and what removing pixels does.

    On several devices: accelerate launch -m repshift statistics ... (or torchrun).
    """
    from repshift.analysis.output.files import output_folder
    from repshift.analysis.samples.data import open_samples
    from repshift.analysis.samples.processes import Processes
    from repshift.analysis.statistics.masks import masks_for
    from repshift.analysis.statistics.measuring import measure, write_study
    from repshift.analysis.statistics.study import Study
    from repshift.analysis.subjects.limits import check_batch, check_seed, check_workers
    from repshift.analysis.subjects.models import ModelOptions, model_options
    from repshift.analysis.subjects.recipes import block_numbers
    from repshift.analysis.subjects.sizes import build_model

    check_seed(seed)
    check_batch(batch_size)
    check_workers(workers)
    chosen = block_numbers(blocks)
    built = ModelOptions(
        pretrained, checkpoint, use_ema, img_size, input_size, model_options(num_classes, model_kwargs), attention
    )
    processes = Processes.join()
    try:
        with processes.together():
            if processes.first:
                output_folder(output)
            loaded = build_model(model, built)
            study = Study(loaded.to(processes.device(device)), chosen)
            source: dict[str, Any] = {"dataset": dataset, "split": split}
            source |= {"suffixes": suffixes, "skip_other_files": skip_other_files}
            samples = open_samples(loaded, data, num_samples=num_samples, labelled=False, **source)
            found = masks_for(samples, masks)
        with progress_bar(shown=processes.first) as progress:
            task = progress.add_task("", total=None)

            def observe(what: str, done: int, total: int) -> None:
                progress.update(task, description=what, completed=done, total=total)

            measure(study, samples, found, curve_samples, batch_size, workers, seed, processes, observe)
        with processes.together():
            if processes.first:
                written = write_study(study, output, model, dataset or data, processes.device(device))
    except RepshiftError:
        if not processes.first:
            raise typer.Exit(1) from None  # the first process says why
        raise
    finally:
        processes.leave()
    if not processes.first:
        return
    note_data(samples.notes)
    note_random_weights(pretrained, checkpoint, model)
    if found is None:
        note("note: nothing is known of where objects are, so nothing is said of them; give --masks.")
    note(f"{', '.join(path.name for path in written)}   in {output}")
