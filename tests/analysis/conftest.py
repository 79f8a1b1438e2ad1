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
