"""Which backbone a model belongs to, wherever in it that stands, and what is said of models that belong to none."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from torch import nn

from repshift.errors import UnsupportedModelError
from repshift.registry import Registry
from repshift.sites import Structure


class Backbone(Protocol):
    """A family of models that the engine can serve.

    An attribute ``serves`` may say in a few words what it serves, for messages.
    """

    def matches(self, model: nn.Module) -> bool:
        """Say whether a model belongs to the family."""
        ...

    def structure(self, model: nn.Module) -> Structure:
        """Describe a model of the family.

        Raises:
            UnsupportedModelError: If this one cannot be served; the message says why.
        """
        ...


class Refusals(Protocol):
    """What is known of models that no backbone serves."""

    def why_not_pruned(self, model: nn.Module) -> str | None:
        """Say why a model can be tracked but not pruned; ``None`` if nothing is known of it."""
        ...

    def why_not_inside(self, wrapper: nn.Module, laid_out: bool) -> str | None:
        """Say why a model inside a wrapper cannot be pruned there; ``None`` if the wrapper does not mind.

        What serves instead is said, too, with ``{inside}`` for the name of the model inside.

        Args:
            wrapper: Holds the model.
            laid_out: Whether the pruned model can lay all tokens out on their grid.
        """
        ...

    def has_unordered_tokens(self, model: nn.Module) -> bool:
        """Say whether tokens do not stand in row order inside, so that a map of them would be scrambled."""
        ...


BACKBONES = Registry(
    "backbone",
    {
        "vit": "repshift.backbones.vit:VIT",
        "resnet": "repshift.backbones.resnet:RESNET",
        "convnet": "repshift.backbones.convnet:CONVNET",
        "biased": "repshift.backbones.biased:BIASED",
        "class_attention": "repshift.backbones.class_attention:CLASS_ATTENTION",
        "lined": "repshift.backbones.lined:LINED",
        "vim": "repshift.backbones.vim:VIM",
        "eva": "repshift.backbones.eva:EVA",
        "naflex": "repshift.backbones.naflex:NAFLEX",
        "rotary_vlm": "repshift.backbones.rotary_vlm:ROTARY_VLM",
        "huggingface": "repshift.backbones.huggingface:HUGGINGFACE",
        "umt": "repshift.backbones.umt.family:UMT",
        "huggingface_video": "repshift.backbones.huggingface_video:VIDEO",
        "huggingface_text": "repshift.backbones.huggingface_text:TEXT",
        "huggingface_packed": "repshift.backbones.huggingface_packed:PACKED_TOWER",
        "huggingface_timm": "repshift.backbones.huggingface_timm:TIMM_INSIDE",
        "huggingface_llava": "repshift.backbones.huggingface_llava:LLAVA",
        "extractors": "repshift.backbones.extractors:EXTRACTORS",
        "torchvision_vit": "repshift.backbones.torchvision_vit:TORCHVISION_VIT",
        "torchvision_convnets": "repshift.backbones.torchvision_convnets:TORCHVISION_CONVNETS",
    },
)
REFUSALS = Registry("refusal", {"known": "repshift.backbones.refusals:REFUSALS"})


def find_structure(model: nn.Module) -> Structure | None:
    """Describe a model if a registered backbone knows it, or the one part of it that a backbone knows.

    So a backbone is found inside a wrapper, such as ``nn.Sequential(normalise, model)``.

    Returns:
        The structure, with names counted from the model itself; ``None`` if no backbone knows anything of it.

    Raises:
        UnsupportedModelError: If a backbone knows the model and cannot serve it, or several parts are known.
    """
    found = dict(find_backbones(model))
    if len(found) > 1:
        raise UnsupportedModelError(
            f"{type(model).__name__} holds several backbones: {', '.join(map(repr, found))}. Take one of them by "
            f"itself and put it back: model.{next(iter(found))} = ShiftTracker(model.{next(iter(found))}).prune(...)."
        )
    for prefix, backbone in found.items():
        structure = backbone.structure(model.get_submodule(prefix))
        return structure.within(prefix) if prefix else structure
    return None


def find_backbones(model: nn.Module) -> Iterator[tuple[str, Backbone]]:
    """List the outermost modules that a registered backbone knows, by name; the model itself is named ``""``."""
    known = [BACKBONES.get(name) for name in BACKBONES.names()]
    inside: tuple[str, ...] = ()
    for name, module in model.named_modules():
        if name.startswith(inside):
            continue
        backbone = next((each for each in known if each.matches(module)), None)
        if backbone is not None:
            yield name, backbone
            if not name:
                return
            inside = (*inside, f"{name}.")


def require_structure(model: nn.Module) -> Structure:
    """Describe a model as :func:`find_structure`, or say why that cannot be done.

    Raises:
        UnsupportedModelError: If no backbone knows the model, or it cannot be served.
    """
    structure = find_structure(model)
    if structure is None:
        raise UnsupportedModelError(why_unserved(model))
    return structure


def refuse_wrappers(model: nn.Module, root: str, laid_out: bool) -> None:
    """Refuse to prune a backbone within a wrapper that does not go with it.

    Args:
        model: The whole model.
        root: Name of the backbone in it.
        laid_out: Whether the pruned backbone can lay all tokens out on their grid.

    Raises:
        UnsupportedModelError: If there is such a wrapper; the message names the module to prune instead.
    """
    parts = root.split(".") if root else []
    for end in range(len(parts)):
        wrapper = model.get_submodule(".".join(parts[:end]))
        for name in REFUSALS.names():
            if why := REFUSALS.get(name).why_not_inside(wrapper, laid_out):
                raise UnsupportedModelError(f"{type(wrapper).__name__} {why.format(inside=f'model.{root}')}.")


def find_structure_if_served(model: nn.Module) -> Structure | None:
    """Describe a model as :func:`find_structure`; ``None`` where that refuses, for what needs no description."""
    try:
        return find_structure(model)
    except UnsupportedModelError:
        return None


def why_unserved(model: nn.Module) -> str:
    """Say what can be done with a model that no backbone knows."""
    reasons = (REFUSALS.get(name).why_not_pruned(model) for name in REFUSALS.names())
    reason = next(filter(None, reasons), None)
    served = [getattr(BACKBONES.get(name), "serves", f"the backbone {name!r}") for name in BACKBONES.names()]
    why = (
        f"can be tracked but not pruned: {reason}"
        if reason
        else (f"belongs to no known backbone: pruning serves {', '.join(served[:-1])} and {served[-1]}")
    )
    children = [name for name, _ in model.named_children()]
    return (
        f"{type(model).__name__} {why}. Any model can be tracked by names or globs of its modules: "
        f"ShiftTracker(model, sites=...), here for example {children[:4]} or repshift.repeated_blocks(model, images)."
    )


def has_unordered_tokens(model: nn.Module) -> bool:
    """Say whether a model is known to move its tokens out of row order."""
    return any(REFUSALS.get(name).has_unordered_tokens(model) for name in REFUSALS.names())
