import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from timm.models import VisionTransformer

from repshift.analysis import cli
from repshift.analysis.samples import canvases
from repshift.analysis.samples.canvases import ClutteredDigits, Digits, read_digits


@pytest.fixture(scope="session")
def shipped_digits():
    return read_digits(Path(canvases.__file__).parent / "cluttered_mnist")


@pytest.fixture(scope="session")
def few_digits(shipped_digits):
    return Digits(shipped_digits.images[:40], shipped_digits.labels[:40])


@pytest.fixture
def make_image(tmp_path):
    """Write a picture of coloured noise and return its path."""

    def make(name, width=60, height=40, **options):
        values = np.random.RandomState(width).randint(0, 256, (height, width, 3), dtype=np.uint8)
        path = tmp_path / name
        Image.fromarray(values).resize((width, height)).save(path, **options)
        return path

    return make


@pytest.fixture
def small_vit():
    """A ViT of 3x5 patches, 4 blocks."""
    torch.manual_seed(0)
    return VisionTransformer(img_size=(24, 40), patch_size=8, embed_dim=16, depth=4, num_heads=2, num_classes=5).eval()


@pytest.fixture(scope="session")
def write_pictures(few_digits):
    """Write canvases of a seed, by their numbers, as PNG files into folders of their classes; returns the root."""

    def write(root, seed, numbers):
        canvases = ClutteredDigits(few_digits, seed)
        for index, number in enumerate(numbers):
            image, label, _ = canvases[number]
            path = root / str(int(label)) / f"{index:02d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image[0].numpy()).save(path)
        return root

    return write


@pytest.fixture
def folder(write_pictures, tmp_path):
    """A folder of 23 canvases as PNG files, ten classes, below ``val``."""
    root = write_pictures(tmp_path / "digits" / "val", 5, range(17, 40))
    assert len(list(root.iterdir())) == 10
    return tmp_path / "digits"


class Stop(BaseException):
    """A kill: nothing catches it."""


@pytest.fixture(scope="session")
def stop():
    """The exception that stands for a kill."""
    return Stop


@pytest.fixture
def run_command(monkeypatch, capsys, tmp_path):
    """Run a command in an empty folder; returns exit code, standard output and standard error."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["repshift", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        return caught.value.code or 0, *capsys.readouterr()

    return run


COLOURS = {"red": (200, 30, 30), "green": (30, 180, 40), "blue": (40, 40, 210), "white": (230, 230, 230)}
PLACES = ("left", "right")


class Moving:
    """A folder of eight tiny videos, a coloured half of each frame moving down, with all files about them."""

    def __init__(self, root):
        import av

        self.root = root
        self.names = [f"{place}/{colour}.mp4" for colour in COLOURS for place in PLACES]
        for name in self.names:
            place, colour = name.removesuffix(".mp4").split("/")
            (root / place).mkdir(parents=True, exist_ok=True)
            with av.open(str(root / name), "w") as container:
                stream = container.add_stream("mpeg4", rate=10)
                stream.width = stream.height = 32
                stream.pix_fmt = "yuv420p"
                for number in range(6):
                    frame = np.full((32, 32, 3), 90, dtype=np.uint8)
                    columns = slice(0, 16) if place == "left" else slice(16, 32)
                    frame[4 * number : 4 * number + 12, columns] = COLOURS[colour]
                    container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
                container.mux(stream.encode())
        told = [name.removesuffix(".mp4").split("/") for name in self.names]
        self.captions = [f"A {colour} box at the {place}." for place, colour in told]
        self.vocabulary = root.parent / "vocab.txt"
        words = [
            "[PAD]",
            "[UNK]",
            "[CLS]",
            "[SEP]",
            *["a", "box", "at", "the", "what", "is", "where", "?"],
            *COLOURS,
            *PLACES,
        ]
        self.vocabulary.write_text("\n".join(words) + "\n", encoding="utf-8")
        self.annotations = self.write(
            "pairs.json",
            [{"video": name, "caption": caption} for name, caption in zip(self.names, self.captions, strict=True)],
        )
        asked = [
            (name, question, answer)
            for name, (place, colour) in zip(self.names, told, strict=True)
            for question, answer in (("what is it?", colour), ("Where is the box?", place))
        ]
        self.questions = self.write(
            "questions.json",
            [
                {"video": name, "question": question, "question_id": number, "answer": answer}
                for number, (name, question, answer) in enumerate(asked)
            ],
        )
        self.answers = self.write("answers.json", [*COLOURS, *PLACES])

    def write(self, name, content):
        path = self.root.parent / name
        path.write_text(json.dumps(content), encoding="utf-8")
        return path


@pytest.fixture
def moving(tmp_path):
    pytest.importorskip("av")
    return Moving(tmp_path / "videos")
