import numpy as np
import pytest
from PIL import Image

from repshift.analysis.output.files import output_folder, read_image, write_text, write_whole
from repshift.errors import DataError


def write_half(path):
    path.write_text("half")
    raise RuntimeError("interrupted")


def test_a_writer_that_raises_leaves_nothing_behind(tmp_path):
    with pytest.raises(RuntimeError, match="interrupted"):
        write_whole(tmp_path / "result.txt", write_half)
    assert not list(tmp_path.iterdir())


def test_a_writer_that_raises_leaves_the_old_file_as_it_was(tmp_path):
    path = tmp_path / "result.txt"
    path.write_text("old")
    with pytest.raises(RuntimeError, match="interrupted"):
        write_whole(path, write_half)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_the_old_file_stands_until_the_new_one_is_complete(tmp_path):
    path = tmp_path / "result.txt"
    path.write_text("old")

    def write(unfinished):
        unfinished.write_text("new")
        assert unfinished.suffix == ".txt"
        assert path.read_text() == "old"

    write_whole(path, write)
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_text_is_written_as_utf8_into_folders_made_for_it(tmp_path):
    path = tmp_path / "a" / "b" / "text.md"
    write_text(path, "20 % — größer\n")
    assert path.read_bytes() == "20 % — größer\n".encode()


def test_an_output_folder_is_made_and_left_empty(tmp_path):
    assert not list(output_folder(tmp_path / "a" / "b").iterdir())


def test_a_file_in_the_place_of_an_output_folder_is_refused(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataError, match=r"Cannot write to .*file .*Give a folder"):
        output_folder(tmp_path / "file")


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
