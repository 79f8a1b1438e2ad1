"""The vision towers of models of images and language, such as LLaVA; :mod:`.huggingface_prompts` shortens prompts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import nn

from repshift.backbones.huggingface_names import named
from repshift.errors import UnsupportedModelError
from repshift.finding import find_backbones, find_structure, why_unserved
from repshift.participants import own_class
from repshift.sites import Reading, Structure

# these take any number of tokens of an image, as long as the prompt holds as many places; by class, whether prefix
# tokens are read, too ("full"), where the configuration does not say so
SHORTENED = {
    "llava.modeling_llava.LlavaModel": "full",
    "vipllava.modeling_vipllava.VipLlavaModel": "default",
    "paligemma.modeling_paligemma.PaliGemmaModel": "full",
}
OTHERWISE = "how many tokens of an image its prompts hold, and how it lays them out, is not known here"
SAID = (
    "A pruned vision tower gives fewer tokens of an image than the prompt holds places for. Shorten the prompt, "
    "model(**shortened_prompt(model, inputs)) of repshift.backbones.huggingface_prompts, or prune with restore=True."
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


def _read_layer(config: Any, blocks: int) -> int:
    """Return how many blocks run before the first features that are read."""
    # in older versions VipLLaVA has a name of its own for it
    layers = getattr(config, "vision_feature_layer", None) or getattr(config, "vision_feature_layers", None)
    each = [blocks] if layers is None else [layers] if isinstance(layers, int) else list(layers)
    return max(1, min(layer + blocks + 1 if layer < 0 else layer for layer in each))
