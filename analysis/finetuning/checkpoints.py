"""What a fine-tuning run leaves in its folder: the exact state to go on from, the last and the best weights."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_model, save, save_model
from timm.models import load_state_dict
from timm.utils import CheckpointSaver
from torch import nn
from torch.optim import Optimizer

from repshift import CheckpointError, DataError
from repshift.analysis.finetuning.settings import TrainingSettings
from repshift.analysis.output.files import write_text, write_whole
from repshift.errors import first_line
from repshift.files import reason

UNFINISHED = ".unfinished-state"
OF_SAVER = "tmp.pth.tar"  # what timm's saver has not finished


@dataclass(frozen=True)
class Epoch:
    """One epoch.

    Attributes:
        loss: Mean over its batches.
        lr: The learning rate of its last update.
        accuracy: Share of the validation images that the pruned model classifies rightly after it.
    """

    loss: float
    lr: float
    accuracy: float


@dataclass
class Progress:
    """How far a run has come.

    Attributes:
        settings: Those of the run, see :meth:`TrainingSettings.as_dict`.
        processes: How many processes train together.
        before: Accuracy of the weights as loaded: ``dense`` and ``pruned``.
        epochs: Those that are done.
    """

    settings: dict[str, Any]
    processes: int
    before: dict[str, float]
    epochs: list[Epoch] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, as the files of a run hold them."""
        return {"recipe": self.settings, **{key: value for key, value in asdict(self).items() if key != "settings"}}

    @classmethod
    def from_dict(cls, plain: dict[str, Any]) -> Progress:
        """Read what :meth:`as_dict` returned."""
        epochs = [Epoch(**{key: float(value) for key, value in epoch.items()}) for epoch in plain["epochs"]]
        before = {name: float(plain["before"][name]) for name in ("dense", "pruned")}
        return cls(dict(plain["recipe"]), int(plain["processes"]), before, epochs)

    @property
    def best(self) -> int:
        """The epoch (from zero) with the highest accuracy, the first of equals."""
        return max(range(len(self.epochs)), key=lambda epoch: self.epochs[epoch].accuracy)


