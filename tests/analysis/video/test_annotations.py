import json
import pickle
import re
from dataclasses import replace

import pytest

from repshift import DataError, UnknownNameError
from repshift.analysis.video import PRESETS, Annotations, read_answers, read_questions, read_retrieval
from repshift.analysis.video.annotations import missing_videos
from repshift.analysis.video.presets import preset_named

ONE = [{"video": "a.mp4", "caption": "A dog."}, {"video": "b/c.mp4", "caption": "A cat."}]
LISTS = [{"video": "a.mp4", "caption": ["one", "two"]}, {"video": "b.mp4", "caption": ["three"]}]
SEVERAL = [{"video": ["a.webm", "b.webm"], "caption": "push"}, {"video": ["b.webm"], "caption": "pull"}]
ASKED = {"video": "a.mp4", "question": "What is this?", "question_id": 7, "answer": "dog"}


@pytest.fixture
def file(tmp_path):
    def write(content):
        path = tmp_path / "entries.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return path

    return write


def test_one_caption_a_video_is_paired_by_its_place(file):
    found = read_retrieval(file(ONE), PRESETS["msrvtt"])
    assert found == Annotations(["a.mp4", "b/c.mp4"], ["A dog.", "A cat."], [[0], [1]], [[0], [1]])


def test_each_of_several_captions_is_a_query_of_its_own(file):
    found = read_retrieval(file(LISTS), PRESETS["msvd"])
    assert found == Annotations(["a.mp4", "b.mp4"], ["one", "two", "three"], [[0, 1], [2]], [[0], [0], [1]])


@pytest.mark.parametrize("name", ["activitynet", "didemo"])
def test_the_captions_of_a_paragraph_set_are_one_text(file, name):
    found = read_retrieval(file(LISTS), PRESETS[name])
    assert found == Annotations(["a.mp4", "b.mp4"], ["one two", "three"], [[0], [1]], [[0], [1]])


def test_of_a_paragraph_something_must_be_left(file):
    entry = {"video": "a.mp4", "caption": ["A dog.", " . "]}
    assert read_retrieval(file([entry]), PRESETS["didemo"]).texts == ["A dog.  . "]
    with pytest.raises(DataError, match="of which no word is left"):
        read_retrieval(file([{**entry, "caption": ["", "."]}]), PRESETS["didemo"])


@pytest.mark.parametrize("name", ["ssv2-label", "ssv2-template"])
def test_each_video_of_a_list_is_there_anew_with_one_right_text(file, name):
    found = read_retrieval(file(SEVERAL), PRESETS[name])
    assert found.videos == ["a.webm", "b.webm", "b.webm"]
    assert (found.right_texts, found.right_videos) == ([[0], [0], [1]], [[0, 1], [2]])


def test_questions_have_videos_of_their_own(file):
    found = read_questions(file([ASKED, {**ASKED, "question_id": "x"}, {**ASKED, "video": "b.mp4", "question_id": 8}]))
    assert found.question_ids == [7, "x", 8]
    assert found.questions[0] == "What is this?"
    assert found.answers == ["dog"] * 3
    assert found.distinct_videos() == (["a.mp4", "b.mp4"], [0, 0, 1])


def test_answers_are_read_as_they_are(file):
    assert read_answers(file(["Dog", "a cat!"])) == ["Dog", "a cat!"]


