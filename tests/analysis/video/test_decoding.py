import sys

import pytest
import torch

from repshift.analysis.video import decode, frame_indices, read_clip
from repshift.errors import DataError, MissingPackageError

KINDS = {
    "mpeg4.mp4": {},
    "h264.mp4": {"codec": "libx264", "options": {"bf": "3", "x264-params": "open-gop=1:log-level=none"}},
    "yuv444.mkv": {"codec": "libx264", "pixels": "yuv444p"},  # mkv's header has no number of frames
    "vp8.webm": {"codec": "libvpx"},
    "vp9.webm": {"codec": "libvpx-vp9", "options": {"cpu-used": "8"}},
    "av1.mkv": {"codec": "libsvtav1", "options": {"preset": "12"}},
    "hevc.mp4": {"codec": "libx265", "options": {"preset": "ultrafast", "x265-params": "log-level=none"}},
    "mpeg4.avi": {},
    "untimed.264": {"codec": "libx264"},
}


def write(videos, path, **settings):
    import av

    codec = settings.get("codec", "mpeg4")
    if codec not in av.codecs_available:
        pytest.skip(f"this build of PyAV does not write {codec}")
    return videos.write(path, **settings)


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("frames", [1, 12])
def test_the_frames_of_the_right_numbers_are_read(tmp_path, videos, name, frames):
    clip = decode(write(videos, tmp_path / name, **KINDS[name]), frames)
    assert clip.length == 100
    assert clip.frames.dtype == torch.uint8
    assert clip.frames.shape == (frames, 3, 48, 128)
    assert videos.numbers(clip.frames) == clip.indices == frame_indices(100, frames)


def test_packets_that_no_frame_is_shown_of_are_not_counted(tmp_path, videos):
    import av

    source = write(videos, tmp_path / "a.webm", codec="libvpx")
    with av.open(str(source)) as old, av.open(str(tmp_path / "b.webm"), "w") as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        for number, packet in enumerate(old.demux(video=0)):
            if packet.dts is not None:
                data = bytearray(bytes(packet))
                data[0] &= 0xEF if number == 20 else 0xFF  # RFC 6386, section 9.1: show_frame
                copy = av.Packet(bytes(data))
                copy.pts, copy.dts, copy.time_base, copy.is_keyframe = (
                    packet.pts,
                    packet.dts,
                    packet.time_base,
                    packet.is_keyframe,
                )
                copy.stream = stream
                new.mux(copy)
    clip = decode(tmp_path / "b.webm", 99)
    assert clip.length == 99
    assert videos.numbers(clip.frames) == [number for number in range(100) if number != 20]


def test_what_is_read_around_key_frames_is_what_the_whole_video_holds(tmp_path, videos):
    path = write(videos, tmp_path / "a.mp4", **KINDS["h264.mp4"])
    assert torch.equal(read_clip(path, 12), read_clip(path, 100)[frame_indices(100, 12)])


def test_times_are_seconds_from_the_first_frame(tmp_path, videos):
    clip = decode(videos.write(tmp_path / "a.mp4", rate=25), 4)
    assert clip.times == pytest.approx([index / 25 for index in clip.indices])


def test_a_short_video_is_filled_up_with_its_last_frame(tmp_path, videos):
    clip = read_clip(videos.write(tmp_path / "a.mp4", frames=3), 5)
    assert videos.numbers(clip) == [0, 1, 2, 2, 2]


def test_only_the_first_seconds_count(tmp_path, videos):
    path = videos.write(tmp_path / "a.mp4", rate=30)
    assert videos.numbers(read_clip(path, 4, seconds=2)) == frame_indices(60, 4)


def test_of_several_streams_the_best_is_read(tmp_path, videos):
    path = videos.write(tmp_path / "a.mp4", streams=2)  # the first is small and always the same
    clip = read_clip(path, 4)
    assert clip.shape[-1] == 128
    assert videos.numbers(clip) == frame_indices(100, 4)


def test_frames_of_another_size_are_brought_to_that_of_the_first(tmp_path, videos):
    parts = [
        videos.write(tmp_path / f"{size[1]}.ts", frames=10, codec="mpeg2video", size=size)
        for size in ((48, 128), (96, 256))
    ]
    path = tmp_path / "joined.ts"  # times begin anew, so frames are counted in order
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    clip = read_clip(path, 20)
    assert clip.shape[2:] == (48, 128)
    assert videos.numbers(clip)[:9] == list(range(9))
    assert videos.numbers(clip)[-1] == 9


