"""Which modules of a model compute attention, and letting them do it by one kernel."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

from torch import nn

from repshift.errors import UnsupportedModelError
from repshift.kernel_calls import FLASH, MOST_CHANNELS, UseKernel, takes_no_mask
from repshift.participants import Participant, own_class, take_leave, take_part
from repshift.registry import Registry

# where a module keeps what it was told of its attention before a kernel was chosen
BEFORE = "repshift_attention_before"


class AttentionFamily(Protocol):
    """Modules that compute attention by ``F.scaled_dot_product_attention`` if they are told to."""

    def attends(self, module: nn.Module) -> bool:
        """Say whether a module is one of them."""
        ...

    def holders(self, model: nn.Module) -> Iterator[nn.Module]:
        """List the modules that are told how attention is computed, outer ones first."""
        ...

    def told(self, holder: nn.Module) -> Any:
        """Return what one was told, as a plain value."""
        ...

    def tell(self, holder: nn.Module, told: Any) -> None:
        """Tell it what :meth:`told` or :meth:`words` returned.

        Raises:
            UnsupportedModelError: If it does not let itself be told so.
        """
        ...

    def words(self, plain: bool) -> Any:
        """Return what tells a holder to hold the maps of attention (``plain``), or to ask torch for attention."""
        ...

    def biased(self, module: nn.Module) -> bool:
        """Say whether the attention of a module is known to add a bias for each pair of a query and a key."""
        ...

    def channels(self, module: nn.Module) -> int | None:
        """Return the channels of a head; ``None`` if they are not known before a forward."""
        ...


ATTENTION = Registry(
    "attention family",
    {
        "fused": "repshift.backbones.attention:FUSED",
        "transformers": "repshift.backbones.attention:TRANSFORMERS",
    },
)


def choose(model: nn.Module, kernel: str) -> None:
    """Let a copy of a model compute its attention by one kernel, whatever was chosen for it before.

    Args:
        model: Shares its weights with the original; plain attributes change.
        kernel: Its name.

    Raises:
        UnsupportedModelError: If the model has no attention whose kernel can be chosen, or the kernel cannot serve it.
    """
    forget(model)
    found = [(name, module, family) for name, module, family in _attending(model)]
    if not found:
        raise UnsupportedModelError(
            f"{own_class(model).__name__} has no attention that could run as {kernel!r}. Leave that out (--attention, "
            "--methods)."
        )
    for name, module, family in found:
        _require_serving(name, module, family, kernel)
    for family in {id(family): family for _, _, family in found}.values():
        for holder in list(family.holders(model)):
            setattr(holder, BEFORE, (family.told(holder),))
        for holder in family.holders(model):
            family.tell(holder, family.words(kernel == "eager"))
    if kernel not in ("eager", "sdpa"):
        for _, module, _ in found:
            take_part(module, (UseKernel(kernel),))


def forget(model: nn.Module) -> None:
    """Undo what :func:`choose` did."""
    for family in _families():
        for holder in family.holders(model):
            for told in vars(holder).pop(BEFORE, ()):
                family.tell(holder, told)
    for module in model.modules():
        if isinstance(module, Participant):
            roles = tuple(role for role in module.repshift_roles if not isinstance(role, UseKernel))
            if len(roles) < len(module.repshift_roles):
                take_leave(module)
                if roles:
                    take_part(module, roles)


def _families() -> list[AttentionFamily]:
    return [ATTENTION.get(name) for name in ATTENTION.names()]


def _attending(model: nn.Module) -> Iterator[tuple[str, nn.Module, AttentionFamily]]:
    """List the innermost modules that compute attention."""
    known = _families()
    for name, module in model.named_modules():
        family = next((family for family in known if family.attends(module)), None)
        inside = (each for each in module.modules() if each is not module)
        if family is not None and not any(other.attends(each) for each in inside for other in known):
            yield name, module, family


def _require_serving(name: str, module: nn.Module, family: AttentionFamily, kernel: str) -> None:
    """Refuse at once what would fail in the forward."""
    if "forward" in vars(module) and kernel not in ("eager", "sdpa"):
        raise UnsupportedModelError(
            f"The forward of {name!r} was replaced on the module itself, so a kernel cannot be chosen for it. Give the "
            "model before it was patched."
        )
    device = next((each.device.type for each in module.parameters()), "cpu")
    if kernel not in FLASH or not takes_no_mask(kernel, device):
        return
    if family.biased(module):
        raise UnsupportedModelError(
            f"Attention by {kernel!r} cannot serve {name!r}: its attention adds a bias for each pair of a query and a "
            "key, and the kernel takes none. Choose 'efficient', 'cudnn', 'flex' or 'sdpa'."
        )
    channels = family.channels(module)
    if channels is not None and channels > MOST_CHANNELS:
        raise UnsupportedModelError(
            f"Attention by {kernel!r} cannot serve {name!r}: its heads have {channels} channels, and the kernel takes "
            f"up to {MOST_CHANNELS}. Choose 'sdpa'."
        )
