"""One reader of pictures for every command."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from repshift import DataError, load_model
from repshift.analysis.samples.data import open_samples
from repshift.analysis.samples.images import load_images
from repshift.analysis.samples.pictures import BITS_PER_SAMPLE, PHOTOMETRIC, WHITE_IS_ZERO, as_seen, read_image
from repshift.analysis.samples.preprocessing import evaluation_config


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "I;16", "1", "CMYK"])
def test_images_of_any_mode_are_read_as_rgb(tmp_path, mode):
    path = tmp_path / ("image.tif" if mode == "CMYK" else "image.png")
    Image.new(mode, (5, 3)).save(path)
    image = read_image(path)
    assert image.mode == "RGB"
    assert image.size == (5, 3)


def test_a_missing_image_is_named(tmp_path):
    with pytest.raises(DataError, match=r"nothing\.jpg does not exist"):
        read_image(tmp_path / "nothing.jpg")


def test_a_file_that_is_no_image_is_named_with_what_to_do(tmp_path):
    path = tmp_path / "notes.png"
    path.write_text("not an image")
    with pytest.raises(DataError, match=r"notes\.png is not an image.*Give a JPEG or PNG"):
        read_image(path)


def test_half_an_image_is_refused(make_image):
    path = make_image("photo.jpg")
    path.write_bytes(path.read_bytes()[:700])
    with pytest.raises(DataError, match=r"photo\.jpg is not an image"):
        read_image(path)


def test_sixteen_bits_are_scaled_to_eight(tmp_path):
    ramp = np.linspace(0, 65535, 256).round().astype(np.uint16).reshape(16, 16)
    Image.fromarray(ramp).save(tmp_path / "ramp.png")
    seen = np.asarray(read_image(tmp_path / "ramp.png"))
    assert np.array_equal(seen[..., 0].ravel(), np.arange(256))


def test_transparent_parts_are_white_whatever_colour_hides_there(tmp_path):
    Image.new("RGBA", (4, 4), (0, 255, 0, 0)).save(tmp_path / "clear.png")
    assert np.asarray(read_image(tmp_path / "clear.png")).min() == 255


def test_the_orientation_of_the_camera_is_applied(tmp_path):
    image = Image.new("RGB", (6, 4))
    exif = image.getexif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    image.save(tmp_path / "turned.jpg", exif=exif)
    assert read_image(tmp_path / "turned.jpg").size == (4, 6)


def test_floats_without_a_known_range_are_refused(tmp_path):
    Image.fromarray(np.zeros((4, 4), np.float32)).save(tmp_path / "floats.tiff")
    with pytest.raises(DataError, match=r"floats\.tiff.*range is not known.*8 or 16 bits"):
        read_image(tmp_path / "floats.tiff")


def test_a_folder_is_no_image(tmp_path):
    with pytest.raises(DataError, match="is a folder"):
        read_image(tmp_path)


def ramp():
    return np.linspace(0, 65535, 40 * 40).round().astype(np.uint16).reshape(40, 40)


def noise(mode, size=(40, 40)):
    channels = len(Image.new(mode, (1, 1)).getbands())
    values = np.random.RandomState(0).randint(0, 256, (*size, channels), dtype=np.uint8)
    return Image.fromarray(values.squeeze(), mode) if channels == 1 else Image.frombytes(mode, size, values.tobytes())


def turned():
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


# how a file is written, and what a person sees of it
ODD_FILES = {
    "16-bit.png": lambda path: Image.fromarray(ramp()).save(path),
    "16-bit.tif": lambda path: Image.fromarray(ramp()).save(path),
    "16-bit.pgm": lambda path: path.write_bytes(b"P5 40 40 65535\n" + ramp().astype(">u2").tobytes()),
    "cmyk.jpg": lambda path: noise("CMYK").save(path),
    "grey.jpg": lambda path: noise("L").save(path),
    "grey-alpha.png": lambda path: noise("LA").save(path),
    "alpha.png": lambda path: noise("RGBA").save(path),
    "palette.png": lambda path: noise("RGB").quantize(16).save(path, transparency=3),
    "animated.gif": lambda path: noise("L").save(path, save_all=True, append_images=[Image.new("L", (40, 40))] * 3),
    "animated.png": lambda path: noise("RGB").save(path, save_all=True, append_images=[Image.new("RGB", (40, 40))]),
    "turned.jpg": lambda path: noise("RGB", (40, 30)).save(path, exif=turned()),
    "turned.png": lambda path: noise("RGB", (40, 30)).save(path, exif=turned()),
}


@pytest.mark.parametrize("in_chans", [3, 1])
@pytest.mark.parametrize("name", ODD_FILES)
def test_every_command_reads_the_same_values(name, in_chans, tmp_path):
    (tmp_path / "one").mkdir()
    path = tmp_path / "one" / name
    ODD_FILES[name](path)
    model = load_model("tiny_resnet", in_chans=in_chans)
    model.num_classes = 1
    seen = load_images(model, [path], evaluation_config(model))[0]
    _, evaluated, _ = open_samples(model, tmp_path, suffixes=path.suffix)[0]
    assert torch.equal(seen, evaluated)
    assert evaluated.std() > 0.1
    if name.startswith("16-bit"):
        assert np.ptp(np.asarray(read_image(path))) == 255


def test_deep_greys_are_inverted_and_transparent_as_shallow_ones_are_and_not_read_askew(tmp_path):
    deep = np.linspace(0, 65535, 6 * 4).round().astype(np.uint16).reshape(4, 6)
    Image.fromarray(deep).save(tmp_path / "turned.tif", tiffinfo={274: 6})
    with pytest.raises(DataError, match=r"turned\.tif is a deep TIFF that has to be turned"):
        read_image(tmp_path / "turned.tif")
    Image.fromarray(deep).save(tmp_path / "plain.tif")
    image = Image.open(tmp_path / "plain.tif")
    plain = np.asarray(as_seen(image))
    image.tag_v2[PHOTOMETRIC] = WHITE_IS_ZERO
    assert np.array_equal(np.asarray(as_seen(image)), 255 - plain)
    Image.fromarray(deep).save(tmp_path / "clear.png", transparency=0)
    assert read_image(tmp_path / "clear.png").getpixel((0, 0)) == (255, 255, 255)
    assert max(read_image(tmp_path / "clear.png").getpixel((1, 0))) < 30


def test_of_an_animated_file_the_first_picture_counts(tmp_path):
    first, second = Image.new("RGB", (8, 8), "red"), Image.new("RGB", (8, 8), "blue")
    first.save(tmp_path / "two.png", save_all=True, append_images=[second])
    assert read_image(tmp_path / "two.png").getpixel((0, 0)) == (255, 0, 0)


def test_twelve_bits_are_scaled_to_eight(tmp_path):
    values = np.linspace(0, 4095, 256).round().astype(np.uint16).reshape(16, 16)
    Image.fromarray(values).save(tmp_path / "deep.tif")
    with Image.open(tmp_path / "deep.tif") as image:
        image.tag_v2[BITS_PER_SAMPLE] = 12  # which Pillow reads and does not write
        assert np.array_equal(np.asarray(as_seen(image))[..., 0].ravel(), np.arange(256))


@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_what_is_no_file_is_not_read(tmp_path, kind):
    path = tmp_path / "pipe.jpg"
    os.mkfifo(path)
    with pytest.raises(DataError, match="is no regular file"):
        read_image(path if kind == "pipe" else Path(os.devnull))
