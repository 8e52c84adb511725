"""Read a video, and follow the faces in it.

    with Reader("clip.mp4") as reader:
        for part in follow(reader, Detector().find):
            for picture, seen in part:
                print(picture.seconds, [(track, box) for track, box in seen])

Faces are searched in a picture every DETECT_SECONDS. Where two such pictures show the same faces, not far moved, the
boxes between are interpolated; else the picture in the middle is searched too, and so on. So a face that comes or goes
and a cut are found to the picture. Only a face that is seen for less than DETECT_SECONDS can be missed.
"""

import queue
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from errors import UserError, counted
from faces.detect import Box, overlap
from faces.track import Tracker, assign, between

if TYPE_CHECKING:
    import av

INSTALL = "python -m pip install av"
ENDINGS = r"mp4|m4v|mov|mkv|webm|avi|mpg|mpeg|ts|mts|m2ts|wmv|asf|flv|3gp|3g2|ogv|mxf|vob|dv"
DETECT_SECONDS = 0.25
MOST_BETWEEN = 15  # pictures that wait for the next search: memory
STEADY = 0.5  # the overlap of a face's boxes in two searched pictures, from which on those between are interpolated
AHEAD = 4  # pictures decoded ahead
MAX_PIXELS = 7680 * 4320

Seen = list[tuple[int, Box]]  # the faces in a picture: track and box


class Picture(NamedTuple):
    """A frame: its time and how long it is shown, in seconds, and its (H, W, 3) uint8 RGB pixels, upright."""

    seconds: float
    duration: float
    image: np.ndarray


def import_av() -> Any:
    """The module av (PyAV). Raises UserError where it is missing."""
    try:
        import av
    except ImportError as error:
        raise UserError(f"videos are read with PyAV, which is missing: {INSTALL}") from error
    return av


def is_video_name(name: str) -> bool:
    return re.search(rf"\.({ENDINGS})$", name, re.IGNORECASE) is not None


class Reader:
    """The pictures of a video, decoded in a thread: iterate over it once, in a `with` block.

    `every` takes each so-manieth frame. Times are those of the container, its edit lists applied, from its start on;
    pictures are turned as it says, and have the size of the first one. A camera or stream is `live`: a picture for
    which there is no time is left out. Raises UserError for what is no video.
    """

    def __init__(self, source: str | Path, *, every: int = 1, live: bool = False, format: str = "") -> None:
        self.source, self.every, self.live = str(source), every, live
        self.av = import_av()
        self.container = self._open(format)
        covers = self.av.stream.Disposition.attached_pic
        streams = [each for each in self.container.streams.video if not each.disposition & covers]
        if not streams:
            sound = " only sound" if self.container.streams.audio else ""
            self.container.close()
            raise UserError(f"{self.source}: there is no video in it{sound and ',' + sound}")
        self.stream = streams[0]
        if not live:
            self.stream.thread_type = "AUTO"
        self.sounds = list(self.container.streams.audio)[:1]
        # The time that players show as 0; before it there is at most what an encoder of sound needs
        self.start = 0.0 if live else max(0, self.container.start_time or 0) / self.av.time_base
        self.length = (self.container.duration or 0) / self.av.time_base  # in seconds; 0 where it is not known
        rate = float(self.stream.guessed_rate or self.stream.average_rate or 0)
        self.rate = rate if 0 < rate <= 1000 else 25.0  # frames per second, as the container claims
        self.size = (0, 0)  # width and height, of the first picture on
        self.damaged = self.untimed = self.resized = 0  # packets; frames
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> "Reader":
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        if self._thread:
            self._thread.join(10)
        if not (self._thread and self._thread.is_alive()):  # a camera may hang
            self.container.close()

    def __iter__(self) -> Iterator[Picture]:
        pictures: queue.Queue[Picture | BaseException | None] = queue.Queue(AHEAD)
        self._thread = threading.Thread(target=self._decode, args=[pictures], name="video", daemon=True)
        self._thread.start()
        while (found := pictures.get()) is not None:
            if isinstance(found, BaseException):
                raise found
            yield found

    def notes(self) -> list[str]:
        """What was wrong with the video so far."""
        notes = []
        if self.damaged:
            notes.append(f"{counted(self.damaged, 'part')} damaged and left out")
        if self.untimed:
            notes.append(f"{counted(self.untimed, 'frame')} without a usable time: the frame rate was used")
        if self.resized:
            notes.append(f"{counted(self.resized, 'frame')} of another size, brought to {self.size[0]}x{self.size[1]}")
        return notes

    def _open(self, format: str) -> "av.container.InputContainer":
        try:
            return self.av.open(self.source, format=format or None, metadata_errors="replace")
        except self.av.error.FFmpegError as error:
            if isinstance(error, self.av.error.InvalidDataError):
                raise UserError(f"{self.source}: no video, or damaged from its beginning") from error
            raise UserError(f"{self.source}: cannot be opened ({error.strerror})") from error

    def _decode(self, pictures: queue.Queue) -> None:
        """Put every picture into the queue, then None; or what was raised."""
        try:
            for picture in self._pictures():
                self._put(pictures, picture)
                if self._stopped.is_set():
                    return
            self._put(pictures, None)
        except self.av.error.FFmpegError as error:
            self._put(pictures, UserError(f"{self.source}: it cannot be decoded ({error.strerror})"))
        except BaseException as error:  # raised again by the reading thread
            self._put(pictures, error)

    def _put(self, pictures: queue.Queue, found: Picture | BaseException | None) -> None:
        while not self._stopped.is_set():
            try:
                return pictures.put(found, timeout=0 if self.live and isinstance(found, Picture) else 0.2)
            except queue.Full:
                if self.live and isinstance(found, Picture):
                    return None  # the newest picture is of use when the network is free again, not an old one
        return None

    def _pictures(self) -> Iterator[Picture]:
        """The pictures with their durations; each waits for the time of the next."""
        waiting, end = None, 0.0
        for number, (seconds, frame) in enumerate(self._frames()):
            end = seconds + (float(frame.duration * frame.time_base) if frame.duration else 1 / self.rate)
            if number % self.every:
                continue
            if waiting:
                yield Picture(waiting[0], seconds - waiting[0], waiting[1])
            waiting = seconds, self._pixels(frame)
        if waiting:
            yield Picture(waiting[0], max(end - waiting[0], 0.0), waiting[1])

    def _frames(self) -> "Iterator[tuple[float, av.VideoFrame]]":
        last = -1 / self.rate
        first = None
        for frames in self._decoded():
            for frame in frames:
                if self._stopped.is_set():
                    return
                seconds = None if frame.time is None else frame.time - self.start
                if self.live and seconds is not None:
                    first = seconds if first is None else first
                    seconds -= first
                if seconds is None or seconds <= last:
                    self.untimed += 1
                    seconds = last + 1 / self.rate
                last = seconds
                yield seconds, frame

    def _decoded(self) -> "Iterator[list[av.VideoFrame]]":
        """The frames in each packet; one that is damaged is left out and counted."""
        packets = self.container.demux(self.stream)
        while True:
            try:
                packet = next(packets, None)
            except (self.av.error.FFmpegError, EOFError):  # the rest cannot be found, or a camera was unplugged
                self.damaged += 1
                return
            if packet is None:
                return
            try:
                yield packet.decode()
            except (self.av.error.InvalidDataError, EOFError):
                self.damaged += 1

    def _pixels(self, frame: "av.VideoFrame") -> np.ndarray:
        turns = round(frame.rotation / 90) % 4
        shape = self.stream.sample_aspect_ratio or Fraction(1)  # of a pixel
        width, height = round(frame.width * shape), frame.height
        if width * height > MAX_PIXELS:
            raise UserError(f"{self.source}: {width}x{height} pixels are more than the largest video, 8K")
        size = (width, height)[:: -1 if turns % 2 else 1]
        if self.size == (0, 0):
            self.size = size
        elif size != self.size:
            self.resized += 1
        wide, high = self.size[:: -1 if turns % 2 else 1]
        pixels = frame.to_ndarray(format="rgb24", width=wide, height=high)
        return np.ascontiguousarray(np.rot90(pixels, turns)) if turns else pixels


