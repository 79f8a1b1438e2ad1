"""``repshift zoo``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from repshift.analysis.output import options
from repshift.analysis.output.terminal import interrupted, note, progress_bar


def train(
    name: Annotated[
        str, typer.Argument(help="The model to train: tiny_vit, tiny_resnet, tiny_vim, tiny_umt or tiny_umt_qa.")
    ],
    digits: options.Digits = None,
    output: options.WeightsFolder = Path("zoo"),
    epochs: Annotated[
        int | None, typer.Option(help="Epochs of 8,000 canvases, or 4,000 videos. [default: the recipe's]")
    ] = None,
    seed: Annotated[int, typer.Option(help="Another seed gives other weights and canvases.")] = 0,
    device: options.Device = None,
) -> None:
    """Train an embedded model on Cluttered MNIST or moving digits; run again after an interruption to go on."""
    from repshift.analysis.zoo.training import train_model
    from repshift.analysis.zoo.video_training import RECIPES, train_video_model

    with progress_bar() as progress:
        task = progress.add_task(f"training {name}", total=None)

        def observe(step: int, steps: int, loss: float) -> None:
            progress.update(task, completed=step, total=steps, description=f"training {name}, loss {loss:.3f}")

        try:
            if name in RECIPES:
                video = train_video_model(
                    name, digits, output, epochs=epochs, seed=seed, device=device, observe=observe
                )
                shown = ", ".join(f"{measure} {100 * value:.1f} %" for measure, value in video.accuracies.items())
                done = f"{video.weights}: {shown}, on 400 videos"
            else:
                trained = train_model(name, digits, output, epochs=epochs, seed=seed, device=device, observe=observe)
                done = f"{trained.weights}: accuracy {100 * trained.accuracy:.1f} % on 2,000 canvases"
        except KeyboardInterrupt:
            raise interrupted(f"run the same command again to go on from the last whole epoch in {output}") from None
    note(done)
