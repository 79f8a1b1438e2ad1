"""Labels from a file: ImageNet's validation set as it is downloaded, and other flat folders."""

import os

import pytest
from timm.data import ImageNetInfo

from repshift import DataError, load_model
from repshift.analysis.samples.data import open_samples
from repshift.analysis.samples.label_files import by_label_file, read_meta
from repshift.analysis.samples.listing import list_files

SYNSETS = ImageNetInfo("imagenet-1k").label_names()


@pytest.fixture
def flat(tmp_path):
    """A folder of three images, named as ImageNet's are."""
    (tmp_path / "val").mkdir()
    for number in (1, 2, 10):
        (tmp_path / "val" / f"ILSVRC2012_val_{number:08d}.JPEG").touch()
    return tmp_path / "val"


@pytest.fixture
def plain(tmp_path):
    """A folder of three images of other names."""
    (tmp_path / "plain").mkdir()
    for name in ("a 1.png", "b.png", "c.png"):
        (tmp_path / "plain" / name).touch()
    return tmp_path / "plain"


@pytest.fixture
def write(tmp_path):
    def written(*lines, name="labels.txt"):
        (tmp_path / name).write_text("\n".join(map(str, lines)) + "\n")
        return tmp_path / name

    return written


def labels(root, path, classes=1000, **options):
    return by_label_file(list_files(root), path, classes, **options).labels


def ground_truth(tmp_path):
    """Write a development kit whose numbers run against the order of the synsets."""
    io = pytest.importorskip("scipy.io")
    import numpy as np

    kinds = [("n00000001", 2), *((synset, 0) for synset in reversed(SYNSETS))]
    rows = np.zeros(len(kinds), dtype=[(name, object) for name in ("ID", "WNID", "words", "gloss", "num_children")])
    # the class that has others below it has the highest number, as in the kit
    for row, (synset, below), number in zip(rows, kinds, [1001, *range(1, 1001)], strict=True):
        row["ID"], row["WNID"], row["words"], row["gloss"], row["num_children"] = number, synset, "w", "g", below
    io.savemat(tmp_path / "meta.mat", {"synsets": rows.reshape(-1, 1)})
    return tmp_path / "meta.mat"


def test_the_ground_truth_of_imagenet_is_numbered_by_its_development_kit(flat, write, tmp_path):
    path = write(*range(1, 51), name="ILSVRC2012_validation_ground_truth.txt")
    with pytest.raises(DataError, match=r"ImageNet's own numbers.*Put meta\.mat"):
        labels(flat, path)
    assert read_meta(ground_truth(tmp_path))[1] == SYNSETS[-1]
    assert labels(flat, path) == [999, 998, 990]  # of images 1, 2 and 10


def test_a_damaged_kit_is_named(flat, write, tmp_path):
    pytest.importorskip("scipy.io")
    path = write(*range(1, 51), name="ILSVRC2012_validation_ground_truth.txt")
    (tmp_path / "meta.mat").write_text("no kit")
    with pytest.raises(DataError, match=r"is no meta\.mat"):
        labels(flat, path)


def test_synsets_a_line_follow_the_numbers_of_the_files(flat, write):
    path = write(*(SYNSETS[number] for number in range(100, 150)))
    assert labels(flat, path, synsets=SYNSETS) == [100, 101, 109]


def test_caffes_list_has_file_and_number(flat, write):
    path = write(*(f"ILSVRC2012_val_{number:08d}.JPEG {900 + number}" for number in range(1, 21)))
    reader = by_label_file(list_files(flat), path, 1000)
    assert reader.labels == [901, 902, 910]
    assert reader.notes == [f"17 of 20 labels in {path} are for files that are not here."]


def test_kaggles_table_has_boxes_behind_the_synset(flat, write):
    rows = [f"ILSVRC2012_val_{number:08d},{SYNSETS[number]} 1 2 3 4 {SYNSETS[number]} 5 6 7 8" for number in (10, 2, 1)]
    path = write("ImageId,PredictionString", *rows, name="LOC_val_solution.csv")
    assert labels(flat, path, synsets=SYNSETS) == [1, 2, 10]


