"""One loader for every model by name: timm's, the embedded zoo's and our own."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from repshift.choosing import attention as with_attention
from repshift.errors import CheckpointError, RepshiftError, UnknownNameError, UnsupportedModelError, first_line
from repshift.files import as_path
from repshift.folders import LIBRARIES, folder_of, read_folder
from repshift.kernels import require_kernel
from repshift.network import hub_at_once, what_failed
from repshift.options import check_built, check_flags, check_options
from repshift.recipes import Recipe
from repshift.registry import Registry, suggest
from repshift.tracker import ShiftTracker

# The embedded models, whose weights ship with the package
ZOO = {name: f"repshift.backbones.zoo:{name}" for name in ("tiny_vit", "tiny_resnet", "tiny_vim")}
VISION_MAMBA = {
    f"vim_{size}{stride}": f"repshift.backbones.vim_zoo:vim_{size}{stride}"
    for size in ("tiny", "small", "base")
    for stride in ("", "_stride8")
}
# Unmasked Teacher: video encoders alone, for retrieval, and for question answering; two small ones
UMT = {
    f"{size}{kind}": f"repshift.backbones.umt.zoo:{size}{kind}"
    for size, kinds in {
        "umt_b": ("", "_retrieval", "_qa"),
        "umt_l": ("", "_retrieval", "_qa"),
        "tiny_umt": ("", "_qa"),
    }.items()
    for kind in kinds
}
# All models that are not timm's, by name
MODELS = Registry("model", ZOO | VISION_MAMBA | UMT)


def load_model(
    name: str | Path,
    *,
    pretrained: bool = False,
    checkpoint: str | Path | None = None,
    use_ema: bool | None = None,
    attention: str | None = None,
    **options: Any,
) -> nn.Module:
    """Build a model by name, in evaluation mode.

    Args:
        name: A model of the embedded zoo (``tiny_vit``, ``tiny_resnet``, ``tiny_vim``), a Vision Mamba (``vim_tiny``,
            ``vim_small``, ``vim_base``, each also with ``_stride8`` for overlapping patches), or any name that
            :func:`timm.create_model` takes, such as ``deit_small_patch16_224``, ``resnet50`` or ``hf-hub:timm/...``.
            Or a folder that :func:`repshift.save_model`, or ``save_pretrained`` of a pruned model, wrote (a path with a
            slash, or a :class:`pathlib.Path`): the model with its weights, pruned by its recipe if it has one.
        pretrained: Load the published weights: shipped ones for the zoo, downloaded ones for the others.
        checkpoint: Load weights from this file instead, strictly and without unpickling code. With ``img_size`` among
            the options, tables of positions of another size are resampled as timm resamples published ones.
        use_ema: Of a checkpoint that holds averaged weights beside the plain ones (``model_ema`` and ``model``), take
            the averaged ones; by default those whose accuracy was published: the averaged ones, but of a Vision
            Mamba other than ``vim_base`` the plain ones.
        attention: The kernel that attention is computed by, see :func:`repshift.attention`; by default torch's choice,
            and of a folder what its recipe says. A model that was saved with a kernel of GPUs is loaded elsewhere so.
        **options: Passed on to the model, for example ``num_classes=10`` or ``img_size=384``.

    Raises:
        UnknownNameError: If no model has this name, the message has the closest ones; or an option is none.
        UnsupportedModelError: If the options build no model, or the kernel cannot be had or serve it.
        CheckpointError: If the weights cannot be had, cannot be read or do not fit the model.

    Example:
        >>> from repshift import load_model
        >>> model = load_model("tiny_resnet", pretrained=True)
        >>> model.training, model.num_classes
        (False, 10)
        >>> load_model("deit_smal_patch16_224")
        Traceback (most recent call last):
        repshift.errors.UnknownNameError: Unknown model 'deit_smal_patch16_224'. Did you mean ...
    """
    folder = folder_of(name) if isinstance(name, (str, Path)) else None
    if folder is not None:
        if pretrained or checkpoint is not None:
            raise CheckpointError(f"{name} is a folder with its own weights. Leave pretrained and checkpoint out.")
        return _load_folder(folder, attention, options)
    if not isinstance(name, str):
        raise UnknownNameError(f"A model is loaded by its name, got {name!r}. Give a string such as 'tiny_vit'.")
    check_flags(pretrained=pretrained, use_ema=use_ema)
    file = None if checkpoint is None else as_path(checkpoint, CheckpointError)
    if pretrained and checkpoint is not None:
        raise CheckpointError(
            f"Both pretrained=True and checkpoint={str(checkpoint)!r} were given; a model has one set of weights. "
            "Give one of them."
        )
    model = _build(name, pretrained, options)
    if file is not None:
        load_checkpoint(model, file, use_ema=use_ema, changed=options)
    if options.get("img_size") is not None:
        size = options["img_size"]
        take_size(model, (size, size) if isinstance(size, int) else tuple(size))
    return model.eval() if attention is None else with_attention(model.eval(), attention)


def _build(name: str, pretrained: bool, options: dict[str, Any]) -> nn.Module:
    options = {option: value for option, value in options.items() if value is not None}  # the model's own, as in timm
    check_options(name, options)
    try:
        model: nn.Module
        if name in MODELS:
            model = MODELS.get(name)(pretrained=pretrained, **options)
        else:
            model = _create_timm_model(name, pretrained, options)
    except RepshiftError:
        raise
    except Exception as error:
        if not options:
            raise
        if isinstance(error, TypeError) and "unexpected keyword argument" in str(error):
            raise UnknownNameError(
                f"{name} does not take these options: {options} ({error}). Leave out what it lacks."
            ) from error
        raise UnsupportedModelError(
            f"{name} cannot be built with {options} ({type(error).__name__}: {first_line(error)}). Choose others."
        ) from error
    check_built(name, model, options)
    return model


def load_checkpoint(
    model: nn.Module, checkpoint: str | Path, *, use_ema: bool | None = None, changed: Collection[str] = ()
) -> None:
    """Load weights from a file into a model, strictly, see :func:`load_model`.

    Args:
        model: Receives the weights.
        checkpoint: The file.
        use_ema: See :func:`load_model`.
        changed: What the model has otherwise than the checkpoint; ``"img_size"`` lets positions be resampled.

    Raises:
        CheckpointError: If the weights cannot be read or do not fit the model.
    """
    from repshift.backbones.checkpoints import load_weights

    if use_ema is None:
        use_ema = bool((getattr(model, "pretrained_cfg", None) or {}).get("use_ema", True))
    load_weights(model, Path(checkpoint), use_ema=use_ema, changed=changed)


def take_size(model: nn.Module, size: tuple[int, int]) -> None:
    """Let what the model knows of its preprocessing say images of another size, which timm leaves as published.

    Args:
        model: Built for this size, or of any.
        size: Rows and columns in pixels.
    """
    known = getattr(model, "pretrained_cfg", None) or {}
    if "input_size" in known:
        sizes = [name for name in ("input_size", "test_input_size") if name in known]
        changed = dict.fromkeys(sizes, (known["input_size"][0], *size))
        model.pretrained_cfg = {**known, **changed}  # type: ignore[assignment]  # a plain attribute


def _load_folder(folder: Path, attention: str | None, options: dict[str, Any]) -> nn.Module:
    if attention is not None:
        require_kernel(attention)
    saved = read_folder(folder)
    source, _, kind = saved.name.partition(":")
    recipe = saved.recipe if attention is None else replace(saved.recipe or Recipe(), attention=attention)
    if source in LIBRARIES:
        if options := {**saved.options, **options}:
            raise UnknownNameError(f"{folder} says itself how its model is built. Leave {', '.join(options)} out.")
        built: nn.Module = LIBRARIES.get(source)(folder, kind)
        return _pruned(built, recipe).eval()
    model = load_model(saved.name, checkpoint=saved.weights, **{**saved.options, **options})
    return _pruned(model, recipe).eval()


def _pruned(model: nn.Module, recipe: Recipe | None) -> nn.Module:
    if recipe is not None and recipe.only_attention:  # which models have that cannot be pruned
        return with_attention(model, str(recipe.attention))
    return model if recipe is None else ShiftTracker(model).prune(recipe)


def _create_timm_model(name: str, pretrained: bool, options: dict[str, Any]) -> nn.Module:
    import timm

    source, _, rest = name.rpartition(":")
    if not source:
        _check_timm_name(name)
    elif source not in ("hf-hub", "hf_hub", "local-dir") or not rest:
        raise UnknownNameError(
            f"Unknown source of models in {name!r}. Give a plain name of timm, hf-hub:OWNER/NAME or local-dir:FOLDER."
        )
    if not (pretrained or source):
        plain: nn.Module = timm.create_model(name, **options)
        return plain
    with nullcontext() if source == "local-dir" else hub_at_once() as unreachable:
        try:
            with _only_weights():
                model: nn.Module = timm.create_model(name, pretrained=pretrained, **options)
        except TypeError:
            raise
        except Exception as error:
            raise CheckpointError(
                f"The weights of {name} could not be had ({what_failed(error, unreachable)}). "
                "Without a network, download them elsewhere and give checkpoint=FILE (--checkpoint FILE); without "
                "weights, leave pretrained out."
            ) from error
    return model


@contextmanager
def _only_weights() -> Iterator[None]:
    """Let torch unpickle nothing but weights, whatever timm asks for: older ones take all that a file says."""
    name = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = before


def _check_timm_name(name: str) -> None:
    import timm

    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        known = [*MODELS.names(), *timm.list_models()]
        raise UnknownNameError(
            f"Unknown model {name!r}. {suggest(name, known)} timm.list_models('*deit*') lists timm's by pattern."
        )
    tagged = timm.list_pretrained(f"{architecture}.*")
    if name != architecture and name not in tagged:
        raise UnknownNameError(f"{architecture} has no weights tagged {tag!r}. {suggest(name, tagged)}")
