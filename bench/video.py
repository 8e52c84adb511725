"""Videos: frames per second and memory against other ways, how often faces must be searched, what smoothing costs.

    python -m bench.video [--rounds 3] [--seconds 6] [--fer /path/of/an/environment/with/fer/bin/python]

The clips are made here: 1280x720, 25 frames/s, H.264, portraits of scikit-image's astronaut that move in circles over
a field of grain. The plain loop detects in each frame and predicts one face at a time, with our detector and network;
fer is its Video.analyze without saved pictures. None of them writes a video. Each is a fresh process, ours and the
plain loop with one thread (set OMP_NUM_THREADS=1); they take turns, medians are shown. Run it on an idle machine.

Searching: boxes at other intervals against those of searching each frame, of five faces that stay apart and of five
that cross each other all the time. Smoothing: a still face with grain, some of scikit-image's lfw_subset, enlarged.
The delay is from a cut to another expression until that one leads.
"""

import argparse
import os
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from bench import ways
from cli import Parser

RATE, SIZE = 25, (1280, 720)
INTERVALS = (0.0, 0.1, 0.25, 0.5, 1.0)  # seconds between searches
CONSTANTS = (0.0, 0.1, 0.25, 0.5, 1.0, 2.0)  # seconds of smoothing
GRAIN = 12  # standard deviation, of 255
Way = Callable[[str], list[int]]  # the number of faces in each frame of a clip
STILLS = (0, 5, 10, 20, 45, 50, 75, 85)  # of lfw_subset: faces that the network is more and less sure of


# --- Ways ---


def ours() -> Way:
    from predictor import Predictor

    predictor = Predictor(threads=1)
    return lambda clip: [len(frame.faces) for frame in predictor.video(clip)]


def plain() -> Way:
    import av

    from predictor import Predictor

    predictor = Predictor(threads=1)

    def count(clip: str) -> list[int]:
        found = []
        with av.open(clip) as file:
            for frame in file.decode(video=0):
                faces = predictor.look(frame.to_ndarray(format="rgb24"))
                found.append(len([predictor.answer([[face]]) for face in faces]))
        return found

    return count


def fer() -> Way:
    from fer.classes import Video
    from fer.fer import FER

    detector, off = FER(), dict.fromkeys(("save_frames", "save_video", "annotate_frames", "zip_images"), False)

    def count(clip: str) -> list[int]:
        frames = Video(clip, outdir=os.path.dirname(clip), first_face_only=False).analyze(detector, **off)
        return [sum(name.startswith("box") for name in frame) for frame in frames]

    return count


WAYS: dict[str, Callable[[], Way]] = {"ours": ours, "plain": plain, "fer": fer}


def measure(way: str, clip: str) -> dict[str, float]:
    """Frames per second, without loading; MiB at most; faces per frame."""
    count = WAYS[way]()
    start = time.perf_counter()
    faces = count(clip)
    seconds = time.perf_counter() - start
    peak = re.search(r"VmHWM:\s*(\d+)", Path("/proc/self/status").read_text())  # Linux
    return {"rate": len(faces) / seconds, "peak": int(peak[1]) / 1024, "faces": sum(faces) / len(faces)}


# --- Clips ---


def portrait(side: int) -> Image.Image:
    import skimage

    return Image.fromarray(skimage.data.astronaut()).crop((130, 20, 330, 220)).resize((side, side))


