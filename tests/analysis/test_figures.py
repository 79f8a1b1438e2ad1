import numpy as np
import pytest
import torch
from PIL import Image

from repshift.analysis.figures import ImageColumn, MapColumn, draw_columns, save_figure
from repshift.errors import DataError


@pytest.fixture
def columns():
    torch.manual_seed(0)
    return [
        ImageColumn("image", torch.rand(2, 12, 20, 3)),
        MapColumn("blocks.0", torch.rand(2, 3, 5), "shift (l2)"),
        MapColumn("blocks.3", 7 * torch.rand(2, 3, 5), "shift (l2)"),
    ]


def pictures(figure):
    return [axis for axis in figure.axes if axis.images]


def test_there_is_one_picture_for_each_image_and_column(columns):
    figure = draw_columns(columns, ["one", "two"])
    assert len(pictures(figure)) == 2 * 3


def test_columns_and_rows_have_their_titles(columns):
    shown = pictures(draw_columns(columns, ["one", "two"]))
    assert [axis.get_title() for axis in shown if axis.get_title()] == ["image", "blocks.0", "blocks.3"]
    assert [axis.get_ylabel() for axis in shown if axis.get_ylabel()] == ["one", "two"]


def test_every_column_of_maps_has_a_colour_bar_with_its_unit_and_range(columns):
    bars = [axis for axis in draw_columns(columns).axes if axis.get_xlabel() == "shift (l2)"]
    assert len(bars) == 2
    for bar, column in zip(bars, columns[1:], strict=True):
        assert bar.get_xlim() == pytest.approx((column.maps.min().item(), column.maps.max().item()))


def test_all_maps_of_a_column_share_one_colour_scale(columns):
    drawn = [axis.images[0] for axis in pictures(draw_columns(columns))]
    limits = [image.get_clim() for image in drawn if image.get_array().ndim == 2]
    expected = [(column.maps.min().item(), column.maps.max().item()) for column in columns[1:]]
    assert limits == expected * 2  # row by row


def test_maps_are_drawn_token_by_token_at_the_size_of_the_image(columns):
    drawn = [axis.images[0] for axis in pictures(draw_columns(columns))]
    maps = [image for image in drawn if image.get_array().ndim == 2]
    expected = np.kron(columns[1].maps[0].numpy(), np.ones((4, 4)))
    assert any(np.allclose(np.asarray(image.get_array()), expected) for image in maps)
    assert {image.get_interpolation() for image in drawn} == {"nearest"}


def test_dropped_tokens_are_left_blank_and_do_not_move_the_colour_scale(columns):
    maps = columns[1].maps.clone()
    maps[:, 0, 0] = torch.nan
    drawn = [axis.images[0] for axis in pictures(draw_columns([columns[0], MapColumn("m", maps, "u")]))]
    for image in drawn:
        values = image.get_array()
        if values.ndim == 2:
            assert np.ma.getmaskarray(values)[:4, :4].all()
            assert np.ma.getmaskarray(values).sum() == 16
            assert all(np.isfinite(image.get_clim()))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("value", [1.0, float("nan")])
def test_maps_without_contrast_can_be_drawn(columns, tmp_path, value):
    flat = MapColumn("m", torch.full((2, 3, 5), value), "u")
    save_figure(draw_columns([columns[0], flat]), tmp_path / "flat.png")
    assert (tmp_path / "flat.png").is_file()


def test_the_first_column_must_hold_pictures(columns):
    with pytest.raises(TypeError, match="first column"):
        draw_columns(columns[1:])


@pytest.mark.parametrize(("ending", "beginning"), [("png", b"\x89PNG"), ("pdf", b"%PDF"), ("PNG", b"\x89PNG")])
def test_the_ending_names_the_format(columns, tmp_path, ending, beginning):
    path = tmp_path / "new" / f"figure.{ending}"
    save_figure(draw_columns(columns), path)
    assert path.read_bytes().startswith(beginning)
    assert list(path.parent.iterdir()) == [path]


def test_a_picture_is_readable_and_in_colour(columns, tmp_path):
    save_figure(draw_columns(columns), tmp_path / "figure.png")
    with Image.open(tmp_path / "figure.png") as image:
        assert min(image.size) > 200
        assert len(image.convert("RGB").getcolors(maxcolors=2**24)) > 100


@pytest.mark.parametrize("name", ["figure.xyz", "figure", "figure."])
def test_an_ending_without_a_format_is_refused_with_those_that_work(columns, tmp_path, name):
    with pytest.raises(DataError, match=r"png.*pdf.*svg"):
        save_figure(draw_columns(columns), tmp_path / "new" / name)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_to_is_refused(columns, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataError, match="Cannot write to"):
        save_figure(draw_columns(columns), tmp_path / "file" / "figure.png")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_folder_in_the_place_of_the_figure_is_refused(columns, tmp_path):
    (tmp_path / "figure.png").mkdir()
    with pytest.raises(DataError, match=r"figure\.png"):
        save_figure(draw_columns(columns), tmp_path / "figure.png")
    assert [path.name for path in tmp_path.iterdir()] == ["figure.png"]
