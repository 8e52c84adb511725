"""Videos through predict.py and Predictor.video: times, tracks, shares, what is written, and what goes wrong."""

import csv
import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image
from skimage import data

import predict
import video
from config import CLASSES
from faces.detect import Box
from faces.track import Smoother, Tracker, assign
from faces.video import Reader
from helpers import REPO
from predictor import Predictor

RUN = [sys.executable, str(REPO / "predict.py")]
RATE, SIZE = 25, (320, 240)  # frames per second; width and height of the clips
PORTRAIT = Image.fromarray(data.astronaut()).crop((130, 20, 330, 220))  # her face is 0.45 x 0.55 of it, at its middle
MIRRORED = PORTRAIT.transpose(Image.Transpose.FLIP_LEFT_RIGHT)


@pytest.fixture
def go(script_runner):
    return script_runner(predict.main)


@pytest.fixture(scope="session")
def predictor():
    return Predictor(threads=1)


def scene(*faces: tuple[float, float, float], size=SIZE, light: float = 1.0) -> np.ndarray:
    """A grey picture with portraits at (x, y) of their middle and side; the second one is mirrored."""
    picture = Image.new("RGB", size, (90, 95, 100))
    for number, (x, y, side) in enumerate(faces):
        face = (MIRRORED if number % 2 else PORTRAIT).resize((round(side), round(side)))
        picture.paste(face.point(lambda value: value * light), (round(x - side / 2), round(y - side / 2)))
    return np.asarray(picture)


