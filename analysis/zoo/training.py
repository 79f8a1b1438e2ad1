"""Training of the embedded zoo on Cluttered MNIST: seeded, resumable after every epoch."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import save
from timm.optim import create_optimizer_v2
from timm.scheduler.cosine_lr import CosineLRScheduler
from torch import Tensor, nn
from torch.utils.data import DataLoader

from repshift import DataError, UnknownNameError, load_model
from repshift.analysis.output.files import all_or_none, output_folder, write_text, write_whole
from repshift.analysis.samples.canvases import (
    CANVAS,
    PIECE,
    PIECES,
    TRAINING_DIGITS,
    Canvases,
    ClutteredDigits,
    Digits,
    batches,
    download_digits,
    evaluation_canvases,
    training_digits,
)
from repshift.analysis.samples.images import normalised
from repshift.analysis.subjects.devices import choose_device
from repshift.analysis.subjects.limits import check_seed
from repshift.analysis.zoo.state import TrainingState
from repshift.loading import ZOO
from repshift.registry import suggest


@dataclass(frozen=True)
class ZooSettings:
    """How an embedded model is trained: AdamW, cosine schedule with warm-up, label smoothing, fresh canvases.

    Every epoch shows each training digit once, on a canvas that no other epoch shows. Learning rates are per step of
    ``batch`` canvases; ``clip_norm`` bounds the norm of the gradient.
    """

    epochs: int = 50
    warmup_epochs: int = 2
    batch: int = 50
    learning_rate: float = 1e-3
    final_learning_rate: float = 1e-6
    weight_decay: float = 0.05
    label_smoothing: float = 0.1
    clip_norm: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.epochs < 1:
            raise DataError(f"A recipe of {self.epochs} epochs trains nothing. Give at least 1 epoch.")
        check_seed(self.seed, SEEDS)


SEEDS = 1_000_000  # an epoch's canvases are drawn from 1,000 times the seed plus the epoch, in NumPy's 32 bits

# Called after every step with the steps done, all steps, and the loss
Observer = Callable[[int, int, float], None]


@dataclass(frozen=True)
class Trained:
    """A finished training run: where the weights are and how well they do on the 2,000 evaluation canvases."""

    weights: Path
    accuracy: float


def train_model(
    name: str,
    digits: Path | None,
    output: Path,
    *,
    epochs: int | None = None,
    seed: int = 0,
    device: str | None = None,
    observe: Observer = lambda step, steps, loss: None,
) -> Trained:
    """Train an embedded model, evaluate it, and write ``NAME.safetensors`` and its model card ``NAME.md``.

    Args:
        name: A model of the zoo, such as ``tiny_vit``.
        digits: Folder with MNIST's two t10k files; by default torchvision downloads them.
        output: Folder of the results and of the state to resume from, made if needed.
        epochs: How often each of the 8,000 digits is shown; by default what the recipe says.
        seed: Another seed gives other weights and other canvases.
        device: Where to train; by default a GPU if there is one.
        observe: Called after every step.

    Raises:
        UnknownNameError: If the zoo has no such model.
        DataError: If the digits cannot be read, the folder cannot be written to, or the device does not exist.
        CheckpointError: If the state left by an earlier run cannot be read or belongs to another recipe.
    """
    if name not in ZOO:
        raise UnknownNameError(f"The zoo has no model {name!r}. {suggest(name, ZOO)}")
    device = str(choose_device(device, ("cpu", "cuda", "mps", "xpu")))
    recipe = ZooSettings(seed=seed) if epochs is None else ZooSettings(seed=seed, epochs=epochs)
    trainer = Trainer(name, training_digits(digits or download_digits()), output, recipe, device)
    accuracy = 0.0

    def describe(model: nn.Module) -> None:
        nonlocal accuracy
        accuracy = canvas_accuracy(model.to("cpu"), evaluation_canvases())
        write_text(output / f"{name}.md", model_card(name, model, recipe, accuracy))

    trainer.train(observe, describe)
    return Trained(trainer.weights, accuracy)


class Trainer:
    """One training run: the model, its optimiser and schedule, and where its state is kept.

    Args:
        name: A model of the zoo, such as ``tiny_vit``.
        digits: Shown on the canvases, one each an epoch.
        output: Folder of the results, made if needed.
        recipe: Settings; those of a resumed run must be the same.
        device: Where to train.
    """

    def __init__(self, name: str, digits: Digits, output: Path, recipe: ZooSettings, device: str = "cpu") -> None:
        torch.manual_seed(recipe.seed)
        self.name, self.digits, self.recipe, self.device = name, digits, recipe, device
        self.model = load_model(name).to(device)
        self.optimizer = create_optimizer_v2(
            self.model, opt="adamw", lr=recipe.learning_rate, weight_decay=recipe.weight_decay
        )
        self.steps_an_epoch = math.ceil(len(digits.images) / recipe.batch)
        self.steps = recipe.epochs * self.steps_an_epoch
        self.scheduler = CosineLRScheduler(
            self.optimizer,
            t_initial=self.steps,
            lr_min=recipe.final_learning_rate,
            warmup_t=recipe.warmup_epochs * self.steps_an_epoch,
            warmup_lr_init=recipe.final_learning_rate,
            t_in_epochs=False,
        )
        self.loss = nn.CrossEntropyLoss(label_smoothing=recipe.label_smoothing)
        output_folder(output)
        self.state = TrainingState(output / f"{name}.training.pt", self.model, self.optimizer, asdict(recipe))
        self.weights = output / f"{name}.safetensors"

    def train(
        self,
        observe: Observer = lambda step, steps, loss: None,
        describe: Callable[[nn.Module], object] = lambda model: None,
    ) -> nn.Module:
        """Train to the end and write the weights as safetensors, in one piece with what ``describe`` writes.

        The whole state is saved after every epoch. If an earlier run left one, training goes on from it and reaches
        the same weights as an uninterrupted run on the same machine; it is removed at the end.

        Raises:
            CheckpointError: If the state left behind cannot be read or belongs to another recipe.
            DataError: If something cannot be written; the state of the last whole epoch is kept.
        """
        for epoch in range(self.state.resume(self.recipe.epochs, self.device), self.recipe.epochs):
            self._train_epoch(epoch, observe)
            self.state.save(epoch + 1)
        self.model.eval()
        weights = {key: tensor.detach().cpu().contiguous() for key, tensor in self.model.state_dict().items()}
        content = save(weights, metadata={"model": self.name})
        with all_or_none():
            write_whole(self.weights, lambda path: path.write_bytes(content))
            describe(self.model)
        self.state.path.unlink(missing_ok=True)
        return self.model

    def _train_epoch(self, epoch: int, observe: Observer) -> None:
        self.model.train()
        # canvases and order follow from seed and epoch alone, so a resumed run sees what an uninterrupted one sees
        seed = 1_000 * self.recipe.seed + epoch
        loader = DataLoader(
            ClutteredDigits(self.digits, seed),
            batch_size=self.recipe.batch,
            shuffle=True,
            generator=torch.Generator().manual_seed(seed),
        )
        for batch, (images, labels, _) in enumerate(loader):
            step = epoch * self.steps_an_epoch + batch
            self.scheduler.step_update(step)
            loss = self._step(images.to(self.device), labels.to(self.device))
            observe(step + 1, self.steps, loss)

    def _step(self, images: Tensor, labels: Tensor) -> float:
        loss = self.loss(self.model(normalised(self.model, images)), labels)
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.clip_norm)
        self.optimizer.step()
        return float(loss.detach())


def canvas_accuracy(model: nn.Module, canvases: Canvases, batch: int = 100) -> float:
    """Return the share of canvases that a model classifies rightly."""
    correct = 0
    with torch.inference_mode():
        for images, labels, _ in batches(canvases, batch):
            correct += int((model(normalised(model, images)).argmax(1) == labels).sum())
    return correct / len(canvases.labels)


def model_card(name: str, model: nn.Module, recipe: ZooSettings, accuracy: float) -> str:
    """Describe a trained model: data, licence, recipe, accuracy."""
    parameters = sum(parameter.numel() for parameter in model.parameters())
    settings = "\n".join(f"| {key.replace('_', ' ')} | {value} |" for key, value in asdict(recipe).items())
    version = torch.__version__.split("+")[0]
    return f"""# {name}

An image classifier of {parameters:,} parameters for Cluttered MNIST, made to show and to test what pruning does. It is
of no use for other images.

- **Accuracy**: {100 * accuracy:.2f} % on the 2,000 evaluation canvases, without pruning.
- **Input**: 64x64 pixels, three equal channels; preprocessing by `timm.data.resolve_model_data_config(model)`.
- **Data**: Cluttered MNIST after Mnih et al. 2014 (arXiv 1406.6247): one handwritten digit at a random place of a
  {CANVAS}x{CANVAS} canvas among {PIECES} pieces of other digits, {PIECE}x{PIECE} pixels each, and pixel noise.
  Trained on the first {TRAINING_DIGITS:,} digits of MNIST's test set, a fresh canvas for each digit in every epoch;
  evaluated on the other 2,000.
- **Licence**: CC BY-SA 3.0, as MNIST itself (Yann LeCun, Corinna Cortes).
- **Command**: `repshift zoo train {name}` (torch {version}).
  Another machine rounds differently and reaches slightly other weights.

| recipe | |
| --- | --- |
| optimiser | AdamW, cosine schedule with warm-up |
{settings}
"""
