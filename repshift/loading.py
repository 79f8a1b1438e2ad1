"""One loader for every model by name: timm's, the embedded zoo's and our own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from repshift.errors import CheckpointError, UnknownNameError
from repshift.registry import Registry, suggest

# The embedded models, whose weights ship with the package
ZOO = {"tiny_vit": "repshift.backbones.zoo:tiny_vit"}
# All models that are not timm's, by name
MODELS = Registry("model", {**ZOO})


def load_model(
    name: str,
    *,
    pretrained: bool = False,
    checkpoint: str | Path | None = None,
    **options: Any,
) -> nn.Module:
    """Build a model by name, in evaluation mode.

    Args:
        name: A model of the embedded zoo (``tiny_vit``), or any name that :func:`timm.create_model` takes, such as
            ``deit_small_patch16_224``, ``vit_base_patch14_dinov2.lvd142m`` or ``hf-hub:timm/...``.
        pretrained: Load the published weights: shipped ones for the zoo, downloaded ones for timm.
        checkpoint: Load weights from this file instead, strictly and without unpickling code.
        **options: Passed on to the model, for example ``num_classes=10`` or ``img_size=384``.

    Raises:
        UnknownNameError: If no model has this name; the message has the closest ones.
        CheckpointError: If the weights cannot be had, cannot be read or do not fit the model.
    """
    if pretrained and checkpoint is not None:
        raise CheckpointError(
            f"Both pretrained=True and checkpoint={str(checkpoint)!r} were given; a model has one set of weights. "
            "Give one of them."
        )
    if name in MODELS:
        model: nn.Module = MODELS.get(name)(pretrained=pretrained, **options)
    else:
        model = _create_timm_model(name, pretrained, options)
    if checkpoint is not None:
        from repshift.backbones.checkpoints import load_weights

        load_weights(model, Path(checkpoint))
    return model.eval()


def _create_timm_model(name: str, pretrained: bool, options: dict[str, Any]) -> nn.Module:
    import timm

    from_hub = ":" in name
    if not from_hub and not timm.is_model(name):
        known = [*MODELS.names(), *timm.list_models()]
        raise UnknownNameError(
            f"Unknown model {name!r}. {suggest(name, known)} timm.list_models('*deit*') lists timm's by pattern."
        )
    try:
        model: nn.Module = timm.create_model(name, pretrained=pretrained, **options)
    except TypeError as error:
        raise UnknownNameError(f"{name} does not take these options: {options} ({error}).") from error
    except Exception as error:
        if not (pretrained or from_hub):
            raise
        raise CheckpointError(
            f"The weights of {name} could not be had ({type(error).__name__}: {error}). Without a network, download "
            "them elsewhere and give checkpoint=FILE (--checkpoint FILE); without weights, leave pretrained out."
        ) from error
    return model
