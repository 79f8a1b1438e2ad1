"""The published Vision Mamba models by name, and where their weights are."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

from repshift.backbones.checkpoints import load_weights
from repshift.backbones.vim_model import VisionMamba
from repshift.errors import CheckpointError
from repshift.network import hub_at_once, what_failed

# What timm needs to know to preprocess (`timm.data.resolve_model_data_config`): resize to 256, centre crop of 224
IMAGENET = {
    "input_size": (3, 224, 224),
    "fixed_input_size": True,
    "num_classes": 1000,
    "interpolation": "bicubic",
    "crop_pct": 224 / 256,
    "mean": (0.485, 0.456, 0.406),
    "std": (0.229, 0.224, 0.225),
}


@dataclass(frozen=True)
class Published:
    """One of the models of Zhu et al. 2024 (arXiv 2401.09417, table 1).

    Attributes:
        embed_dim: Channels of the tokens.
        stride: Pixels between patches; the patches have 16 pixels a side in all of them.
        repository: On the Hugging Face hub, Apache-2.0; ``None`` where no weights were published.
        file: The checkpoint in it.
        use_ema: Whether the published accuracy is that of the averaged weights.
    """

    embed_dim: int
    stride: int = 16
    repository: str | None = None
    file: str = ""
    use_ema: bool = False


PUBLISHED = {
    "vim_tiny": Published(192, 16, "hustvl/Vim-tiny-midclstok", "vim_t_midclstok_76p1acc.pth"),
    "vim_tiny_stride8": Published(192, 8, "hustvl/Vim-tiny-midclstok", "vim_t_midclstok_ft_78p3acc.pth"),
    "vim_small": Published(384, 16, "hustvl/Vim-small-midclstok", "vim_s_midclstok_80p5acc.pth"),
    "vim_small_stride8": Published(384, 8, "hustvl/Vim-small-midclstok", "vim_s_midclstok_ft_81p6acc.pth"),
    "vim_base": Published(768, 16, "hustvl/Vim-base-midclstok", "vim_b_midclstok_81p9acc.pth", use_ema=True),
    "vim_base_stride8": Published(768, 8),
}


def vision_mamba(name: str, *, pretrained: bool = False, **options: Any) -> VisionMamba:
    """Build a published model.

    Args:
        name: A key of :data:`PUBLISHED`.
        pretrained: Download its weights from the Hugging Face hub.
        **options: Passed on to :class:`repshift.backbones.vim_model.VisionMamba`.

    Raises:
        CheckpointError: If the weights cannot be had or do not fit the options.
    """
    published = PUBLISHED[name]
    settings: dict[str, Any] = {
        "img_size": 224,
        "in_chans": 3,
        "num_classes": 1000,
        "embed_dim": published.embed_dim,
        "stride": published.stride,
    } | options
    model = VisionMamba(**settings)
    size = settings["img_size"]
    model.pretrained_cfg = {  # type: ignore[assignment]
        **IMAGENET,
        "architecture": name,
        "use_ema": published.use_ema,
        "input_size": (settings["in_chans"], *((size, size) if isinstance(size, int) else size)),
        "num_classes": settings["num_classes"],
    }
    if pretrained:
        _download(name, published, model)
    return model


def _download(name: str, published: Published, model: VisionMamba) -> None:
    if published.repository is None:
        with_weights = ", ".join(known for known, other in PUBLISHED.items() if other.repository)
        raise CheckpointError(f"No weights were published for {name}. Choose one of {with_weights}.")
    from pathlib import Path

    from huggingface_hub import hf_hub_download

    with hub_at_once() as unreachable:
        try:
            path = hf_hub_download(published.repository, published.file)
        except Exception as error:  # the hub's, the network's and the disk's errors have no common class
            raise CheckpointError(
                f"The weights of {name} could not be had ({what_failed(error, unreachable)}). "
                f"Without a network, download {published.file} of "
                f"{published.repository} elsewhere and give checkpoint=FILE (--checkpoint FILE)."
            ) from error
    load_weights(model, Path(path), use_ema=published.use_ema)


vim_tiny = partial(vision_mamba, "vim_tiny")
vim_tiny_stride8 = partial(vision_mamba, "vim_tiny_stride8")
vim_small = partial(vision_mamba, "vim_small")
vim_small_stride8 = partial(vision_mamba, "vim_small_stride8")
vim_base = partial(vision_mamba, "vim_base")
vim_base_stride8 = partial(vision_mamba, "vim_base_stride8")
