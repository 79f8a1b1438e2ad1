"""Labels follow from folders in one way only, and what could make them wrong is refused by name."""

import shutil

import pytest
from timm.data import ImageNetInfo

from repshift import DataError, load_model
from repshift.analysis.samples.data import open_samples
from repshift.analysis.samples.labelled_files import by_folder, unlabelled
from repshift.analysis.samples.listing import list_files


@pytest.fixture
def make_tree(tmp_path):
    """Make class folders with one empty image each; returns the root."""

    def make(*names):
        for name in names:
            (tmp_path / "data" / name).mkdir(parents=True, exist_ok=True)
            (tmp_path / "data" / name / "0.jpg").touch()
        return tmp_path / "data"

    return make


SYNSETS = ImageNetInfo("imagenet-1k").label_names()


@pytest.fixture(scope="module")
def imagenet_model():
    return load_model("resnet18")


def labels(reader):
    return {file.name: label for file, label in zip(reader.files, reader.labels, strict=True)}


def test_classes_are_numbered_in_natural_order(make_tree):
    reader = by_folder(list_files(make_tree("b2", "b10", "a")))
    assert labels(reader) == {"a/0.jpg": 0, "b2/0.jpg": 1, "b10/0.jpg": 2}
    assert "class 1 is b2. torchvision's ImageFolder has b10 there" in reader.notes[0]


def test_where_every_order_is_the_same_nothing_is_said(make_tree):
    assert not by_folder(list_files(make_tree("ant", "bee", "cat"))).notes


def test_images_outside_of_class_folders_are_refused(make_tree):
    root = make_tree("ant", "bee")
    (root / "stray.jpg").touch()
    with pytest.raises(DataError, match=r"1 images in .* lie in no class folder: stray\.jpg\..*--labels FILE"):
        by_folder(list_files(root))


@pytest.mark.parametrize("place", ["ant/images/a.JPEG", "ant/bee/1.jpg", "new/images/a.jpg"])
def test_images_deeper_than_a_class_folder_are_refused(make_tree, place):
    root = make_tree("ant", "bee")
    (root / place).parent.mkdir(parents=True)
    (root / place).touch()
    with pytest.raises(DataError, match=rf"lie deeper than class/file: {place}"):
        by_folder(list_files(root))


def test_a_folder_or_file_in_two_classes_is_refused_and_twice_in_one_class_is_read_once(make_tree):
    root = make_tree("ant", "bee")
    (root / "ant" / "again.jpg").symlink_to("0.jpg")
    assert labels(by_folder(list_files(root))) == {"ant/0.jpg": 0, "bee/0.jpg": 1}
    (root / "bee" / "ant.jpg").symlink_to("../ant/0.jpg")
    with pytest.raises(DataError, match=r"in two classes .*bee/ant\.jpg is ant/0\.jpg"):
        by_folder(list_files(root))
    (root / "bee" / "ant.jpg").unlink()
    (root / "fly").symlink_to("bee")
    with pytest.raises(DataError, match=r"in two classes of .*: fly is bee"):
        by_folder(list_files(root))


def test_a_class_without_images_keeps_its_number_and_is_said(make_tree):
    root = make_tree("ant", "bee", "cat")
    (root / "bee" / "0.jpg").unlink()
    reader = by_folder(list_files(root))
    assert labels(reader) == {"ant/0.jpg": 0, "cat/0.jpg": 2}
    assert reader.notes == ["1 of 3 class folders have no images: bee."]


def test_numbered_folders_are_taken_by_their_value_with_a_note(make_tree):
    reader = by_folder(list_files(make_tree(*map(str, range(1, 13)))))
    assert labels(reader)["12/0.jpg"] == 11
    assert reader.notes == [
        "the class folders are numbers, taken by their value: 1 is class 0, 12 is class 11. For another order give "
        "--class-map FILE."
    ]
    padded = by_folder(list_files(make_tree("000")))  # before the others
    assert labels(padded)["000/0.jpg"] == 0


