"""The state of an unfinished training run, written after every epoch."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from repshift import CheckpointError
from repshift.analysis.output.files import write_whole


@dataclass(frozen=True, eq=False)
class TrainingState:
    """Model and optimiser of a run, and the file that keeps them.

    Attributes:
        path: The file.
        model: What is trained.
        optimizer: Its optimiser.
        recipe: Settings by name; those of a resumed run must be the same.
    """

    path: Path
    model: nn.Module
    optimizer: torch.optim.Optimizer
    recipe: Mapping[str, Any]

    def save(self, epochs: int) -> None:
        """Write the state after so many epochs, in one piece.

        Raises:
            DataError: If it cannot be written; the state of the last whole epoch is kept.
        """
        state = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "epochs": epochs,
            "recipe": dict(self.recipe),
        }
        content = io.BytesIO()  # writing to a file, torch tells of a full disk by a RuntimeError, as of much else
        torch.save(state, content)
        write_whole(self.path, lambda path: path.write_bytes(content.getbuffer()))

    def resume(self, epochs: int, device: str) -> int:
        """Take up what an earlier run left.

        Args:
            epochs: Of the whole run.
            device: Where the model is.

        Returns:
            How many epochs are done; 0 if there is no state.

        Raises:
            CheckpointError: If the state cannot be read or belongs to another recipe.
        """
        if not self.path.exists():
            return 0
        advice = f"Delete {self.path} to start anew, or give another output folder."
        try:
            state = torch.load(self.path, map_location=device, weights_only=True)
            recipe, done = dict(state["recipe"]), int(state["epochs"])
            differing = [key for key, value in self.recipe.items() if recipe.get(key) != value]
            if not differing:
                self.model.load_state_dict(state["model"])
                self.optimizer.load_state_dict(state["optimizer"])
                range(epochs + 1).index(done)
        except Exception as error:  # readers of damaged files raise what they like
            raise CheckpointError(f"{self.path} is not a readable training state of this model. {advice}") from error
        if differing:
            raise CheckpointError(f"{self.path} was left by a run with other {', '.join(differing)}. {advice}")
        return done
