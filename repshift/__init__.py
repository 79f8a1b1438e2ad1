"""Faster pretrained vision backbones without retraining: drop the tokens whose representation barely shifts.

::

    import repshift

    model = repshift.load_model("deit_small_patch16_224", pretrained=True)
    pruned = repshift.ShiftTracker(model).prune({0: 0.2, 3: 0.2, 6: 0.2})

Source: "Representation Shift: Unifying Token Compression with FlashAttention", arXiv 2508.00367.
"""

from importlib import import_module
from importlib.util import find_spec

import lazy_loader

__version__ = "0.1.0"

# What there is stands in __init__.pyi, where type checkers look, too. It is imported when it is first asked for, and
# torch with it, so that the command line answers --help at once.
_named, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)


def __getattr__(name: str) -> object:
    """Import what is asked for: a name of the package, or one of its modules."""
    if name in __all__:
        return _named(name)
    if name.startswith("_") or find_spec(f"{__name__}.{name}") is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return import_module(f"{__name__}.{name}")
