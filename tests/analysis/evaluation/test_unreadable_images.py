"""Images that cannot be read: the evaluation stops, or leaves them out."""

import pytest

from repshift import DataError, ShiftTracker, load_model


def test_a_damaged_image_stops_with_its_path_and_what_was_evaluated_is_kept(settings, folder, tmp_path, evaluate, same):
    broken = sorted((folder / "val").rglob("*.png"))[9]
    broken.write_bytes(broken.read_bytes()[:300])
    with pytest.raises(DataError, match=str(broken)):
        evaluate(settings(), tmp_path / "r.json")
    assert not (tmp_path / "r.json").exists()
    (row,) = evaluate(settings(on_error="skip"), tmp_path / "r.json", resume=True)
    assert (row["samples"], row["skipped"]) == (22, 1)
    assert str(broken) in row["skipped_files"]
    assert same(row) == same(evaluate(settings(on_error="skip"))[0])


def test_skipping_counts_no_other_image_instead(settings, folder, hurt, evaluate, predictions):
    broken = sorted((folder / "val").rglob("*.png"))[9]
    found = predictions(ShiftTracker(load_model("tiny_resnet", checkpoint=hurt)).prune("12@0"), folder)
    broken.write_bytes(broken.read_bytes()[:300])
    del found[broken]
    (row,) = evaluate(settings(on_error="skip"))
    assert row["top1"] == round(100 * sum(label == order[0] for label, order in found.values()) / 22, 4)


def test_data_of_which_nothing_can_be_read_are_an_error(settings, folder, evaluate):
    for path in (folder / "val").rglob("*.png"):
        path.write_text("no picture")
    with pytest.raises(DataError, match="No sample"):
        evaluate(settings(on_error="skip"))