def write(path: Path, pictures, times=None, *, sound=None, turned=0, codec="libx264", **options) -> Path:
    """A video of `pictures` at `times` in seconds (25 a second), with a tone of `sound` as its codec."""
    with av.open(str(path), "w", **options) as file:
        stream = file.add_stream(codec, rate=RATE, options={"preset": "superfast"} if codec == "libx264" else {})
        stream.pix_fmt, clock = "yuv420p", Fraction(1, 90_000)
        if turned:
            stream.set_display_rotation(turned)
        tone = file.add_stream(sound, rate=16_000) if sound else None
        count = 0
        for number, picture in enumerate(pictures):
            if not number:
                stream.height, stream.width = picture.shape[:2]
                stream.time_base = stream.codec_context.time_base = clock
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = round((times[number] if times else number / RATE) * 90_000), clock
            file.mux(stream.encode(frame))
            count += 1
        file.mux(stream.encode())
        if tone:
            wave = np.sin(np.arange(count * 16_000 // RATE) / 6)[None].astype(np.float32) / 4
            heard = av.AudioFrame.from_ndarray(wave, format="fltp", layout="mono")
            heard.sample_rate, heard.pts = 16_000, 0
            file.mux(tone.encode(heard))
            file.mux(tone.encode())
    return path


def rows(path: Path) -> list[dict]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def middles(frame) -> dict[int, float]:
    """Where each track is, from left to right."""
    return {track: face.box.x + face.box.width / 2 for track, face, _ in frame.faces}


STILL = [scene((160, 120, 180))]


@pytest.fixture(scope="session")
def clip(tmp_path_factory):
    """A second of one face, with sound."""
    return write(tmp_path_factory.mktemp("clip") / "clip.mp4", STILL * RATE, sound="aac")


# --- Tracks ---


def crossing(count: int, way) -> list[np.ndarray]:
    """One face goes from left to right, another one from right to left and behind it; `way` is a share of the frame."""
    places = [60 + 200 * way(number / (count - 1)) for number in range(count)]
    return [scene((320 - x, 130, 110), (x, 100, 110)) for x in places]


def test_two_faces_that_cross_keep_their_tracks(tmp_path, predictor):
    clip = write(tmp_path / "a.mp4", crossing(2 * RATE, lambda share: share))
    frames = list(predictor.video(clip))
    first, last = middles(frames[0]), middles(frames[-1])
    assert [frame.seconds for frame in frames] == pytest.approx([number / RATE for number in range(50)], abs=1e-4)
    assert set(first) == set(last) == {1, 2}
    assert first[1] < 100 and last[1] > 220 and first[2] > 220 and last[2] < 100
    for number, frame in enumerate(frames):
        x = 60 + 200 * number / 49
        for track, found in middles(frame).items():
            assert found == pytest.approx(x if track == 1 else 320 - x, abs=12), number


def test_a_face_that_leaves_and_returns_keeps_its_track_and_a_later_one_gets_a_new_number(tmp_path, predictor):
    there, gone = [scene((80, 120, 150))], [scene()]
    clip = write(tmp_path / "a.mp4", there * 20 + gone * 25 + there * 20 + gone * 60 + there * 10)
    tracks = [[each.track for each in frame.faces] for frame in predictor.video(clip)]
    assert tracks == [[1]] * 20 + [[]] * 25 + [[1]] * 20 + [[]] * 60 + [[2]] * 10


def test_a_face_that_grows_from_30_to_400_pixels_is_one_track(tmp_path, predictor):
    sides = np.geomspace(66, 880, 40)  # of the portrait
    size = (640, 480)
    clip = write(tmp_path / "a.mp4", [scene((320, 240, side), size=size) for side in sides])
    frames = list(predictor.video(clip))
    assert [[each.track for each in frame.faces] for frame in frames] == [[1]] * 40
    widths = [frame.faces[0].face.box.width for frame in frames]
    assert widths[0] < 33 and widths[-1] > 380
    assert widths == pytest.approx(list(sides * 0.45), rel=0.15)


def test_variable_rate_and_rotation_change_no_times_and_no_tracks(tmp_path, predictor):
    times = np.cumsum([0, *np.random.default_rng(0).choice([0.02, 0.04, 0.1], 39)]).tolist()
    upright = crossing(40, lambda share: share)
    turned = [np.ascontiguousarray(np.rot90(picture)) for picture in upright]
    for clip in (
        write(tmp_path / "b.mkv", upright, times),
        write(tmp_path / "c.mp4", turned, times, turned=-90),
    ):
        frames = list(predictor.video(clip))
        assert [frame.seconds for frame in frames] == pytest.approx(times, abs=2e-3), clip
        durations = [frame.duration for frame in frames]
        assert durations[:-1] == pytest.approx(np.diff(times), abs=3e-3)
        assert frames[0].image.shape == (240, 320, 3)
        first, last = middles(frames[0]), middles(frames[-1])
        assert first[1] < 100 < last[1] and last[2] < 100 < first[2], clip


@pytest.mark.parametrize(("begin", "sound", "seconds"), [(-0.4, None, 0), (1, None, 0), (1, "aac", 1)])
def test_edit_lists_cut_and_delay_as_players_do(tmp_path, begin, sound, seconds):
    pictures = [np.full((48, 64, 3), 4 * number, np.uint8) for number in range(50)]
    times = [begin + number / RATE for number in range(50)]
    clip = write(tmp_path / "a.mp4", pictures, times, sound=sound, options={"avoid_negative_ts": "disabled"})
    assert b"elst" in clip.read_bytes()
    with Reader(clip) as reader:
        found = [(picture.seconds, picture.image.mean() / 4) for picture in reader]
    first = round(max(-begin, 0) * RATE)
    assert [place for place, _ in found] == pytest.approx([seconds + n / RATE for n in range(50 - first)], abs=1e-3)
    assert [light for _, light in found] == pytest.approx(range(first, 50), abs=2)


def test_every_nth_frame_is_shown_until_the_next(clip, predictor):
    frames = list(predictor.video(clip, every=10))
    assert [frame.seconds for frame in frames] == pytest.approx([0, 0.4, 0.8], abs=1e-4)
    assert [frame.duration for frame in frames] == pytest.approx([0.4, 0.4, 0.2], abs=1e-4)


def test_boxes_are_assigned_by_the_largest_sum_of_overlaps():
    from scipy.optimize import linear_sum_assignment

    random = np.random.default_rng(1)
    for _ in range(200):
        gains = random.random(random.integers(1, 6, 2)) * (random.random() < 0.9)
        best = gains[linear_sum_assignment(gains, maximize=True)].sum()
        assert sum(gains[pair] for pair in assign(gains)) == pytest.approx(best)
    tracker = Tracker()
    assert tracker.update(0.0, [Box(0, 0, 10, 10), Box(50, 0, 10, 10)]) == [1, 2]
    assert tracker.update(0.1, [Box(51, 0, 10, 10), Box(1, 0, 10, 10)]) == [2, 1]


def test_smoothing_depends_on_seconds_not_on_the_number_of_frames():
    means = []
    for steps in (1, 10):
        smoother = Smoother(0.5)
        smoother.update(1, 0.0, np.array([1.0, 0.0]))
        for step in range(1, steps + 1):
            mean = smoother.update(1, step / steps, np.array([0.0, 1.0]))
        means.append(mean)
    assert means[0] == pytest.approx(means[1]) and means[0][0] == pytest.approx(np.exp(-2))
    assert Smoother(0).update(1, 0.0, means[0]).tolist() == means[0].tolist()


# --- What is written ---


def test_tables_shares_timelines_and_film(tmp_path, go, monkeypatch):
    """A light face, then a dark one, that a network which goes by the light calls happy and sad; then nobody."""
    answers = {"happy": 31, "sad": 14}

    def by_light(_, pixels):
        values = np.full((len(pixels), 7), 0.01, np.float32)
        values[range(len(pixels)), [CLASSES.index("happy" if face.mean() > 90 else "sad") for face in pixels]] = 0.94
        return values

    monkeypatch.setattr(Predictor, "crops", by_light)
    pictures = [scene((160, 120, 180))] * 31 + [scene((160, 120, 180), light=0.5)] * 14 + [scene()] * 5
    clip = write(tmp_path / "talk.mp4", pictures, sound="aac")
    status, out, _ = go(clip, "--out", tmp_path / "out", "--smooth", "0")
    assert status == 0 and "happy 69%, sad 31%" in out
    base = tmp_path / "out" / "talk"
    table = rows(Path(f"{base}.csv"))
    smoothed = [f"smooth_{name}" for name in CLASSES]
    assert list(table[0])[-15:] == [*CLASSES, *smoothed, "note"] and len(table) == 45
    for answer, count in answers.items():
        shown = sum(float(row["duration"]) for row in table if row["answer"] == answer)
        assert shown == pytest.approx(count / RATE, abs=1 / RATE)
    summary = json.loads(Path(f"{base}.json").read_text())
    assert summary["frames"] == 50 and summary["without_face"] == pytest.approx(5 / RATE, abs=1e-3)
    assert summary["tracks"][0]["shares"] == pytest.approx({"happy": 31 / 45, "sad": 14 / 45}, abs=1 / 45)
    assert Image.open(f"{base}-track1.png").width == 1400
    assert sorted(path.name for path in base.parent.iterdir()) == [
        "talk-track1.png",
        "talk.csv",
        "talk.json",
        "talk.mp4",
    ]
    content = Path(f"{base}.mp4").read_bytes()
    assert content.index(b"moov") < content.index(b"mdat")  # faststart
    with av.open(f"{base}.mp4") as film:
        stream = film.streams.video[0]
        assert (stream.codec_context.name, stream.pix_fmt) == ("h264", "yuv420p")
        frames = [frame for frame in film.decode(stream)]
        assert [frame.time for frame in frames] == pytest.approx([number / RATE for number in range(50)], abs=1e-3)
        drawn = np.abs(frames[0].to_ndarray(format="rgb24").astype(int) - pictures[0]).max(2) > 60
        assert drawn.any() and not drawn[:, :40].any()
    with av.open(f"{base}.mp4") as film:
        sound = sum(frame.samples for frame in film.decode(audio=0)) / film.streams.audio[0].rate
        assert sound == pytest.approx(2, abs=0.15)


@pytest.mark.parametrize(
    ("name", "codec"), [("a.mkv", "pcm_s16le"), ("a.ts", "aac"), ("a.webm", "libopus"), ("a.avi", "mp3")]
)
def test_sound_of_other_containers_is_kept(tmp_path, go, name, codec):
    clip = write(tmp_path / name, STILL * 25, sound=codec, codec="libvpx" if name == "a.webm" else "libx264")
    status, _, err = go(clip, "--out", tmp_path / "out")
    assert status == 0, err
    with av.open(str(tmp_path / "out" / "a.mp4")) as film:
        assert sum(frame.samples for frame in film.decode(audio=0)) / film.streams.audio[0].rate > 0.8
    with av.open(str(tmp_path / "out" / "a.mp4")) as film:
        times = [frame.time for frame in film.decode(video=0)]
    assert times == pytest.approx([float(row["seconds"]) for row in rows(tmp_path / "out" / "a.csv")], abs=2e-3)


def test_a_folder_of_clips_goes_to_one_table_each_and_photos_beside_them_are_predicted(tmp_path, go, clip):
    folder = tmp_path / "in"
    (folder / "deep").mkdir(parents=True)
    (folder / "deep" / "a.mp4").write_bytes(clip.read_bytes())
    (folder / "b.mov").write_bytes(clip.read_bytes())
    Image.fromarray(STILL[0]).save(folder / "photo.jpg")
    status, out, err = go(folder, "--out", tmp_path / "out", "--no-mp4")
    assert status == 0, err
    assert "photo.jpg" in out
    written = {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").glob("**/*.csv")}
    assert written == {"deep/a.csv", "b.csv"} and not list((tmp_path / "out").glob("**/*.mp4"))


def test_links_out_of_a_folder_of_clips_are_named_or_followed(tmp_path, capsys):
    (tmp_path / "in").mkdir()
    (tmp_path / "far").mkdir()
    for name in ("in/a.mp4", "far/b.mp4"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "in/link").symlink_to(tmp_path / "far")
    (tmp_path / "in/back").symlink_to(tmp_path / "in")
    for follow_links, found in ((False, ["a.mp4"]), (True, ["a.mp4", "link/b.mp4"])):
        clips, rest = video.split_paths([str(tmp_path / "in")], None, follow_links)
        assert [name.as_posix() for _, name in clips] == found and not rest
        skipped = capsys.readouterr().err.splitlines()
        assert "in/back/: a link to a folder that is read already" in skipped[0]
        assert ["--follow-links" in line for line in skipped[1:]] == [True] * (not follow_links)


# --- Bad input ---


def test_what_is_no_whole_video_is_named_and_the_others_are_done(tmp_path, go, clip):
    content = clip.read_bytes()
    (tmp_path / "text.mp4").write_text("no video")
    (tmp_path / "cut.mp4").write_bytes(content[: len(content) // 2])  # its index is at its end
    with av.open(str(tmp_path / "sound.mp4"), "w") as file:
        tone = file.add_stream("aac", rate=16_000)
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 16_000), np.float32), format="fltp", layout="mono")
        silence.sample_rate = 16_000
        file.mux(tone.encode(silence))
        file.mux(tone.encode())
    with av.open(str(tmp_path / "empty.mkv"), "w") as file:
        stream = file.add_stream("mpeg4", rate=RATE)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        file.start_encoding()
    (tmp_path / "whole.mp4").write_bytes(content)
    status, out, err = go(tmp_path, "--out", tmp_path / "out", "--no-mp4")
    assert status == 0 and "whole.mp4" in out
    skipped = sorted(line.split("/")[-1].split(": ")[0] for line in err.splitlines() if "skipped" in line)
    assert skipped == ["cut.mp4", "empty.mkv", "sound.mp4", "text.mp4"], err
    assert go(tmp_path, "--out", tmp_path / "out", "--no-mp4", "--strict")[0] == 2
    assert go(tmp_path / "text.mp4", "--out", tmp_path / "out")[0] == 2


def test_a_cut_off_stream_is_read_to_where_it_ends(tmp_path, go):
    whole = write(tmp_path / "a.mkv", [scene((160, 120, side)) for side in np.linspace(150, 200, 75)])
    whole.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    status, _, err = go(whole, "--out", tmp_path / "out")
    assert status == 0, err
    assert 10 < len(rows(tmp_path / "out" / "a.csv")) < 70


def test_what_cannot_be_decoded_is_skipped(tmp_path, go, clip):
    data = Path(clip).read_bytes()
    (tmp_path / "a.mp4").write_bytes(data.replace(b"avc1", b"zzzz"))
    status, _, err = go(tmp_path / "a.mp4", "--out", tmp_path / "out")
    assert status == 2 and "it cannot be decoded (Decoder not found)" in err


def test_a_changing_size_is_brought_to_the_first(tmp_path, go):
    sizes = {"1.ts": STILL, "2.ts": [scene((320, 240, 360), size=(640, 480))]}
    parts = [write(tmp_path / name, still * 20, format="mpegts") for name, still in sizes.items()]
    clip = tmp_path / "clip.ts"
    clip.write_bytes(b"".join(part.read_bytes() for part in parts))
    status, out, err = go(clip, "--out", tmp_path / "out")
    assert status == 0 and "320x240" in out, err
    assert {row["track"] for row in rows(tmp_path / "out" / "clip.csv")} == {"1"}


def test_black_only_and_no_face_give_an_empty_table(tmp_path, go):
    for name, picture in (("black", np.zeros((240, 320, 3), np.uint8)), ("nobody", scene())):
        status, out, _ = go(write(tmp_path / f"{name}.mp4", [picture] * 10), "--out", tmp_path / "out")
        assert status == 0 and "no face" in out
        assert rows(tmp_path / "out" / f"{name}.csv") == []


def test_an_output_that_is_an_input_is_refused(tmp_path, go):
    content = write(tmp_path / "a.mp4", STILL).read_bytes()
    status, _, err = go(tmp_path / "a.mp4", "--out", tmp_path)
    assert status == 2 and "--out" in err and (tmp_path / "a.mp4").read_bytes() == content


def test_only_files_of_an_earlier_run_are_replaced(tmp_path, go, clip):
    (tmp_path / "clip.mp4").write_bytes(b"a holiday")
    status, _, err = go(str(clip), "--out", str(tmp_path), "--every", "5")
    assert status == 2 and "clip.mp4 is there already" in err and (tmp_path / "clip.mp4").read_bytes() == b"a holiday"
    assert go(str(clip), "--out", str(tmp_path / "new"), "--every", "5")[0] == 0
    own, old = (tmp_path / "new" / f"clip-{name}.png" for name in ("tracks", "track9"))
    own.touch(), old.touch()
    assert go(str(clip), "--out", str(tmp_path / "new"), "--every", "5")[0] == 0
    assert own.exists() and not old.exists()  # timelines of an earlier run go with it


def test_without_av_the_line_to_install_it_is_printed(clip, go, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    for args in ([clip], ["--camera", "0"]):
        status, _, err = go(*args)
        assert status == 2 and "pip install av" in err


@pytest.mark.skipif(os.path.exists("/dev/video99"), reason="there is such a camera")
def test_a_camera_that_is_missing_is_an_error(go):
    status, _, err = go("--camera", "99")
    assert status == 2 and "/dev/video99" in err


def test_a_pipe_stands_for_a_camera(tmp_path, go):
    stream = write(tmp_path / "a.ts", STILL * 2 * RATE, format="mpegts").read_bytes()
    pipe = tmp_path / "camera"
    os.mkfifo(pipe)
    threading.Thread(target=pipe.write_bytes, args=[stream], daemon=True).start()
    status, out, err = go("--camera", pipe, "--out", tmp_path / "out")
    assert status == 0, err
    assert "0:00  face 1 " in out
    endings = sorted(path.name.split(".")[-1] for path in (tmp_path / "out").iterdir())
    assert endings == ["csv", "json", "mp4", "png"]


@pytest.mark.parametrize("flags", [["--every", "0"], ["--smooth", "-1"], ["--camera", "0", "photo.jpg"]])
def test_flags_that_cannot_be_meant_are_refused(go, flags):
    with pytest.raises(SystemExit, match="2"):
        go(*flags)


# --- Stopped in the middle ---


def begin(clip: Path, out: Path) -> subprocess.Popen:
    """predict.py, once its table has rows."""
    process = subprocess.Popen([*RUN, clip, "--out", out, "--threads", "1"], stderr=subprocess.PIPE, text=True)
    part = out / f"{clip.stem}.csv.part"
    while not (part.exists() and part.stat().st_size > 40_000):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.02)
    return process


@pytest.fixture(scope="module")
def long_clip(tmp_path_factory):
    return write(tmp_path_factory.mktemp("long") / "long.mp4", STILL * RATE * 60)


def test_ctrl_c_completes_the_files_with_what_is_done(tmp_path, long_clip):
    process = begin(long_clip, tmp_path)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 130
    count = len(rows(tmp_path / "long.csv"))
    assert 100 < count < 1400
    with av.open(str(tmp_path / "long.mp4")) as film:
        assert len(list(film.decode(video=0))) == count
    assert json.loads((tmp_path / "long.json").read_text())["frames"] == count
    assert not list(tmp_path.glob("*part*")) and (tmp_path / "long-track1.png").exists()


def test_after_a_kill_table_and_film_are_readable(tmp_path, long_clip):
    process = begin(long_clip, tmp_path)
    process.kill()
    process.communicate(timeout=60)
    count = len(rows(tmp_path / "long.csv.part"))
    with av.open(str(tmp_path / "long.part.mp4")) as film:
        shown = len(list(film.decode(video=0)))
    assert count > 100 and count - 5 * RATE < shown <= count


def test_on_a_full_disk_what_is_done_stays_readable(tmp_path, long_clip):
    limit = 40_000  # bytes of a file, as a full disk
    process = subprocess.run(
        [*RUN, long_clip, "--out", tmp_path, "--threads", "1"],
        stderr=subprocess.PIPE,
        text=True,
        env={name: value for name, value in os.environ.items() if not name.startswith("COV")},  # its file is larger
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    assert process.returncode == 2 and "Traceback" not in process.stderr, process.stderr
    assert "long.csv.part" in process.stderr
    assert len(rows(tmp_path / "long.csv.part")) > 100
