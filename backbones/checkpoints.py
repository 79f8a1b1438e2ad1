"""Loading weights: shipped ones, safetensors files and PyTorch checkpoints, never by unpickling arbitrary code."""

from __future__ import annotations

import argparse
import pickle
import sys
from collections import OrderedDict
from collections.abc import Collection, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from repshift.backbones.weight_names import without_prefix
from repshift.errors import CheckpointError, first_line

# Published checkpoints hold the arguments and numbers of their training: plain data, but of classes that must be named
# as safe. UMT's own dictionary of settings is read as an ordinary one, so that nothing of its code is needed.
PLAIN_DATA: list[Any] = [
    argparse.Namespace,
    (OrderedDict, "utils.easydict.EasyDict"),
    np.dtype,
    type(np.dtype("float64")),
    (np.float64(0).__reduce__()[0], "numpy.core.multiarray.scalar"),
    (np.float64(0).__reduce__()[0], "numpy._core.multiarray.scalar"),
]


def shipped_weights(name: str) -> Path:
    """Locate the weights of an embedded model.

    Raises:
        CheckpointError: If the installation holds none under this name.
    """
    path = Path(str(resources.files("repshift.backbones") / "weights" / f"{name}.safetensors"))
    if not path.is_file():
        raise CheckpointError(
            f"This installation has no weights for {name!r} ({path.name} is missing). Train them with "
            f"'repshift zoo train {name}', or load the model with pretrained=False."
        )
    return path


def load_weights(model: nn.Module, path: Path, *, use_ema: bool = True, changed: Collection[str] = ()) -> None:
    """Load a checkpoint into a model, strictly: every key and every shape must match, or nothing is loaded.

    What training programs put in front of the names (``module.``, ``model.``, ``teacher.backbone.``, ...) is found by
    the rule in :mod:`repshift.backbones.weight_names`.

    Args:
        model: Receives the weights, cast to its own dtypes.
        path: A ``.safetensors`` file, or a PyTorch file that ``weights_only=True`` can read; in the latter the
            weights may lie under ``state_dict_ema``, ``model_ema``, ``state_dict``, ``model`` or ``module``, looked for
            in this order, as timm does, under several other names (DINO's ``teacher`` and ``student``), or bare.
            Arguments and numbers of the training beside them are ignored, where they are plain data.
        use_ema: Take the averaged weights (the keys with ``ema``) where there are any; else they are passed over.
        changed: What the model has on purpose otherwise than the checkpoint: of ``"img_size"``, tables of positions
            are resampled; of ``"patch_size"``, also the patch embedding; both by timm's own function for the model.
            Without them another size is an error.

    Raises:
        CheckpointError: If the file is missing, damaged, unsafe to unpickle, does not fit the model, or holds it twice.
    """
    own = model.state_dict()
    weights = _read(path, use_ema)
    fit = getattr(model, "fit_checkpoint", None)  # of our models whose files hold more than them, or other names
    weights, prefix = without_prefix(weights if fit is None else fit(weights, path), own, path)
    problems = _problems(own, weights, prefix)
    if problems:
        resampled = _resampled(model, weights, changed)
        if _problems(own, resampled, prefix):
            more = f"; and {len(problems) - 3} more" if len(problems) > 3 else ""
            raise CheckpointError(
                f"{path} does not fit {type(model).__name__}: {'; '.join(problems[:3])}{more}. "
                "Load it into the model it was trained as (same name, number of classes and image size)."
            )
        weights = resampled
    model.load_state_dict(weights)


def _problems(own: Mapping[str, Tensor], weights: Mapping[str, Tensor], prefix: str) -> list[str]:
    """Say what keeps weights from being a model's, where they stood behind a prefix."""
    behind = f" behind {prefix!r}" if prefix else ""
    problems = [
        f"{name} has shape {tuple(weights[name].shape)}, expected {tuple(own[name].shape)}"
        for name in own
        if name in weights and weights[name].shape != own[name].shape
    ]
    if missing := [name for name in own if name not in weights]:
        problems.append(f"{len(missing)} of its {len(own)} keys missing{behind} (first: {missing[0]})")
    if unexpected := [name for name in weights if name not in own]:
        problems.append(f"{len(unexpected)} unexpected keys{behind} (first: {unexpected[0]})")
    return problems


