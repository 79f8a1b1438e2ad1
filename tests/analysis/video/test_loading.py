import errno
from pathlib import Path

import pytest
import torch

from repshift import DataError
from repshift.analysis.samples.batches import Share
from repshift.analysis.samples.data import loader
from repshift.analysis.video import Clips, preprocess, read_clip


@pytest.fixture
def folder(tmp_path, videos):
    for name, frames in {"a": 20, "b": 3, "c": 30}.items():
        videos.write(tmp_path / f"{name}.mp4", frames=frames)
    (tmp_path / "broken.mp4").write_bytes(b"x" * 99)
    return tmp_path


@pytest.mark.parametrize("workers", [0, 2])
def test_videos_are_read_in_batches_and_those_that_cannot_be_are_named(folder, workers):
    clips = Clips(folder, ["a.mp4", "broken.mp4", "b.mp4", "none.mp4", "c.mp4"], frames=4, size=16)
    batches = list(loader(clips, 2, workers))
    assert [batch.indices for batch in batches] == [[0], [2], [4]]
    assert [failure.index for batch in batches for failure in batch.failures] == [1, 3]
    assert all(str(folder) in failure.reason for batch in batches for failure in batch.failures)
    assert batches[0].images.shape == (1, 4, 3, 16, 16)
    assert torch.equal(batches[1].images[0], preprocess(read_clip(folder / "b.mp4", 4), 16))


def test_a_batch_of_broken_videos_holds_none(folder):
    (batch,) = loader(Clips(folder, ["broken.mp4"], frames=4, size=16), 2)
    assert batch.images.shape == (0, 4, 3, 16, 16)


def test_processes_share_the_videos(folder):
    clips = Clips(folder, ["a.mp4", "b.mp4", "c.mp4"], frames=2, size=16)
    seen = [batch.indices for rank in range(2) for batch in loader(clips, 2, share=Share(rank, 2))]
    assert seen == [[0, 2], [1]]


def test_what_is_not_the_videos_fault_ends_the_run(folder, monkeypatch):
    def refuse(*args, **kwargs):
        raise DataError("too many files") from OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr("repshift.analysis.video.loading.read_clip", refuse)
    with pytest.raises(DataError, match="not the video's fault"):
        Clips(folder, ["a.mp4"], frames=2, size=16).read(0)


@pytest.mark.parametrize("reads", [True, False])
def test_a_file_that_ends_in_its_header_is_broken_unless_it_cannot_be_read(folder, videos, monkeypatch, reads):
    whole = videos.write(folder / "head.webm", codec="libvpx").read_bytes()
    (folder / "head.webm").write_bytes(whole[:300])  # which FFmpeg calls an error of input, too
    if not reads:

        def refuse(*args, **kwargs):
            raise OSError(errno.EIO, "Input/output error")

        monkeypatch.setattr(Path, "open", refuse)
    clips = Clips(folder, ["head.webm"], frames=2, size=16)
    if reads:
        assert "head.webm is not a video" in clips.read(0).reason
    else:
        with pytest.raises(DataError, match="not the video's fault"):
            clips.read(0)


def test_the_first_seconds_count_if_asked(folder, videos):
    videos.write(folder / "long.mp4", frames=100, rate=10)
    short, _ = Clips(folder, ["long.mp4"], frames=2, size=128, seconds=1).read(0)
    assert torch.equal(short, preprocess(read_clip(folder / "long.mp4", 2, seconds=1), 128))
