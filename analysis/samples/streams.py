"""Samples that can only be read from the beginning: timm's streams, each sample once in any number of processes.

Left to themselves, timm's readers divide a stream among processes and workers so that all have as many batches, which
shows some samples twice and others never. Here every process reads the whole stream, in order and by one worker at
most, and takes every n-th sample.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.utils.data import Dataset, IterableDataset

from repshift.analysis.samples.batches import Batch, Failure, Share, collate, known_label
from repshift.analysis.samples.pictures import as_seen
from repshift.analysis.samples.preprocessing import evaluation_config, image_mode, preprocessing
from repshift.analysis.samples.sources import check_classes, class_count, open_source
from repshift.errors import DataError, first_line


class Stream:
    """A stream of samples; see :class:`repshift.analysis.samples.data.Samples`.

    Args:
        dataset: timm's, with a ``reader`` of pictures and targets.
        name: What messages call it.
        config: timm's data configuration.
        num_samples: Read so many from the beginning; by default all.
        valid_labels: Classes of the model, in the order of the data's.
    """

    def __init__(
        self,
        dataset: Any,
        name: str,
        config: Mapping[str, Any],
        num_samples: int | None = None,
        valid_labels: Sequence[int] | None = None,
    ) -> None:
        self.reader, self.name, self.config, self.valid_labels = dataset.reader, name, dict(config), valid_labels
        self.num_samples = num_samples
        self.transform, self.mode = preprocessing(config), image_mode(config)
        # the reader would divide the stream among all processes
        for setting, value in {"dist_rank": 0, "dist_num_replicas": 1, "num_workers": 1}.items():
            setattr(self.reader, setting, value)
        self.reader.global_num_workers, self.reader.global_worker_id = 1, 0

    @property
    def count(self) -> int | None:
        """How many samples there are; ``None`` if the stream does not say."""
        return self.num_samples or getattr(self.reader, "num_samples", None) or None

    def file_name(self, index: int) -> str:
        """Name a sample by its place."""
        return f"sample {index} of {self.name}"

    def batched(self, batch_size: int, share: Share) -> tuple[Dataset[Batch], int]:
        """Return the batches of a share, one after the other, and how many workers may read them."""
        return _Batches(self, batch_size, share), 1

    def read(self) -> Iterator[tuple[int, tuple[Tensor, int] | Failure]]:
        """Read all samples.

        Raises:
            DataError: If the stream is damaged, or ends early.
        """
        index = -1
        pictures = _read_tars if type(self.reader).__name__ == "ReaderWds" else _read_rows
        for index, (name, picture, target) in enumerate(pictures(self.reader)):
            if index == self.num_samples:
                return
            name = name or self.file_name(index)
            if isinstance(picture, str):
                yield index, Failure(index, name, picture)
                continue
            try:
                yield index, (self.transform(as_seen(picture, self.mode)), known_label(target, self.valid_labels))
            except (OSError, ValueError, RuntimeError) as error:
                yield index, Failure(index, name, f"{type(error).__name__}: {first_line(error)}")
        if self.count is not None and index + 1 < self.count:
            raise DataError(
                f"{self.name} ended after {index + 1} of {self.count} samples. Check that its files are complete, or "
                "give the right --num-samples."
            )


def open_stream(
    model: nn.Module,
    data: str | Path | None,
    dataset: str,
    split: str,
    *,
    class_map: str | Path | None = None,
    valid_labels: Sequence[int] | None = None,
    num_samples: int | None = None,
    config: Mapping[str, Any] | None = None,
    **options: Any,
) -> Stream:
    """Open ``wds/...`` or ``hfids/...``; see :func:`repshift.analysis.samples.data.open_samples`.

    Raises:
        DataError: If it cannot be opened or does not fit the model.
    """
    config = evaluation_config(model) if config is None else config
    options = {**options, "num_samples": num_samples}
    opened = open_source(data, dataset, split, class_map, options)
    check_classes(model, class_count(opened), dataset, class_map is not None, valid_labels)
    return Stream(opened, dataset, config, num_samples, valid_labels)


class _Batches(IterableDataset[Batch]):
    def __init__(self, stream: Stream, batch_size: int, share: Share) -> None:
        self.stream, self.batch_size, self.share = stream, batch_size, share

    def __iter__(self) -> Iterator[Batch]:
        part: list[Any] = []
        own = 0
        try:
            for index, sample in self.stream.read():
                if index % self.share.processes != self.share.rank:
                    continue
                own += 1
                if index not in self.share.done:
                    part.append((index, sample))
                # batches do not depend on what was done before
                if own % self.batch_size == 0 and part:
                    yield collate(part, self.stream.config)
                    part = []
        except DataError as error:
            yield replace(collate([], self.stream.config), problem=str(error))
            return
        if part:
            yield collate(part, self.stream.config)


# What a reader gives for one sample: its name if known, its picture or why there is none, and its target
Reading = tuple[str | None, Any, Any]


def _read_rows(reader: Any) -> Iterator[Reading]:
    """Read a dataset of Hugging Face; it cannot go on behind a picture that it cannot decode."""
    done = 0
    try:
        for picture, target in reader:
            yield None, picture, target
            done += 1
    except Exception as error:
        raise DataError(
            f"Sample {done} of {reader.name} cannot be read ({type(error).__name__}: {first_line(error)}), and a "
            "stream cannot go on behind it. Replace it, or read by number (hfds/ instead of hfids/)."
        ) from error


def _read_tars(reader: Any) -> Iterator[Reading]:
    """Read a WebDataset, and notice what timm's reader leaves out with a warning."""
    unread: list[str] = []

    def remember(samples: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        for sample in samples:
            unread.append(f"{sample.get('__url__')}: {sample.get('__key__')}")
            yield sample

    reader.ds = None
    reader._lazy_init()
    reader.ds.pipeline.insert(-2, remember)  # before pictures are decoded and renamed
    with _Warnings("timm.data.readers.reader_wds") as warnings:
        pictures = iter(reader)
        whole = True
        while whole:
            picture, target = next(pictures, (None, None))
            whole = picture is not None
            last = unread.pop() if whole else None
            for name in unread:
                yield name, warnings.pop(0) if warnings else "it has no label", None
            unread.clear()
            if warnings:
                raise DataError(f"A file behind {last or 'the last sample'} is damaged: {warnings[0]}. Copy it again.")
            if whole:
                yield last, picture, target


class _Warnings(logging.Handler):
    """Collects a logger's messages instead of showing them."""

    def __init__(self, logger: str) -> None:
        super().__init__()
        self.logger = logging.getLogger(logger)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a message."""
        self.messages.append(record.getMessage())

    def __enter__(self) -> list[str]:
        self.logger.addHandler(self)
        self.propagated, self.logger.propagate = self.logger.propagate, False
        return self.messages

    def __exit__(self, *raised: object) -> None:
        self.logger.removeHandler(self)
        self.logger.propagate = self.propagated
