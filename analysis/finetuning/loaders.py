"""The images that fine-tuning sees, by timm's datasets and loaders."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from timm.data import ImageDataset, create_dataset, create_loader
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from repshift import DataError, UnknownNameError
from repshift.analysis.finetuning.settings import TrainingSettings
from repshift.analysis.samples.canvases import (
    CANVASES,
    CanvasPictures,
    ClutteredDigits,
    Digits,
    download_digits,
    evaluation_canvases,
    training_digits,
)
from repshift.analysis.samples.images import data_config
from repshift.analysis.samples.labelled_files import LabelledFiles, by_folder
from repshift.analysis.samples.listing import list_files, named, parse_suffixes
from repshift.analysis.samples.pictures import read_picture
from repshift.analysis.samples.sources import SPLITS
from repshift.analysis.subjects.limits import check_workers
from repshift.errors import first_line


@dataclass(frozen=True)
class Data:
    """Loaders of normalised images ``(batch, channels, rows, columns)`` and labels ``(batch,)``.

    Attributes:
        training: Shuffled; a last batch that is not full is left out.
        validation: In order, all of it.
        draw: Called with the number of the epoch before it begins.
        notes: What a user should be told of how files were found and labelled.
    """

    training: DataLoader[Any]
    validation: DataLoader[Any]
    draw: Callable[[int], None]
    notes: Sequence[str] = ()


class PictureFiles(ImageDataset):
    """timm's dataset of image files, read as every command reads them; timm's own takes the next one for a bad one.

    Args:
        reader: Files and labels.
        mode: ``RGB``, or ``L`` for a model of one channel.
    """

    def __init__(self, reader: LabelledFiles, mode: str) -> None:
        super().__init__("", reader=reader, input_img_mode=mode)  # type: ignore[no-untyped-call]

    def __getitem__(self, index: int) -> tuple[Any, int]:
        file, label = self.reader[index]
        try:
            picture = read_picture(file, self.input_img_mode)
        except Exception as error:  # decoders raise what they like
            raise DataError(
                f"Cannot read {self.reader.filename(index, absolute=True)} ({type(error).__name__}: "
                f"{first_line(error)}). Replace it or take it out, and run again to go on."
            ) from error
        return picture if self.transform is None else self.transform(picture), label


def load_data(
    settings: TrainingSettings, model: nn.Module, digits: Path | None, workers: int, pin_memory: bool = False
) -> Data:
    """Open training and validation data and preprocess them as the model expects.

    Args:
        settings: Names the data, the augmentation and the batch size.
        model: Its data configuration gives size, mean and standard deviation; its classes must be those of the data.
        digits: Of the embedded data, the folder that holds MNIST's two t10k files; by default torchvision
            downloads them.
        workers: Processes that load images; they start anew in every epoch, so that what they draw follows from the
            seed and the epoch.
        pin_memory: Load into page-locked memory, for a GPU.

    Raises:
        DataError: If the data are missing, empty, unreadable, or do not fit the model.
        UnknownNameError: If timm does not know the dataset or the augmentation.
    """
    check_workers(workers)
    mode = "L" if data_config(model)["input_size"][0] == 1 else "RGB"
    if settings.data == CANVASES:
        datasets, classes, draw = _canvases(settings, digits, mode)
    else:
        datasets, classes, draw = *_open(settings, mode), lambda epoch: None
    expected = getattr(model, "num_classes", None)
    if classes is not None and classes != expected:
        raise DataError(
            f"{settings.dataset or settings.data} has {classes} classes, {settings.model} tells {expected} apart. Give "
            f"the data that the model was trained for, or --num-classes {classes} for a classifier that starts anew."
        )
    training, validation = (
        _loader(settings, dataset, model, training, workers, pin_memory)
        for dataset, training in zip(datasets, (True, False), strict=True)
    )
    if not len(training):
        raise DataError(
            f"{len(datasets[0])} images of {settings.dataset or settings.data} are fewer than one batch of "
            f"{settings.batch_size}. Give a smaller --batch-size."
        )
    notes = [note for dataset in datasets for note in getattr(getattr(dataset, "reader", None), "notes", ())]
    return Data(training, validation, draw, list(dict.fromkeys(notes)))


def as_raised_by_worker(error: DataError) -> DataError:
    """Return an error as it was raised: what comes from a worker process is wrapped in its whole traceback."""
    text = str(error)
    return DataError(text.rpartition("DataError: ")[2].strip()) if text.startswith("Caught DataError in") else error


def _canvases(
    settings: TrainingSettings, digits: Path | None, mode: str
) -> tuple[Sequence[Any], int | None, Callable[[int], None]]:
    known: Digits = training_digits(digits or download_digits())
    shown = CanvasPictures(ClutteredDigits(known, 1_000 * settings.seed), mode)

    def draw(epoch: int) -> None:
        shown.canvases = ClutteredDigits(known, 1_000 * settings.seed + epoch)

    canvases = evaluation_canvases()
    return (shown, CanvasPictures(TensorDataset(canvases.images, canvases.labels), mode)), 10, draw


def _open(settings: TrainingSettings, mode: str) -> tuple[Sequence[Any], int | None]:
    """Open both splits and say how many classes they have, if that is known."""
    if settings.dataset:
        return _open_named(settings, mode)
    root = Path(settings.data)
    if not root.is_dir():
        raise DataError(
            f"There is no data folder {root}. Give a folder with train/ and validation/ inside, or {CANVASES} (--data)."
        )
    splits = zip((settings.train_split, settings.val_split), SPLITS[:2], strict=True)
    folders = [_split_folder(root, split, synonyms) for split, synonyms in splits]
    training, validation = (list_files(folder, parse_suffixes(settings.suffixes)) for folder in folders)
    shown = by_folder(training, skip_other_files=settings.skip_other_files)
    if unknown := [name for name in validation.folders if name not in shown.class_to_idx]:
        raise DataError(
            f"{folders[1]} has classes that {folders[0]} lacks: {named(unknown)}. Both need the same folders."
        )
    # the numbers of the classes come from the training folders, also where validation lacks one
    seen = by_folder(validation, shown.class_to_idx, skip_other_files=settings.skip_other_files)
    return [PictureFiles(files, mode) for files in (shown, seen)], len(shown.class_to_idx)


def _open_named(settings: TrainingSettings, mode: str) -> tuple[Sequence[Any], int | None]:
    # timm takes an unknown prefix for a folder, and reads both splits from the same one
    if not settings.dataset.lower().startswith(("torch/", "hfds/")) or settings.dataset.endswith("folder"):
        raise UnknownNameError(
            f"--dataset {settings.dataset!r} is none that is read by index. Give torch/NAME or hfds/NAME, or leave it "
            "out for folders; the order of a stream cannot be repeated after an interruption."
        )
    splits = (settings.train_split, settings.val_split)
    shown, seen = (_create(settings, Path(settings.data), split, mode) for split in splits)
    classes = getattr(getattr(shown, "reader", None), "class_to_idx", None) or getattr(shown, "classes", None)
    return (shown, seen), len(classes) if classes else None


def _split_folder(root: Path, split: str, synonyms: Sequence[str]) -> Path:
    candidates = list(dict.fromkeys([split, *(synonyms if split in synonyms else ())]))
    for name in candidates:
        if (root / name).is_dir():
            return root / name
    raise DataError(f"{root} has no folder {' or '.join(candidates)}. Put one folder of images a class in it.")


def _create(settings: TrainingSettings, root: Path, split: str, mode: str, **options: Any) -> Any:
    try:
        return create_dataset(
            settings.dataset, root=str(root), split=split, search_split=False, input_img_mode=mode, **options
        )
    except (AssertionError, RuntimeError, ImportError, OSError, TypeError, ValueError, LookupError) as error:
        raise DataError(
            f"timm cannot open {settings.dataset or 'images'} in {root}, split {split} "
            f"({type(error).__name__}: {first_line(error)}). Check --data, --dataset and the names of the splits."
        ) from error


def _loader(
    settings: TrainingSettings, dataset: Any, model: nn.Module, is_training: bool, workers: int, pin_memory: bool
) -> DataLoader[Any]:
    config = data_config(model)
    try:
        loader: DataLoader[Any] = create_loader(
            dataset,
            input_size=config["input_size"],
            batch_size=settings.batch_size,
            is_training=is_training,
            no_aug=settings.no_aug or settings.data == CANVASES,
            re_prob=settings.reprob,
            re_mode="pixel",
            hflip=settings.hflip,
            color_jitter=settings.color_jitter,
            auto_augment=settings.aa,
            interpolation=config["interpolation"],
            mean=config["mean"],
            std=config["std"],
            crop_pct=config["crop_pct"],
            crop_mode=config["crop_mode"],
            num_workers=workers,
            pin_memory=pin_memory,
            use_prefetcher=False,  # Accelerate moves the batches
            persistent_workers=False,  # workers that live on would draw from where the last epoch left them
        )
    except (AssertionError, ValueError, LookupError) as error:
        raise UnknownNameError(
            f"timm cannot make this augmentation ({type(error).__name__}: {first_line(error)}). Check --aa."
        ) from error
    try:
        shape = tuple(dataset[0][0].shape)
    except (RuntimeError, OSError, ValueError) as error:
        raise DataError(
            f"The first image of {settings.dataset or settings.data} cannot be made fit for {settings.model} "
            f"({first_line(error)}). Choose data or a model that fit."
        ) from error
    if shape != tuple(config["input_size"]):
        raise DataError(
            f"{settings.dataset or settings.data} gives images of shape {shape}, {settings.model} takes "
            f"{tuple(config['input_size'])} (channels, rows, columns). Choose data or a model that fit."
        )
    return loader