@pytest.mark.parametrize(("turn", "matrix"), [(1, (0, -1, 1, 0)), (2, (-1, 0, 0, -1)), (3, (0, 1, -1, 0))])
def test_frames_stand_upright(tmp_path, videos, turn, matrix):
    path = videos.write(tmp_path / "a.mp4")
    stored = read_clip(path, 4)
    data = bytearray(path.read_bytes())
    start = data.index(b"tkhd") + 4 + 4 + 36  # behind version, times, ids, duration, layer and volume: ISO 14496-12
    for place, value in zip((0, 4, 12, 16), matrix, strict=True):
        data[start + place : start + place + 4] = (value * 65536).to_bytes(4, "big", signed=True)
    path.write_bytes(data)
    assert torch.equal(read_clip(path, 4), torch.rot90(stored, turn, (2, 3)))


# --- what cannot be read ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "does not exist"),
        (b"", "is empty"),
        (b"not a video" * 99, "is not a video that FFmpeg can read"),
        (b"\x00\x00\x00\x18ftypmp42" + bytes(200), "video"),
    ],
)
def test_what_is_no_video_is_named(tmp_path, videos, content, said):
    path = tmp_path / "clip.mp4"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=rf"clip\.mp4.*{said}"):
        read_clip(path, 4)


def test_a_folder_and_a_pipe_are_named(tmp_path, videos):
    import os

    os.mkfifo(tmp_path / "pipe")
    for name, said in {"": "is a folder", "pipe": "is no regular file"}.items():
        with pytest.raises(DataError, match=said):
            read_clip(tmp_path / name, 4)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("a.mp4", {}),
        ("a.mkv", {"codec": "libx264"}),
        ("a.webm", {"codec": "libvpx"}),
        ("short.webm", {"codec": "libvpx", "frames": 30}),
        ("a.avi", {}),
    ],
)
@pytest.mark.parametrize("share", [0.3, 0.7])
def test_a_video_that_was_cut_off_is_named(tmp_path, videos, name, settings, share):
    path = write(videos, tmp_path / name, **settings)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(DataError, match=rf"{path.name}.*(is cut off|FFmpeg can read|holds no video|has no frame)"):
        read_clip(path, 4)


@pytest.mark.parametrize(("name", "codec"), [("slow.webm", "libvpx"), ("slow.mkv", "mpeg4")])
def test_a_video_of_few_frames_a_second_was_not_cut_off(tmp_path, videos, name, codec):
    assert decode(write(videos, tmp_path / name, codec=codec, frames=5, rate=1), 5).length == 5


def test_an_mp4_whose_header_comes_first_and_that_was_cut_off_is_named(tmp_path, videos):
    import av

    source = videos.write(tmp_path / "a.mp4", codec="libx264")
    with av.open(str(source)) as old, av.open(str(tmp_path / "b.mp4"), "w", options={"movflags": "faststart"}) as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        for packet in old.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                new.mux(packet)
    path = tmp_path / "b.mp4"
    path.write_bytes(path.read_bytes()[: int(0.7 * path.stat().st_size)])
    with pytest.raises(DataError, match=r"b\.mp4"):
        read_clip(path, 4)


def test_sound_alone_is_no_video(tmp_path, videos):
    import av
    import numpy as np

    path = tmp_path / "sound.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), dtype=np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        container.mux([*stream.encode(frame), *stream.encode()])
    with pytest.raises(DataError, match="holds no video"):
        read_clip(path, 4)


def test_frames_too_large_to_decode_are_refused(tmp_path, videos, monkeypatch):
    monkeypatch.setattr("repshift.analysis.video.decoding.MOST_PIXELS", 1000)
    with pytest.raises(DataError, match=r"frames of 128 x 48 pixels, too large"):
        read_clip(videos.write(tmp_path / "a.mp4", frames=2), 4)


def test_without_pyav_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(MissingPackageError, match=r"repshift\[video\]"):
        read_clip(__file__, 4)


# --- nothing else is opened ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["mp4", "ffconcat", "m3u8", "mkv"])
@pytest.mark.parametrize(
    "listed",
    [
        "ffconcat version 1.0\nfile secret.mp4\n",
        "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nsecret.mp4\n#EXT-X-ENDLIST\n",
        "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nsecret.ts\n#EXT-X-ENDLIST\n",
    ],
)
def test_lists_of_other_files_are_not_followed(tmp_path, videos, ending, listed):
    videos.write(tmp_path / "secret.mp4")
    videos.write(tmp_path / "secret.ts", codec="mpeg2video")
    path = tmp_path / f"list.{ending}"
    path.write_text(listed)
    with pytest.raises(DataError, match="is not a video"):
        read_clip(path, 4)


@pytest.mark.parametrize("name", ["http://127.0.0.1:9/a.mp4", "concat:a.mp4|a.mp4", "subfile,,start,0,end,9,,:a.mp4"])
def test_names_are_files_and_no_addresses(tmp_path, videos, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    videos.write(tmp_path / "a.mp4")
    with pytest.raises(DataError, match="does not exist"):
        read_clip(name, 4)
