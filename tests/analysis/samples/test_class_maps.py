import pickle

import pytest

from repshift import DataError, load_model
from repshift.analysis.samples.class_maps import read_class_map
from repshift.analysis.samples.sources import open_files


def test_names_are_numbered_by_their_lines(tmp_path):
    (tmp_path / "classes.txt").write_text("ant\r\n tench, Tinca tinca \nbeé\n\n", encoding="utf-8-sig")
    assert read_class_map(tmp_path / "classes.txt") == {"ant": 0, "tench, Tinca tinca": 1, "beé": 2}


class Code:
    """Unpickling it writes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


@pytest.mark.parametrize("name", ["classes.pkl", "classes.PKL", "classes.pickle", "classes.txt", "classes"])
def test_a_pickle_is_refused_by_name_and_not_run(tmp_path, name):
    (tmp_path / name).write_bytes(pickle.dumps(Code(str(tmp_path / "ran"))))
    with pytest.raises(DataError, match=rf"--class-map .*{name} is (named as a pickle|no text).*one a line"):
        read_class_map(tmp_path / name)
    assert not (tmp_path / "ran").exists()


WRONG = {
    "": "is empty",
    "\n\n": "is empty",
    "ant\n\nbee\n": "no name in its line 2",
    "ant\nbee\nant": "has 'ant' in its lines 1 and 3",
    "ant\0\nbee": "no name in its line 1",
}


@pytest.mark.parametrize("text", WRONG)
def test_a_file_that_does_not_name_each_class_once_is_refused(tmp_path, text):
    (tmp_path / "classes.txt").write_text(text)
    with pytest.raises(DataError, match=WRONG[text]):
        read_class_map(tmp_path / "classes.txt")


@pytest.mark.parametrize("name", ["missing.txt", "."])
def test_a_file_that_is_none_is_named(tmp_path, name):
    with pytest.raises(DataError, match="does not exist"):
        read_class_map(tmp_path / name)


def test_data_are_numbered_by_it(tmp_path):
    from PIL import Image

    for name in ("ant", "bee"):
        (tmp_path / "data" / name).mkdir(parents=True)
        Image.new("RGB", (4, 4)).save(tmp_path / "data" / name / "0.png")
    (tmp_path / "data" / "classes.txt").write_text("bee\nwasp\nant\n")
    model = load_model("tiny_resnet", num_classes=3)
    opened = open_files(model, tmp_path / "data", class_map="classes.txt")  # in the folder, as timm looks
    assert sorted(opened.reader.labels) == [0, 2]
    (tmp_path / "classes.pkl").write_bytes(pickle.dumps(Code(str(tmp_path / "ran"))))
    with pytest.raises(DataError, match="named as a pickle"):
        open_files(model, tmp_path / "data", class_map=tmp_path / "classes.pkl")
    assert not (tmp_path / "ran").exists()
