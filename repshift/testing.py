"""What every backbone promises, as a function: prove one of your own by a single call.

::

    repshift.BACKBONES.register("mine", MyBackbone())
    repshift.testing.check_backbone(MyModel().eval(), torch.randn(3, 3, 32, 32))

Every check is a function in :data:`CHECKS`, so that a test can run them one by one.
"""

from __future__ import annotations

import copy
import io
import pickle
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from repshift.errors import RepshiftError, ScheduleError, UnsupportedModelError
from repshift.finding import require_structure
from repshift.participants import participants
from repshift.pruners import Candidates
from repshift.pruning import dense, prune
from repshift.recipes import Recipe
from repshift.schedules import Drop, Schedule
from repshift.scores import AttentionScore
from repshift.selection import Selection
from repshift.sites import Structure
from repshift.tracker import ShiftTracker

THREADS = 8
MODULES = 40  # how many modules are made to fail, evenly spread


class BackboneError(RepshiftError, AssertionError):
    """A backbone that does not keep what every backbone promises."""


@dataclass(frozen=True)
class KeepAll:
    """A pruner that takes every token as kept, through the whole machinery, instead of leaving the value alone."""

    drops_only: ClassVar[bool] = True

    def choose(self, candidates: Candidates, drop: Drop) -> Selection:
        """Keep every token, in its order."""
        scores = candidates.scores
        kept = torch.arange(scores.shape[1], device=scores.device).expand(scores.shape[0], -1)
        grid = candidates.layout.grid(candidates.value)
        return Selection(kept, grid=None if grid is None else candidates.grid)


@dataclass(frozen=True)
class Subject:
    """What is checked.

    Attributes:
        model: Dense, in evaluation mode.
        images: ``(batch, ...)``, two at least; what the model takes.
        recipe: How it is pruned.
        structure: What its backbone says of it.
    """

    model: nn.Module
    images: Tensor
    recipe: Recipe
    structure: Structure

    def pruned(self, **changes: Any) -> nn.Module:
        """Make a pruned model, by the recipe or by one that differs from it."""
        return prune(self.model, self.structure, replace(self.recipe, **changes))


def check_backbone(model: nn.Module, images: Tensor, recipe: Recipe | None = None) -> tuple[str, ...]:
    """Check that a model keeps what every pruned model promises.

    That dropping nothing is the dense model bit for bit; that tokens that are left are treated as in the dense model;
    that images do not disturb each other; that the original stays as it was and shares its weights; that the pruned
    model compiles in any order and with graph breaks, exports, copies, pickles, trains and runs in several threads;
    that nothing of a forward is left, even if it fails anywhere; and that trackers see what happens, and nothing else.

    Args:
        model: A model that a registered backbone knows, in evaluation mode, small enough to run some hundred times.
        images: ``(batch, ...)``, floating-point, two or more that differ; what the model takes.
        recipe: How to prune it; by default a quarter goes after the first two blocks that can be scored.

    Returns:
        The names of the checks.

    Raises:
        UnsupportedModelError: If no backbone knows the model.
        BackboneError: If a promise is not kept; the message lists all that are not.

    Example:
        >>> import torch
        >>> from repshift import load_model
        >>> from repshift.testing import check_backbone
        >>> len(check_backbone(load_model("tiny_resnet", pretrained=True), torch.rand(2, 3, 64, 64)))
        17
    """
    subject = make_subject(model, images, recipe)
    failures = []
    for name, check in CHECKS.items():
        try:
            check(subject)
        except Exception as error:  # whatever a foreign model raises is a promise that was not kept
            failures.append(f"{name}: {type(error).__name__}: {error}")
    if failures:
        listed = "\n".join(f"- {failure}" for failure in failures)
        raise BackboneError(
            f"{type(model).__name__} does not keep {len(failures)} of {len(CHECKS)} promises:\n{listed}"
        )
    return tuple(CHECKS)


