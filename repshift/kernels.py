"""The kernels that attention can be computed by: their names, and which of them this machine has."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.util import find_spec

import torch

from repshift.errors import UnknownNameError, UnsupportedModelError, first_line
from repshift.registry import suggest

# What attention is, by name: plain matrix products that hold the map, torch's own choice, and single kernels
KERNELS: Mapping[str, str] = {
    "eager": "plain matrix products, which hold the map of attention",
    "sdpa": "F.scaled_dot_product_attention, by the kernel that torch chooses",
    "flash": "torch's own FlashAttention",
    "efficient": "torch's memory-efficient attention",
    "cudnn": "cuDNN's attention, by torch",
    "math": "torch's own matrix products, which hold the map",
    "flash2": "FlashAttention 2 of the package flash-attn",
    "flash3": "FlashAttention 3, put in the place of torch's own for the whole process",
    "flash4": "FlashAttention 4, put in the place of torch's own for the whole process",
    "flex": "FlexAttention, by torch",
}
EVERYWHERE = ("eager", "sdpa", "math", "flex")  # those that any device computes
# What torch calls that which takes its own FlashAttention's place, the module that is needed, and for which GPUs
IMPLEMENTATIONS = {
    "flash3": ("FA3", "flash_attn_interface", (9,)),
    "flash4": ("FA4", "flash_attn.cute", (9, 10)),
}
NEEDS_GPU = "it needs a CUDA device"


def available_attention(device: str | torch.device | None = None) -> dict[str, str]:
    """Say which kernels attention can be computed by here.

    Args:
        device: Where; by default on a GPU if there is one, else on the CPU.

    Returns:
        Why each cannot be used, by the names that :func:`repshift.attention` takes; empty for those that can. Whether
        one serves a model also depends on its dtype, its head size and its biases.

    Example:
        >>> from repshift import available_attention
        >>> available_attention("cpu")["efficient"]
        'it needs a CUDA device'
    """
    kind = torch.device(_usual() if device is None else device).type
    return {name: why_not(name, kind) for name in KERNELS}


def require_kernel(name: str) -> None:
    """Refuse what is no kernel, or none that any device of this machine can use.

    Raises:
        UnknownNameError: If there is no kernel of this name.
        UnsupportedModelError: If it cannot be used here.
    """
    if not isinstance(name, str) or name not in KERNELS:
        raise UnknownNameError(f"Unknown attention {name!r}. {suggest(str(name), KERNELS)}")
    reasons = [why_not(name, kind) for kind in dict.fromkeys((_usual(), "cpu"))]
    if all(reasons):
        raise UnsupportedModelError(
            f"Attention by {name!r} ({KERNELS[name]}) cannot be had: {reasons[0]}. Choose another "
            "(attention='sdpa', --attention sdpa); repshift.available_attention() lists what there is (repshift env)."
        )


def why_not(name: str, kind: str) -> str:
    """Say why a kernel cannot be used on devices of a kind (``"cpu"``, ``"cuda"``); empty if it can."""
    if kind == "cuda" and not torch.cuda.is_available():
        return "there is no CUDA device"
    if name in EVERYWHERE:
        return ""
    missing = FINDING[name](name, kind) if name in FINDING else ""
    return missing or ("" if kind in DEVICES[name] else NEEDS_GPU)


def _usual() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def _why_no_flash_attn(name: str, kind: str) -> str:
    if find_spec("flash_attn") is None:
        return "the package flash-attn is not installed (pip install 'repshift[flash]')"
    try:  # in earnest, since it may be built for another torch
        package = import_module("flash_attn")
    except (ImportError, OSError, RuntimeError) as error:
        return f"the package flash-attn cannot be imported ({first_line(error)})"
    if not hasattr(package, "flash_attn_func"):  # flash-attn-4 puts its own into a folder of the same name
        return "of the package flash-attn there is no flash_attn_func (pip install 'repshift[flash]')"
    return _why_no_flash(name, kind)


def _why_no_implementation(name: str, kind: str) -> str:
    known, module, capabilities = IMPLEMENTATIONS[name]
    from torch.nn import attention

    listed: list[str] = getattr(attention, "list_flash_attention_impls", list)()
    if known not in listed:
        return f"torch {torch.__version__} cannot put {known} in the place of its own FlashAttention"
    try:
        import_module(module)
    except (ImportError, OSError, RuntimeError) as error:
        return f"{module} cannot be imported ({first_line(error)})"
    if kind == "cuda" and torch.cuda.get_device_capability()[0] not in capabilities:
        return f"it serves GPUs of compute capability {' and '.join(map(str, capabilities))}, and this is another"
    return ""


def _why_no_flash(name: str, kind: str) -> str:
    if kind == "cuda" and torch.cuda.get_device_capability() < (8, 0):
        return "it serves GPUs from compute capability 8.0 on, and this one is older"
    return ""


def active_implementation() -> str | None:
    """Return what torch calls the implementation in the place of its own FlashAttention; ``None`` if none is."""
    from torch.nn import attention

    current: Callable[[], str | None] | None = getattr(attention, "current_flash_attention_impl", None)
    return None if current is None else current()


def activate(name: str) -> None:
    """Put an implementation in the place of torch's own FlashAttention, for the whole process.

    ``flash`` is torch's own and puts it back; others need nothing.

    Raises:
        UnsupportedModelError: If torch cannot.
    """
    from torch.nn import attention

    if name == "flash" and active_implementation() is not None:
        getattr(attention, "restore_flash_attention_impl", lambda: None)()  # if torch cannot, the forward refuses
    if name not in IMPLEMENTATIONS:
        return
    try:
        attention.activate_flash_attention_impl(IMPLEMENTATIONS[name][0])
    except (ImportError, RuntimeError, ValueError) as error:
        raise UnsupportedModelError(
            f"Attention by {name!r} cannot be had ({first_line(error)}). Choose another, such as 'flash'."
        ) from error


# which kinds of device have them; and what else may be missing
DEVICES: dict[str, tuple[str, ...]] = {
    "flash": ("cpu", "cuda"),
    "efficient": ("cuda",),
    "cudnn": ("cuda",),
    "flash2": ("cuda",),
    "flash3": ("cuda",),
    "flash4": ("cuda",),
}
FINDING: Mapping[str, Callable[[str, str], str]] = {
    "flash": _why_no_flash,
    "flash2": _why_no_flash_attn,
    "flash3": _why_no_implementation,
    "flash4": _why_no_implementation,
}