@pytest.mark.parametrize(("names", "message"), [(["0", "1", "3"], "but 2 is missing"), (["1", "01"], "same number")])
def test_numbered_folders_with_gaps_or_doubles_are_refused(make_tree, names, message):
    with pytest.raises(DataError, match=message):
        by_folder(list_files(make_tree(*names)))


def test_without_labels_images_may_lie_anywhere(make_tree):
    root = make_tree("ant", "bee/deeper")
    (root / "stray.jpg").touch()
    assert labels(unlabelled(list_files(root))) == {"ant/0.jpg": -1, "bee/deeper/0.jpg": -1, "stray.jpg": -1}


def add(name):
    return lambda root: (root / name).mkdir()


def remove(name):
    return lambda root: shutil.rmtree(root / name)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        ([add("extra")], "has folders of synsets and others: extra"),
        ([remove(SYNSETS[3])], f"lacks 1 of the 1000 classes of imagenet-1k: {SYNSETS[3]}"),
        ([remove(SYNSETS[3]), add("notes")], "has folders of synsets and others: notes"),
        ([add("n99999999")], "has classes that imagenet-1k lacks, such as n99999999"),
        ([remove(SYNSETS[3]), add("n99999999")], "has classes that imagenet-1k lacks, such as n99999999"),
    ],
)
def test_folders_that_are_not_just_the_synsets_are_refused_by_name(imagenet_model, make_tree, spoil, message):
    root = make_tree(*SYNSETS)
    for change in spoil:
        change(root)
    with pytest.raises(DataError, match=message):
        open_samples(imagenet_model, root)


def test_a_hidden_folder_takes_no_class_away(imagenet_model, make_tree):
    root = make_tree(*SYNSETS[:7], *SYNSETS[8:], ".ipynb_checkpoints")
    with pytest.raises(DataError, match=f"lacks 1 of the 1000 classes of imagenet-1k: {SYNSETS[7]}"):
        open_samples(imagenet_model, root)
    (root / SYNSETS[7]).mkdir()  # without images
    samples = open_samples(imagenet_model, root)
    assert len(samples) == 999
    for at in (0, 998):
        assert samples.dataset.reader.labels[at] == SYNSETS.index(samples.file_name(at).split("/")[-2])


def test_a_part_of_imagenet_is_numbered_by_the_list_that_timm_has(imagenet_model, make_tree):
    root = make_tree(SYNSETS[7], SYNSETS[700])
    with pytest.raises(DataError, match=r"has 2 classes.*imagenet-1k for a part of ImageNet"):
        open_samples(imagenet_model, root)
    samples = open_samples(imagenet_model, root, class_map="imagenet-1k")
    assert samples.dataset.reader.labels == [7, 700]


def test_a_class_map_of_more_names_than_the_model_has_classes_is_refused(make_tree, tmp_path, model):
    root = make_tree("c0", "c1")
    (tmp_path / "map.txt").write_text("\n".join(f"c{number}" for number in range(12)))
    with pytest.raises(DataError, match="names 12 classes, the model tells apart 10"):
        open_samples(model, root, class_map=tmp_path / "map.txt")
    (tmp_path / "map.txt").write_text("c0\nc1\n")
    samples = open_samples(model, root, class_map=tmp_path / "map.txt", num_samples=9)
    assert samples.notes == [
        "the class map names 2 of the model's 10 classes, taken for its first ones.",
        "9 samples were asked for, and there are 2.",
    ]


@pytest.mark.parametrize("option", [{"labels": "x.txt"}, {"suffixes": ".tif"}, {"skip_other_files": True}])
def test_options_of_folders_are_refused_beside_a_named_dataset(model, folder, option):
    with pytest.raises(DataError, match="are for folders of images"):
        open_samples(model, folder, dataset="torch/cifar10", **option)


def test_options_of_named_datasets_are_refused_beside_a_folder(model, folder):
    with pytest.raises(DataError, match="input_key are for a named dataset"):
        open_samples(model, folder, input_key="png")
