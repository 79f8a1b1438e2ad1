"""The queries of both directions, and those that are left where videos cannot be read."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from repshift.analysis.video.annotations import Annotations
from repshift.errors import DataError


@dataclass(frozen=True)
class Queries:
    """Videos that look for texts, and texts that look for videos.

    Attributes:
        files: Paths of videos, each once; what is encoded.
        videos: Of each query by video, the number of its file.
        texts: Texts, not cleaned yet.
        right_texts: Of each query by video, the numbers of its texts.
        right_videos: Of each text, the numbers of its queries by video.
        numbers: Of each text, which one of the annotations it is.
    """

    files: list[str]
    videos: list[int]
    texts: list[str]
    right_texts: list[list[int]]
    right_videos: list[list[int]]
    numbers: list[int]

    @classmethod
    def of(cls, annotations: Annotations) -> Queries:
        """Lay out annotations."""
        files = list(dict.fromkeys(annotations.videos))
        numbers = {file: number for number, file in enumerate(files)}
        return cls(
            files,
            [numbers[video] for video in annotations.videos],
            annotations.texts,
            annotations.right_texts,
            annotations.right_videos,
            list(range(len(annotations.texts))),
        )

    def without(self, unreadable: Collection[int]) -> Queries:
        """Leave out videos that cannot be read, and the texts that have no other right video.

        Args:
            unreadable: Numbers of files.

        Raises:
            DataError: If nothing is left.
        """
        if not unreadable:
            return self
        kept = [query for query, file in enumerate(self.videos) if file not in unreadable]
        place = {query: number for number, query in enumerate(kept)}
        right = [[place[query] for query in own if query in place] for own in self.right_videos]
        texts = [text for text, own in enumerate(right) if own]
        if not texts:
            raise DataError("No video that belongs to a text can be read. Give others.")
        number_of = {text: number for number, text in enumerate(texts)}
        return Queries(
            self.files,
            [self.videos[query] for query in kept],
            [self.texts[text] for text in texts],
            [[number_of[text] for text in self.right_texts[query]] for query in kept],
            [right[text] for text in texts],
            [self.numbers[text] for text in texts],
        )

    @property
    def paired(self) -> bool:
        """Whether every video has one text and every text one video."""
        return len(self.videos) == len(self.texts) and all(
            own == [number] for right in (self.right_texts, self.right_videos) for number, own in enumerate(right)
        )
