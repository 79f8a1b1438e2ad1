import numpy as np
import pytest
import torch
from matplotlib.text import Text
from PIL import Image

from repshift.analysis.output.figures import SCALES, ImageColumn, MapColumn, draw_columns, save_figure
from repshift.analysis.output.overlays import show_map_on_image
from repshift.errors import DataError, UnknownNameError


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


def test_a_path_may_be_a_string(columns, tmp_path):
    save_figure(draw_columns(columns), str(tmp_path / "figure.png"))
    assert (tmp_path / "figure.png").is_file()


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


# --- colour scales ----------------------------------------------------------------------------------------------


def limits(figure):
    """The ends of the colour scale of every map, row by row."""
    drawn = [axis.images[0] for axis in pictures(figure)]
    return [image.get_clim() for image in drawn if image.get_array().ndim == 2]


def ends(*maps):
    return pytest.approx((min(one.min().item() for one in maps), max(one.max().item() for one in maps)))


def test_maps_may_have_a_colour_scale_and_a_bar_each(columns):
    figure = draw_columns(columns, scale="map")
    first, second = (column.maps for column in columns[1:])
    assert limits(figure) == [ends(first[0]), ends(second[0]), ends(first[1]), ends(second[1])]
    bars = [axis for axis in figure.axes if axis.get_xlabel() == "shift (l2)"]
    assert [bar.get_xlim() for bar in bars] == [ends(first[0]), ends(second[0]), ends(first[1]), ends(second[1])]


def test_all_maps_of_one_unit_may_share_one_colour_scale(columns):
    other = MapColumn("attention", 100 + torch.rand(2, 3, 5), "attention")
    figure = draw_columns([*columns, other], scale="shared")
    shared = ends(columns[1].maps, columns[2].maps)
    assert limits(figure) == [shared, shared, ends(other.maps)] * 2


@pytest.mark.parametrize("scale", SCALES)
def test_the_figure_says_which_maps_share_a_colour_scale(columns, scale):
    assert [text.get_text() for text in draw_columns(columns, scale=scale).texts] == [SCALES[scale]]


def test_a_figure_without_maps_says_nothing_of_colour_scales(columns):
    assert not draw_columns(columns[:1]).texts


def test_an_unknown_colour_scale_is_refused_with_those_that_there_are(columns):
    with pytest.raises(UnknownNameError, match=r"'mep'.*'map'"):
        draw_columns(columns, scale="mep")


# --- overlays ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", ["block", "map"])
def test_maps_laid_over_pictures_are_coloured_by_their_scale(columns, scale):
    maps = columns[1].maps.clone()
    maps[0, 0, 0] = torch.nan
    figure = draw_columns([columns[0], MapColumn("m", maps, "u", columns[0].images)], scale=scale)
    drawn = [axis.images[0].get_array() for axis in pictures(figure)][1::2]
    for row, shown in enumerate(drawn):
        measured = maps if scale == "block" else maps[row]
        low, high = np.nanmin(measured.numpy()), np.nanmax(measured.numpy())
        expected = show_map_on_image(columns[0].images[row], ((maps[row] - low) / (high - low)).clip(0, 1))
        assert np.abs(np.asarray(shown).astype(int) - expected).max() <= 1  # a rounding apart


def test_a_flat_map_laid_over_pictures_has_the_lowest_colour(columns):
    flat = MapColumn("m", torch.full((2, 3, 5), 4.0), "u", columns[0].images)
    drawn = pictures(draw_columns([columns[0], flat]))[1].images[0].get_array()
    assert np.array_equal(drawn, show_map_on_image(columns[0].images[0], np.zeros((3, 5))))


# --- whole figures ----------------------------------------------------------------------------------------------


def without_text(figure):
    """Take out what fonts draw, which differs between machines."""
    for text in figure.findobj(Text):
        text.set_visible(False)
        text.set_in_layout(False)
    return figure


@pytest.fixture
def sketch():
    """Two wide pictures of a slope, and maps 3 tokens high and 5 wide that rise to the lower right."""
    down, right = torch.meshgrid(torch.linspace(0, 1, 24), torch.linspace(0, 1, 40), indexing="ij")
    images = torch.stack([torch.stack([down, right, 1 - down], -1), torch.stack([right, right, right], -1)])
    maps = torch.arange(30.0).reshape(2, 3, 5)
    return images, maps


same_picture = pytest.mark.mpl_image_compare(style="default", savefig_kwargs={"dpi": 50}, tolerance=12)


@same_picture
def test_maps_beside_images_look_as_they_did(sketch):
    images, maps = sketch
    return without_text(draw_columns([ImageColumn("image", images), MapColumn("a", maps, "u")]))


@same_picture
def test_maps_with_a_scale_each_look_as_they_did(sketch):
    images, maps = sketch
    dropped = torch.where(maps % 4 == 0, torch.nan, maps)
    columns = [ImageColumn("image", images), MapColumn("a", maps, "u"), MapColumn("b", dropped, "u")]
    return without_text(draw_columns(columns, scale="map"))


@same_picture
def test_maps_over_images_look_as_they_did(sketch):
    images, maps = sketch
    dropped = torch.where(maps % 4 == 0, torch.nan, maps)
    columns = [ImageColumn("image", images), MapColumn("a", maps, "u", images), MapColumn("b", dropped, "u", images)]
    return without_text(draw_columns(columns, scale="shared"))