class Checkpoints:
    """Reads and writes the folder of one run.

    After every epoch Accelerate writes weights, optimiser, loss scaler and random states into a folder, which gets its
    name ``state-N`` only when it is complete; then timm's ``CheckpointSaver`` writes ``last.pth.tar`` and, if the epoch
    was the best so far, ``model_best.pth.tar``. A run that was stopped at any moment finds the state of its last whole
    epoch, and lets the saver write its files again, since it may have been stopped in between.

    Args:
        folder: Exists and can be written to, by all processes.
        accelerator: Has prepared model, optimiser and loaders.
        model: The pruned model, unwrapped.
        optimizer: Its optimiser.
        ema: timm's moving average of the weights, if there is one.
    """

    def __init__(
        self, folder: Path, accelerator: Any, model: nn.Module, optimizer: Optimizer, ema: nn.Module | None
    ) -> None:
        self.folder, self.accelerator, self.ema = folder, accelerator, ema
        # of several epochs only the best is kept beside the last; no args, so that weights_only=True can read it
        self.saver = CheckpointSaver(model, optimizer, model_ema=ema, checkpoint_dir=str(folder), max_history=1)

    def save(self, progress: Progress) -> None:
        """Write everything after an epoch; called in every process.

        Raises:
            DataError: If it cannot be written; the state of the last epoch that was written stays usable.
        """
        with self._writing():
            self._write_state(progress)
            self._write_weights(progress)
        self.accelerator.wait_for_everyone()

    def resume(self, settings: TrainingSettings) -> Progress | None:
        """Load the state of the last whole epoch, if there is one; called in every process.

        Raises:
            CheckpointError: If it cannot be read, or was left by a run with other settings.
        """
        states = self._states()
        if not states:
            return None
        state = states[max(states)]
        advice = f"Give another --output, or --no-resume to start anew (which deletes {state})."
        progress = self._read_progress(state, settings, advice)
        try:
            self.accelerator.load_state(str(state))
            if self.ema is not None:
                load_model(self.ema, state / "ema.safetensors")
        except Exception as error:  # readers of damaged files raise what they like
            raise CheckpointError(
                f"{state} is not a readable state of this model ({first_line(error)}). {advice}"
            ) from error
        with self._writing():
            self._write_weights(progress)
        self.accelerator.wait_for_everyone()
        return progress

    def _read_progress(self, state: Path, settings: TrainingSettings, advice: str) -> Progress:
        try:
            content = json.loads((state / "progress.json").read_text(encoding="utf-8"))
            progress = Progress.from_dict(content)
            # states from before --recipe do not say which end of the scores was kept, for it was always the top
            left = {"keep": "top", **progress.settings, "processes": progress.processes}
        except Exception as error:  # of a damaged file, anything may be wrong
            raise CheckpointError(f"{state} is not a readable state of a fine-tuning run. {advice}") from error
        given = {**settings.as_dict(), "processes": self.accelerator.num_processes}
        names = [key for key in {**given, **left} if left.get(key) != given.get(key)]
        differing = [f"{key} ({left.get(key)}, now {given.get(key)})" for key in names]
        if differing:
            raise CheckpointError(f"{state} was left by a run with other {', '.join(differing)}. {advice}")
        return progress

    def forget(self) -> None:
        """Delete what an earlier run left to go on from.

        Raises:
            DataError: If it cannot be deleted.
        """
        if self.accelerator.is_main_process:
            try:
                for state in self._states().values():
                    shutil.rmtree(self.folder / UNFINISHED, ignore_errors=True)
                    state.rename(self.folder / UNFINISHED)  # half a state must not look like one
                shutil.rmtree(self.folder / UNFINISHED, ignore_errors=True)
                for path in self.folder.glob("checkpoint-*.pth.tar"):
                    path.unlink()
            except OSError as error:
                raise DataError(
                    f"Cannot delete {error.filename} ({reason(error)}). Delete it yourself, or give another --output."
                ) from error
        self.accelerator.wait_for_everyone()

    def write_best(self, model: str, target: Path) -> None:
        """Write the best epoch's weights, the moving average if there is one, as safetensors.

        Args:
            model: What the weights are, for the file's metadata.
            target: Where they go.

        Raises:
            CheckpointError: If ``model_best.pth.tar`` is not there, or damaged.
            DataError: If the weights cannot be written.
        """
        source = self.folder / "model_best.pth.tar"
        if not source.is_file():
            raise CheckpointError(f"{source} is gone. Run the command with --no-resume to train it again.")
        try:
            weights = load_state_dict(str(source), use_ema=True, weights_only=True)
            content = save({key: tensor.contiguous() for key, tensor in weights.items()}, metadata={"model": model})
        except Exception as error:  # readers of damaged files raise what they like
            raise CheckpointError(
                f"{source} is damaged ({first_line(error)}). Run the command with --no-resume to train it again."
            ) from error
        write_whole(target, lambda path: path.write_bytes(content))

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except (OSError, RuntimeError, SafetensorError) as error:
            why = reason(error) if isinstance(error, OSError) else first_line(error)
            if isinstance(error, RuntimeError):
                # torch tells of a full disk by one from its writer of archives, as of much else
                if not any(sign in why for sign in ("inline_container", "writ", "unexpected pos")):
                    raise
                why = "not all of a file could be written, as on a full disk"
            if self.accelerator.is_main_process:
                shutil.rmtree(self.folder / UNFINISHED, ignore_errors=True)
                (self.folder / OF_SAVER).unlink(missing_ok=True)
            raise DataError(
                f"The checkpoint cannot be written to {self.folder} ({why}). Make room; the same command goes on from "
                "the last whole epoch."
            ) from error

    def _states(self) -> dict[int, Path]:
        folders = {path.name.removeprefix("state-"): path for path in self.folder.glob("state-*") if path.is_dir()}
        states = {int(number): path for number, path in folders.items() if number.isdecimal()}
        if link := next((path for path in states.values() if path.is_symlink()), None):
            raise DataError(f"{link} is a link, and a run's states are folders of its own. Remove it.")
        return states

    def _write_state(self, progress: Progress) -> None:
        unfinished = self.folder / UNFINISHED
        main = self.accelerator.is_main_process
        if main:
            shutil.rmtree(unfinished, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        self.accelerator.save_state(str(unfinished))
        if main:
            if self.ema is not None:
                save_model(self.ema, str(unfinished / "ema.safetensors"))
            write_text(unfinished / "progress.json", json.dumps(progress.as_dict()))
        self.accelerator.wait_for_everyone()
        if main:
            older = self._states()
            unfinished.rename(self.folder / f"state-{len(progress.epochs)}")
            for state in older.values():
                shutil.rmtree(state, ignore_errors=True)

    def _write_weights(self, progress: Progress) -> None:
        """Let timm's saver write the weights of the last epoch, knowing what it knew before that epoch."""
        if not self.accelerator.is_main_process:
            return
        *earlier, last = (epoch.accuracy for epoch in progress.epochs)
        self.saver.best_metric, self.saver.best_epoch, self.saver.checkpoint_files = None, None, []
        if earlier:
            self.saver.best_metric = max(earlier)
            self.saver.best_epoch = earlier.index(self.saver.best_metric)
            kept = self.folder / f"checkpoint-{self.saver.best_epoch}.pth.tar"
            self.saver.checkpoint_files = [(str(kept), self.saver.best_metric)] if kept.exists() else []
        self.saver.save_checkpoint(len(earlier), metric=last)
