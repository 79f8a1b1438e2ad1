"""Finding submodules by name, by glob, or by what they do."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from repshift.errors import RepresentationError, RepshiftError, UnknownNameError, UnsupportedModelError, first_line
from repshift.hooks import attached
from repshift.layouts import first_tensor
from repshift.registry import suggest


def require_model(model: object) -> None:
    """Refuse what is no model.

    Raises:
        UnsupportedModelError: If it is no :class:`torch.nn.Module`.
    """
    if not isinstance(model, nn.Module):
        raise UnsupportedModelError(
            f"Expected a model (torch.nn.Module), got {model!r}. Build it first, for example with "
            "repshift.load_model(name)."
        )


def find_modules(model: nn.Module, selectors: str | Iterable[str]) -> list[str]:
    """List the submodules that match names or globs, in the model's order.

    Args:
        model: Any module.
        selectors: One or several names; in each part between dots, ``*``, ``?`` and ``[...]`` are wildcards, so
            ``"blocks.*.attn"`` is the attention of every block and ``"blocks.*"`` the blocks without their insides.

    Raises:
        UnknownNameError: If a selector matches nothing; the message has the closest names.

    Example:
        >>> from repshift import load_model
        >>> find_modules(load_model("tiny_vit"), "blocks.[01].attn")
        ['blocks.0.attn', 'blocks.1.attn']
    """
    several = isinstance(selectors, Iterable) and not isinstance(selectors, Tensor)
    named = [selectors] if isinstance(selectors, str) else list(selectors) if several else []
    if not named or not all(isinstance(selector, str) for selector in named):
        raise UnknownNameError(
            f"No module was named: got {selectors!r}. Give one or several names or globs, such as 'layer1.*'."
        )
    names = [name for name, _ in model.named_modules() if name]
    found = set()
    for selector in named:
        matches = [name for name in names if _matches(name, selector)]
        if not matches:
            raise UnknownNameError(
                f"No module of {type(model).__name__} matches {selector!r}. {suggest(selector, names)}"
            )
        found.update(matches)
    return [name for name in names if name in found]


def _matches(name: str, selector: str) -> bool:
    parts, patterns = name.split("."), selector.split(".")
    return len(parts) == len(patterns) and all(map(fnmatchcase, parts, patterns))


def has_class(model: nn.Module, *names: str) -> bool:
    """Say whether a model's class or one that it inherits from has one of these full names.

    Names, so that no library need be imported to recognise models of another.
    """
    return any(f"{cls.__module__}.{cls.__qualname__}" in names for cls in type(model).__mro__)


def children(module: nn.Module) -> dict[str, nn.Module]:
    """Return the children of a module by name, in order; ``named_children`` leaves out one that stands there twice."""
    return {name: child for name, child in module._modules.items() if child is not None}


def repeated_blocks(model: nn.Module, images: Tensor) -> list[str]:
    """Find the blocks of a model that no backbone describes, by running it once.

    Blocks are the outermost numbered modules (``blocks.3``, ``s1.b2``) of a class used at least twice that hold two or
    more linear layers or convolutions and return what they take in shape: transformer blocks, the residual blocks of a
    stage but its first, mixer layers.

    Args:
        model: Any model that takes images.
        images: ``(batch, 3, rows, columns)`` floating-point.

    Returns:
        Their names, in the order of the model.

    Raises:
        UnsupportedModelError: If there are none, or the model does not take these images.

    Example:
        >>> import torch
        >>> from repshift import load_model, repeated_blocks
        >>> repeated_blocks(load_model("tiny_resnet"), torch.rand(1, 3, 64, 64))[:3]
        ['layer1.0', 'layer1.1', 'layer2.1']
    """
    require_model(model)
    steady: list[str] = []

    def observe(name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            if args and _tokens_of_one_shape(args[0], output) and name not in steady:
                steady.append(name)

        return hook

    inner = {name: module for name, module in model.named_modules() if name[-1:].isdigit() and _layers(module) >= 2}
    modes = {module: module.training for module in model.modules()}
    try:
        model.eval()  # running statistics must not change
        with attached((module, "after", observe(name)) for name, module in inner.items()), torch.no_grad():
            model(images)
    except RepshiftError:
        raise
    except Exception as error:  # each model has its own
        shape = tuple(images.shape) if isinstance(images, Tensor) else type(images).__name__
        raise UnsupportedModelError(
            f"{type(model).__name__} does not take the images {shape} ({first_line(error)}). Give images as it takes "
            "them, (batch, channels, rows, columns)."
        ) from error
    finally:
        for module, training in modes.items():
            module.training = training
    containers = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
    candidates = [name for name in inner if name in steady and not isinstance(inner[name], containers)]
    uses = Counter(type(inner[name]) for name in candidates)
    repeated = [name for name in candidates if uses[type(inner[name])] >= 2]
    blocks = [name for name in repeated if not any(name.startswith(f"{other}.") for other in repeated)]
    if not blocks:
        raise UnsupportedModelError(
            f"{type(model).__name__} has no repeated blocks that keep the shape of their input. "
            "Name the modules to look at instead: sites='features.*' (--sites 'features.*')."
        )
    return blocks


def _tokens_of_one_shape(before: Any, after: Any) -> bool:
    try:
        before, after = first_tensor(before), first_tensor(after)
    except RepresentationError:
        return False
    return bool(before.shape == after.shape) and before.ndim >= 3


def _layers(module: nn.Module) -> int:
    return sum(isinstance(layer, (nn.Linear, _ConvNd)) for layer in module.modules())


def refuse_compiled(model: nn.Module) -> None:
    """Refuse a model whose forward has been compiled: it would run its old graph past every change.

    Raises:
        UnsupportedModelError: If the model or a part of it is compiled, scripted or traced.
    """
    for name, module in model.named_modules():
        where = f"its module {name!r}" if name else type(model).__name__
        compiled = (
            isinstance(module, torch.jit.ScriptModule)
            or hasattr(module, "_orig_mod")  # torch.compile(model)
            or getattr(module, "_compiled_call_impl", None) is not None  # model.compile()
            or hasattr(module.forward, "_torchdynamo_orig_callable")  # model.forward = torch.compile(model.forward)
        )
        if compiled:
            inside = f", here {'.'.join(filter(None, ('model', name)))}._orig_mod" * hasattr(module, "_orig_mod")
            raise UnsupportedModelError(
                f"The model is already compiled ({where}), and a compiled forward ignores hooks and replaced modules. "
                f"Give the model as it was before torch.compile or torch.jit{inside}, and compile the result."
            )
