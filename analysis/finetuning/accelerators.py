"""Accelerate, which is optional: devices, precision and accumulation of a fine-tuning run."""

from __future__ import annotations

from typing import Any

import torch

from repshift import DataError
from repshift.analysis.finetuning.settings import TrainingSettings
from repshift.errors import MissingPackageError, first_line


def make_accelerator(settings: TrainingSettings, device: str | None) -> Any:
    """Set Accelerate up for the precision and the accumulation of a run.

    Raises:
        MissingPackageError: If it is not installed.
        DataError: If the device is not there, or cannot train so.
    """
    try:
        from accelerate import Accelerator
        from accelerate.utils import DataLoaderConfiguration, GradientAccumulationPlugin
    except ImportError as error:
        raise MissingPackageError(
            'Fine-tuning needs Accelerate, which is not installed. Run pip install "repshift[train]".'
        ) from error
    if device not in (None, "cpu", "cuda"):
        raise DataError(
            f"Nothing can be fine-tuned on the device {device!r}. Give cpu or cuda (--device cpu); of several GPUs, "
            "CUDA_VISIBLE_DEVICES or 'accelerate launch' chooses."
        )
    if device == "cuda" and not torch.cuda.is_available():
        raise DataError("There is no CUDA device. Give device='cpu' (--device cpu).")
    try:
        accelerator = Accelerator(
            cpu=device == "cpu",
            mixed_precision=settings.mixed_precision,
            gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=settings.grad_accum_steps),
            # the order of the images follows from seed and epoch, in every process alike
            dataloader_config=DataLoaderConfiguration(use_seedable_sampler=True, non_blocking=True),
        )
    except ValueError as error:
        raise DataError(f"Accelerate cannot be set up for this run ({first_line(error)}).") from error
    if settings.mixed_precision == "fp16" and accelerator.device.type == "cpu":
        raise DataError("The CPU cannot train in float16. Give --amp-dtype bfloat16, or leave out --amp.")
    if accelerator.distributed_type not in ("NO", "MULTI_CPU", "MULTI_GPU"):
        raise DataError(
            f"Accelerate is configured for {accelerator.distributed_type}; fine-tuning copies the whole model to every "
            "device. Run 'accelerate config' and choose plain data parallel."
        )
    return accelerator
