"""What a video file holds, read without decoding: how many frames, when they are shown, where decoding can begin."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from typing import Any

VP8_SHOWN = 0x10  # a bit of the first byte; RFC 6386, section 9.1
LEAST_SHARE = 0.95  # of the length in the header: less than that was not all of the file
LEAST_GAP = 0.2  # seconds that a header may say too much in any case
DEFAULT_RATE = 30.0  # frames a second, of a file that does not say


@dataclass(frozen=True)
class Index:
    """The frames of a video stream.

    Attributes:
        length: How many there are.
        times: When each is shown, in ticks, in order; empty if the file does not tell them apart.
        keys: The times of those that are decoded without others.
        tick: Seconds a tick.
        rate: Frames a second, on average.
        problem: Why they are not all of the video; empty if they are.
    """

    length: int
    times: list[int]
    keys: list[int]
    tick: Fraction
    rate: float
    problem: str = ""

    def decoded_around(self, container: Any, stream: Any, left: Sequence[int]) -> Iterator[Any]:
        """Decode the frames between the last key frame before each wanted time and that time.

        Args:
            container: Newly opened.
            stream: Its stream.
            left: The times that are still wanted, in order; whoever takes the frames takes those out that came.
        """
        skipping = False
        for packet in container.demux(stream):
            if packet.is_keyframe and packet.pts is not None and left and left[0] >= packet.pts:
                start = self.keys[bisect_right(self.keys, left[0]) - 1]
                if skipping and start <= packet.pts:
                    stream.codec_context.flush_buffers()
                skipping = start > packet.pts
            if not skipping:
                yield from packet.decode()


def index_packets(container: Any, stream: Any) -> Index:
    """Go through all packets of a file without decoding them.

    Args:
        container: Newly opened.
        stream: Its video stream.
    """
    times: list[int | None] = []
    keys: list[int] = []
    last = Fraction(0)  # seconds, over all streams: sound may be longer
    for packet in container.demux():
        if packet.pts is not None and packet.time_base is not None:
            last = max(last, (packet.pts + (packet.duration or 0)) * packet.time_base)
        if (packet.stream is not stream and packet.stream.index != stream.index) or not shown(packet, stream):
            continue
        times.append(packet.pts)
        if packet.is_keyframe and packet.pts is not None:
            keys.append(packet.pts)
    known = sorted(time for time in times if time is not None)
    distinct = len(set(known)) == len(times) and bool(keys) and keys[0] <= known[0]
    tick = Fraction(stream.time_base or 1)
    problem = _missing(container, stream, known, len(times), last)
    return Index(len(times), known if distinct else [], sorted(keys), tick, _rate(stream, known, tick), problem)


def shown(packet: Any, stream: Any) -> bool:
    """Say whether a packet becomes a frame: some end a stream, lie before its first moment, or only serve others."""
    if not packet.size or packet.is_discard:
        return False
    return stream.codec_context.name not in ("vp8", "libvpx") or bool(bytes(packet)[0] & VP8_SHOWN)


def _missing(container: Any, stream: Any, times: Sequence[int], count: int, last: Fraction) -> str:
    """Say what is missing of a file that was cut off."""
    if not count:
        return "has no frame"
    kind = container.format.name
    if kind.startswith(("mov", "avi")) and count < LEAST_SHARE * stream.frames:
        return f"is cut off: it holds {count} of the {stream.frames} frames that its header says"
    if kind.startswith("matroska") and container.duration:
        claimed = container.duration / 1_000_000
        # headers count how long the last frame is shown, which packets do not always tell
        longest = max((later - time for time, later in pairwise(times)), default=0) * (stream.time_base or 1)
        if last < LEAST_SHARE * claimed and claimed - last > (max(2 * longest, LEAST_GAP) if longest else 1):
            return f"is cut off: it holds {float(last):.1f} of the {claimed:.1f} seconds that its header says"
    return ""


def _rate(stream: Any, times: Sequence[int], tick: Fraction) -> float:
    given = stream.average_rate or stream.guessed_rate
    if given:
        return float(given)
    span = (times[-1] - times[0]) * tick if len(times) > 1 else 0
    return float((len(times) - 1) / span) if span else DEFAULT_RATE
