import json

import numpy as np
import pytest

from repshift.analysis.samples.moving_digits import ANSWERS, VOCABULARY, DigitPool, numbered_video, questions
from repshift.analysis.video import read_answers, read_clip, read_questions, read_retrieval
from repshift.analysis.video.digit_files import write_videos
from repshift.errors import DataError

pytest.importorskip("av")


@pytest.fixture(scope="module")
def videos(shipped_digits):
    pool = DigitPool(shipped_digits)
    return [numbered_video(pool, 4, index) for index in range(3)]


@pytest.fixture(scope="module")
def written(videos, tmp_path_factory):
    folder = tmp_path_factory.mktemp("digits")
    seen = []
    files = write_videos(videos, folder, lambda *progress: seen.append(progress))
    assert seen == [(1, 3), (2, 3), (3, 3)]
    return folder, files


def test_the_files_show_what_was_drawn(videos, written):
    for video, file in zip(videos, written[1], strict=True):
        clip = read_clip(file, 24)
        assert clip.shape == (24, 3, 48, 48)
        difference = clip.numpy().astype(int) - video.draw()[:, None]
        assert np.abs(difference).mean() < 0.5  # of 255
        assert np.abs(difference).max() < 40


def test_the_annotations_are_read_as_published_ones_are(videos, written):
    folder, files = written
    annotations = read_retrieval(folder / "captions.json")
    assert annotations.videos == [file.name for file in files] == ["0000.mp4", "0001.mp4", "0002.mp4"]
    assert annotations.texts == [video.caption for video in videos]
    asked = read_questions(folder / "questions.json")
    expected = [pair for video in videos for pair in questions(video.moves)]
    assert list(zip(asked.questions, asked.answers, strict=True)) == expected
    assert asked.videos == [file.name for file in files for _ in range(4)]
    assert read_answers(folder / "answers.json") == list(ANSWERS)
    assert (folder / "vocab.txt").read_text().splitlines() == list(VOCABULARY)
    assert json.loads((folder / "captions.json").read_text())[0].keys() == {"video", "caption"}


def test_the_same_videos_give_the_same_bytes(videos, written, tmp_path):
    again = write_videos(videos, tmp_path / "again")
    assert [file.read_bytes() for file in again] == [file.read_bytes() for file in written[1]]


def test_a_folder_that_cannot_be_is_refused(videos, tmp_path):
    (tmp_path / "taken").write_text("in the way")
    with pytest.raises(DataError, match="taken"):
        write_videos(videos, tmp_path / "taken")
