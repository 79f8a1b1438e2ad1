"""That a pruned model can be copied, saved, exported and compiled, with graph breaks and in any order."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter

from repshift.errors import UnsupportedModelError
from repshift.exporting import Batches, capture
from repshift.pruning import dense
from repshift.testing.subjects import BackboneError, Subject, leftovers, require_close, require_equal, tensors_of


def copies_prune_alike(subject: Subject) -> None:
    """Compare a deepcopy, a pickled one and the way back with what they were made from.

    Raises:
        BackboneError: If the promise is not kept.
    """
    pruned = subject.pruned()
    expected = pruned(subject.images)
    require_equal(copy.deepcopy(pruned)(subject.images), expected, "of a deepcopy")
    require_equal(pickle.loads(pickle.dumps(pruned))(subject.images), expected, "after pickle")
    require_equal(dense(pruned)(subject.images), subject.model(subject.images), "of dense(pruned)")


def exports_prune_alike(subject: Subject) -> None:
    """Compare what torch.export makes of the pruned model, and see that it can be saved.

    Raises:
        BackboneError: If the promise is not kept.
    """
    pruned, count = subject.pruned(), subject.images.shape[0]
    exported = capture(pruned, subject.images, Batches(count, count))
    with torch.no_grad():
        require_close(exported.module()(subject.images), pruned(subject.images), "of the exported model")
    torch.export.save(exported, io.BytesIO())


def exports_take_any_batch(subject: Subject) -> None:
    """Export the pruned model for batches of any size, if the dense model can be, and compare at two.

    Raises:
        BackboneError: If the promise is not kept.
    """
    pruned = subject.pruned()
    try:
        program = capture(pruned, subject.images, Batches()).module()
    except UnsupportedModelError as error:
        if _exported_for_any_batch(subject.model, subject.images):
            raise BackboneError(f"exported for one batch, the dense one for any: {error}") from error
        return
    with torch.no_grad():
        for images in (subject.images[:1], subject.images.repeat_interleave(2, 0)):
            require_close(program(images), pruned(images), f"of the exported model at batch {images.shape[0]}")


def _exported_for_any_batch(model: nn.Module, images: Tensor) -> bool:
    try:
        capture(model, images, Batches())
    except UnsupportedModelError:
        return False
    return True


def compiled_models_prune_alike_in_any_order(subject: Subject) -> None:
    """Compile the dense model and two pruned ones in one process, in two orders, and call them in turn.

    Raises:
        BackboneError: If the promise is not kept.
    """
    other = subject.pruned(keep="bottom") if subject.recipe.scores else subject.pruned(pruner=None)
    for order in ((subject.model, subject.pruned(), other), (subject.pruned(), other, subject.model)):
        with _fresh_dynamo(), torch.no_grad():
            compiled = [torch.compile(model, backend="aot_eager", fullgraph=True) for model in order]
            for _ in range(2):
                for fast, model in zip(compiled, order, strict=True):
                    require_close(fast(subject.images), model(subject.images), "of a compiled model")


def compiled_models_make_one_more_graph_for_other_batches(subject: Subject) -> None:
    """Count the graphs of a compiled model that sees batches of several sizes: one, and one for any number.

    (A batch of one has a graph of its own in torch, whatever the model is.)

    Raises:
        BackboneError: If the promise is not kept.
    """
    pruned, graphs = subject.pruned(), CompileCounter()
    batches = [subject.images.repeat_interleave(count, 0) for count in (1, 2, 3, 1)]
    with _fresh_dynamo(), torch.no_grad():
        compiled = torch.compile(pruned, backend=graphs, fullgraph=True)
        for images in batches:
            require_close(compiled(images), pruned(images), f"of a compiled model at batch {images.shape[0]}")
    if graphs.frame_count > 2:
        raise BackboneError(f"batches of three sizes took {graphs.frame_count} graphs instead of 2")


def graph_breaks_change_nothing(subject: Subject) -> None:
    """Compile with breaks inside the blocks that drop tokens: dynamo then runs parts of them in Python.

    Raises:
        BackboneError: If the promise is not kept.
    """
    pruned = subject.pruned()
    with torch.no_grad():
        expected = pruned(subject.images)
    blocks = [pruned.get_submodule(subject.structure.sites[n].name) for n in sorted(subject.recipe.drops)]
    leaves = [[module for module in block.modules() if not list(module.children())] for block in blocks]
    for what, broken in BREAKS.items():
        # in each block at another place: first thing, in the middle, last thing
        places = [(len(inside) - 1) * min(number, 2) // 2 for number, inside in enumerate(leaves, start=1)]
        with ExitStack() as stack:
            for inside, place in zip(leaves, places, strict=True):
                stack.enter_context(broken(inside[place]))
            stack.enter_context(broken(leaves[0][0]))
            stack.enter_context(_fresh_dynamo())
            stack.enter_context(torch.no_grad())
            compiled = torch.compile(pruned, backend="eager")
            for _ in range(2):
                require_close(compiled(subject.images), expected, f"with {what}")
    if left := leftovers(pruned):
        raise BackboneError(f"after graph breaks the pruned model still holds {left}")


def a_tracker_does_not_disturb_compiled_models(subject: Subject) -> None:
    """Call a compiled model while it is tracked: nothing is recorded, and it goes on as before.

    Raises:
        BackboneError: If the promise is not kept.
    """
    pruned = subject.pruned()
    with torch.no_grad():
        expected = pruned(subject.images)
    block = pruned.get_submodule(subject.structure.sites[min(subject.recipe.drops)].name)
    inside = [module for module in block.modules() if not list(module.children())]
    for before, breaks in ((True, False), (False, True)):
        with ExitStack() as stack:
            if breaks:
                stack.enter_context(_watched_by_a_hook(inside[len(inside) // 2]))
            stack.enter_context(_fresh_dynamo())
            stack.enter_context(torch.no_grad())
            compiled = torch.compile(pruned, backend="eager")
            if before:
                compiled(subject.images)
            with subject.tracker(pruned) as tracker:
                require_close(compiled(subject.images), expected, "of a compiled model, while it is tracked")
            if len(tracker.shifts) or len(tracker.kept):
                raise BackboneError("a tracker recorded some of a compiled model's modules, but not all")
            require_close(compiled(subject.images), expected, "of a compiled model, after it was tracked")


@contextmanager
def _fresh_dynamo() -> Iterator[None]:
    torch._dynamo.reset()
    try:
        yield
    finally:
        torch._dynamo.reset()


@contextmanager
def _watched_by_a_hook(module: nn.Module) -> Iterator[None]:
    """Let a user's hook look at a number, which dynamo cannot compile."""
    seen: list[float] = []

    def look(module: nn.Module, args: Any, output: Any) -> None:
        seen.extend(tensor.norm().item() for tensor in tensors_of(output))

    handle = module.register_forward_hook(look)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _left_to_python(module: nn.Module) -> Iterator[None]:
    """Let a module be one that its writer told dynamo to leave alone."""
    disable: Any = torch._dynamo.disable
    with _with_forward(module, disable(type(module).forward)):
        yield


@contextmanager
def _asking_for_a_number(module: nn.Module) -> Iterator[None]:
    """Let a module look at a number of its own."""
    own = type(module).forward

    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        output = own(self, *args, **kwargs)
        numbers = [tensor.norm().item() for tensor in tensors_of(output)]
        return output if all(number == number for number in numbers) else None

    with _with_forward(module, forward):
        yield


@contextmanager
def _with_forward(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    own = type(module)
    module.__class__ = type(own.__name__, (own,), {"forward": forward})
    try:
        yield
    finally:
        module.__class__ = own


BREAKS = {
    "a user's hook": _watched_by_a_hook,
    "a module left to Python": _left_to_python,
    "a module that asks for a number": _asking_for_a_number,
}
