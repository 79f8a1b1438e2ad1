import pytest
import torch

from repshift import load_model
from repshift.analysis.subjects.macs import count_macs
from repshift.analysis.subjects.models import ModelOptions
from repshift.analysis.video.features import FeatureStore, forget_features
from repshift.analysis.video.subjects import FEWER_FRAMES, build_video_subjects
from repshift.errors import DataError, UnsupportedModelError
from repshift.recipes import Recipe

TINY = ModelOptions(options={"img_size": 32, "frames": 6, "patch_size": 8})


@pytest.fixture
def store(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"video")
    store = FeatureStore(tmp_path / "features", {"model": "m"}, tmp_path, ["a.mp4", "b.mp4"])
    store.begin()
    return store


def test_features_come_back_bit_for_bit(store):
    tokens, pooled = torch.randn(5, 4).to(torch.bfloat16), torch.randn(2, 4)
    store.write(0, tokens, pooled)
    assert store.has(0)
    assert torch.equal(store.tokens(0), tokens)
    assert store.tokens(0).dtype == torch.bfloat16
    assert torch.equal(store.pooled(0), pooled)


def test_other_settings_and_another_state_of_the_video_have_no_features(store, tmp_path):
    store.write(0, torch.zeros(1, 2), torch.zeros(1, 2))
    assert not FeatureStore(tmp_path / "features", {"model": "n"}, tmp_path, ["a.mp4"]).has(0)
    (tmp_path / "a.mp4").write_bytes(b"another video")
    assert not store.has(0)
    with pytest.raises(DataError, match="changed or gone"):
        store.tokens(0)


def test_what_is_no_number_missing_or_damaged_is_said(store):
    with pytest.raises(DataError, match=r"a\.mp4 are not numbers"):
        store.write(0, torch.tensor([[float("nan")]]), torch.zeros(1, 1))
    assert not store.has(1)
    with pytest.raises(DataError, match=r"b\.mp4"):
        store.write(1, torch.zeros(1, 1), torch.zeros(1, 1))
    store.write(0, torch.zeros(1, 1), torch.zeros(1, 1))
    store.place(0).write_bytes(b"torn")
    with pytest.raises(DataError, match="damaged"):
        store.pooled(0)


def test_only_features_are_forgotten(store, tmp_path):
    store.write(0, torch.zeros(1, 1), torch.zeros(1, 1))
    (tmp_path / "features" / "mine.txt").write_text("mine")
    (tmp_path / "features" / "other").mkdir()
    forget_features(tmp_path / "features")
    assert sorted(path.name for path in (tmp_path / "features").iterdir()) == ["mine.txt", "other"]


@pytest.mark.parametrize("schedule", ["0.2@0,1", "0.6@0", "0.1@1"])
def test_fewer_frames_come_nearest_to_the_work_of_the_pruned_model_from_below(schedule):
    built = build_video_subjects(
        "tiny_umt", TINY, Recipe(schedule), 6, None, "match", methods=f"norm,{FEWER_FRAMES}", seeds=1
    )
    facts, dense = built.facts(), built.model
    most = count_macs(built.subjects.pruned["norm"], (6, 3, 32, 32))
    assert list(facts) == ["dense", "norm", FEWER_FRAMES]
    assert count_macs(dense, (built.fewer, 3, 32, 32)) <= most < count_macs(dense, (built.fewer + 1, 3, 32, 32))
    assert facts[FEWER_FRAMES]["frames"] == built.fewer


def test_only_what_was_asked_for_is_measured():
    def names(recipe=None, **options):
        return list(build_video_subjects("tiny_umt", TINY, recipe, 2, None, "match", **options).measured)

    assert names() == ["dense"]
    assert names(Recipe("0.2@0")) == ["shift"]
    assert names(Recipe("0.2@0", score="norm"), compare_dense=True) == ["dense", "norm"]
    drawn = ["dense", "random", "random, draw 2", "random, draw 3"]
    assert names(Recipe("0.2@0"), methods="random") == drawn


def test_a_random_score_is_told_apart_by_what_makes_a_batch():
    built = build_video_subjects("tiny_umt", TINY, Recipe("0.2@0"), 2, None, "match", methods="shift,random", seeds=2)
    cpu = torch.device("cpu")

    def told(name, **batches):
        return built.identities(cpu, batches)[name]

    assert told("shift", size=1) == told("shift", size=2)
    assert told("random", size=1) != told("random", size=2)
    assert told("random", size=1) != told("random, draw 2", size=1)
    assert told("shift", size=1) != told("dense", size=1)


def test_a_model_of_another_task_is_refused():
    with pytest.raises(UnsupportedModelError, match="umt_b_qa"):
        build_video_subjects("tiny_umt", TINY, None, 2, None, "answer_log_likelihood")
    assert hasattr(load_model("tiny_umt_qa"), "answer_log_likelihood")
