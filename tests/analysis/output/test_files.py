import pytest

from repshift.analysis.output.files import output_folder, write_text, write_whole
from repshift.errors import DataError


def write_half(path):
    path.write_text("half")
    raise RuntimeError("interrupted")


def test_a_writer_that_raises_leaves_nothing_behind(tmp_path):
    with pytest.raises(RuntimeError, match="interrupted"):
        write_whole(tmp_path / "result.txt", write_half)
    assert not list(tmp_path.iterdir())


def test_a_writer_that_raises_leaves_the_old_file_as_it_was(tmp_path):
    path = tmp_path / "result.txt"
    path.write_text("old")
    with pytest.raises(RuntimeError, match="interrupted"):
        write_whole(path, write_half)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_the_old_file_stands_until_the_new_one_is_complete(tmp_path):
    path = tmp_path / "result.txt"
    path.write_text("old")

    def write(unfinished):
        unfinished.write_text("new")
        assert unfinished.suffix == ".txt"
        assert path.read_text() == "old"

    write_whole(path, write)
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_text_is_written_as_utf8_into_folders_made_for_it(tmp_path):
    path = tmp_path / "a" / "b" / "text.md"
    write_text(path, "20 % — größer\n")
    assert path.read_bytes() == "20 % — größer\n".encode()


def test_an_output_folder_is_made_and_left_empty(tmp_path):
    assert not list(output_folder(tmp_path / "a" / "b").iterdir())


def test_a_file_in_the_place_of_an_output_folder_is_refused(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataError, match=r"Cannot write to .*file .*Give a folder"):
        output_folder(tmp_path / "file")