def make_subject(model: nn.Module, images: Tensor, recipe: Recipe | None = None) -> Subject:
    """Put together what is checked; arguments as for :func:`check_backbone`.

    Args:
        model: See there.
        images: ``(batch, ...)``, see there.
        recipe: See there.

    Raises:
        UnsupportedModelError: If no backbone knows the model, or it is not in evaluation mode.
    """
    structure = require_structure(model)
    if model.training or images.shape[0] < 2:
        raise UnsupportedModelError(
            "A backbone is checked in evaluation mode (model.eval()), with two images at least, got "
            f"{'training mode' if model.training else 'evaluation mode'} and {images.shape[0]}."
        )
    return Subject(model, images, recipe or _usual_recipe(model, images, structure), structure)


def leftovers(model: nn.Module) -> list[str]:
    """List what a pruned model holds between forwards, in this thread; nothing, if all is well."""
    held = []
    for name, module in participants(model):
        for role in module.repshift_roles:
            streams = getattr(role, "streams", None)
            if streams is not None:
                own = {key: value for key, value in vars(streams.own).items() if value not in (None, ())}
                held += [f"{name}: {key}" for key in own]
    return held


# --- the checks --------------------------------------------------------------------------------------------------


def _nothing_dropped_is_the_dense_model(subject: Subject) -> None:
    for operation in dict.fromkeys(name for site in subject.structure.sites for name in site.operations):
        recipe = replace(subject.recipe, operation=operation, pruner=KeepAll(), score="shift", restore=False)
        if not all(operation in subject.structure.sites[number].operations for number in recipe.schedule.drops):
            continue
        kept = prune(subject.model, subject.structure, recipe)
        _require_equal(kept(subject.images), subject.model(subject.images), f"with the operation {operation!r}")


def _gradients_of_nothing_dropped_are_those_of_the_dense_model(subject: Subject) -> None:
    kept = subject.pruned(pruner=KeepAll(), restore=False)
    parameters = [parameter for parameter in subject.model.parameters() if parameter.requires_grad]
    found, expected = (
        torch.autograd.grad(_total(model(subject.images)), parameters, allow_unused=True)
        for model in (kept, subject.model)
    )
    for one, other in zip(found, expected, strict=True):
        if (one is None) != (other is None) or (one is not None and not torch.equal(one, other)):
            raise BackboneError("a parameter has another gradient than in the dense model")


def _what_is_left_is_treated_as_in_the_dense_model(subject: Subject) -> None:
    """Hide what is dropped from the dense model's attention instead: what is left must come out the same."""
    structure = subject.structure
    if structure.bias is None or not _is_sequence(structure):
        return
    pruned = subject.pruned(pruner="tokens", restore=False)
    tracker = ShiftTracker(pruned).run(subject.images)
    numbers = sorted(subject.recipe.schedule.drops)
    last = structure.sites[-1].name
    prefix = int(getattr(structure.layout, "prefix", 0))
    seen: dict[str, Tensor] = {}
    handles = [pruned.get_submodule(last).register_forward_hook(_store(seen, "pruned"))]
    handles.append(subject.model.get_submodule(last).register_forward_hook(_store(seen, "dense")))
    for number, site in enumerate(structure.sites):
        earlier = [each for each in numbers if each < number]
        if earlier:
            kept = tracker.kept[structure.sites[earlier[-1]].name]
            hide = _hides(structure.bias, kept, prefix)
            handles.append(subject.model.get_submodule(site.name).register_forward_pre_hook(hide, with_kwargs=True))
    try:
        with torch.no_grad():
            pruned(subject.images)
            subject.model(subject.images)
    finally:
        for handle in handles:
            handle.remove()
    kept = tracker.kept[structure.sites[numbers[-1]].name]
    expected = structure.layout.tokens(seen["dense"])
    if numbers[-1] != len(structure.sites) - 1:
        expected = Selection(kept).take(expected)
        _require_close(structure.layout.tokens(seen["pruned"]), expected, "behind the last block")


