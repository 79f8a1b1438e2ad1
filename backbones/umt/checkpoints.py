"""Published weights of UMT: what kind a file is of, and what a model takes from it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from repshift.errors import CheckpointError

# what training needs beside the model, and a buffer that counts from zero
TRAINING = ("clip_teacher.", "vision_encoder.clip_decoder.", "clip_decoder.", "text_encoder.cls.")
COUNTS = "position_ids"
TOWER = "vision_encoder."
WIDTH = "encoder.patch_embed.proj.weight"
# two names of one parameter in the decoder of answers; a file may hold one of them or both
TIED = {
    "text_decoder.cls.predictions.decoder.weight": "text_decoder.bert.embeddings.word_embeddings.weight",
    "text_decoder.cls.predictions.decoder.bias": "text_decoder.cls.predictions.bias",
}
DECODER, HEAD, WORDS = "text_decoder.", "text_encoder.cls.", "embeddings.word_embeddings.weight"
SIZES = {768: " (B)", 1024: " (L)"}
VISION, RETRIEVAL, ANSWERING, CLASSIFIER = "vision", "retrieval", "answering", "classifier"
IN_WORDS = {
    VISION: "a video encoder alone",
    RETRIEVAL: "a retrieval model",
    ANSWERING: "a question-answering model",
    CLASSIFIER: "an action classifier",
}
ADVICE = {
    VISION: "Load it as umt_b or umt_l",
    RETRIEVAL: "Load it as umt_b_retrieval or umt_l_retrieval, or its video encoder as umt_b or umt_l",
    ANSWERING: "Load it as umt_b_qa or umt_l_qa, or its video encoder as umt_b or umt_l",
    CLASSIFIER: "Give a checkpoint of the multi-modal models of Unmasked Teacher",
}


def fitted(weights: Mapping[str, Tensor], own: Mapping[str, Tensor], kind: str, path: Path) -> dict[str, Tensor]:
    """Take from a file what a model of a kind has.

    What training alone needs is dropped, names that pretraining files have otherwise are changed, parameters of two
    names get both, and a norm of pooled vectors that a file of the video encoder does not have starts as identity. All
    that is left must be the model's; that is checked by :func:`repshift.backbones.checkpoints.load_weights`.

    Args:
        weights: What the file holds, of any shapes.
        own: The model's ``state_dict``.
        kind: The model's: ``vision``, ``retrieval`` or ``answering``.
        path: The file, for messages.

    Raises:
        CheckpointError: If the file is of another kind or size; the message says of which.
    """
    weights = _official(weights)
    found = _kind(weights)
    if found is None:
        return weights  # which is said to be without what is missing
    if found == CLASSIFIER or (found != kind and kind != VISION):
        raise CheckpointError(f"{path} holds {IN_WORDS[found]}, expected {IN_WORDS[kind]}. {ADVICE[found]}.")
    _require_width(weights, own, path)
    if kind == VISION:
        return _vision(weights, own)
    return _tied(weights, path) if kind == ANSWERING else weights


def started(weights: Mapping[str, Tensor], own: Mapping[str, Tensor], fusion: int, path: Path) -> dict[str, Tensor]:
    """Take from a file of retrieval or pretraining what the training of question answering starts from.

    Both encoders are taken over. Layer i of the decoder starts as the i-th fusion layer of the text encoder, its
    embeddings as those of the text encoder, and its head over the vocabulary as that of masked words. A file of
    retrieval has no such head: but for the embeddings, which are part of it, the model's own stays.

    Args:
        weights: What the file holds, of any shapes.
        own: The model's ``state_dict``.
        fusion: The first fusion layer of the text encoder.
        path: The file, for messages.

    Raises:
        CheckpointError: If the file is of another kind or size.
    """
    taken = fitted(weights, own, RETRIEVAL, path)
    start = {name: value for name, value in taken.items() if name in own}
    head = {name.partition(HEAD)[2]: value for name, value in weights.items() if HEAD in name}
    for name, value in own.items():
        part = name.removeprefix(DECODER)
        if name.startswith(f"{DECODER}bert.embeddings."):
            source: Tensor | None = taken.get(f"text_encoder.{part.removeprefix('bert.')}")
        elif name.startswith(f"{DECODER}bert.encoder.layer."):
            number, _, rest = part.removeprefix("bert.encoder.layer.").partition(".")
            source = taken.get(f"text_encoder.encoder.layer.{fusion + int(number)}.{rest}")
        elif name in TIED and TIED[name].endswith(WORDS):
            source = taken.get(f"text_encoder.{WORDS}")
        elif name.startswith(DECODER):
            source = head.get(part.removeprefix("cls."), value)
        else:
            continue
        start |= {} if source is None else {name: source}
    return start


def _official(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Name weights as models that are used name them, without what training alone needs."""
    if all(name.startswith("module.") for name in weights):
        weights = {name.removeprefix("module."): value for name, value in weights.items()}
    return {
        name.replace("text_encoder.bert.", "text_encoder.", 1): value
        for name, value in weights.items()
        if not name.startswith(TRAINING) and not name.endswith(COUNTS)
    }


def _kind(weights: Mapping[str, Tensor]) -> str | None:
    """Say what a file holds, by the names in it; ``None`` if that is nothing of UMT's."""
    if any(name.startswith("text_decoder.") for name in weights):
        return ANSWERING
    if any(name.startswith("text_encoder.") for name in weights):
        return RETRIEVAL
    if WIDTH in weights or f"{TOWER}{WIDTH}" in weights:
        return VISION
    return CLASSIFIER if "patch_embed.proj.weight" in weights and "blocks.0.attn.q_bias" in weights else None


def _require_width(weights: Mapping[str, Tensor], own: Mapping[str, Tensor], path: Path) -> None:
    """Refuse a file of another size, which the width of the patches shows."""
    found, expected = (_width(each) for each in (weights, own))
    if found != expected:
        raise CheckpointError(
            f"{path} holds a model whose patch_embed.proj is {found} channels wide{SIZES.get(found, '')}, expected "
            f"{expected}{SIZES.get(expected, '')}. Load it into the model of its size, or give another file: some "
            "links of the published list name the file of the other size."
        )


def _width(weights: Mapping[str, Tensor]) -> int:
    widths = (value.shape[0] for name, value in weights.items() if name.endswith(WIDTH) and value.ndim)
    return next(widths, 0)


def _vision(weights: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Take the video encoder, wherever it stands in the file."""
    if any(name.startswith(TOWER) for name in weights):
        weights = {name.removeprefix(TOWER): value for name, value in weights.items() if name.startswith(TOWER)}
    identity = {
        "pool_norm.weight": torch.ones_like(own["encoder.norm.weight"]),
        "pool_norm.bias": torch.zeros_like(own["encoder.norm.bias"]),
    }
    norm = {name: value for name, value in identity.items() if name in own}
    # one of the two alone is no norm, and is said to be missing
    return {**(norm if not norm.keys() & weights.keys() else {}), **weights}


def _tied(weights: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Give parameters of two names both of them.

    Raises:
        CheckpointError: If a file holds two that differ.
    """
    for one, other in TIED.items():
        if one in weights and other in weights and not torch.equal(weights[one], weights[other]):
            raise CheckpointError(
                f"{path} holds other values for {one} than for {other}, which are one parameter. Give a file as UMT's "
                "training writes it."
            )
        for name, copy in ((one, other), (other, one)):
            if name not in weights and copy in weights:
                weights[name] = weights[copy]
    return weights
