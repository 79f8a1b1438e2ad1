"""That what a backbone says of a model is so: its tokens, the order of its blocks, and what merged tokens count for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from repshift.calls import Call
from repshift.companions import Companion
from repshift.drops import Drop
from repshift.pruners import Candidates
from repshift.residual_pairs import ResidualPair
from repshift.selection import Selection
from repshift.testing.subjects import BackboneError, Subject, entering, is_sequence, require_close, store, tensors_of


def tokens_and_blocks_are_as_described(subject: Subject) -> None:
    """Compare the number of tokens, their grid and the order of the blocks with what a dense forward shows.

    Raises:
        BackboneError: If the promise is not kept.
    """
    structure, model = subject.structure, subject.model
    blocks = [model.get_submodule(site.name) for site in structure.sites]
    ran: list[nn.Module] = []
    entered: dict[str, Any] = {}

    def enter(key: str, module: nn.Module, call: Call) -> Call:
        if key == "block":
            ran.append(module)
        entered.setdefault(key, call.first)
        return call

    with ExitStack() as stack, torch.no_grad():
        stack.enter_context(entering([model.get_submodule(structure.embedding)], partial(enter, "images")))
        stack.enter_context(entering(dict.fromkeys(blocks), partial(enter, "block")))
        model(subject.images)
    if ran != blocks:
        listed = ", ".join(site.name for site in structure.sites)
        raise BackboneError(f"a forward does not run each of the blocks {listed} once and in this order")
    images = entered.get("images")
    if not isinstance(images, Tensor) or not images.is_floating_point():
        raise BackboneError(f"the embedding {structure.embedding!r} did not take any images")
    found = structure.layout.tokens(entered["block"]).shape[1]
    if structure.tokens not in (None, found):
        raise BackboneError(f"{structure.tokens} tokens are described, and the layout reads {found} at the first block")
    if structure.grid is None:
        return
    if images.ndim < 4:
        raise BackboneError(f"the embedding {structure.embedding!r} took {tuple(images.shape)}, which are no images")
    grid = structure.grid_of(images)
    if grid is not None and prod(grid) != found:
        raise BackboneError(f"a grid of {grid} is described, and the layout reads {found} tokens at the first block")


def merged_tokens_count_for_all_that_they_are(subject: Subject) -> None:
    """Let tokens become one, and in the dense model let them become equal: nothing else must tell the models apart.

    So attention (where it takes a bias), averages and pooling must count a merged token as often as it stood there.

    Raises:
        BackboneError: If the promise is not kept.
    """
    if not _merges(subject):
        return
    last = len(subject.structure.sites) - 1
    numbers = (last,) if not _tells_sizes(subject) else (min(subject.recipe.drops), last)
    for number in dict.fromkeys(numbers):
        pruned = _merging(subject, number)
        with torch.no_grad():
            found, expected = tensors_of(pruned(subject.images)), tensors_of(_with_equal_tokens(subject, number))
        # what is returned for each token is less than the dense model returns, and was compared where it is restored
        pairs = [pair for pair in zip(found, expected, strict=True) if pair[0].shape == pair[1].shape]
        for one, other in pairs:
            require_close(one, other, f"where tokens were merged behind {subject.structure.sites[number].name}")


def restored_tokens_have_their_places_back(subject: Subject) -> None:
    """Restore merged tokens, and compare them with those of a dense model in which they became equal.

    Raises:
        BackboneError: If the promise is not kept.
    """
    structure = subject.structure
    if structure.restores is None or not _merges(subject):
        return
    last = len(structure.sites) - 1
    number = last if not _tells_sizes(subject) else min(subject.recipe.drops)
    pruned = _merging(subject, number, restore=True)
    seen: dict[str, Any] = {}

    def enter(module: nn.Module, call: Call) -> Call:
        seen["entered"] = call.first
        return call

    with torch.no_grad():
        expected = _with_equal_tokens(subject, number, seen)
        handle = pruned.get_submodule(structure.restores).register_forward_hook(store(seen, "restored"))
        with entering([pruned.get_submodule(structure.sites[last].name)], enter):
            found = pruned(subject.images)
        handle.remove()
    entered, restored, every = (structure.layout.tokens(seen[k]).shape[1] for k in ("entered", "restored", "dense"))
    if restored != every or (number < last and entered == every):
        raise BackboneError(
            f"{entered} tokens enter the last block and {restored} of {every} leave {structure.restores!r}, where they "
            "should have their places back behind the last block"
        )
    require_close(found, expected, f"where tokens have their places back behind {structure.restores!r}")


@dataclass(frozen=True)
class _MergeLast:
    """Lets the last tokens become part of the first two: groups of one and of many, so that sizes matter."""

    needs: ClassVar[tuple[str, ...]] = ("merge",)

    def choose(self, candidates: Candidates, drop: Drop) -> Selection:
        return _merged_last(candidates.tokens, candidates.count - candidates.left(drop))


def _merged_last(tokens: Tensor, dropped: int) -> Selection:
    places, left = torch.arange(tokens.shape[1], device=tokens.device), tokens.shape[1] - dropped
    joins = torch.where(places < left, places, places % min(left, 2))
    return Selection(places[:left].expand(len(tokens), -1), joins.expand(len(tokens), -1))


def _merges(subject: Subject) -> bool:
    layout = subject.structure.layout
    if subject.structure.counts_once:
        return False
    return is_sequence(subject.structure) and hasattr(layout, "merge") and not isinstance(layout, ResidualPair)


def _tells_sizes(subject: Subject) -> bool:
    return subject.structure.bias is not None or any(each.is_bias for each in subject.structure.built)


def _merging(subject: Subject, number: int, restore: bool = False) -> nn.Module:
    return subject.pruned(
        schedule={number: 0.25}, pruner=_MergeLast(), score="oracle_free", keep="top", restore=restore
    )


def _with_equal_tokens(subject: Subject, number: int, seen: dict[str, Any] | None = None) -> Any:
    """Run the dense model with the tokens of each group made equal behind a block, and what belongs to them, too."""
    structure, model, seen = subject.structure, subject.model, {} if seen is None else seen

    def equalise(module: nn.Module, args: Any, output: Any) -> Any:
        tokens = structure.layout.tokens(output)
        seen["merged"] = selection = _merged_last(tokens, dropped=int(0.25 * tokens.shape[1]))
        return structure.layout.put(output, selection.back(selection.mean(tokens)))

    def follow(module: nn.Module, call: Call) -> Call:
        selection = seen["merged"]
        for companion in structure.companions:
            tokens = structure.layout.tokens(call.first)
            value = companion.given(call.get(companion.argument), tokens.shape[1], tokens)
            if value is not None:
                call = call.replaced(companion.argument, companion.shortened(value, selection.back(selection.kept)))
        return call

    blocks = [model.get_submodule(site.name) for site in structure.sites]
    with ExitStack() as stack:
        stack.callback(blocks[number].register_forward_hook(equalise).remove)
        stack.callback(blocks[-1].register_forward_hook(store(seen, "dense")).remove)
        stack.enter_context(entering(blocks[number + 1 :], follow))
        behind = tuple(f"{site.name}." for site in structure.sites[number + 1 :])
        for each in structure.built:
            if f"{each.module}.".startswith(behind):
                stack.enter_context(_built_by(model.get_submodule(each.module), each.companion, seen))
        return model(subject.images)


@contextmanager
def _built_by(module: nn.Module, companion: Companion, seen: dict[str, Any]) -> Iterator[None]:
    """Let what a dense module builds belong to the tokens that were made equal, while the context lasts."""
    build = getattr(module, companion.argument)

    def built(*args: Any, **kwargs: Any) -> Tensor:
        selection: Selection = seen["merged"]
        followed: Tensor = companion.shortened(build(*args, **kwargs), selection.back(selection.kept))
        return followed

    setattr(module, companion.argument, built)
    try:
        yield
    finally:
        delattr(module, companion.argument)