def _as_many_tokens_are_left_as_the_schedule_says(subject: Subject) -> None:
    if not _is_sequence(subject.structure) or not subject.recipe.schedule.drops:
        return
    tracker = ShiftTracker(subject.pruned()).run(subject.images)
    tokens = ShiftTracker(subject.model).run(subject.images).shifts.stacked().shape[-1]
    expected = {subject.structure.sites[n].name: left for n, left in subject.recipe.schedule.kept(tokens).items()}
    found = {name: kept.shape[1] for name, kept in tracker.kept.items()}
    if found != expected:
        raise BackboneError(f"{found} tokens are left, expected {expected}")


def _images_do_not_disturb_each_other(subject: Subject) -> None:
    pruned = subject.pruned()
    with torch.no_grad():
        together = pruned(subject.images)
        for number in range(subject.images.shape[0]):
            alone = pruned(subject.images[number : number + 1])
            pairs = zip(_tensors(alone), _tensors(together), strict=True)
            for one, all_of_them in pairs:
                _require_close(one, all_of_them[number : number + 1], f"image {number} alone")


def _the_original_stays_as_it_was(subject: Subject) -> None:
    before = _snapshot(subject)
    pruned = subject.pruned()
    pruned(subject.images)
    ShiftTracker(pruned).run(subject.images)
    after = _snapshot(subject)
    changed = [name for name in before if name != "output" and before[name] != after[name]]
    if changed:
        raise BackboneError(f"the original has other {', '.join(changed)} after it was pruned")
    _require_equal(after["output"], before["output"], "of the original, after it was pruned")
    if list(pruned.state_dict()) != list(subject.model.state_dict()):
        raise BackboneError("the pruned model has other keys in its state_dict")


def _weights_are_shared_whatever_torch_does_to_them(subject: Subject) -> None:
    model = copy.deepcopy(subject.model)
    pruned = prune(model, subject.structure, subject.recipe)
    model.double()
    expected = prune(model, subject.structure, subject.recipe)(subject.images.double())
    _require_equal(pruned(subject.images.double()), expected, "after the original was converted")
    model.load_state_dict({name: value.float() for name, value in model.state_dict().items()}, assign=True)
    expected = prune(model, subject.structure, subject.recipe)(subject.images)
    _require_equal(pruned(subject.images), expected, "after other tensors were assigned to the original")


def _copies_prune_alike(subject: Subject) -> None:
    pruned = subject.pruned()
    expected = pruned(subject.images)
    _require_equal(copy.deepcopy(pruned)(subject.images), expected, "of a deepcopy")
    _require_equal(pickle.loads(pickle.dumps(pruned))(subject.images), expected, "after pickle")
    _require_equal(dense(pruned)(subject.images), subject.model(subject.images), "of dense(pruned)")


def _exports_prune_alike(subject: Subject) -> None:
    pruned = subject.pruned()
    exported = torch.export.export(pruned, (subject.images,), strict=False)
    with torch.no_grad():
        _require_close(exported.module()(subject.images), pruned(subject.images), "of the exported model")
    torch.export.save(exported, io.BytesIO())


def _compiled_models_prune_alike_in_any_order(subject: Subject) -> None:
    other = subject.pruned(keep="bottom")
    for order in ((subject.model, subject.pruned(), other), (subject.pruned(), other, subject.model)):
        with _fresh_dynamo(), torch.no_grad():
            compiled = [torch.compile(model, backend="aot_eager", fullgraph=True) for model in order]
            for _ in range(2):
                for fast, model in zip(compiled, order, strict=True):
                    _require_close(fast(subject.images), model(subject.images), "of a compiled model")


