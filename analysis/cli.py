"""The command ``repshift``."""

from __future__ import annotations

import sys
from typing import Annotated

import typer
from rich.console import Console

from repshift import __version__
from repshift.analysis.ablation.command import ablate
from repshift.analysis.curves.command import curves
from repshift.analysis.demo.command import demo
from repshift.analysis.evaluation.command import evaluate
from repshift.analysis.finetuning.command import finetune
from repshift.analysis.heatmap.command import heatmap
from repshift.analysis.output.terminal import console
from repshift.analysis.report.command import report
from repshift.analysis.statistics.command import statistics
from repshift.analysis.throughput.command import bench
from repshift.analysis.zoo.command import train
from repshift.errors import RepshiftError

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
for command in (demo, heatmap, finetune, bench, ablate, report, statistics, curves):
    app.command()(command)
app.command("eval")(evaluate)
zoo.command()(train)
app.add_typer(zoo, name="zoo")


def main() -> None:
    """Run the command line; an error that we raised on purpose is one line on standard error and exit code 1."""
    try:
        app()
    except RepshiftError as error:
        Console(stderr=True, soft_wrap=True).print(f"error: {error}", style="red", markup=False, highlight=False)
        sys.exit(1)


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