# --- Tracks ---


def follow(
    pictures: Iterable[Picture], find: Callable[[np.ndarray], Sequence[Box]], *, detect_seconds: float = DETECT_SECONDS
) -> Iterator[list[tuple[Picture, Seen]]]:
    """Yield the pictures, some at a time and in order, each with the track and the box of every face in it.

    `find` gives the boxes of the faces in an image; it is called at least every `detect_seconds` (0: for each picture).
    """
    tracker, part, found = Tracker(), [], {}  # found: boxes by the number of their picture in `part`

    def tracked(after: int) -> list[tuple[Picture, Seen]]:
        boxes = [found[number] for number in range(after, len(part))]
        numbers = [tracker.update(each.seconds, some) for each, some in zip(part[after:], boxes, strict=True)]
        seen = [list(zip(*each, strict=True)) for each in zip(numbers, boxes, strict=True)]
        return list(zip(part[after:], seen, strict=True))

    for picture in pictures:
        part.append(picture)
        passed = picture.seconds + picture.duration - part[0].seconds
        if not found or passed > detect_seconds or len(part) > MOST_BETWEEN:
            last, known = len(part) - 1, len(found)
            found[last] = find(picture.image)
            _fill(part, found, 0, last, find)
            yield tracked(known)
            part, found = [picture], {0: found[last]}
    if len(part) > 1:
        last = len(part) - 1
        found[last] = find(part[last].image)
        _fill(part, found, 0, last, find)
        yield tracked(1)


def _fill(part: list[Picture], found: dict[int, Sequence[Box]], first: int, last: int, find: Callable) -> None:
    """Find the boxes between two searched pictures.

    If they show the same faces, not far moved, the boxes are interpolated; else the picture in the middle is searched.
    """
    if last - first < 2:
        return
    pairs = assign(np.array([[overlap(one, other) for other in found[last]] for one in found[first]]))
    near = [(found[first][one], found[last][other]) for one, other in pairs]
    if len(near) == len(found[first]) == len(found[last]) and all(overlap(*pair) >= STEADY for pair in near):
        for number in range(first + 1, last):
            share = (part[number].seconds - part[first].seconds) / (part[last].seconds - part[first].seconds)
            found[number] = [between(*pair, share) for pair in near]
        return
    middle = (first + last) // 2
    found[middle] = find(part[middle].image)
    _fill(part, found, first, middle, find)
    _fill(part, found, middle, last, find)
