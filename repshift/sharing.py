"""Copies of models that share the weights of the original."""

from __future__ import annotations

import copy
from itertools import chain
from typing import TypeVar

from torch import Tensor, nn

from repshift.errors import UnsupportedModelError, first_line
from repshift.hooks import detach_copies

Model = TypeVar("Model", bound=nn.Module)
# torch's classes, by name, since torch.distributed need not be there
SHARDED = ("FSDPModule", "FullyShardedDataParallel")


def share_weights(model: Model) -> Model:
    """Copy a model's modules, but none of its parameters and buffers.

    The copy of a module has the very *tables* of parameters and buffers of its original, not only the same tensors. So
    whatever torch does to one of the models holds for both, even where it replaces tensors instead of writing into
    them: moving and converting buffers, ``load_state_dict(assign=True)``, ``to_empty``. What replaces whole modules, or
    takes a parameter out of a module's table (``torch.nn.utils.parametrize``), does not.

    Raises:
        UnsupportedModelError: If the model is sharded, or something on it cannot be copied.
    """
    _refuse_sharded(model)
    known: dict[int, object] = {id(tensor): tensor for tensor in chain(model.parameters(), model.buffers())}
    for module in model.modules():
        tables = module._parameters, module._buffers, module._non_persistent_buffers_set
        # results left on a module, such as the weight that torch.nn.utils.prune makes, cannot be copied
        computed = (value for value in vars(module).values() if isinstance(value, Tensor) and not value.is_leaf)
        known |= {id(shared): shared for shared in (*tables, *computed)}
    try:
        shared = copy.deepcopy(model, known)
    except (RuntimeError, TypeError) as error:
        if "deepcopy" not in str(error) and "pickle" not in str(error):
            raise
        raise UnsupportedModelError(
            f"{type(model).__name__} cannot be copied ({first_line(error)}). Something attached to it, often "
            "a hook that stores outputs, is in the way: remove it, prune, and attach it again."
        ) from error
    detach_copies(shared)
    return shared


def _refuse_sharded(model: nn.Module) -> None:
    for name, module in model.named_modules():
        if any(cls.__name__ in SHARDED for cls in type(module).__mro__):
            raise UnsupportedModelError(
                f"The model is sharded already ({f'its module {name!r}' if name else type(model).__name__}), and each "
                "process holds a part of its weights only. Prune first and shard the result: "
                "fully_shard(ShiftTracker(model).prune(...))."
            )


def give_each_place_its_own(model: nn.Module, names: list[str]) -> None:
    """Let modules that stand at several places of a model be different modules there, with the same weights.

    Args:
        model: A copy by :func:`share_weights`.
        names: The places in question.
    """
    for name in sorted(names, key=lambda name: name.count(".")):
        parts = name.split(".")
        for end in range(1, len(parts) + 1):  # what holds the module may stand at several places, too
            place, leaf = ".".join(parts[: end - 1]), parts[end - 1]
            parent = model.get_submodule(place)
            module = parent.get_submodule(leaf)
            if sum(other is module for _, other in model.named_modules(remove_duplicate=False)) > 1:
                setattr(parent, leaf, share_weights(module))
