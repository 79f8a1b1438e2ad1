"""That models, threads, trackers and forwards leave each other alone, whatever fails."""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import chain, product
from typing import Any

import torch
from torch import Tensor, nn

from repshift.participants import participants
from repshift.pruning import prune
from repshift.testing.subjects import BackboneError, Subject, leftovers, require_close, require_equal

THREADS = 8
MODULES = 16  # how many modules are made to fail, evenly spread, beside those that take part in pruning


def the_original_stays_as_it_was(subject: Subject) -> None:
    """Compare the dense model before and after: classes, attributes, hooks, tensors, output.

    Raises:
        BackboneError: If the promise is not kept.
    """
    before = _snapshot(subject)
    pruned = subject.pruned()
    pruned(subject.images)
    subject.tracker(pruned).run(subject.images)
    after = _snapshot(subject)
    changed = [name for name in before if name != "output" and before[name] != after[name]]
    if changed:
        raise BackboneError(f"the original has other {', '.join(changed)} after it was pruned")
    require_equal(after["output"], before["output"], "of the original, after it was pruned")
    if list(pruned.state_dict()) != list(subject.model.state_dict()):
        raise BackboneError("the pruned model has other keys in its state_dict")


def weights_are_shared_whatever_torch_does_to_them(subject: Subject) -> None:
    """Convert the original and assign other tensors to it: the pruned model must follow.

    Raises:
        BackboneError: If the promise is not kept.
    """
    model = copy.deepcopy(subject.model)
    pruned = prune(model, subject.structure, subject.recipe)
    model.bfloat16()
    expected = prune(model, subject.structure, subject.recipe)(subject.images.bfloat16())
    require_equal(pruned(subject.images.bfloat16()), expected, "after the original was converted")
    model.load_state_dict({name: value.float() for name, value in model.state_dict().items()}, assign=True)
    expected = prune(model, subject.structure, subject.recipe)(subject.images)
    require_equal(pruned(subject.images), expected, "after other tensors were assigned to the original")


def threads_do_not_disturb_each_other(subject: Subject) -> None:
    """Run one pruned model in several threads at once.

    Raises:
        BackboneError: If the promise is not kept.
    """
    pruned = subject.pruned()
    batches = [subject.images.roll(number, 0) * (1 + 0.05 * number) for number in range(4 * THREADS)]
    with torch.no_grad():
        expected = [pruned(batch) for batch in batches]

    def run(batch: Tensor) -> Any:
        with torch.no_grad():
            return pruned(batch)

    with ThreadPoolExecutor(THREADS) as pool:
        for found, right in zip(pool.map(run, batches), expected, strict=True):
            require_close(found, right, "in one of several threads")


def nothing_is_left_of_a_forward(subject: Subject) -> None:
    """See that a forward leaves neither attributes nor anything of its tokens.

    Raises:
        BackboneError: If the promise is not kept.
    """
    pruned = subject.pruned()
    before = {name: set(vars(module)) for name, module in pruned.named_modules()}
    pruned(subject.images)
    if left := leftovers(pruned):
        raise BackboneError(f"the pruned model still holds {left}")
    if {name: set(vars(module)) for name, module in pruned.named_modules()} != before:
        raise BackboneError("a forward leaves new attributes on modules of the pruned model")


def nothing_is_left_of_a_forward_that_fails(subject: Subject) -> None:
    """Let modules all over the model fail, before and after their forward; the next batch is another size.

    Raises:
        BackboneError: If the promise is not kept.
    """
    pruned = subject.pruned()
    few = subject.images[:1]
    with torch.no_grad():
        expected, expected_of_few = pruned(subject.images), pruned(few)
        modules = dict(pruned.named_modules())
        taking_part = {name for name, _ in participants(pruned)}
        every = max(1, len(modules) // MODULES)
        failing: Iterable[tuple[str, str, dict[str, Any]]]
        failing = product(sorted({*list(modules)[::every], *taking_part}), ("before", "after"), [{}])
        if companions := subject.companions():
            failing = chain(failing, product(sorted(taking_part), ("before", "after"), [companions]))
        for name, when, given in failing:
            with _failing(modules[name], when) as failure, suppress(_BrokenError):
                pruned(subject.images, **given)
            if failure.happened and (left := leftovers(pruned)):
                raise BackboneError(f"{name or 'the model'} failed {when} its forward, and {left} is held still")
        require_equal(pruned(few), expected_of_few, "after forwards that failed, for fewer images")
        require_equal(pruned(subject.images), expected, "after forwards that failed")


def trackers_see_their_own_thread_only(subject: Subject) -> None:
    """Track in one thread while others run the same model.

    Raises:
        BackboneError: If the promise is not kept.
    """
    for model in (subject.model, subject.pruned()):
        alone = subject.tracker(model).run(subject.images)
        other = subject.images.flip(0) * 2
        with torch.no_grad():
            expected = model(other)
        ended = threading.Event()

        def go_on(model: nn.Module = model, ended: threading.Event = ended, other: Tensor = other) -> list[Any]:
            outputs: list[Any] = []
            with torch.no_grad():
                while not ended.is_set() or not outputs:
                    outputs.append(model(other))
            return outputs

        with ThreadPoolExecutor(2) as pool:
            busy = [pool.submit(go_on) for _ in range(2)]
            try:
                for _ in range(5):
                    tracker = subject.tracker(model).run(subject.images)
                    for name, shift in alone.shifts.items():
                        require_equal(tracker.shifts[name], shift, f"recorded at {name}, while other threads ran")
            finally:
                ended.set()
            for future in busy:
                for output in future.result():
                    require_equal(output, expected, "of a thread, while another one was tracked")


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