def _graph_breaks_change_nothing(subject: Subject) -> None:
    pruned = subject.pruned()
    with torch.no_grad():
        expected = pruned(subject.images)
    blocks = [pruned.get_submodule(subject.structure.sites[n].name) for n in sorted(subject.recipe.schedule.drops)]
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
                _require_close(compiled(subject.images), expected, f"with {what}")
    if left := leftovers(pruned):
        raise BackboneError(f"after graph breaks the pruned model still holds {left}")


def _threads_do_not_disturb_each_other(subject: Subject) -> None:
    pruned = subject.pruned()
    batches = [subject.images.roll(number, 0) * (1 + 0.05 * number) for number in range(4 * THREADS)]
    with torch.no_grad():
        expected = [pruned(batch) for batch in batches]

    def run(batch: Tensor) -> Any:
        with torch.no_grad():
            return pruned(batch)

    with ThreadPoolExecutor(THREADS) as pool:
        for found, right in zip(pool.map(run, batches), expected, strict=True):
            _require_close(found, right, "in one of several threads")


def _nothing_is_left_of_a_forward(subject: Subject) -> None:
    pruned = subject.pruned()
    before = {name: set(vars(module)) for name, module in pruned.named_modules()}
    pruned(subject.images)
    if left := leftovers(pruned):
        raise BackboneError(f"the pruned model still holds {left}")
    if {name: set(vars(module)) for name, module in pruned.named_modules()} != before:
        raise BackboneError("a forward leaves new attributes on modules of the pruned model")


