"""Prompts with as many places for an image as a pruned vision tower has tokens.

Every token of the tower takes the place of one in the prompt. With ``restore=True`` nothing changes. Without::

    pruned = ShiftTracker(llava).prune("0.5@4")
    image_tokens(pruned)                                # how many tokens an image comes to
    pruned(**shortened_prompt(pruned, inputs))
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

from torch import Tensor, nn

from repshift.backbones.huggingface_llava import SHORTENED
from repshift.backbones.huggingface_names import named
from repshift.choosing import recipe_of
from repshift.errors import RepresentationError, UnsupportedModelError
from repshift.finding import require_structure
from repshift.images import read_size
from repshift.pruning import dense


def image_tokens(model: nn.Module) -> int:
    """Say how many tokens an image comes to in the prompt, of a dense model or a pruned one.

    Args:
        model: LLaVA, VipLLaVA or PaliGemma, whose images are all of one size, or what holds one.

    Raises:
        UnsupportedModelError: If it is none.
    """
    (config, strategy), structure, recipe = _language(model), require_structure(model), recipe_of(model)
    size = getattr(config.vision_config, "image_size", None)
    if size is None or structure.grid is None:
        raise UnsupportedModelError(
            f"How many tokens an image of {type(model).__name__} comes to cannot be told, because its vision tower "
            "takes images of any size. Prune with restore=True, then prompts stay as they are."
        )
    given = size if recipe is None or recipe.input_size is None else recipe.input_size
    left = prod(structure.grid(read_size(given)))
    if recipe is not None and recipe.schedule is not None and not recipe.restore:
        left = [left, *recipe.schedule.kept(left).values()][-1]
    whole = getattr(config, "vision_feature_select_strategy", strategy) == "full"
    return left + int(getattr(structure.layout, "prefix", 0)) * whole


def _language(model: nn.Module) -> tuple[Any, str]:
    """Find the configuration of the model of images and language, and which tokens it reads if that does not say."""
    for part in model.modules():
        if strategy := named(part, SHORTENED):
            return part.config, strategy
    raise UnsupportedModelError(
        f"How many tokens an image of {type(model).__name__} comes to in a prompt is known of LLaVA, VipLLaVA and "
        "PaliGemma. Other models of images and language are pruned with restore=True; their prompts stay as they are."
    )


def shortened_prompt(model: nn.Module, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Leave as many places in a prompt as a pruned model has tokens of each image.

    Args:
        model: A pruned model like LLaVA, or the dense one.
        inputs: What the processor makes for the dense model: ``input_ids`` ``(batch, length)``, and what else has an
            entry for each of them (``attention_mask``, ``labels``), is shortened; all else stays.

    Returns:
        The inputs of the pruned model.

    Raises:
        RepresentationError: If a prompt holds other numbers of places than whole images, or prompts of one batch hold
            different numbers of images.
        UnsupportedModelError: If the model is none of those.
    """
    config, _ = _language(model)
    token = getattr(config, "image_token_id", None)
    token = config.image_token_index if token is None else token
    ids: Tensor = inputs["input_ids"]
    each, left = image_tokens(dense(model)), image_tokens(model)
    places = ids == token
    counts = places.sum(1)
    if bool((counts % each != 0).any()) or bool((counts != counts[0]).any()):
        raise RepresentationError(
            f"Prompts hold {each} places an image, and those of one batch as many images; got {counts.tolist()}. "
            "Give prompts as the processor makes them for the dense model, with equal numbers of images in a batch."
        )
    stays = ~places | ((places.cumsum(1) - 1) % each < left)

    def shorter(value: Any) -> Any:
        same = isinstance(value, Tensor) and value.shape == ids.shape
        return value[stays].view(len(ids), -1) if same else value

    return {name: shorter(value) for name, value in inputs.items()}