@pytest.mark.parametrize("sign", [",", "\t", " "])
@pytest.mark.parametrize("heading", [["file", "label"], None])
def test_a_table_of_files_and_labels(plain, write, sign, heading):
    rows = [*([heading] if heading else []), ("c.png", 2), ("a 1.png", 0), ("b", 1)]
    assert labels(plain, write(*(f"{file}{sign}{label}" for file, label in rows)), 3) == [0, 1, 2]


def test_one_label_a_line_follows_the_order_of_the_files(plain, write):
    assert labels(plain, write(2, 0, 1), 3) == [2, 0, 1]


def test_labels_from_one_are_said_to_be_so(plain, write):
    reader = by_label_file(list_files(plain), write(3, 1, 2), 3)
    assert reader.labels == [2, 0, 1]
    assert "1 is class 0" in reader.notes[0]


def test_names_are_numbered_in_natural_order_or_by_a_class_map(plain, write):
    path = write("dog", "ant", "cat")
    assert labels(plain, path, 3) == [2, 0, 1]
    assert labels(plain, path, 9, class_map={"dog": 5, "cat": 7, "ant": 8}) == [5, 8, 7]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], "holds no labels"),
        ([0, 1], "has 2 labels, .* has 3 images"),
        ([0, 1, 3], "has the label 3, the model's classes are 0 to 2"),
        ([0, "cat", 1], "has numbers and names"),
        (["a,1,2", "b,1,2", "c,1,2"], "has 3 entries"),
        (["a 1.png,0", "b.png,1"], r"has no label for 1 of 3 images: c\.png"),
        (["b.png,1", "b.png,2", "c.png,0", "a 1.png,0"], r"two labels for b\.png"),
        (["ant", "bee", "ant"], "names 2 classes, the model tells apart 3"),
        (["-1", "0", "1"], "numbers and names"),
    ],
)
def test_labels_that_do_not_fit_are_refused(plain, write, lines, message):
    with pytest.raises(DataError, match=message):
        labels(plain, write(*lines), 3)


def test_a_label_of_thousands_of_digits_is_refused(plain, write):
    with pytest.raises(DataError, match=r"has the label 9{20}\.\.\., which is too long"):
        labels(plain, write("9" * 6000, 1, 2), 3)


def test_what_is_no_file_is_not_read(plain, tmp_path):
    os.mkfifo(tmp_path / "labels.txt")
    with pytest.raises(DataError, match="is no regular file"):
        labels(plain, tmp_path / "labels.txt", 3)


def test_a_list_says_which_order_was_assumed(plain, write):
    path = write(2, 0, 1)
    (note,) = by_label_file(list_files(plain), path, 3).notes
    assert note == f"the labels in {path} are taken in the order of the files; a 1.png is of class 2, counted from 0."


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"\x00\x01", None])
def test_a_file_of_labels_that_is_none_is_named(plain, tmp_path, content):
    if content is not None:
        (tmp_path / "labels.txt").write_bytes(content)
    with pytest.raises(DataError, match=r"--labels .*labels\.txt"):
        labels(plain, tmp_path / "labels.txt", 3)


def test_samples_have_the_labels_of_the_file(folder, tmp_path, read_all):
    model = load_model("tiny_resnet", pretrained=True)
    expected, _ = read_all(open_samples(model, folder))
    (tmp_path / "flat").mkdir()
    lines = []
    for number, (file, (_, label)) in enumerate(zip(open_samples(model, folder).files, expected.values(), strict=True)):
        (tmp_path / "flat" / f"{number}.png").symlink_to(file)
        lines.append(f"{number}.png,{label}")
    (tmp_path / "labels.csv").write_text("\n".join(lines))
    found, _ = read_all(open_samples(model, tmp_path / "flat", labels=tmp_path / "labels.csv"))
    assert [label for _, label in found.values()] == [label for _, label in expected.values()]
    assert all((found[index][0] == expected[index][0]).all() for index in expected)
    with pytest.raises(DataError, match="lie in no class folder"):
        open_samples(model, tmp_path / "flat")
