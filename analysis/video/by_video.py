"""Work that is done video by video behind the encoding, shared among processes and resumable: numbers of each video."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from repshift.analysis.output.partial import PartialRecords
from repshift.analysis.samples.processes import Processes
from repshift.errors import DataError

Values = tuple[float, ...]


class PartialValues(PartialRecords[Values]):
    """The numbers of the videos of one unfinished pass."""

    def written(self, record: Values) -> list[Any]:
        """Write a record as plain values; JSON keeps every digit."""
        return [list(record)]

    def read(self, plain: Any) -> Values:
        """Read a record.

        Raises:
            TypeError: If it is none.
        """
        (values,) = plain
        if not isinstance(values, list) or not all(type(value) is float for value in values):
            raise TypeError
        return tuple(values)


def measure_videos(
    processes: Processes,
    folder: Path | None,
    identity: Mapping[str, Any],
    videos: Sequence[int],
    measure: Callable[[int], Sequence[float]],
    observe: Callable[[int, int], None],
) -> dict[int, Values]:
    """Measure numbers of each video, in one process each; afterwards every process has them all.

    Args:
        processes: All processes.
        folder: Keeps what was measured until the command has ended; ``None`` keeps nothing.
        identity: Plain values that must be the same for a resumed pass to end with the same numbers.
        videos: Their numbers.
        measure: Given one of them.
        observe: Told how many are done, and of how many.

    Raises:
        DataError: If a number is none.
        CheckpointError: If what is resumed is of another run.
    """
    partial, records = None, dict[int, Values]()
    with processes.together():
        partial = None if folder is None else PartialValues(folder, identity, processes.rank)
        if partial is not None and processes.first:
            records = partial.resume()
            partial.begin()
    records = processes.exchange(records if processes.first else None)[0]
    share = list(videos)[processes.rank :: processes.count]
    left = [video for video in share if video not in records]
    own: dict[int, Values] = {}
    try:
        with processes.together():
            for video in left:
                observe(len(share) - len(left) + len(own), len(share))
                own[video] = tuple(map(float, measure(video)))
                if partial is not None:
                    partial.add({video: own[video]})
                if processes.failing:
                    break
    finally:
        if partial is not None:
            partial.close()
            if processes.first:
                partial.forget_if_empty()
    for part in processes.exchange(own):
        records = records | part
    if missing := [video for video in videos if video not in records]:
        raise DataError(f"{len(missing)} videos were not measured. Begin anew: --no-resume.")
    return {video: records[video] for video in videos}
