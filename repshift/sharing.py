"""Copies of models that share the weights of the original."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import TypeVar

from torch import Tensor, nn

from repshift.errors import UnsupportedModelError, first_line
from repshift.hooks import detach_copies
from repshift.modules import children

Model = TypeVar("Model", bound=nn.Module)
# torch's classes, by name, since torch.distributed need not be there
SHARDED = ("FSDPModule", "FullyShardedDataParallel")


def share_weights(model: Model) -> Model:
    """Copy a model's modules, but none of its parameters and buffers.

    The copy of a module has the very *tables* of parameters and buffers of its original, not only the same tensors. So
    whatever torch does to one of the models holds for both, even where it replaces tensors instead of writing into
    them: moving and converting buffers, ``load_state_dict(assign=True)``, ``to_empty``. What replaces whole modules
    does not. What takes a parameter out of its module's table and computes it from others (``torch.nn.utils.prune``,
    ``parametrize``, ``weight_norm``, ``spectral_norm``) takes it from both models, and leaves it to one: the other
    fails (``Linear has no attribute 'weight'``). Both work if it is done before the copy is made.

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


def give_each_place_its_own(
    model: nn.Module, places: Sequence[str], blocks: Sequence[str], playing: Iterable[str]
) -> None:
    """Let modules that stand at several places of a model be different modules there, with the same weights.

    A module may also have several names for one place, as ``self.layers = self.blocks`` gives it: those stay names of
    one module, whichever of them the model calls it by. What a backbone names are different places. Of any other name,
    inside a block it is another place, where nothing is played; outside, another name.

    Args:
        model: A copy by :func:`share_weights`.
        places: What a backbone names in it.
        blocks: Names of the blocks among them.
        playing: Names of the modules that are to play different roles.

    Raises:
        UnsupportedModelError: If another name may mean any of several places.
    """
    ways = dict.fromkeys(way for name in places for way in _ways_to(name))
    on_the_way = sorted(ways, key=lambda name: name.count("."))
    playing = {way for name in playing for way in _ways_to(name)}
    named: dict[nn.Module, list[str]] = {}
    for name in on_the_way:
        named.setdefault(model.get_submodule(name), []).append(name)
    known = {_place_of(model, name) for name in on_the_way}
    inside = tuple(f"{block}." for block in blocks)
    apart: dict[nn.Module, nn.Module] = {}
    for around, holder in list(model.named_modules()):
        for leaf, module in children(holder).items():
            names = named.get(module, [])
            if (holder, leaf) in known or not playing.intersection(names):
                continue
            if any(name.startswith(inside) for name in names):
                apart[module] = apart[module] if module in apart else share_weights(module)
                holder._modules[leaf] = apart[module]
            elif len(names) > 1:
                raise UnsupportedModelError(
                    f"One module stands at {' and '.join(map(repr, names))}, and which of them is meant by its other "
                    f"name {f'{around}.{leaf}'.lstrip('.')!r} cannot be told. Give each place a module of its own, or "
                    "take the other name away."
                )
    taken: dict[nn.Module, str] = {}
    for name in on_the_way:  # what holds a module may stand at several places, too, so the holders come first
        holder, leaf = _place_of(model, name)
        module = children(holder)[leaf]
        first = taken.setdefault(module, name)
        if first != name and not playing.isdisjoint((first, name)):
            holder._modules[leaf] = share_weights(module)


def _ways_to(name: str) -> list[str]:
    """List a module's name and those of the modules around it, but for the whole model."""
    parts = name.split(".") if name else []
    return [".".join(parts[:end]) for end in range(1, len(parts) + 1)]


def _place_of(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    around, _, leaf = name.rpartition(".")
    return model.get_submodule(around), leaf
