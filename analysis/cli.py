"""The command ``repshift``."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from repshift import __version__
from repshift.analysis.ablation.command import ablate
from repshift.analysis.answering.command import answer
from repshift.analysis.catalogue.command import models
from repshift.analysis.curves.command import curves
from repshift.analysis.demo.command import demo
from repshift.analysis.environment.command import env
from repshift.analysis.evaluation.command import evaluate
from repshift.analysis.export.command import export
from repshift.analysis.fidelity.command import fidelity
from repshift.analysis.finetuning.command import finetune
from repshift.analysis.heatmap.command import heatmap
from repshift.analysis.output.overwriting import CarefulCommand
from repshift.analysis.output.signals import unwinding_by_signals
from repshift.analysis.output.terminal import console, drop_output, escape_what_cannot_be_shown, fail
from repshift.analysis.probe.command import probe
from repshift.analysis.report.command import report
from repshift.analysis.retrieval.command import retrieve
from repshift.analysis.statistics.command import statistics
from repshift.analysis.throughput.command import bench
from repshift.analysis.zoo.command import train
from repshift.errors import RepshiftError
from repshift.files import reason

# Heavy imports (timm, matplotlib) stay inside the commands, so that --help answers at once

app = typer.Typer(
    name="repshift",
    help="Faster pretrained vision backbones without retraining: drop the tokens whose representation barely shifts.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
zoo = typer.Typer(help="The small models that ship with the package.", no_args_is_help=True)
for command in (
    *(demo, heatmap, finetune, bench, ablate, report, statistics, curves, fidelity, probe, models, export, env),
):
    app.command(cls=CarefulCommand)(command)
for of_videos in (retrieve, answer):
    app.command(cls=CarefulCommand)(of_videos)
app.command("eval", cls=CarefulCommand)(evaluate)
zoo.command(cls=CarefulCommand)(train)
app.add_typer(zoo, name="zoo")


def main() -> None:
    """Run the command line; an error that we raised on purpose is one line on standard error and exit code 1."""
    escape_what_cannot_be_shown()
    with unwinding_by_signals() as ended:
        sys.exit(ended(_run()))


def _run() -> int:
    """Run the command and return its exit code."""
    try:
        try:
            app()
        except SystemExit as ending:
            sys.stdout.flush()
            return ending.code if isinstance(ending.code, int) else int(ending.code is not None)
    except RepshiftError as error:
        return fail(str(error))
    except BrokenPipeError:
        drop_output()
        return 1
    except OSError as error:  # what the system refuses, wherever that was: a full disk, a name that is too long
        drop_output()
        place = "" if error.filename is None else f" {os.fsdecode(error.filename)}"
        return fail(f"The system refuses{place or ' what this needs'} ({reason(error)}). Give it, or something else.")
    return 0


def _version(wanted: bool) -> None:
    if wanted:
        console.print(f"repshift {__version__}", highlight=False)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    return None


if __name__ == "__main__":
    main()
