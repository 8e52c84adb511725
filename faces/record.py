"""What is written about a video while its frames come: a table, a film with the answers drawn in, and a summary.

Everything is written as it comes, to files that are readable at any moment: after a kill or on a full disk what was
done is in NAME.csv.part and NAME.part.mp4 (in fragments).
"""

import csv
import glob
import heapq
import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from errors import counted, write_file, write_png
from faces.draw import mark
from faces.face import Frame
from faces.tables import PLACE
from faces.timeline import SMOOTH, draw_timelines
from faces.video import Reader, import_av

if TYPE_CHECKING:
    import av

BEFORE = ("seconds", "duration", "track", *PLACE, "answer", "prediction", "probability")
MOST_PICTURES = 20  # timelines: of the faces that were seen for the longest time
CLOCK = 90_000  # ticks of the film per second: any usual time stamp is exact to 6 microseconds
KEYFRAME_SECONDS = 2
ENCODER = {"preset": "veryfast", "crf": "21", "bf": "0"}  # a film with B-frames in fragments would start late
COPIED = frozenset(("aac", "mp3", "opus", "flac"))  # sound that browsers play from mp4; other sound becomes AAC


class Film:
    """An H.264 mp4 that browsers play: the frames with the answers drawn in, at their own times, and the sound."""

    def __init__(self, path: Path, rate: float) -> None:
        self.av = import_av()
        self.path, self.begin = path, 0.0
        self.part, self.end = path.with_name(f"{path.stem}.part.mp4"), 0.0
        options = {"movflags": "frag_keyframe+empty_moov+default_base_moof", "flush_packets": "1"}
        self.file = self.av.open(str(self.part), "w", format="mp4", options=options)
        self.rate = min(max(rate, 1.0), 240.0)
        self.stream: av.VideoStream | None = None

    def write(self, frame: Frame) -> None:
        image = mark(frame.image, [(f"{each.track}", each.smooth) for each in frame.faces])
        height, width = (side // 2 * 2 for side in image.shape[:2])  # as yuv420p needs it
        if self.stream is None:
            self.begin = frame.seconds
            self.stream = self.file.add_stream("libx264", rate=Fraction(self.rate).limit_denominator(1001))
            self.stream.width, self.stream.height, self.stream.pix_fmt = width, height, "yuv420p"
            self.stream.options = ENCODER | {"g": str(round(KEYFRAME_SECONDS * self.rate))}
            self.stream.time_base = self.stream.codec_context.time_base = Fraction(1, CLOCK)
        picture = self.av.VideoFrame.from_ndarray(np.ascontiguousarray(image[:height, :width]), format="rgb24")
        picture.pts, picture.time_base = round(frame.seconds * CLOCK), Fraction(1, CLOCK)
        self.file.mux(self.stream.encode(picture))
        self.end = frame.seconds + frame.duration

    def finish(self, reader: Reader) -> str:
        """Close the film and give it the sound of `reader`; why there is none, or nothing."""
        if self.stream is not None:
            self.file.mux(self.stream.encode())
        self.file.close()
        if self.stream is None:
            self.part.unlink()
            return ""
        temporary, problem = self.path.with_name(f".{self.path.name}.tmp"), ""
        try:
            try:
                self._join(temporary, reader if reader.sounds else None)
            except (self.av.error.FFmpegError, ValueError) as error:
                if not reader.sounds or isinstance(error, OSError):
                    raise
                problem = f"the sound is left out: {error}"
                self._join(temporary, None)
            os.replace(temporary, self.path)
        finally:
            temporary.unlink(missing_ok=True)
        self.part.unlink()
        return problem

    def _join(self, target: Path, reader: Reader | None) -> None:
        """Write the film to `target`, its index first, with the sound of `reader`."""
        with (
            self.av.open(str(self.part)) as film,
            self.av.open(str(target), "w", format="mp4", options={"movflags": "faststart"}) as out,
        ):
            stream = out.add_stream_from_template(film.streams.video[0])
            packets = [self._packets(film, film.streams.video[0], stream)]
            if reader is None:
                for packet in packets[0]:
                    out.mux(packet)
                return
            with self.av.open(reader.source, metadata_errors="replace") as source:
                packets.append(self._sound(source, source.streams.audio[0], out, reader.start))
                for packet in heapq.merge(*packets, key=lambda packet: packet.dts * packet.time_base):
                    out.mux(packet)

    def _packets(self, source: Any, stream: Any, target: Any) -> "Iterator[av.Packet]":
        shift = None  # a film in fragments begins at 0, whenever its first frame is shown
        for packet in source.demux(stream):
            if packet.dts is not None:
                shift = round(self.begin / packet.time_base) - packet.pts if shift is None else shift
                packet.pts, packet.dts, packet.stream = packet.pts + shift, packet.dts + shift, target
                yield packet

    def _sound(self, source: Any, stream: Any, out: Any, start: float) -> "Iterator[av.Packet]":
        """The sound from `start` on until the film ends, copied, or encoded again as AAC."""
        copied = stream.codec_context.name.removesuffix("float") in COPIED
        target = out.add_stream_from_template(stream) if copied else out.add_stream("aac", rate=stream.rate)

        def packets() -> "Iterator[av.Packet]":
            for packet in source.demux(stream):
                if packet.dts is not None and packet.dts * packet.time_base - start > self.end:
                    break
                if copied and packet.dts is not None:
                    back = round(start / packet.time_base)
                    packet.pts, packet.dts, packet.stream = packet.pts - back, packet.dts - back, target
                    yield packet
                elif not copied:
                    for frame in packet.decode():
                        if frame.pts is not None:
                            frame.pts -= round(start / frame.time_base)
                        yield from target.encode(frame)
            if not copied:
                yield from target.encode()

        return packets()


class Times:
    """When each track was seen, and for how many seconds with which answer."""

    def __init__(self) -> None:
        self.seconds = self.empty = 0.0  # of the video so far, and of it without a face
        self.frames = 0
        self.tracks: dict[int, dict[str, Any]] = {}

    def write(self, frame: Frame) -> None:
        self.frames += 1
        self.seconds = frame.seconds + frame.duration
        self.empty += 0 if frame.faces else frame.duration
        for number, _, smooth in frame.faces:
            track = self.tracks.setdefault(number, {"first": frame.seconds, "answers": Counter()})
            track["last"] = self.seconds
            track["answers"][smooth.answer] += frame.duration

    def shares(self, track: int) -> dict[str, float]:
        """The share of each answer in the time for which the track was seen, the largest first."""
        answers = self.tracks[track]["answers"]
        return {answer: round(time / max(self.seen(track), 1e-9), 4) for answer, time in answers.most_common()}

    def seen(self, track: int) -> float:
        return sum(self.tracks[track]["answers"].values())

    def longest(self, most: int) -> list[int]:
        """The tracks that were seen for the longest time, at most `most`, in order of their numbers."""
        return sorted(sorted(self.tracks, key=self.seen, reverse=True)[:most])

    def summary(self) -> dict[str, Any]:
        """All of it, in seconds."""
        times = {
            track: {"first": each["first"], "last": each["last"], "seconds": self.seen(track)}
            for track, each in self.tracks.items()
        }
        tracks = [
            {"track": track, **{name: round(value, 3) for name, value in each.items()}, "shares": self.shares(track)}
            for track, each in times.items()
        ]
        known = {"seconds": round(self.seconds, 3), "frames": self.frames, "without_face": round(self.empty, 3)}
        return {**known, "tracks": tracks}


class Recorder:
    """Everything that is written about one video, beside each other in a folder, under one name.

    The CSV file has a row per face and frame; `answer`, `prediction` and `probability` are of the smoothed ones.
    """

    def __init__(self, base: Path, reader: Reader, classes: Sequence[str], *, film: bool = True) -> None:
        """`base` is the path of the files without an ending. Raises OSError where they cannot be made."""
        self.base, self.reader, self.times = base, reader, Times()
        base.parent.mkdir(parents=True, exist_ok=True)
        self.file = open(f"{base}.csv.part", "w", encoding="utf-8", newline="")  # noqa: SIM115 (closed in `close`)
        self.writer = csv.writer(self.file, lineterminator="\n")
        self.writer.writerow([*BEFORE, *classes, *(f"{SMOOTH}{name}" for name in classes), "note"])
        self.film = Film(Path(f"{base}.mp4"), reader.rate / reader.every) if film else None

    def write(self, frame: Frame) -> None:
        for track, face, smooth in frame.faces:
            place = [f"{value:.2f}" for value in face.box[:5]]
            values = [f"{value:.6f}" for value in (smooth.probability, *face.probabilities, *smooth.probabilities)]
            told = [smooth.answer, smooth.emotion, *values, ", ".join(face.notes)]
            self.writer.writerow([f"{frame.seconds:.6f}", f"{frame.duration:.6f}", track, *place, *told])
        self.file.flush()
        self.times.write(frame)
        if self.film:
            self.film.write(frame)

    def finish(self) -> list[str]:
        """Complete the files with what was written so far; return notes. Raises OSError and UserError."""
        self.file.close()
        table = Path(f"{self.base}.csv")
        os.replace(self.file.name, table)
        notes = [self.film.finish(self.reader)] if self.film else []
        text = json.dumps({"file": self.reader.source, **self.times.summary()}, indent=2) + "\n"
        write_file(Path(f"{self.base}.json"), text.encode())
        for old in self.base.parent.glob(f"{glob.escape(self.base.name)}-track[0-9]*.png"):
            old.unlink()  # of an earlier run, with other faces
        tracks, name = self.times.longest(MOST_PICTURES), Path(self.reader.source).name
        for track, picture in draw_timelines(table, tracks, self.times.seconds, name):
            write_png(picture, Path(f"{self.base}-track{track}.png"))
        if left := len(self.times.tracks) - len(tracks):
            notes.append(f"no timeline of {counted(left, 'face')} that were seen for a shorter time")
        return [note for note in notes if note]

    def close(self) -> None:
        """Close what is open, after an error; what was written so far stays, in the files that end in part."""
        with suppress(OSError):
            self.file.close()
        if self.film:
            with suppress(OSError):
                self.film.file.close()