def moving(count: int, seconds: float, *, reach: int = 30) -> Iterator[np.ndarray]:
    """`count` portraits side by side that go in circles of radius `reach` in 4 seconds, each in its own phase."""
    back = Image.fromarray(np.random.default_rng(0).integers(70, 110, (SIZE[1], SIZE[0], 3), np.uint8))
    faces = [portrait(side) for side in (240, 200, 180, 220, 160)[:count]]
    for number in range(round(seconds * RATE)):
        picture = back.copy()
        for index, face in enumerate(faces):
            angle = (2 * np.pi * number / RATE / 4) * (-1) ** index + index
            x, y = 640 + (index - count // 2) * 240 + reach * np.cos(angle), 360 + reach * np.sin(angle)
            picture.paste(face, (round(x - face.width / 2), round(y - face.height / 2)))
        yield np.asarray(picture)


def write(path: Path, pictures: Iterator[np.ndarray]) -> str:
    import av

    with av.open(str(path), "w") as file:
        stream = file.add_stream("libx264", rate=RATE, options={"preset": "veryfast", "crf": "18"})
        stream.pix_fmt = "yuv420p"
        for number, picture in enumerate(pictures):
            if not number:
                stream.height, stream.width = picture.shape[:2]
            file.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        file.mux(stream.encode())
    return str(path)


# --- Searching and smoothing ---


def compare_intervals(name: str, clip: str) -> Iterator[str]:
    """A line for each of INTERVALS: time, number of tracks, how well the boxes fit those of searching each frame."""
    from faces.detect import Detector, overlap
    from faces.video import Reader, follow

    find, truth = Detector().find, []
    yield f"{f'{name}: every, s':<18}{'ms a frame':>12}{'tracks':>8}{'missed':>8}{'mean IoU':>10}{'1st percentile':>16}"
    for interval in INTERVALS:
        start = time.perf_counter()
        with Reader(clip) as reader:
            seen = [faces for part in follow(reader, find, detect_seconds=interval) for _, faces in part]
        spent = 1000 * (time.perf_counter() - start) / len(seen)
        truth = truth or seen
        best = [
            max((overlap(box, other) for _, other in faces), default=0.0)
            for boxes, faces in zip(truth, seen, strict=True)
            for _, box in boxes
        ]
        tracks = len({track for faces in seen for track, _ in faces})
        missed = sum(value < 0.5 for value in best) / len(best)
        low = np.percentile(best, 1)
        yield f"{interval:<18g}{spent:>12.1f}{tracks:>8}{missed:>8.1%}{np.mean(best):>10.3f}{low:>16.3f}"


def compare_constants(folder: Path, seconds: float) -> Iterator[str]:
    """A line for each of CONSTANTS: changes of the leading emotion per minute, and seconds after a cut."""
    import skimage

    from faces.track import Smoother
    from predictor import Predictor

    random, predictor, stills = np.random.default_rng(0), Predictor(threads=1), []
    small = [Image.fromarray((255 * skimage.data.lfw_subset()[index]).astype(np.uint8)) for index in STILLS]
    for index, still in enumerate([*(each.convert("RGB").resize((200, 200)) for each in small), portrait(200)]):
        base = np.full((240, 320, 1), 90.0) + np.zeros(3)
        base[20:220, 60:260] = np.asarray(still)
        grain = (np.clip(base + random.normal(0, GRAIN, (240, 320, 1)), 0, 255) for _ in range(round(seconds * RATE)))
        clip = write(folder / f"still{index}.mp4", (picture.astype(np.uint8) for picture in grain))
        shown = [frame.faces[0].face.probabilities for frame in predictor.video(clip) if frame.faces]
        if shown:
            stills.append(np.array(shown))
    yield f"{'smoothing, s':<18}{'changes a minute':>18}{'delay, s':>10}  of {len(stills)} faces"
    leading = [still.mean(0).argmax() for still in stills]
    for constant in CONSTANTS:
        changes = [np.count_nonzero(np.diff(smoothed(Smoother(constant), still))) for still in stills]
        minutes = sum(map(len, stills)) / RATE / 60
        delays = []
        for one, first in zip(stills, leading, strict=True):
            for other, second in zip(stills, leading, strict=True):
                if first != second:
                    answers = smoothed(Smoother(constant), np.concatenate([one, other]))[len(one) :]
                    delays.append(int(np.argmax(answers == second)) / RATE)
        yield f"{constant:<18g}{sum(changes) / minutes:>18.1f}{statistics.mean(delays):>10.2f}"


def smoothed(smoother, probabilities: np.ndarray) -> np.ndarray:
    """The leading emotion of each frame."""
    return np.array([smoother.update(1, at / RATE, each).argmax() for at, each in enumerate(probabilities)])


def run(args: argparse.Namespace) -> int:
    from bench import common

    print(common.header())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        clips = {count: write(folder / f"{count}.mp4", moving(count, args.seconds)) for count in (1, 5)}
        for count, clip in clips.items():
            found = ways.compare("video.py", WAYS, lambda clip=clip: {"clip": clip}, args, folder)
            print(f"{f'faces: {count}':<18}{'frames/s':>12}{'of the plain loop':>19}{'MiB':>8}{'faces a frame':>15}")
            for way, row in found.items():
                share = row["rate"] / found["plain"]["rate"]
                figures = f"{row['rate']:>12.1f}{share:>19.2f}{row['peak']:>8.0f}{row['faces']:>15.2f}"
                print(f"{way:<18}{figures}", flush=True)
        crossing = write(folder / "crossing.mp4", moving(5, args.seconds, reach=150))
        for name, clip in (("apart", clips[5]), ("crossing", crossing)):
            for line in compare_intervals(name, clip):
                print(line, flush=True)
        for line in compare_constants(folder, args.seconds):
            print(line, flush=True)
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser("-m bench.video", __doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=6, help="length of a clip (6)")
    return ways.main(argv, parser, measure, run)


if __name__ == "__main__":
    sys.exit(main())
