"""Loading weights: shipped ones, safetensors files and PyTorch checkpoints, never by unpickling arbitrary code."""

from __future__ import annotations

import argparse
import pickle
from importlib import resources
from pathlib import Path

import torch
from torch import Tensor, nn

from repshift.errors import CheckpointError, first_line


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


def load_weights(model: nn.Module, path: Path, *, use_ema: bool = True) -> None:
    """Load a checkpoint into a model, strictly: every key and every shape must match, or nothing is loaded.

    Args:
        model: Receives the weights, cast to its own dtypes.
        path: A ``.safetensors`` file, or a PyTorch file that ``weights_only=True`` can read; in the latter the
            weights may lie under ``state_dict_ema``, ``model_ema``, ``state_dict`` or ``model``, looked for in this
            order, as timm does, or bare. Training arguments beside them (an ``argparse.Namespace``) are ignored.
        use_ema: Take the averaged weights (the keys with ``ema``) where there are any; else they are passed over.

    Raises:
        CheckpointError: If the file is missing, damaged, unsafe to unpickle, or does not fit the model.
    """
    weights = _read(path, use_ema)
    own = model.state_dict()
    problems = [
        f"{name} has shape {tuple(weights[name].shape)}, expected {tuple(own[name].shape)}"
        for name in own
        if name in weights and weights[name].shape != own[name].shape
    ]
    if missing := [name for name in own if name not in weights]:
        problems.append(f"{len(missing)} of its {len(own)} keys missing (first: {missing[0]})")
    if unexpected := [name for name in weights if name not in own]:
        problems.append(f"{len(unexpected)} unexpected keys (first: {unexpected[0]})")
    if problems:
        more = f"; and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise CheckpointError(
            f"{path} does not fit {type(model).__name__}: {'; '.join(problems[:3])}{more}. "
            "Load it into the model it was trained as (same name, number of classes and image size)."
        )
    model.load_state_dict(weights)


def _read(path: Path, use_ema: bool) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from timm.models import load_state_dict

    if not path.is_file():
        raise CheckpointError(f"Checkpoint {path} does not exist. Give a .safetensors or a PyTorch checkpoint file.")
    try:
        # official checkpoints hold their training arguments: plain data, but of a class that must be named as safe
        with torch.serialization.safe_globals([argparse.Namespace]):
            weights = load_state_dict(str(path), use_ema=use_ema, weights_only=True)
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
                f"{path} cannot be read safely: it is damaged, no checkpoint at all, or holds objects beside tensors. "
                "Save its state_dict alone, with safetensors or torch.save."
            ) from error
        raise CheckpointError(
            f"{path} is not a readable checkpoint: it may be damaged, incomplete or of another kind. Copy or download "
            f"it again. ({type(error).__name__}: {first_line(error)})"
        ) from error
    if not weights or not all(isinstance(value, Tensor) for value in weights.values()):
        raise CheckpointError(
            f"{path} holds no state_dict: expected a dictionary of tensors, bare or under 'state_dict' or 'model'. "
            "Save model.state_dict()."
        )
    return dict(weights)
