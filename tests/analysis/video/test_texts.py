import sys

import pytest
import torch

from repshift.analysis.video import Tokeniser, clean
from repshift.errors import DataError, MissingPackageError

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "dog", "runs", "##ning", "run", "in", "the", "park"]
WORDS += ["3", "##s"]


@pytest.fixture
def vocabulary(tmp_path):
    pytest.importorskip("transformers")
    (tmp_path / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    return tmp_path / "vocab.txt"


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("A man's DOG, runs!", "a mans dog runs"),
        ('(what) "is" * #this: ; ~ ?.', "what is this"),
        ("left-to/right", "left to right"),
        ("<person> opens <PERSON>'s door", "person opens persons door"),
        ("many   spaces \t here", "many spaces here"),
        ("end \n\n", "end"),
        (" \n", ""),
        ("keeps & % $ _ [SEP]", "keeps & % $ _ [sep]"),
    ],
)
def test_texts_are_cleaned(text, cleaned):
    assert clean(text) == cleaned


def test_texts_begin_with_cls_and_have_no_sep_at_the_end(vocabulary):
    ids, mask = Tokeniser(vocabulary)(["a dog runs", "Running 3 dogs"], 6)
    assert ids.tolist() == [[2, 5, 6, 7, 0, 0], [2, 9, 8, 13, 6, 14]]
    assert mask.tolist() == [[1, 1, 1, 1, 0, 0], [1] * 6]
    assert (ids.dtype, mask.dtype) == (torch.int64, torch.int64)


def test_sep_in_a_text_is_its_word_piece_and_a_long_text_loses_it(vocabulary):
    ids, _ = Tokeniser(vocabulary)(["a dog [SEP]", "a dog runs in [SEP]"], 5)
    assert ids.tolist() == [[2, 5, 6, 3, 0], [2, 5, 6, 7, 10]]


def test_a_folder_does_as_well_and_what_lies_beside_the_vocabulary_does_not_count(vocabulary):
    expected, _ = Tokeniser(vocabulary)(["The Dog"], 4)
    (vocabulary.parent / "tokenizer_config.json").write_text('{"do_lower_case": false, "tokenizer_class": "X"}')
    (vocabulary.parent / "tokenizer.json").write_text("{}")
    assert torch.equal(Tokeniser(vocabulary.parent)(["The Dog"], 4)[0], expected)


def test_a_vocabulary_of_another_language_is_refused_with_a_text(vocabulary):
    with pytest.raises(DataError, match=r"vocab\.txt does not know 4 of the 5 words of these texts.*'ein hund rennt'"):
        Tokeniser(vocabulary)(["ein hund rennt", "a hund"], 6)


def test_a_text_that_nothing_is_left_of_is_refused(vocabulary):
    with pytest.raises(DataError, match=r"No word piece is left of '\\u200b'"):
        Tokeniser(vocabulary)(["a dog", "\u200b"], 6)


def test_some_unknown_words_are_unk(vocabulary):
    assert Tokeniser(vocabulary)(["a xyz dog"], 4)[0].tolist() == [[2, 5, 1, 6]]


@pytest.mark.parametrize(
    ("content", "said"),
    [("a\nb\n", r"\[PAD\], \[UNK\], \[CLS\], \[SEP\] is missing"), (None, "no vocabulary at"), (b"\xff\xfe", "read")],
)
def test_what_is_no_vocabulary_is_refused(tmp_path, content, said):
    path = tmp_path / "vocab.txt"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match=said):
        Tokeniser(path)


def test_no_texts_are_refused(vocabulary):
    with pytest.raises(DataError, match="0 texts"):
        Tokeniser(vocabulary)([], 4)


def test_without_transformers_the_message_says_what_to_install(vocabulary, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingPackageError, match=r"repshift\[video\]"):
        Tokeniser(vocabulary)
