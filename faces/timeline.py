"""A picture per track of a video, made from its table: smoothed probabilities over time, the answer as a band."""

import csv
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageColor, ImageDraw

from faces.draw import colours, font

WIDTH, CURVES, BAND, LEFT, TOP, BELOW, RIGHT = 1400, 300, 30, 60, 44, 76, 36  # pixels
FINE = 2  # drawn so many times as large, for smooth curves
INK, LINES, UNSEEN = "#222222", "#dddddd", "#eeeeee"
STEPS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200, 14400)  # seconds of an axis
SMOOTH = "smooth_"  # in front of a class: the column of its smoothed probability
COLUMNS = (WIDTH - LEFT - RIGHT) * FINE  # of the axis


def draw_timelines(table: Path, tracks: Sequence[int], seconds: float, name: str) -> Iterator[tuple[int, Image.Image]]:
    """The picture of each of `tracks` in the CSV file `table`; all have the same axis, 0 to `seconds`.

    The table is read once, line by line, so memory does not grow with the video.
    """
    scale = COLUMNS / max(seconds, 1e-9)
    with open(table, encoding="utf-8", newline="") as file:
        rows = csv.reader(file)
        place = {column: index for index, column in enumerate(next(rows))}
        first_class = min(index for column, index in place.items() if column.startswith(SMOOTH))
        classes = tuple(column.removeprefix(SMOOTH) for column in list(place)[first_class:-1])
        order = list(colours(classes))
        answers = {track: np.zeros((COLUMNS, len(order)), int) for track in tracks}
        sums = {track: np.zeros((COLUMNS, len(classes))) for track in tracks}
        for row in rows:
            if (track := int(row[place["track"]])) in sums:
                start = float(row[place["seconds"]])
                end = start + float(row[place["duration"]])
                columns = slice(min(int(start * scale), COLUMNS - 1), math.ceil(end * scale))
                answers[track][columns, order.index(row[place["answer"]])] += 1
                sums[track][columns] += [float(value) for value in row[first_class : first_class + len(classes)]]
    for track in tracks:
        yield track, _draw(answers[track], sums[track], colours(classes), seconds, f"{name}, face {track}")


def _draw(answers: np.ndarray, sums: np.ndarray, shown: dict[str, str], seconds: float, title: str) -> Image.Image:
    """The picture of one track: how often each answer was given in each column, the sums of its probabilities.

    `shown` are the answers and their colours: the classes, then "not sure".
    """
    counts = answers.sum(1)
    seen = counts > 0
    high, left, band, top = (FINE * pixels for pixels in (CURVES - 10, LEFT, TOP, TOP + BAND + 10))
    pixels = np.full((FINE * (TOP + BAND + CURVES + BELOW), FINE * WIDTH, 3), 255, np.uint8)
    rgb = np.array([ImageColor.getrgb(colour) for colour in (*shown.values(), UNSEEN)], np.uint8)
    pixels[band : top + high, left : left + COLUMNS][:, ~seen] = rgb[-1]
    pixels[band : band + BAND * FINE, left : left + COLUMNS] = rgb[np.where(seen, answers.argmax(1), -1)]
    picture = Image.fromarray(pixels)
    draw, text = ImageDraw.Draw(picture), font(15 * FINE)
    draw.text((left, 22 * FINE), title, INK, font(18 * FINE), anchor="lm")
    _axes(draw, text, seconds, left, top, high)
    edges = np.flatnonzero(np.diff(seen, prepend=False, append=False))
    for start, end in edges.reshape(-1, 2):
        means = sums[start:end] / counts[start:end, None]
        for index, colour in enumerate(list(shown.values())[: sums.shape[1]]):
            line = [(left + start + at, top + high * (1 - value)) for at, value in enumerate(means[:, index])]
            draw.line([*line, (left + end, line[-1][1])], colour, 2 * FINE, joint="curve")
    draw.rectangle((left, band, left + COLUMNS, band + BAND * FINE), outline=INK)
    _legend(draw, text, shown, left, picture.height - 20 * FINE)
    return picture.resize((WIDTH, picture.height // FINE), Image.Resampling.LANCZOS)


def _axes(draw, text, seconds: float, left: float, top: float, high: float) -> None:
    for share in (0.0, 0.5, 1.0):
        y = top + high * (1 - share)
        draw.line((left, y, left + COLUMNS, y), LINES, FINE)
        draw.text((left - 8 * FINE, y), f"{share:g}", INK, text, anchor="rm")
    step = next((step for step in STEPS if seconds / step <= 12), STEPS[-1])
    for number in range(int(seconds / step + 1e-6) + 1):
        x = left + number * step * COLUMNS / max(seconds, 1e-9)
        draw.line((x, top, x, top + high + 5 * FINE), LINES, FINE)
        draw.text((x, top + high + 16 * FINE), clock(number * step, step), INK, text, anchor="mm")


def _legend(draw, text, shown: dict[str, str], left: float, y: float) -> None:
    for name, colour in {**shown, "not seen": UNSEEN}.items():
        draw.rectangle((left, y - 7 * FINE, left + 22 * FINE, y + 7 * FINE), fill=colour, outline=INK)
        draw.text((left + 30 * FINE, y), name, INK, text, anchor="lm")
        left += 54 * FINE + text.getlength(name)


def clock(seconds: float, step: float = 1) -> str:
    """1:02:03, 2:03, or with a step below a second 2:03.5."""
    whole = int(seconds + 1e-6)
    hours, minutes = whole // 3600, whole // 60 % 60
    part = f".{round((seconds - whole) * 10):d}" if step < 1 else ""
    return (f"{hours}:{minutes:02}" if hours else f"{minutes}") + f":{whole % 60:02}{part}"
