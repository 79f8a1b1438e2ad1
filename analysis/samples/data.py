"""The samples that an evaluation sees: timm's readers and timm's preprocessing, each sample once and known by number.

timm's own datasets replace an image that cannot be read by the next one, which counts that one twice. So the readers
are asked here for one sample after the other, and one that cannot be read is named.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from repshift.analysis.samples.batches import Batch, Failure, Share, collate, known_label, unreadable
from repshift.analysis.samples.canvases import CANVASES, CanvasPictures, evaluation_canvases
from repshift.analysis.samples.pictures import as_seen, read_picture
from repshift.analysis.samples.preprocessing import evaluation_config, image_mode, preprocessing
from repshift.analysis.samples.processes import usual_workers
from repshift.analysis.samples.sources import (
    STREAMS,
    check_classes,
    check_source,
    check_synsets,
    class_count,
    class_names,
    find_split,
    is_folder,
    open_files,
    open_source,
)
from repshift.errors import DataError, UnknownNameError, first_line

# Errors of the system when it opens or reads a file, none of which says that the file is damaged
NOT_THE_IMAGE = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO, errno.ESTALE, errno.EACCES)


class Samples(Dataset[tuple[int, Tensor, int]]):
    """Samples that are read by number: items are ``(index, image, label)``.

    Args:
        dataset: timm's or torchvision's, its items ``(picture, label)``.
        name: What messages call it.
        config: timm's data configuration, see :func:`evaluation_config`.
        num_samples: Take so many, evenly spread over the data; by default all.
        valid_labels: Classes of the model, in the order of the data's; by default the data's classes are the model's.
    """

    def __init__(
        self,
        dataset: Any,
        name: str,
        config: Mapping[str, Any],
        num_samples: int | None = None,
        valid_labels: Sequence[int] | None = None,
    ) -> None:
        self.dataset, self.name, self.config, self.valid_labels = dataset, name, dict(config), valid_labels
        self.transform = preprocessing(config)
        self.mode = image_mode(config)
        count, self.asked = len(dataset), num_samples
        wanted = count if num_samples is None else min(num_samples, count)
        self.chosen = range(count) if wanted == count else [index * count // wanted for index in range(wanted)]

    def __len__(self) -> int:
        return len(self.chosen)

    @property
    def count(self) -> int | None:
        """How many samples there are; a stream may not know."""
        return len(self)

    def __getitem__(self, index: int) -> tuple[int, Tensor, int]:
        sample = self.read(index)
        if isinstance(sample, Failure):
            raise unreadable([sample])
        return (index, *sample)

    def read(self, index: int) -> tuple[Tensor, int] | Failure:
        """Read one sample: its image, preprocessed, and its label, or why it cannot be read."""
        try:
            picture, target = self._picture(self.chosen[index])
            image = self.transform(picture)
        except Exception as error:  # decoders raise what they like: OSError, SyntaxError, struct.error, ...
            if isinstance(error, MemoryError) or getattr(error, "errno", None) in NOT_THE_IMAGE:
                raise DataError(
                    f"Cannot read {self.file_name(index)} ({type(error).__name__}: {first_line(error)}), and it is not "
                    "the image's fault. Give the machine what it lacks, and --resume."
                ) from error
            return Failure(index, self.file_name(index), f"{type(error).__name__}: {first_line(error)}")
        return image, known_label(target, self.valid_labels)

    def batched(self, batch_size: int, share: Share) -> tuple[Dataset[Batch], int]:
        """Return the batches of a share, each an item, and how many workers may read them."""
        parts = share.batches(len(self), batch_size)
        return _Batches(self, parts), len(parts)

    @property
    def notes(self) -> list[str]:
        """What a user should be told of how files were found and labelled, a line each."""
        found = list(getattr(getattr(self.dataset, "reader", None), "notes", ()))
        few = self.asked is not None and self.asked > len(self)
        return [*found, *([f"{self.asked} samples were asked for, and there are {len(self)}."] if few else [])]

    @property
    def labelled_files(self) -> list[str] | None:
        """All files, with the labels that are known without reading them."""
        files, labels = self.files, getattr(getattr(self.dataset, "reader", None), "labels", None)
        if files is None or labels is None:
            return files
        return [f"{file} {labels[self.chosen[index]]}" for index, file in enumerate(files)]

    @property
    def files(self) -> list[str] | None:
        """All files that were found, if they can be told without reading them."""
        held = getattr(self.dataset, "reader", self.dataset)
        if not hasattr(held, "files") and not hasattr(held, "samples"):
            return None
        return [self.file_name(index) for index in range(len(self))]

    def file_name(self, index: int) -> str:
        """Name the file of a sample, or the sample itself if it has none."""
        position = self.chosen[index]
        if hasattr(self.dataset, "reader"):
            named = self.dataset.reader.filename(position, absolute=True)
        else:
            files = getattr(self.dataset, "samples", None) or getattr(self.dataset, "imgs", None)
            named = files[position][0] if files else None
        # members of an archive are named by their place in it, which may be nowhere else
        place = f" in {self.name}" if named and self.name.endswith(".tar") else ""
        return f"{named}{place}" if named else f"sample {position} of {self.name}"

    def _picture(self, position: int) -> tuple[Image.Image, Any]:
        if not hasattr(self.dataset, "reader"):
            picture, target = self.dataset[position]
            return as_seen(picture, self.mode), target
        file, target, *_ = self.dataset.reader[position]
        return read_picture(file, self.mode), target


def open_samples(
    model: nn.Module,
    data: str | Path | None,
    *,
    dataset: str = "",
    split: str = "validation",
    class_map: str | Path | None = None,
    valid_labels: Sequence[int] | None = None,
    labels: str | Path | None = None,
    suffixes: str | None = None,
    skip_other_files: bool = False,
    num_samples: int | None = None,
    config: Mapping[str, Any] | None = None,
    labelled: bool = True,
    **options: Any,
) -> Samples:
    """Open data that are read by number, preprocessed as timm evaluates this model.

    Args:
        model: Its classes must be those of the data, if these are labelled.
        data: A folder with one folder of images a class (or with a folder ``split`` of these), a tar file of such
            folders, the root or cache of ``dataset``, or the word ``cluttered-mnist`` for the shipped canvases.
        dataset: A dataset by timm's name, ``torch/NAME`` or ``hfds/NAME``.
        split: Which part of the data.
        class_map: File that numbers the classes: of text, one class a line.
        valid_labels: The model's classes that the data have, in the order of the data's own.
        labels: File of labels, for images that do not lie in folders of their classes; see
            :mod:`repshift.analysis.samples.label_files`.
        suffixes: Endings of the images' files, between commas; by default timm's.
        skip_other_files: Leave out other files, and say so, instead of refusing them.
        num_samples: Take so many, evenly spread; by default all.
        config: From :func:`evaluation_config`; by default the model's own.
        labelled: Whether the labels will be used; else images may lie at any depth.
        **options: Passed on to :func:`timm.data.create_dataset`, such as ``input_key`` and ``target_key``.

    Raises:
        DataError: If the data are missing, empty or cannot be opened, or do not fit the model.
        UnknownNameError: If timm has no such kind of dataset that is read by number.
    """
    config = evaluation_config(model) if config is None else config
    if num_samples is not None and num_samples < 1:
        raise DataError(f"{num_samples} samples are none. Give 1 or more (--num-samples).")
    if str(data) == CANVASES and not dataset:
        canvases = evaluation_canvases()
        opened: Any = CanvasPictures(TensorDataset(canvases.images, canvases.labels), image_mode(config))
        classes: int | None = 10
    else:
        kind = check_source(data, dataset, split)
        if kind in STREAMS:
            raise UnknownNameError(
                f"--dataset {dataset!r} is a stream, which cannot be read by number. Give torch/NAME or hfds/NAME, or "
                "leave it out for folders."
            )
        if is_folder(dataset):
            if options:
                raise DataError(
                    f"{' and '.join(sorted(options))} are for a named dataset, and no --dataset was given. Leave them "
                    "out; --suffixes names the endings of image files."
                )
            opened = open_files(
                model,
                find_split(Path(str(data)), split),
                class_map=class_map,
                labels=labels,
                suffixes=suffixes,
                skip_other_files=skip_other_files,
                labelled=labelled,
            )
            classes = class_count(opened)
            if labelled and class_map is None and valid_labels is None:
                check_synsets(model, class_names(opened), str(data))
        else:
            if labels is not None or suffixes is not None or skip_other_files:
                raise DataError(
                    f"--labels, --suffixes and --skip-other-files are for folders of images, got --dataset {dataset}. "
                    "Leave them out."
                )
            opened = open_source(data, dataset, split, class_map, options)
            opened.transform = None
            classes = class_count(opened)
    if labelled:
        empty = getattr(getattr(opened, "reader", None), "empty", ())
        check_classes(model, classes, dataset or str(data), bool(class_map), valid_labels, empty)
    return Samples(opened, dataset or str(data), config, num_samples, valid_labels)


def loader(
    samples: Any,
    batch_size: int,
    workers: int | None = 0,
    *,
    share: Share | None = None,
    pin_memory: bool = False,
) -> Iterator[Batch]:
    """Read batches, in order.

    Args:
        samples: From :func:`open_samples`, or a stream.
        batch_size: Samples a batch; the last one may have fewer, and so has one with samples that cannot be read or
            that were done before.
        workers: Processes that read, besides this one; a stream has one at most. Samples are the same with any number.
            ``None`` chooses, see :func:`usual_workers`.
        share: Which samples; by default all.
        pin_memory: Load into page-locked memory, for a GPU.

    Raises:
        DataError: If ``batch_size`` or ``workers`` is out of range, a stream is damaged, or a worker was killed.
    """
    workers = usual_workers(pin_memory) if workers is None else workers
    if batch_size < 1 or workers < 0:
        raise DataError(
            f"A batch of {batch_size} images loaded by {workers} worker processes cannot be. Give at least 1 image "
            "(--batch-size) and at least 0 workers (--workers)."
        )
    source, most = samples.batched(batch_size, share or Share())
    batches: DataLoader[Batch] = DataLoader(
        source, batch_size=None, num_workers=min(workers, most), pin_memory=pin_memory
    )
    iterator = iter(batches)
    while (batch := _next(iterator, workers)) is not None:
        if batch.problem is not None:
            raise DataError(batch.problem)
        yield batch


def _next(batches: Iterator[Batch], workers: int) -> Batch | None:
    try:
        return next(batches, None)
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise DataError(
            f"A process that loads images was ended from outside ({first_line(error)}), perhaps for lack of memory. "
            f"Give fewer than {workers} --workers, or 0 to load in the main process."
        ) from error


class _Batches(Dataset[Batch]):
    def __init__(self, samples: Samples, parts: list[list[int]]) -> None:
        self.samples, self.parts = samples, parts

    def __len__(self) -> int:
        return len(self.parts)

    def __getitem__(self, number: int) -> Batch:
        if number >= len(self.parts):
            raise IndexError
        return collate([(index, self.samples.read(index)) for index in self.parts[number]], self.samples.config)