# --- what is refused ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({"caption": "x"}, "entry 1 has no video"),
        ({"video": "x.mp4"}, "entry 1 has no caption"),
        ("x.mp4", "entry 1 is 'x.mp4', expected an object"),
        ({"video": 3, "caption": "x"}, "entry 1 has no path in video"),
        ({"video": [], "caption": "x"}, "entry 1 has no path in video"),
        ({"video": "x.mp4", "caption": 3}, "entry 1 has the caption 3"),
        ({"video": "x.mp4", "caption": []}, r"entry 1 has the caption \[\]"),
        ({"video": "x.mp4", "caption": "?!"}, "entry 1 has the caption '\\?!', of which no word is left"),
        ({"video": "x.mp4", "caption": ["x", ""]}, "entry 1 has the caption ''"),
        ({"video": "x.mp4", "caption": "\t"}, "entry 1 has the caption '.t', of which no word is left"),
        ({"video": "x.mp4", "caption": "half \ud800"}, "entry 1 has the caption 'half .ud800'"),
        ({"video": "\ud800.mp4", "caption": "x"}, "entry 1 has no path in video"),
        ({"video": "a.mp4", "caption": "x"}, "entry 1 names the video of entry 0 again"),
        ({"video": ["x", "x"], "caption": "x"}, "entry 1 names a video twice"),
        ({"video": "../x.mp4", "caption": "x"}, "entry 1 names '../x.mp4', which leads out"),
        ({"video": "/x.mp4", "caption": "x"}, "entry 1 names '/x.mp4', which leads out"),
        ({"video": "a/../../x.mp4", "caption": "x"}, "which leads out"),
        ({"video": "C:\\x.mp4", "caption": "x"}, "which leads out"),
        ({"video": "http://x/y.mp4", "caption": "x"}, "which leads out"),
    ],
)
def test_an_entry_that_is_wrong_is_named(file, entry, said):
    with pytest.raises(DataError, match=said) as problem:
        read_retrieval(file([ONE[0], entry]))
    assert "entries.json" in str(problem.value)
    assert "\n" not in str(problem.value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"question_id": 7}, "entry 1 has the question_id of entry 0 again"),
        ({"question_id": None}, "entry 1 has the question_id None"),
        ({"question_id": True}, "entry 1 has the question_id True"),
        ({"question": "?"}, "entry 1 has the question '\\?', of which no word is left"),
        ({"question": ["a", "b"]}, "entry 1 has a list as its question"),
        ({"answer": ""}, "entry 1 has the answer ''"),
        ({"answer": 3}, "entry 1 has the answer 3"),
        ({"video": ["a", "b"]}, "entry 1 asks of several videos"),
    ],
)
def test_a_question_that_is_wrong_is_named(file, change, said):
    with pytest.raises(DataError, match=said):
        read_questions(file([ASKED, {**ASKED, "question_id": 8, **change}]))


@pytest.mark.parametrize("read", [read_retrieval, read_questions, read_answers])
@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{}", r"holds {}, expected a list"),
        ("[]", r"holds \[\], expected a list"),
        ("[1", "no JSON file"),
        ("[" * 100000, "no JSON file"),
        ("[3]", "(entry|answer) 0 is 3"),
    ],
)
def test_a_file_of_another_form_is_refused(file, read, content, said):
    with pytest.raises(DataError, match=said):
        read(file(content))


def test_a_pickle_is_not_opened(tmp_path):
    class Code:
        def __reduce__(self):
            return open, (str(tmp_path / "ran"), "w")

    (tmp_path / "entries.json").write_bytes(pickle.dumps(Code()))
    for read in (read_retrieval, read_questions, read_answers):
        with pytest.raises(DataError, match="no JSON file"):
            read(tmp_path / "entries.json")
    assert not (tmp_path / "ran").exists()


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(DataError, match=re.escape(str(tmp_path / "none.json"))):
        read_retrieval(tmp_path / "none.json")


@pytest.mark.parametrize(("answer", "shown"), [(" ", "' '"), ("\ud800", "'.ud800'")])
def test_a_blank_answer_is_named(file, answer, shown):
    with pytest.raises(DataError, match=f"answer 1 is {shown}"):
        read_answers(file(["a", answer]))


def test_videos_that_are_not_there_are_listed_once(tmp_path):
    (tmp_path / "a.mp4").touch()
    assert missing_videos(tmp_path, ["b.mp4", "a.mp4", "b.mp4", "c.mp4"]) == ["b.mp4", "c.mp4"]
    assert missing_videos(tmp_path, ["a" * 400]) == ["a" * 400]
    with pytest.raises(DataError, match="no folder"):
        missing_videos(tmp_path / "none", ["a.mp4"])


# --- presets ------------------------------------------------------------------------------------------------------


def test_the_presets_are_those_of_the_published_evaluation():
    lengths = {name: preset.text_length for name, preset in PRESETS.items() if not preset.asks}
    assert lengths == {
        "msrvtt": 32,
        "msvd": 64,
        "activitynet": 150,
        "didemo": 64,
        "lsmdc": 96,
        "ssv2-label": 25,
        "ssv2-template": 25,
    }
    assert {name for name, preset in PRESETS.items() if preset.paragraph} == {"activitynet", "didemo"}
    assert {name: preset.seconds for name, preset in PRESETS.items() if preset.seconds} == {"didemo": 30}
    asking = [preset for preset in PRESETS.values() if preset.asks]
    assert [preset.name for preset in asking] == ["msrvtt-qa", "msvd-qa", "activitynet-qa"]
    assert {(preset.text_length, preset.answer_length) for preset in asking} == {(25, 5)}
    assert {preset.frames for preset in PRESETS.values()} == {12}


def test_a_preset_that_does_not_exist_is_named():
    assert preset_named("msvd") == replace(PRESETS["msvd"])
    with pytest.raises(UnknownNameError, match="msrvtt"):
        preset_named("msrvt")
