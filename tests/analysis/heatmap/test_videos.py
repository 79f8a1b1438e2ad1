from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image

from repshift import DataError, ShiftTracker, load_model
from repshift.analysis.heatmap.maps import heatmap_array
from repshift.analysis.heatmap.strips import moving_pictures, save_animation, strip_figure
from repshift.analysis.heatmap.videos import video_input, video_strip
from repshift.analysis.video import decode, preprocess


@pytest.fixture
def run(run_command):
    return partial(run_command, "heatmap")


@pytest.fixture
def video(tmp_path):
    av = pytest.importorskip("av")
    with av.open(str(tmp_path / "clip.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width = stream.height = 64
        for number in range(24):  # a white square that goes from left to right
            picture = np.zeros((64, 64, 3), dtype=np.uint8)
            picture[24:40, 2 * number : 2 * number + 16] = 255
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return tmp_path / "clip.mp4"


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return load_model("tiny_umt").eval()


def test_maps_of_a_video_are_those_of_the_tracker(model, video):
    taken = video_input(model)
    strip = video_strip(model, video, taken, blocks=[1])
    clip = preprocess(decode(video, taken.frames).frames, taken.size, taken.mean, taken.std)
    with ShiftTracker(model) as tracker, torch.no_grad():
        model(clip.unsqueeze(0))
    assert strip.frames.shape == (taken.frames, 48, 48, 3)
    assert len(strip.times) == taken.frames
    torch.testing.assert_close(strip.rows[0].maps, tracker.maps["vision_encoder.encoder.blocks.1"][0])


def test_a_pruned_model_shows_what_each_frame_keeps(model, video):
    pruned = ShiftTracker(model).prune({0: 0.5})
    strip = video_strip(pruned, video, video_input(pruned), blocks=[0, 1], kept=True)
    whole, left = (row.maps for row in strip.rows)
    assert bool(whole.isfinite().all())
    assert int(left.isfinite().sum()) == left.numel() // 2
    [(title, pictures)] = strip.kept.items()
    assert title.startswith(f"{left.numel() // 2} of {left.numel()} left")
    changed = (pictures != strip.frames).any(-1).unflatten(1, (6, 8)).unflatten(3, (6, 8)).any(4).any(2)
    assert torch.equal(changed, left.isnan())


def test_a_model_of_images_sees_each_frame_by_itself(video):
    model = load_model("tiny_vit").eval()
    taken = video_input(model, 3)
    strip = video_strip(model, video, taken, blocks=[2])
    clip = preprocess(decode(video, 3).frames, taken.size, taken.mean, taken.std)
    expected = heatmap_array(model, clip[1:2], blocks=[2])["blocks.2"]
    np.testing.assert_allclose(strip.rows[0].maps[1:2].numpy(), expected, rtol=1e-4)


def test_a_token_of_several_frames_shows_at_each(video):
    transformers = pytest.importorskip("transformers")
    config = transformers.VideoMAEConfig(
        image_size=32, num_frames=4, tubelet_size=2, hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=64,
    )  # fmt: skip
    model = transformers.VideoMAEModel(config).eval()
    strip = video_strip(model, video, video_input(model), blocks=[0])
    assert strip.rows[0].maps.shape == (4, 2, 2)
    assert torch.equal(strip.rows[0].maps[0], strip.rows[0].maps[1])
    assert not torch.equal(strip.rows[0].maps[1], strip.rows[0].maps[2])


@pytest.mark.parametrize("scale", ["map", "block", "shared"])
def test_a_strip_has_a_column_for_each_frame_and_a_row_for_each_block(model, video, scale):
    strip = video_strip(model, video, video_input(model, 3), blocks=[0, 1])
    figure = strip_figure(strip, scale=scale, overlay=True)
    bars = 0 if scale == "map" else 2
    assert len(figure.axes) == 3 * 3 + bars + 1
    curve = figure.axes[-1].lines[0].get_ydata()
    means = strip.rows[0].maps.flatten(1).mean(1)
    np.testing.assert_allclose(curve, (means / means.max()).numpy(), rtol=1e-5)


@pytest.mark.parametrize("ending", ["gif", "mp4"])
def test_moving_pictures_are_as_long_as_the_video(model, video, tmp_path, ending):
    strip = video_strip(model, video, video_input(model, 4), blocks=[0])
    pictures = moving_pictures(strip)
    save_animation(pictures, strip.times, tmp_path / f"moving.{ending}")
    assert [size % 2 for size in pictures.shape[1:3]] == [0, 0]
    assert not np.array_equal(pictures[0], pictures[3])
    if ending == "gif":
        with Image.open(tmp_path / "moving.gif") as moving:
            assert (moving.n_frames, moving.info["duration"]) == (4, 600)
    else:
        clip = decode(tmp_path / "moving.mp4", 4)
        assert clip.length == 4
        assert clip.times == pytest.approx([0, 0.6, 1.2, 1.8], abs=0.01)
        assert (clip.frames.permute(0, 2, 3, 1).float() - torch.from_numpy(pictures)).abs().mean() < 5


def test_the_command_writes_a_strip_and_moving_pictures(run, video, tmp_path):
    options = ["--video", video, "--frames", "3", "--drop", "0.5@0", "--kept", "--overlay", "--animation", "a.gif"]
    code, _, err = run("-m", "tiny_umt", *options, "--output", "strip.png")
    assert code == 0, err
    assert {"a.gif", "strip.png"} < {path.name for path in tmp_path.iterdir()}


BAD = {
    "nothing to draw": ([], "neither was given"),
    "images and a video": (["--image", "{video}", "--video", "{video}"], "both was given"),
    "frames of an image": (["--image", "{video}", "--frames", "3"], "--frames is for a video"),
    "an animated image": (["--image", "{video}", "--animation", "a.gif"], "--animation is for a video"),
    "no frames": (["--video", "{video}", "--frames", "0"], "--frames"),
    "methods": (["--video", "{video}", "--methods", "mnn", "--drop", "0.2@0"], "--methods"),
    "no video": (["--video", "none.mp4"], "none.mp4 does not exist"),
    "another ending": (["--video", "{video}", "--animation", "a.avi"], ".mp4 or .gif"),
    "the video itself": (["--video", "{video}", "--animation", "{video}"], "would be replaced"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_clear_line_and_writes_nothing(run, video, tmp_path, case):
    options, said = BAD[case]
    before = video.read_bytes()
    code, _, err = run("-m", "tiny_vit", *(option.format(video=video) for option in options))
    assert code == 1
    lines = [line for line in err.splitlines() if not line.startswith("note: ")]
    assert len(lines) == 1
    assert said in lines[0]
    assert [path.name for path in tmp_path.iterdir()] == ["clip.mp4"]
    assert video.read_bytes() == before


def test_a_model_of_one_channel_is_refused():
    with pytest.raises(DataError, match="1 channel"):
        video_input(load_model("tiny_vit", in_chans=1))