def _resampled(model: nn.Module, weights: dict[str, Tensor], changed: Collection[str]) -> dict[str, Tensor]:
    """Fit weights to a model of another size by what its module has for that, as timm does with published weights.

    That is the function ``checkpoint_filter_fn`` beside the class, timm's convention and ours.
    """
    misfits = [
        name for name, value in model.state_dict().items() if name in weights and weights[name].shape != value.shape
    ]
    patches = any("patch_embed" in name for name in misfits)
    # patches would be resampled as well, which hides that the weights are another model's
    if not {"img_size", "patch_size"} & set(changed) or (patches and "patch_size" not in changed):
        return weights
    for kind in type(model).__mro__:
        fit = getattr(sys.modules.get(kind.__module__), "checkpoint_filter_fn", None)
        if fit is not None:
            try:
                resampled: dict[str, Tensor] = fit(dict(weights), model)
            except Exception:  # made for other weights; what does not fit is told as it was
                return weights
            return resampled
    return weights


def _contents(path: Path, use_ema: bool) -> dict[str, Any]:
    """Read the state_dict in a file, and of several the one that is wanted."""
    from safetensors.torch import load_file

    if path.suffix == ".safetensors":
        return load_file(path)
    with torch.serialization.safe_globals(PLAIN_DATA):
        contents = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(contents, dict):
        return {}
    averaged = ("state_dict_ema", "model_ema") if use_ema else ()
    for key in (*averaged, "state_dict", "model", "module"):
        if contents.get(key) is not None:
            found = contents[key]
            return found if isinstance(found, dict) else {}
    networks = {name: found for name, found in contents.items() if _is_state_dict(found)}
    if networks and not any(isinstance(value, Tensor) for value in contents.values()):
        return {f"{name}.{key}": value for name, found in networks.items() for key, value in found.items()}
    return contents


def _unsafe(path: Path) -> str:
    """Name the classes and functions that a file would run, which nothing of is run."""
    try:
        with torch.serialization.safe_globals(PLAIN_DATA):
            names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception:  # of a file that is damaged or of the older form, which is said already
        return ""
    return f" ({', '.join(sorted(names))})" if names else ""


def _is_state_dict(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and bool(value)
        and all(isinstance(key, str) and isinstance(part, Tensor) for key, part in value.items())
    )


def _read(path: Path, use_ema: bool) -> dict[str, Tensor]:
    from safetensors import SafetensorError

    if not path.is_file():
        raise CheckpointError(f"Checkpoint {path} does not exist. Give a .safetensors or a PyTorch checkpoint file.")
    try:
        weights = _contents(path, use_ema)
    except (
        SafetensorError,
        pickle.UnpicklingError,
        RuntimeError,
        OSError,
        EOFError,
        ValueError,
        LookupError,
        AttributeError,
    ) as error:
        if isinstance(error, pickle.UnpicklingError) or isinstance(error.__cause__, pickle.UnpicklingError):
            raise CheckpointError(
                f"{path} cannot be read safely: it is damaged, no checkpoint at all, or holds objects beside "
                f"tensors{_unsafe(path)}. Save its state_dict alone, with safetensors or torch.save."
            ) from error
        raise CheckpointError(
            f"{path} is not a readable checkpoint: it may be damaged, incomplete or of another kind. Copy or download "
            f"it again. ({type(error).__name__}: {first_line(error)})"
        ) from error
    if not _is_state_dict(weights):
        raise CheckpointError(
            f"{path} holds no state_dict: expected a dictionary of tensors, bare or under 'state_dict' or 'model'. "
            "Save model.state_dict()."
        )
    return dict(weights)