def _nothing_is_left_of_a_forward_that_fails(subject: Subject) -> None:
    pruned = subject.pruned()
    few = subject.images[:1]
    with torch.no_grad():
        expected, expected_of_few = pruned(subject.images), pruned(few)
        modules = dict(pruned.named_modules())
        every = max(1, len(modules) // MODULES)
        chosen = {*list(modules)[::every], *(name for name, _ in participants(pruned))}
        for name in chosen:
            for when in ("before", "after"):
                with _failing(modules[name], when) as failure, suppress(_BrokenError):
                    pruned(subject.images)
                if failure.happened and (left := leftovers(pruned)):
                    raise BackboneError(f"{name or 'the model'} failed {when} its forward, and {left} is held still")
        _require_equal(pruned(few), expected_of_few, "after forwards that failed, for fewer images")
        _require_equal(pruned(subject.images), expected, "after forwards that failed")


def _trackers_see_their_own_thread_only(subject: Subject) -> None:
    for model in (subject.model, subject.pruned()):
        alone = ShiftTracker(model).run(subject.images)
        other = subject.images.flip(0) * 2
        with torch.no_grad():
            expected = model(other)
        ended = threading.Event()

        def go_on(model: nn.Module = model, ended: threading.Event = ended, other: Tensor = other) -> list[Any]:
            outputs = []
            with torch.no_grad():
                while not ended.is_set() or not outputs:
                    outputs.append(model(other))
            return outputs

        with ThreadPoolExecutor(2) as pool:
            busy = [pool.submit(go_on) for _ in range(2)]
            try:
                for _ in range(5):
                    tracker = ShiftTracker(model).run(subject.images)
                    for name, shift in alone.shifts.items():
                        _require_equal(tracker.shifts[name], shift, f"recorded at {name}, while other threads ran")
            finally:
                ended.set()
            for future in busy:
                for output in future.result():
                    _require_equal(output, expected, "of a thread, while another one was tracked")


def _a_tracker_does_not_disturb_compiled_models(subject: Subject) -> None:
    pruned = subject.pruned()
    with torch.no_grad():
        expected = pruned(subject.images)
    for before in (True, False):
        with _fresh_dynamo(), torch.no_grad():
            compiled = torch.compile(pruned, backend="aot_eager")
            if before:
                compiled(subject.images)
            with ShiftTracker(pruned) as tracker:
                _require_close(compiled(subject.images), expected, "of a compiled model, while it is tracked")
            if len(tracker.shifts) or len(tracker.kept):
                raise BackboneError("a tracker recorded some of a compiled model's modules, but not all")
            _require_close(compiled(subject.images), expected, "of a compiled model, after it was tracked")


def _recorded_and_pruned_by_are_the_same(subject: Subject) -> None:
    if isinstance(subject.recipe.the_score, AttentionScore) or subject.recipe.score != "shift":
        return
    number = min(subject.recipe.schedule.drops)
    name = subject.structure.sites[number].name
    options = {"operation": subject.recipe.operation, "residual": subject.recipe.residual}
    recorded = ShiftTracker(subject.model, distance=subject.recipe.distance, **options).run(subject.images)
    pruned = subject.pruned(schedule={number: subject.recipe.schedule.drops[number]})
    tracker = ShiftTracker(pruned, distance=subject.recipe.distance, **options).run(subject.images)
    _require_equal(tracker.shifts[name], recorded.shifts[name], f"at {name}, where nothing was dropped before")
    if _is_sequence(subject.structure) and getattr(subject.recipe.the_pruner("tokens"), "drops_only", False):
        kept = tracker.kept[name]
        of_kept = recorded.shifts[name].gather(1, kept)
        others = recorded.shifts[name].scatter(1, kept, -torch.inf if subject.recipe.keep == "top" else torch.inf)
        right = of_kept.amin(1) >= others.amax(1) if subject.recipe.keep == "top" else of_kept.amax(1) <= others.amin(1)
        if not bool(right.all()):
            raise BackboneError(f"what {name} keeps is not what scores {subject.recipe.keep}")


CHECKS: dict[str, Callable[[Subject], None]] = {
    "nothing dropped is the dense model, bit for bit": _nothing_dropped_is_the_dense_model,
    "so are the gradients": _gradients_of_nothing_dropped_are_those_of_the_dense_model,
    "what is left is treated as in the dense model": _what_is_left_is_treated_as_in_the_dense_model,
    "as many tokens are left as the schedule says": _as_many_tokens_are_left_as_the_schedule_says,
    "images do not disturb each other": _images_do_not_disturb_each_other,
    "the original stays as it was": _the_original_stays_as_it_was,
    "weights are shared whatever torch does to them": _weights_are_shared_whatever_torch_does_to_them,
    "copies prune alike": _copies_prune_alike,
    "exports prune alike": _exports_prune_alike,
    "compiled models prune alike, in any order": _compiled_models_prune_alike_in_any_order,
    "graph breaks change nothing": _graph_breaks_change_nothing,
    "threads do not disturb each other": _threads_do_not_disturb_each_other,
    "nothing is left of a forward": _nothing_is_left_of_a_forward,
    "nothing is left of a forward that fails": _nothing_is_left_of_a_forward_that_fails,
    "trackers see their own thread only": _trackers_see_their_own_thread_only,
    "a tracker does not disturb compiled models": _a_tracker_does_not_disturb_compiled_models,
    "what is recorded is what is pruned by": _recorded_and_pruned_by_are_the_same,
}


# --- what they are made of ---------------------------------------------------------------------------------------


def _usual_recipe(model: nn.Module, images: Tensor, structure: Structure) -> Recipe:
    having = [number for number, site in enumerate(structure.sites) if structure.operation in site.operations]
    if not having:
        structure.at(structure.sites[0], structure.operation)
    for blocks in (having[:2], having[:1]):
        recipe = Recipe(Schedule(dict.fromkeys(blocks, 0.25)), operation=structure.operation)
        try:
            with torch.no_grad():
                prune(model, structure, recipe)(images)
        except ScheduleError:
            continue
        return recipe
    raise ScheduleError("A quarter of the tokens cannot go behind any block. Give a recipe of your own.")


def _is_sequence(structure: Structure) -> bool:
    return not hasattr(structure.layout, "arrange")


def _tensors(output: Any) -> list[Tensor]:
    """List the floating-point tensors of what a model returns, in order."""
    if isinstance(output, Tensor):
        return [output] if output.is_floating_point() else []
    if isinstance(output, Mapping):
        return [tensor for value in output.values() for tensor in _tensors(value)]
    if isinstance(output, (tuple, list)):
        return [tensor for value in output for tensor in _tensors(value)]
    return []


def _total(output: Any) -> Tensor:
    return torch.stack([tensor.float().square().sum() for tensor in _tensors(output)]).sum()


def _require_equal(found: Any, expected: Any, where: str) -> None:
    for one, other in zip(_tensors(found), _tensors(expected), strict=True):
        if not torch.equal(one, other):
            raise BackboneError(f"other numbers {where}: {_difference(one, other)}")


def _require_close(found: Any, expected: Any, where: str) -> None:
    for one, other in zip(_tensors(found), _tensors(expected), strict=True):
        tolerance = 1e-4 * max(1e-6, float(other.abs().max()))
        if one.shape != other.shape or not torch.allclose(one, other, rtol=1e-4, atol=tolerance):
            raise BackboneError(f"other numbers {where}: {_difference(one, other)}")


def _difference(one: Tensor, other: Tensor) -> str:
    if one.shape != other.shape:
        return f"{tuple(one.shape)} instead of {tuple(other.shape)}"
    return f"off by up to {float((one - other).abs().max()):.3g}, where the largest is {float(other.abs().max()):.3g}"


def _snapshot(subject: Subject) -> dict[str, Any]:
    model = subject.model
    with torch.no_grad():
        output = model(subject.images)
    return {
        "classes": {name: type(module) for name, module in model.named_modules()},
        "attributes": {name: set(vars(module)) for name, module in model.named_modules()},
        "hooks": {name: (len(m._forward_hooks), len(m._forward_pre_hooks)) for name, m in model.named_modules()},
        "tensors": {name: (id(value), value._version) for name, value in model.named_parameters()},
        "output": output,
    }


def _store(seen: dict[str, Any], key: str) -> Callable[..., None]:
    def hook(module: nn.Module, args: Any, output: Any) -> None:
        seen[key] = output

    return hook


def _hides(argument: str, kept: Tensor, prefix: int) -> Callable[..., Any]:
    """Make a hook that hides all but the kept tokens from a block's attention."""

    def hook(
        module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        value = args[0] if args else next(iter(kwargs.values()))
        tokens = value.shape[1]
        mask = torch.full((kept.shape[0], tokens), -torch.inf, dtype=value.dtype, device=value.device)
        mask[:, :prefix] = 0
        return args, {**kwargs, argument: mask.scatter(1, kept + prefix, 0.0)[:, None, None]}

    return hook


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
        seen.extend(tensor.norm().item() for tensor in _tensors(output))

    handle = module.register_forward_hook(look)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _left_to_python(module: nn.Module) -> Iterator[None]:
    """Let a module be one that its writer told dynamo to leave alone."""
    with _with_forward(module, torch._dynamo.disable(type(module).forward)):
        yield


@contextmanager
def _asking_for_a_number(module: nn.Module) -> Iterator[None]:
    """Let a module look at a number of its own."""
    own = type(module).forward

    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        output = own(self, *args, **kwargs)
        numbers = [tensor.norm().item() for tensor in _tensors(output)]
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


class _BrokenError(Exception):
    """Raised on purpose."""


@dataclass
class _Failure:
    happened: bool = False


@contextmanager
def _failing(module: nn.Module, when: str) -> Iterator[_Failure]:
    failure = _Failure()

    def fail(*arguments: Any) -> None:
        failure.happened = True
        raise _BrokenError

    register = module.register_forward_pre_hook if when == "before" else module.register_forward_hook
    handle = register(fail)
    try:
        yield failure
    finally:
        handle.remove()
