"""Videos written on the spot: every frame shows its number as eight blocks, black for 0 and white for 1."""

from types import SimpleNamespace

import numpy as np
import pytest

ROWS, COLUMNS = 48, 128


def drawn(number, size=(ROWS, COLUMNS)):
    bits = [255 * (number >> place & 1) for place in range(8)]
    row = np.repeat(np.array(bits, dtype=np.uint8), size[1] // 8)
    return np.broadcast_to(row[None, :, None], (*size, 3)).copy()


def numbers(clip):
    """Read the numbers off ``(frames, 3, rows, columns)``."""
    blocks = clip.float().mean((1, 2)).unflatten(-1, (8, -1)).mean(-1) > 127
    return [int(sum(2**place for place, bit in enumerate(bits) if bit)) for bits in blocks]


def written(
    path, frames=100, codec="mpeg4", pixels="yuv420p", rate=30, size=(ROWS, COLUMNS), gap=24, streams=1, options=None
):
    import av

    with av.open(str(path), "w") as container:
        made = []
        for each in range(streams):
            stream = container.add_stream(codec, rate=rate)
            stream.width, stream.height, stream.pix_fmt = size[1] >> (streams - 1 - each), size[0], pixels
            stream.codec_context.gop_size = gap
            stream.options = options or {}
            stream.disposition = each == streams - 1  # the last is the default one
            made.append(stream)
        for number in range(frames):
            for each, stream in enumerate(made):
                picture = drawn(number if each == streams - 1 else 255, (stream.height, stream.width))
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        for stream in made:
            container.mux(stream.encode())
    return path


@pytest.fixture
def videos():
    pytest.importorskip("av")
    return SimpleNamespace(write=written, numbers=numbers, drawn=drawn)
