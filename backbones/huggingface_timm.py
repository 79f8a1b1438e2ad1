"""Models of timm that transformers holds: the model inside as its own backbone describes it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import nn

from repshift.backbones.huggingface_folder import save_with_recipe
from repshift.backbones.huggingface_names import named
from repshift.errors import UnsupportedModelError
from repshift.finding import find_structure, why_unserved
from repshift.sites import Structure

# by class, the name of the model inside
HOLDERS = {"timm_wrapper.modeling_timm_wrapper.TimmWrapperPreTrainedModel": "timm_model"}


class TimmInside:
    """Models of timm in ``TimmWrapperModel`` and ``TimmWrapperForImageClassification``; pruned, they save their recipe.

    The wrapper hands images to the model inside and takes what that returns, so nothing else is different.
    """

    serves = "timm's models in transformers' wrapper"

    def matches(self, model: nn.Module) -> bool:
        """Recognise the wrapper by the name of its class."""
        return named(model, HOLDERS) is not None

    def structure(self, model: Any) -> Structure:
        """Describe the model inside.

        Raises:
            UnsupportedModelError: If no backbone knows it, or it cannot be served.
        """
        name = named(model, HOLDERS) or ""
        described = find_structure(model.get_submodule(name))
        if described is None:
            raise UnsupportedModelError(why_unserved(model))
        return replace(described.within(name), methods={**described.methods, "save_pretrained": save_with_recipe})


TIMM_INSIDE = TimmInside()
