"""A picture per track of a video: the seven smoothed probabilities over time, and the answer as a band."""

import io
from collections.abc import Iterator

import numpy as np
from PIL import Image, ImageDraw

from config import CLASSES
from faces.draw import COLOURS, font
from faces.face import Frame

MOST_POINTS = 8192  # of a track; then every second one goes: a picture has 1,400 columns
MOST_PICTURES, LEAST_SECONDS = 20, 1.0  # the longest tracks get one
WIDTH, CURVES, BAND, LEFT, TOP, BELOW, RIGHT = 1400, 300, 30, 60, 44, 76, 36  # pixels
FINE = 2  # drawn so many times as large, for smooth curves
INK, LINES, UNSEEN = "#222222", "#dddddd", "#eeeeee"
STEPS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200, 14400)  # seconds of an axis


class Timelines:
    """Collects the points of all tracks; memory is bounded for each."""

    def __init__(self) -> None:
        self.tracks: dict[int, _Points] = {}
        self.shown = 0
        self.before: set[int] = set()  # tracks of the last frame

    def write(self, frame: Frame) -> None:
        for track, _, smooth in frame.faces:
            points = self.tracks.setdefault(track, _Points())
            points.add(frame.seconds, frame.duration, smooth.answer, smooth.probabilities, track not in self.before)
        self.before = {each.track for each in frame.faces}

    def pictures(self, seconds: float, name: str) -> Iterator[tuple[int, bytes]]:
        """The PNG of every track that is long enough; all of them have the same axis, 0 to `seconds`."""
        long = [track for track, points in self.tracks.items() if points.seconds >= min(LEAST_SECONDS, seconds / 2)]
        chosen = sorted(long, key=lambda track: -self.tracks[track].seconds)[:MOST_PICTURES]
        self.shown = len(chosen)
        for track in sorted(chosen):
            buffer = io.BytesIO()
            draw_timeline(self.tracks[track], seconds, f"{name}, face {track}").save(buffer, "PNG")
            yield track, buffer.getvalue()


class _Points:
    """(start, end, answer, probabilities, whether the track was not there before) of a track, in order."""

    def __init__(self) -> None:
        self.rows: list[list] = []
        self.stride, self.skipped, self.seconds = 1, 0, 0.0

    def add(self, start: float, duration: float, answer: str, probabilities: np.ndarray, new: bool) -> None:
        self.seconds += duration
        if not new and self.skipped + 1 < self.stride:
            self.skipped += 1
            self.rows[-1][1] = start + duration
            return
        self.skipped = 0
        self.rows.append([start, start + duration, answer, probabilities, new])
        if len(self.rows) > MOST_POINTS:
            self.stride *= 2
            kept: list[list] = []
            for row in self.rows:
                if kept and not row[4] and kept[-1][5] == 0:
                    kept[-1][1], kept[-1][5] = row[1], 1
                else:
                    kept.append([*row, 0])
            self.rows = [row[:5] for row in kept]


def draw_timeline(points: _Points, seconds: float, title: str) -> Image.Image:
    """The picture of one track of a video of so many seconds."""
    size = (FINE * WIDTH, FINE * (TOP + BAND + CURVES + BELOW))
    picture = Image.new("RGB", size, "white")
    draw, text = ImageDraw.Draw(picture), font(15 * FINE)
    across = (WIDTH - LEFT - RIGHT) * FINE / max(seconds, 1e-9)
    left, band, top = LEFT * FINE, TOP * FINE, (TOP + BAND + 10) * FINE
    high = (CURVES - 10) * FINE

    def x(at: float) -> float:
        return left + at * across

    draw.text((left, 22 * FINE), title, INK, font(18 * FINE), anchor="lm")
    draw.rectangle((left, band, x(seconds), top + high), fill=UNSEEN)
    runs: list[list[list]] = []
    for row in points.rows:
        if row[4] or not runs:
            runs.append([])
        runs[-1].append(row)
    for run in runs:
        draw.rectangle((x(run[0][0]), top, x(run[-1][1]), top + high), fill="white")
    _axes(draw, text, seconds, x, top, high)
    for run in runs:
        for row, after in zip(run, [*run[1:], None], strict=True):
            draw.rectangle(
                (x(row[0]), band, x(after[0] if after else row[1]), band + BAND * FINE), fill=COLOURS[row[2]]
            )
        for index, name in enumerate(CLASSES):
            line = [(x(row[0]), top + high * (1 - float(row[3][index]))) for row in run]
            line.append((x(run[-1][1]), line[-1][1]))
            draw.line(line, COLOURS[name], 2 * FINE, joint="curve")
    draw.rectangle((left, band, x(seconds), band + BAND * FINE), outline=INK)
    _legend(draw, text, left, size[1] - 20 * FINE)
    return picture.resize((WIDTH, size[1] // FINE), Image.Resampling.LANCZOS)


def _axes(draw, text, seconds: float, x, top: float, high: float) -> None:
    for share in (0.0, 0.5, 1.0):
        y = top + high * (1 - share)
        draw.line((x(0), y, x(seconds), y), LINES, FINE)
        draw.text((x(0) - 8 * FINE, y), f"{share:g}", INK, text, anchor="rm")
    step = next((step for step in STEPS if seconds / step <= 12), STEPS[-1])
    for number in range(int(seconds / step + 1e-6) + 1):
        at = number * step
        draw.line((x(at), top, x(at), top + high + 5 * FINE), LINES, FINE)
        draw.text((x(at), top + high + 16 * FINE), clock(at, step), INK, text, anchor="mm")


def _legend(draw, text, left: float, y: float) -> None:
    for name, colour in {**COLOURS, "not seen": UNSEEN}.items():
        draw.rectangle((left, y - 7 * FINE, left + 22 * FINE, y + 7 * FINE), fill=colour, outline=INK)
        draw.text((left + 30 * FINE, y), name, INK, text, anchor="lm")
        left += 54 * FINE + text.getlength(name)


def clock(seconds: float, step: float = 1) -> str:
    """1:02:03, 2:03, or with a step below a second 2:03.5."""
    whole = int(seconds + 1e-6)
    hours, minutes = whole // 3600, whole // 60 % 60
    part = f".{round((seconds - whole) * 10):d}" if step < 1 else ""
    return (f"{hours}:{minutes:02}" if hours else f"{minutes}") + f":{whole % 60:02}{part}"
