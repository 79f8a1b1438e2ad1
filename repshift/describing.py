"""What repshift knows of a model, in one answer."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from repshift.attention_scores import AttentionScore
from repshift.choosing import recipe_of
from repshift.errors import UnsupportedModelError
from repshift.finding import find_structure, why_unserved
from repshift.inside import mlp_behind_attention
from repshift.modules import refuse_compiled, require_model
from repshift.participants import own_class
from repshift.pruners import PRUNERS, tells_sizes
from repshift.recipes import Recipe
from repshift.scores import SCORES
from repshift.sites import Structure


@dataclass(frozen=True, repr=False)
class Description:
    """What repshift knows of a model; printed, it is a short table.

    Attributes:
        model: The model's class.
        structure: Its blocks and how they are watched and cut; ``None`` if it cannot be pruned.
        why_not: Why it cannot be pruned, and what can be done with it; ``None`` if it can.
        operations: What can be scored, the model's own first, with the numbers of the blocks that have it.
        scores: Names of the scores that can be used.
        pruners: Names of the pruners that can be used, the model's own first.
        recipe: How it was pruned; ``None`` for a dense model.
    """

    model: str
    structure: Structure | None
    why_not: str | None
    operations: dict[str, tuple[int, ...]]
    scores: tuple[str, ...]
    pruners: tuple[str, ...]
    recipe: Recipe | None

    @property
    def blocks(self) -> tuple[str, ...]:
        """Names of the blocks, stages or layers after which something can go, as a schedule counts them."""
        return tuple(site.name for site in self.structure.sites) if self.structure else ()

    @property
    def tokens(self) -> int | None:
        """How many prunable tokens there are; ``None`` if that depends on the images, or is not known."""
        return self.structure.tokens if self.structure else None

    def grid(self, *size: int) -> tuple[int, ...] | None:
        """Return the grid of the tokens; ``None`` if only a forward tells.

        Args:
            size: Rows and columns of the images in pixels; frames, rows and columns of videos.

        Returns:
            Rows and columns; frames, rows and columns of videos.
        """
        if self.structure is None or self.structure.grid is None:
            return None
        return self.structure.grid(size)

    def __repr__(self) -> str:
        """Write what is known, a line each."""
        if self.structure is None:
            return f"{self.model}\n  not pruned: {self.why_not}"
        every = len(self.blocks)
        operations = (
            name if len(numbers) == every else f"{name} (at {', '.join(map(str, numbers))})"
            for name, numbers in self.operations.items()
        )
        layout = self.structure.layout
        lines = {
            f"{self.structure.unit}s": f"{every}, {self.blocks[0]} to {self.blocks[-1]}",
            "tokens": f"{self.tokens or 'as many as the images give'}, held as {layout}",
            "operations": ", ".join(operations),
            "scores": ", ".join(self.scores),
            "pruners": ", ".join(self.pruners),
            "recipe": repr(self.recipe) if self.recipe else "none, it is dense",
        }
        if needs := self.structure.needs_all:
            lines["needs"] = f"restore=True, since {needs}"
        return "\n".join([self.model, *(f"  {name}: {text}" for name, text in lines.items())])


def describe(model: nn.Module) -> Description:
    """Say what repshift can do with a model, and why not.

    Args:
        model: Any module, dense or pruned, or one that holds a backbone.

    Raises:
        UnsupportedModelError: If it is no module at all.

    Example:
        >>> from repshift import describe, load_model
        >>> describe(load_model("tiny_resnet"))
        ResNet
          stages: 4, layer1 to layer4
          tokens: as many as the images give, held as FeatureMap(channels_last=False)
          operations: stage, block
          scores: shift, norm, random, oracle_free
          pruners: lines, positions, crop, centre, even
          recipe: none, it is dense
    """
    require_model(model)
    structure, why_not = None, None
    try:
        refuse_compiled(model)
        structure = find_structure(model)
        if structure is None:
            why_not = why_unserved(model)
        elif why := structure.unpruned:
            structure, why_not = None, f"{own_class(model).__name__} can be tracked but not pruned: {why}"
    except UnsupportedModelError as error:
        why_not = str(error)
    name = own_class(model).__name__
    if structure is None:
        return Description(name, None, why_not, {}, (), (), recipe_of(model))
    return Description(
        name, structure, None, _operations(structure), _scores(structure), _pruners(structure), recipe_of(model)
    )


def _operations(structure: Structure) -> dict[str, tuple[int, ...]]:
    names = [structure.operation, *(name for site in structure.sites for name in site.operations)]
    having = {
        name: tuple(number for number, site in enumerate(structure.sites) if name in site.operations)
        for name in dict.fromkeys(names)
    }
    return {name: numbers for name, numbers in having.items() if numbers}


def _scores(structure: Structure) -> tuple[str, ...]:
    def serves(name: str) -> bool:
        score = SCORES.get(name)
        if not isinstance(score, AttentionScore):
            return True
        heads = [site.heads for site in structure.sites if site.heads is not None and not site.heads.incomplete]
        return bool(heads) and (score.rows == "mean" or all(each.class_token for each in heads))

    return ("shift", *filter(serves, SCORES.names()))


def _pruners(structure: Structure) -> tuple[str, ...]:
    def serves(name: str) -> bool:
        pruner = PRUNERS.get(name)
        if getattr(pruner, "wants_keys", False) and not all(site.heads for site in structure.sites):
            return False
        if getattr(pruner, "before_mlp", False) and not all(map(mlp_behind_attention, structure.sites)):
            return False
        if getattr(pruner, "wants_places", False) and not structure.has_rows_and_columns():
            return False
        if getattr(pruner, "wants_frames", False) and not structure.has_frames():
            return False
        if structure.counts_once and tells_sizes(pruner):
            return False
        return all(hasattr(structure.layout, method) for method in getattr(pruner, "needs", ()))

    return tuple(dict.fromkeys([structure.pruner, *filter(serves, PRUNERS.names())]))
