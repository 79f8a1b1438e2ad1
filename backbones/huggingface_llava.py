"""Models of images and language in which every token of a vision tower takes the place of one in the prompt.

A tower that drops or merges tokens gives fewer than the prompt holds places for. With ``restore=True`` nothing else
changes. Without, the prompt is shortened to match::

    pruned = ShiftTracker(llava).prune("0.5@4")
    image_tokens(pruned)                                # how many tokens an image comes to
    pruned(**shortened_prompt(pruned, inputs))
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from math import prod
from typing import Any

from torch import Tensor, nn

from repshift.backbones.huggingface_names import named
from repshift.errors import RepresentationError, UnsupportedModelError
from repshift.finding import find_backbones, find_structure, require_structure, why_unserved
from repshift.images import read_size
from repshift.participants import own_class
from repshift.pruning import dense, recipe_of
from repshift.sites import Reading, Structure

# these take any number of tokens of an image, as long as the prompt holds as many places
SHORTENED = {
    "llava.modeling_llava.LlavaModel": True,
    "vipllava.modeling_vipllava.VipLlavaModel": True,
    "paligemma.modeling_paligemma.PaliGemmaModel": True,
}
OTHERWISE = "how many tokens of an image its prompts hold, and how it lays them out, is not known here"
SAID = (
    "A pruned vision tower gives fewer tokens of an image than the prompt holds places for. Shorten the prompt, "
    "model(**shortened_prompt(model, inputs)) of repshift.backbones.huggingface_llava, or prune with restore=True."
)
READS = "the language model reads all tokens"


class ImagesAndLanguage:
    """LLaVA and models like it: the tower as its own backbone describes it, up to the block that is read."""

    serves = "the vision towers of LLaVA-like models"

    def matches(self, model: nn.Module) -> bool:
        """Recognise models that look for the places of images in their prompts."""
        return hasattr(own_class(model), "get_placeholder_mask")

    def structure(self, model: Any) -> Structure:
        """Describe the tower.

        Raises:
            UnsupportedModelError: If there is none that another backbone knows.
        """
        found = [(name, child) for name, child in model.named_children() if any(find_backbones(child))]
        described = find_structure(found[0][1]) if len(found) == 1 else None
        if described is None:
            raise UnsupportedModelError(why_unserved(model))
        tower = described.within(found[0][0])
        if tower.unpruned:
            return tower
        sites = tower.sites[: _read_layer(model.config, len(tower.sites))]
        known = named(model, SHORTENED)
        return replace(
            tower,
            sites=sites,
            restores=sites[-1].name,
            weighs=None,
            weighs_bias=None,
            reading=Reading(why=READS),
            needs_all="" if known else OTHERWISE,
            explained={"": ("match", SAID)} if known else {},
        )


LLAVA = ImagesAndLanguage()


def image_tokens(model: nn.Module) -> int:
    """Say how many tokens an image comes to in the prompt, of a dense model or a pruned one.

    Args:
        model: A model like LLaVA, whose images are all of one size.

    Raises:
        UnsupportedModelError: If it is none.
    """
    structure, recipe = require_structure(model), recipe_of(model)
    holder: Any = next((part for part in model.modules() if LLAVA.matches(part)), None)
    size = getattr(getattr(holder.config, "vision_config", None), "image_size", None) if holder else None
    if size is None or structure.grid is None:
        raise UnsupportedModelError(
            f"How many tokens an image of {type(model).__name__} comes to is known of LLaVA-like models with images of "
            "one size. Give such a model."
        )
    given = size if recipe is None or recipe.input_size is None else recipe.input_size
    left = prod(structure.grid(read_size(given)))
    if recipe is not None and recipe.schedule is not None and not recipe.restore:
        left = [left, *recipe.schedule.kept(left).values()][-1]
    whole = getattr(holder.config, "vision_feature_select_strategy", "full") == "full"
    return left + int(getattr(structure.layout, "prefix", 0)) * whole


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
        UnsupportedModelError: If the model is not like LLaVA.
    """
    config: Any = model.config
    token = getattr(config, "image_token_id", None)
    token = config.image_token_index if token is None else token
    ids: Tensor = inputs["input_ids"]
    each, left = image_tokens(dense(model)), image_tokens(model)
    places = ids == token
    counts = places.sum(1)
    if bool((counts % each != 0).any()) or bool((counts != counts[0]).any()):
        raise RepresentationError(
            f"Prompts hold {each} places an image, and those of one batch as many images; got {counts.tolist()} places. "
            "Give prompts as the processor makes them for the dense model, with equal numbers of images in a batch."
        )
    stays = ~places | ((places.cumsum(1) - 1) % each < left)

    def shorter(value: Any) -> Any:
        same = isinstance(value, Tensor) and value.shape == ids.shape
        return value[stays].view(len(ids), -1) if same else value

    return {name: shorter(value) for name, value in inputs.items()}


def _read_layer(config: Any, blocks: int) -> int:
    """Return how many blocks run before the first features that are read."""
    layers = getattr(config, "vision_feature_layer", None)
    each = [blocks] if layers is None else [layers] if isinstance(layers, int) else list(layers)
    return max(1, min(layer + blocks + 1 if layer < 0 else layer for layer in each))
