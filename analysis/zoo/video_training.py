"""Training of the embedded video models on moving digits: seeded, resumable after every epoch."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from timm.optim import create_optimizer_v2
from timm.scheduler.cosine_lr import CosineLRScheduler
from torch import nn

from repshift import DataError, load_model
from repshift.analysis.output.files import all_or_none, output_folder, write_text, write_whole
from repshift.analysis.samples.canvases import download_digits, training_digits
from repshift.analysis.samples.moving_digits import DigitPool
from repshift.analysis.subjects.limits import check_seed
from repshift.analysis.zoo.state import TrainingState
from repshift.analysis.zoo.training import SEEDS, Observer
from repshift.analysis.zoo.video_cards import accuracies, video_model_card
from repshift.analysis.zoo.video_losses import answering_loss, retrieval_loss
from repshift.analysis.zoo.videos import VideoBatch, video_batches

RETRIEVAL, ANSWERING = "tiny_umt", "tiny_umt_qa"


@dataclass(frozen=True)
class VideoSettings:
    """How an embedded video model is trained: AdamW, cosine schedule with warm-up.

    Attributes:
        phrase_epochs: First epochs, whose videos have one digit, in their first or second half.
        pair_epochs: Those that follow, with videos of two digits.
        digits: Shown in an epoch.
        warmup_steps: Until the learning rate is reached.
        batch: Videos in a step.
        foils: Captions in which one word was exchanged, for each video.
        wrong: Captions that each video is matched with besides its own.
        learning_rate: The highest.
        final_learning_rate: The last.
        weight_decay: Of AdamW.
        clip_norm: Bounds the norm of the gradient.
        seed: Of weights and videos.
    """

    phrase_epochs: int = 3
    pair_epochs: int = 32
    digits: int = 8_000
    warmup_steps: int = 100
    batch: int = 32
    foils: int = 4
    wrong: int = 6
    learning_rate: float = 1e-3
    final_learning_rate: float = 1e-6
    weight_decay: float = 0.05
    clip_norm: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.phrase_epochs + self.pair_epochs < 1 or self.pair_epochs < 0:
            raise DataError(f"A recipe of {self.pair_epochs} epochs trains nothing. Give at least 1 epoch.")
        check_seed(self.seed, SEEDS)

    def moves(self, epoch: int) -> int:
        """Return how many digits a video of an epoch has."""
        return 1 if epoch < self.phrase_epochs else 2

    @property
    def epochs(self) -> int:
        """All epochs."""
        return self.phrase_epochs + self.pair_epochs

    def steps(self, epochs: int) -> int:
        """Return how many steps so many first epochs have."""
        return sum(math.ceil(self.digits // self.moves(epoch) / self.batch) for epoch in range(epochs))


@dataclass(frozen=True)
class TrainedVideoModel:
    """A finished training run.

    Attributes:
        weights: Where they are.
        accuracies: What the model does on the evaluation videos: shares of 1 by name.
    """

    weights: Path
    accuracies: Mapping[str, float]


RECIPES = {RETRIEVAL: VideoSettings(), ANSWERING: VideoSettings(phrase_epochs=0, pair_epochs=16, learning_rate=1e-3)}


def train_video_model(
    name: str,
    digits: Path | None,
    output: Path,
    *,
    epochs: int | None = None,
    seed: int = 0,
    device: str | None = None,
    observe: Observer = lambda step, steps, loss: None,
) -> TrainedVideoModel:
    """Train an embedded video model, evaluate it, and write ``NAME.safetensors`` and its model card ``NAME.md``.

    Args:
        name: ``tiny_umt`` or ``tiny_umt_qa``.
        digits: Folder with MNIST's two t10k files; by default torchvision downloads them.
        output: Folder of the results and of the state to resume from, made if needed.
        epochs: Epochs of videos of two digits; by default what the recipe says.
        seed: Another seed gives other weights and other videos.
        device: ``cpu``, which is also the default: so small a model is trained on nothing else.
        observe: Called after every step.

    Raises:
        DataError: If the digits cannot be read, the folder cannot be written to, or another device is asked for.
        CheckpointError: If the state left by an earlier run cannot be read or belongs to another recipe, or the
            weights that question answering starts from are missing.
    """
    if device not in (None, "cpu"):
        raise DataError(f"{name} is trained on the CPU alone, got device {device}. Leave --device out.")
    recipe = replace(RECIPES[name], seed=seed)
    recipe = recipe if epochs is None else replace(recipe, pair_epochs=epochs)
    trainer = VideoTrainer(name, DigitPool(training_digits(digits or download_digits())), output, recipe)
    measured: dict[str, float] = {}

    def describe(model: nn.Module) -> None:
        measured.update(accuracies(name, model))
        write_text(output / f"{name}.md", video_model_card(name, model, recipe, measured))

    trainer.train(observe, describe)
    return TrainedVideoModel(trainer.weights, measured)


class VideoTrainer:
    """One training run: the model, its optimiser and schedule, and where its state is kept.

    Args:
        name: ``tiny_umt`` or ``tiny_umt_qa``. The latter starts from the shipped weights of the former.
        pool: The digits that are shown.
        output: Folder of the results, made if needed.
        recipe: Settings; those of a resumed run must be the same.
    """

    def __init__(self, name: str, pool: DigitPool, output: Path, recipe: VideoSettings) -> None:
        torch.manual_seed(recipe.seed)
        self.name, self.pool, self.recipe = name, pool, recipe
        self.model = load_model(name)
        initialise(self.model)
        if name == ANSWERING:
            self.model.load_state_dict(answering_start(load_model(RETRIEVAL, pretrained=True)), strict=False)
        self.optimizer = create_optimizer_v2(
            self.model, opt="adamw", lr=recipe.learning_rate, weight_decay=recipe.weight_decay, betas=(0.9, 0.98)
        )
        self.steps = recipe.steps(recipe.epochs)
        self.scheduler = CosineLRScheduler(
            self.optimizer,
            t_initial=self.steps,
            lr_min=recipe.final_learning_rate,
            warmup_t=recipe.warmup_steps,
            warmup_lr_init=recipe.final_learning_rate,
            t_in_epochs=False,
        )
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
        for epoch in range(self.state.resume(self.recipe.epochs, "cpu"), self.recipe.epochs):
            self._train_epoch(epoch, observe)
            self.state.save(epoch + 1)
        self.model.eval()
        weights = {key: tensor.detach().clone() for key, tensor in self.model.state_dict().items()}
        content = save(weights, metadata={"model": self.name})
        with all_or_none():
            write_whole(self.weights, lambda path: path.write_bytes(content))
            describe(self.model)
        self.state.path.unlink(missing_ok=True)
        return self.model

    def _train_epoch(self, epoch: int, observe: Observer) -> None:
        self.model.train()
        # videos, foils and wrong pairs follow from seed and epoch alone, so a resumed run sees what another one sees
        seed = 1_000 * self.recipe.seed + epoch
        torch.manual_seed(seed)
        moves = self.recipe.moves(epoch)
        batches = video_batches(self.pool, seed, self.recipe.digits // moves, self.recipe.batch, moves)
        for step, batch in enumerate(batches, self.recipe.steps(epoch)):
            self.scheduler.step_update(step)
            observe(step + 1, self.steps, self._step(batch))

    def _step(self, batch: VideoBatch) -> float:
        loss: Any = (
            answering_loss(self.model, batch)
            if self.name == ANSWERING
            else retrieval_loss(self.model, batch, self.recipe.foils, self.recipe.wrong)
        )
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.clip_norm)
        self.optimizer.step()
        return float(loss.detach())


def initialise(model: nn.Module) -> None:
    """Draw weights by Xavier's rule, and embeddings of words and their places with deviation 1.

    The published deviation of 0.02 is meant for layers twelve times as wide. With it, all captions of the same digits
    look alike to the text encoder in the beginning, whatever moves where and comes first, and they stayed so. Queries,
    keys and values that share one layer are three layers to Xavier's rule.
    """
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Embedding):
            nn.init.normal_(layer.weight)
        if isinstance(layer, nn.Linear):
            for part in layer.weight.data.chunk(3 if name.endswith("qkv") else 1):
                nn.init.xavier_uniform_(part)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def answering_start(retrieval: nn.Module) -> dict[str, torch.Tensor]:
    """Return what a model for question answering takes over from one for retrieval.

    These are both encoders, and for the decoder the fusion layers and the embeddings but those of words: they are also
    the weights of its last layer, for which they are too large here.
    """
    weights = retrieval.state_dict()
    start = {key: value for key, value in weights.items() if key.startswith(("vision_encoder.encoder", "text_encoder"))}
    settings: Any = retrieval.settings
    for key, value in weights.items():
        if key.startswith("text_encoder.embeddings") and "word_embeddings" not in key:
            start["text_decoder.bert" + key.removeprefix("text_encoder")] = value
        for layer in range(settings.decoder_layers):
            source = f"text_encoder.encoder.layer.{settings.text.fusion + layer}."
            if key.startswith(source):
                start[f"text_decoder.bert.encoder.layer.{layer}.{key.removeprefix(source)}"] = value
    return start
