"""That a pruned model computes what it should: the dense model's numbers where nothing, or nothing else, is dropped."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from repshift.attention_scores import AttentionScore
from repshift.calls import Call
from repshift.drops import Drop
from repshift.inside import mlp_behind_attention
from repshift.layouts import first_tensor
from repshift.pruners import Candidates, SequencePruner, TokenPruner
from repshift.pruning import prune
from repshift.selection import Selection
from repshift.testing.subjects import (
    BackboneError,
    KeepAll,
    Subject,
    entering,
    is_sequence,
    require_close,
    require_equal,
    store,
    tensors_of,
)
from repshift.travelling import added_to_mask


def nothing_dropped_is_the_dense_model(subject: Subject) -> None:
    """Keep every token through the whole machinery, by every operation, behind blocks and inside of them.

    Raises:
        BackboneError: If the promise is not kept.
    """
    for operation in dict.fromkeys(name for site in subject.structure.sites for name in site.operations):
        recipe = replace(
            subject.recipe,
            operation=operation,
            pruner=KeepAll(),
            score="shift",
            restore=bool(subject.structure.needs_all),
        )
        if not all(operation in subject.structure.sites[number].operations for number in recipe.drops):
            continue
        kept = prune(subject.model, subject.structure, recipe)
        for given in ({}, subject.companions()):
            expected = subject.model(subject.images, **given)
            require_equal(kept(subject.images, **given), expected, f"with the operation {operation!r}")
    structure, drops = subject.structure, subject.recipe.drops
    if all(mlp_behind_attention(structure.sites[number]) for number in drops):
        inside = subject.pruned(
            operation="attn", pruner=_KeepAllInside(), score="shift", restore=bool(subject.structure.needs_all)
        )
        require_equal(inside(subject.images), subject.model(subject.images), "between attention and MLP")


def gradients_of_nothing_dropped_are_those_of_the_dense_model(subject: Subject) -> None:
    """Compare the gradients of all parameters, bit for bit.

    Raises:
        BackboneError: If the promise is not kept.
    """
    kept = subject.pruned(pruner=KeepAll(), restore=bool(subject.structure.needs_all))
    parameters = [parameter for parameter in subject.model.parameters() if parameter.requires_grad]
    found, expected = (
        torch.autograd.grad(_total(model(subject.images)), parameters, allow_unused=True)
        for model in (kept, subject.model)
    )
    for one, other in zip(found, expected, strict=True):
        if (one is None) != (other is None) or (one is not None and not torch.equal(one, other)):
            raise BackboneError("a parameter has another gradient than in the dense model")


def what_is_left_is_treated_as_in_the_dense_model(subject: Subject) -> None:
    """Hide what is dropped from the dense model's attention instead: what is left must come out the same.

    Raises:
        BackboneError: If the promise is not kept.
    """
    structure = subject.structure
    if structure.bias is None or not is_sequence(structure):
        return
    pruned = subject.pruned(pruner="tokens", restore=False)
    tracker = subject.tracker(pruned).run(subject.images)
    numbers = sorted(subject.recipe.drops)
    last = structure.sites[-1].name
    prefix = int(getattr(structure.layout, "prefix", 0))
    seen: dict[str, Tensor] = {}
    with ExitStack() as stack, torch.no_grad():
        for model, key in ((pruned, "pruned"), (subject.model, "dense")):
            stack.callback(model.get_submodule(last).register_forward_hook(store(seen, key)).remove)
        for number, site in enumerate(structure.sites):
            earlier = [each for each in numbers if each < number]
            if earlier:
                kept = tracker.kept[structure.sites[earlier[-1]].name]
                hide = partial(_hide, structure.bias, kept, prefix)
                stack.enter_context(entering([subject.model.get_submodule(site.name)], hide))
        pruned(subject.images)
        subject.model(subject.images)
    kept = tracker.kept[structure.sites[numbers[-1]].name]
    expected = structure.layout.tokens(seen["dense"])
    if numbers[-1] != len(structure.sites) - 1:
        expected = Selection(kept).take(expected)
        require_close(structure.layout.tokens(seen["pruned"]), expected, "behind the last block")


def places_do_not_matter_behind_a_cut(subject: Subject) -> None:
    """Let the tokens that are left change places: attention must not notice, or it looks positions up by place.

    Raises:
        BackboneError: If the promise is not kept.
    """
    structure = subject.structure
    if structure.pruner != "tokens" or not is_sequence(structure):
        return
    number = min(subject.recipe.drops)
    if number == len(structure.sites) - 1:
        return
    last = structure.sites[-1].name
    seen: dict[str, Any] = {}
    orders: dict[bool, Tensor] = {}
    for backwards in (False, True):
        pruned = subject.pruned(schedule={number: 0.25}, pruner=_InOrder(backwards), restore=False)
        handle = pruned.get_submodule(last).register_forward_hook(store(seen, str(backwards)))
        with torch.no_grad():
            pruned(subject.images)
        handle.remove()
        orders[backwards] = structure.layout.tokens(seen[str(backwards)])
    require_close(orders[True].flip(1), orders[False], "behind the last block, where tokens had changed places")


def as_many_tokens_are_left_as_the_schedule_says(subject: Subject) -> None:
    """Compare the numbers of kept tokens with what the schedule comes to.

    Raises:
        BackboneError: If the promise is not kept.
    """
    if not is_sequence(subject.structure) or not subject.recipe.drops:
        return
    tracker = subject.tracker(subject.pruned()).run(subject.images)
    tokens = subject.tracker(subject.model).run(subject.images).shifts.stacked().shape[-1]
    expected = {subject.structure.sites[n].name: left for n, left in subject.recipe.schedule.kept(tokens).items()}
    found = {name: kept.shape[1] for name, kept in tracker.kept.items()}
    if found != expected:
        raise BackboneError(f"{found} tokens are left, expected {expected}")


def images_do_not_disturb_each_other(subject: Subject) -> None:
    """Compare a batch with its images one by one.

    Raises:
        BackboneError: If the promise is not kept.
    """
    pruned = subject.pruned()
    with torch.no_grad():
        together = pruned(subject.images)
        for number in range(subject.images.shape[0]):
            alone = pruned(subject.images[number : number + 1])
            pairs = zip(tensors_of(alone), tensors_of(together), strict=True)
            for one, all_of_them in pairs:
                require_close(one, all_of_them[number : number + 1], f"image {number} alone")


def recorded_and_pruned_by_are_the_same(subject: Subject) -> None:
    """See that the first cut keeps what a tracker of the dense model finds to score highest.

    Raises:
        BackboneError: If the promise is not kept.
    """
    if isinstance(subject.recipe.the_score, AttentionScore) or subject.recipe.score != "shift":
        return
    number = min(subject.recipe.drops)
    name = subject.structure.sites[number].name
    recorded = subject.tracker(subject.model).run(subject.images)
    pruned = subject.pruned(schedule={number: subject.recipe.drops[number]})
    tracker = subject.tracker(pruned).run(subject.images)
    require_equal(tracker.shifts[name], recorded.shifts[name], f"at {name}, where nothing was dropped before")
    pruner = subject.recipe.the_pruner(subject.structure.pruner)
    if isinstance(pruner, (TokenPruner, SequencePruner)):  # others may keep a token for another reason
        kept = tracker.kept[name]
        of_kept = recorded.shifts[name].gather(1, kept)
        others = recorded.shifts[name].scatter(1, kept, -torch.inf if subject.recipe.keep == "top" else torch.inf)
        right = of_kept.amin(1) >= others.amax(1) if subject.recipe.keep == "top" else of_kept.amax(1) <= others.amin(1)
        if not bool(right.all()):
            raise BackboneError(f"what {name} keeps is not what scores {subject.recipe.keep}")


@dataclass(frozen=True)
class _KeepAllInside(KeepAll):
    """Keeps every token between attention and MLP."""

    before_mlp: ClassVar[bool] = True


@dataclass(frozen=True)
class _InOrder:
    """Keeps what scores highest, in its order or backwards."""

    backwards: bool
    drops_only: ClassVar[bool] = True

    def choose(self, candidates: Candidates, drop: Drop) -> Selection:
        kept = candidates.highest(candidates.left(drop)).kept
        return Selection(kept.flip(1) if self.backwards else kept)


def _total(output: Any) -> Tensor:
    return torch.stack([tensor.float().square().sum() for tensor in tensors_of(output)]).sum()


def _hide(argument: str, kept: Tensor, prefix: int, module: nn.Module, call: Call) -> Call:
    """Hide all but the kept tokens from a block's attention, beside what is hidden or added there already."""
    value, given = first_tensor(call.first), call.get(argument)
    mask = torch.full((kept.shape[0], value.shape[1]), -torch.inf, dtype=value.dtype, device=value.device)
    mask[:, :prefix] = 0
    mask = mask.scatter(1, kept + prefix, 0.0)[:, None, None]
    return call.replaced(argument, mask if given is None else added_to_mask(given, mask))
