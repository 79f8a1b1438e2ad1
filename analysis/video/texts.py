"""Captions, questions and answers for a text encoder: cleaned and tokenised as in UMT's published code."""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from repshift.errors import DataError, MissingPackageError, first_line

DELETED = re.compile(r"[,.'!?\"()*#:;~]")
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
MOST_UNKNOWN = 0.5  # of all word pieces: a vocabulary of another language or another model


def clean(text: str) -> str:
    """Clean a caption or a question. Answers are not cleaned.

    Lower case; most punctuation is deleted, ``-`` and ``/`` become spaces, ``<person>`` becomes ``person``, and no
    space follows another.

    Example:
        >>> clean("A  <person> opens the well-known 'box'.")
        'a person opens the well known box'

    Source: Unmasked Teacher (arXiv 2303.16058), ``pre_text`` of its code.
    """
    kept = DELETED.sub("", text.lower()).replace("-", " ").replace("/", " ").replace("<person>", "person")
    return re.sub(r"\s{2,}", " ", kept).rstrip("\n").strip(" ")


class Tokeniser:
    """BERT's word pieces, ``[CLS]`` in front and *no* ``[SEP]`` behind, as UMT was trained.

    Args:
        vocabulary: The file ``vocab.txt`` of a BERT model, one word piece a line, or the folder that it lies in.

    Attributes:
        pad, cls, sep, unknown: Numbers of the special word pieces.

    Raises:
        DataError: If it is missing or no vocabulary.
        MissingPackageError: If transformers is not installed.
    """

    def __init__(self, vocabulary: str | Path) -> None:
        self.file = _vocabulary_file(Path(vocabulary))
        pieces = _pieces(self.file)
        self.tokenizer = _loaded(self.file)
        self.pad, self.unknown, self.cls, self.sep = (pieces[name] for name in SPECIAL)
        self.size = max(pieces.values()) + 1

    def __len__(self) -> int:
        return self.size

    def __call__(self, texts: Sequence[str], length: int) -> tuple[Tensor, Tensor]:
        """Tokenise texts, cut and filled up to one length.

        Args:
            texts: Cleaned ones. ``[SEP]`` in a text is the word piece of that name.
            length: Word pieces of each, with ``[CLS]``.

        Returns:
            Numbers of the word pieces, ``(texts, length)`` int64, and a mask of the same shape, int64: 1 where there
            is a word piece, 0 where the text has ended.

        Raises:
            DataError: If there are no texts, nothing is left of one, or most of their words are unknown.
        """
        if not texts or length < 2:
            raise DataError(f"{len(texts)} texts of {length} word pieces cannot be. Give 1 text and a length of 2.")
        encoded = self.tokenizer(list(texts), padding="max_length", truncation=True, max_length=length)
        ids, mask = (torch.tensor(encoded[key], dtype=torch.int64) for key in ("input_ids", "attention_mask"))
        self._check_known(texts, ids, mask)
        return ids, mask

    def _check_known(self, texts: Sequence[str], ids: Tensor, mask: Tensor) -> None:
        words = (mask == 1) & (ids != self.cls) & (ids != self.sep)
        if not bool(words.any(1).all()):
            empty = texts[int(words.any(1).long().argmin())]
            raise DataError(f"No word piece is left of {empty!r}. Give another text.")
        unknown = words & (ids == self.unknown)
        if unknown.sum() > MOST_UNKNOWN * words.sum():
            worst = int(unknown.sum(1).argmax())
            raise DataError(
                f"{self.file} does not know {int(unknown.sum())} of the {int(words.sum())} words of these texts, such "
                f"as those of {texts[worst]!r}. Give the vocabulary that the model was trained with (--vocab)."
            )


def _vocabulary_file(given: Path) -> Path:
    try:
        file = given / "vocab.txt" if given.is_dir() else given
        if file.is_file():
            return file
    except (OSError, ValueError):  # no path
        pass
    raise DataError(
        f"There is no vocabulary at {given}. Give vocab.txt of bert-base-uncased or bert-large-uncased, or its folder."
    )


def _pieces(file: Path) -> dict[str, int]:
    try:
        lines = file.read_text(encoding="utf-8").rstrip("\n").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file} cannot be read ({first_line(error)}). Give BERT's vocab.txt.") from error
    pieces = {line.rstrip("\r"): number for number, line in enumerate(lines)}
    if missing := [name for name in SPECIAL if name not in pieces]:
        raise DataError(
            f"{file} is no vocabulary of BERT: {', '.join(missing)} is missing among its {len(lines)} lines. Give "
            "vocab.txt, one word piece a line."
        )
    return pieces


def _loaded(file: Path) -> Any:
    try:
        import transformers
        from tokenizers.processors import TemplateProcessing
    except ImportError as error:
        raise MissingPackageError(
            'Texts are tokenised by transformers, which is not installed. Run pip install "repshift[video]".'
        ) from error
    # from 5 on, BertTokenizer is the fast one
    kind = getattr(transformers, "BertTokenizerFast", None) or transformers.BertTokenizer
    # from a folder of its own: settings that lie beside the vocabulary would count, too
    with TemporaryDirectory() as folder:
        shutil.copyfile(file, Path(folder, "vocab.txt"))
        tokenizer = kind.from_pretrained(folder)
    cls = ("[CLS]", tokenizer.cls_token_id)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="[CLS] $A", special_tokens=[cls])
    return tokenizer
