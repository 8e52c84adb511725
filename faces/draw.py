"""Pictures of the answers: a photo with its faces marked, and a contact sheet of many faces.

Whatever is written is a block, a small image of its own, placed beside a face or in a strip below the photo.
"""

import functools
import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageColor, ImageDraw, ImageFont

from config import CLASSES
from faces.face import NOT_SURE, Face
from plots import ink_on

# Colours of Okabe and Ito, which colour-blind readers can distinguish too
OKABE_ITO = ("#d55e00", "#009e73", "#cc79a7", "#e69f00", "#0072b2", "#56b4e9", "#a6a6a6", "#ffffff")
COLOURS = dict(zip((*CLASSES, NOT_SURE), OKABE_ITO, strict=True))
PANEL, TRACK = "#1b1e22", "#43484e"  # behind the bars: the chart, and the rest of a bar up to probability 1
HEAT = ((87, 16, 110), (188, 55, 84), (249, 142, 9), (252, 255, 164))  # matplotlib's inferno without its black end
LEAST_SIDE = 640  # pixels: a smaller photo is enlarged before anything is written on it
LEAST_TEXT = 13  # pixels
MAX_CARDS = 12  # faces that get a chart; with more, words only
TILE, GAP, SHEET_TEXT = 96, 14, 13  # pixels of a contact sheet
MAX_TILES = 200


def annotate(image: np.ndarray, faces: Sequence[Face], maps: Sequence[np.ndarray] | None = None) -> Image.Image:
    """Return a copy of the photo with a box, the answer and a bar chart of the probabilities for each face.

    `image` is (H, W, 3) uint8 RGB; below LEAST_SIDE it is enlarged by a whole factor. `maps` are activation maps of the
    likeliest class, for each face an (H', W') float array that covers its `pixels`; they are shown in a strip below.
    Charts are beside the faces if all of them fit there and hide no face, else in the strip. Where not even the words
    fit, the faces are numbered and the words are in the strip. Without a face, the strip says so.
    """
    photo = Image.fromarray(image)
    factor = max(1, math.ceil(LEAST_SIDE / max(photo.size)))
    if factor > 1:
        photo = photo.resize((factor * photo.width, factor * photo.height), Image.Resampling.BICUBIC)
    least = max(LEAST_TEXT, max(photo.size) // 100)
    boxes = [np.rint(factor * np.array(face.box[:4] if face.box else (0, 0, *image.shape[1::-1]))) for face in faces]
    sizes = [round(min(max(box[2] / 8, least), 2.2 * least)) for box in boxes]
    lines = [max(2, size // 7) for size in sizes]
    frames = [(box + line * np.array((-1, -1, 2, 2))).astype(int) for box, line in zip(boxes, lines, strict=True)]
    size_below = round(max(LEAST_TEXT, min(1.5 * least, photo.width / 25)))
    beside, below = _layout(faces, sizes, frames, photo.size, maps, size_below)
    picture = _stack([photo, _rows(below, photo.width, least)])
    draw = ImageDraw.Draw(picture)
    for face, (x, y, width, height), line in zip(faces, frames, lines, strict=True):
        if face.box:
            draw.rectangle((x, y, x + width - 1, y + height - 1), outline=COLOURS[face.answer], width=line)
    for block, place in beside:
        picture.paste(block, place)
    return picture


def sheet(faces: Sequence[tuple[str, Face]], *, columns: int = 10) -> Image.Image:
    """Return a contact sheet of (file name, face): the answers in the order of config.CLASSES, then "not sure".

    The most probable come first. Of more than MAX_TILES faces, each answer shows at most the same number, and says so.
    """
    groups = {answer: [pair for pair in faces if pair[1].answer == answer] for answer in COLOURS}
    most = MAX_TILES
    while sum(min(most, len(group)) for group in groups.values()) > MAX_TILES:
        most -= 1
    width, parts = columns * (TILE + GAP) + GAP, []
    for answer, group in groups.items():
        group.sort(key=lambda pair: -pair[1].probability)
        left_out = f", the {most} most probable" if len(group) > most else ""
        heading = _label(f"{answer}: {len(group):,}{left_out}", answer, round(1.4 * SHEET_TEXT), width - 2 * GAP)
        if group:
            parts += [_rows([heading], width, GAP), _rows([_tile(*pair) for pair in group[:most]], width, GAP)]
    return _stack(parts or [_rows([_label("no face found", NOT_SURE, 2 * SHEET_TEXT)], width, GAP)])


def _layout(faces, sizes, frames, photo_size, maps, size_below) -> tuple[list, list[Image.Image]]:
    """Return (block, (x, y)) of what is written in the photo, and the blocks of the strip below it."""
    if not faces:
        return [], [_label("no face found", NOT_SURE, size_below)]
    few = len(faces) <= MAX_CARDS or maps is not None
    each = list(zip(faces, sizes, strict=True))
    if few and maps is None:
        cards = [_card(face, _words(face), size) for face, size in each]
        if beside := _arrange(cards, frames, photo_size, sideways=True):
            return beside, []
    numbers = [f"{number} " if len(faces) > 1 else "" for number in range(1, len(faces) + 1)]
    below = [
        _card(face, number + _words(face), size_below, None if maps is None else maps[index])
        if few
        else _label(number + _words(face), face.answer, size_below)
        for index, (face, number) in enumerate(zip(faces, numbers, strict=True))
    ]
    words = [face.answer for face in faces]
    full = [
        _words(face) if frame[2] > 6 * size else face.answer for (face, size), frame in zip(each, frames, strict=True)
    ]
    for texts in (full, words):
        if few:
            texts = [number + text for number, text in zip(numbers, texts, strict=True)]
        labels = [_label(text, face.answer, size) for text, (face, size) in zip(texts, each, strict=True)]
        if beside := _arrange(labels, frames, photo_size):
            return beside, below if few else []
    tags = [_label(number.strip(), face.answer, size) for number, (face, size) in zip(numbers, each, strict=True)]
    return _arrange(tags, frames, photo_size, corner=True) if len(faces) > 1 else [], below


def _arrange(blocks, frames, photo_size, *, sideways: bool = False, corner: bool = False) -> list:
    """Return each block with a place (x, y) that touches its frame, is inside the photo, and hides no face or block.

    Empty if one of them has no such place; with `corner` it goes into the corner of its own frame. Above and below the
    frame are tried first, or with `sideways` right and left.
    """
    taken, placed = np.array(frames), []
    for block, (x, y, width, height) in zip(blocks, frames, strict=True):
        wide, high = block.size
        beside = [(x + width, y), (x - wide, y)]
        stacked = [(x, y - high), (x, y + height)]
        lefts, tops, widths, heights = taken.T
        for left, top in beside + stacked if sideways else stacked + beside:
            left, top = max(0, min(left, photo_size[0] - wide)), max(0, min(top, photo_size[1] - high))
            apart = (left + wide <= lefts) | (lefts + widths <= left) | (top + high <= tops) | (tops + heights <= top)
            if apart.all() and left + wide <= photo_size[0] and top + high <= photo_size[1]:
                break
        else:
            if not corner:
                return []
            left, top = max(0, x), max(0, y)
        placed.append((block, (int(left), int(top))))
        taken = np.vstack([taken, (left, top, wide, high)])
    return placed


def _words(face: Face) -> str:
    return ("" if face.sure else f"{NOT_SURE}: ") + f"{face.emotion} {face.probability:.2f}"


@functools.cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.load_default(size=size)


def _label(text: str, answer: str, size: int, width: int = 0) -> Image.Image:
    """Text on the answer's colour, at least `width` pixels wide."""
    width = max(width, math.ceil(_font(size).getlength(text) + 0.8 * size))
    block = Image.new("RGB", (width, round(1.4 * size)), COLOURS[answer])
    ink = ink_on(np.array(ImageColor.getrgb(COLOURS[answer])) / 255)
    ImageDraw.Draw(block).text((0.4 * size, 0.7 * size), text, ink, _font(size), anchor="lm")
    return block


def _card(face: Face, text: str, size: int, heat: np.ndarray | None = None) -> Image.Image:
    """A label, a bar per class below it, and with `heat` the face beside them, without and with its activation map."""
    small = max(LEAST_TEXT - 2, round(0.75 * size))
    step, pad, bar = round(1.2 * small), small // 2, 8 * small
    names = math.ceil(max(_font(small).getlength(name) for name in CLASSES))
    high = len(CLASSES) * step + 2 * pad
    pictures = [] if heat is None else _explain(face, heat, high)
    head = _label(text, face.answer, size, len(pictures) * high + names + bar + 3 * pad)
    card = Image.new("RGB", (head.width, head.height + high), PANEL)
    for place, picture in enumerate(pictures):
        card.paste(picture, (place * high, head.height))
    card.paste(head)
    draw, left = ImageDraw.Draw(card), len(pictures) * high + pad
    for row, (name, value) in enumerate(zip(CLASSES, face.probabilities, strict=True)):
        middle, start = head.height + pad + (row + 0.5) * step, left + names + pad
        draw.text((left, middle), name, "white", _font(small), anchor="lm")
        for share, colour in ((1, TRACK), (float(value), COLOURS[name])):
            draw.rectangle((start, middle - 0.3 * small, start + share * bar, middle + 0.3 * small), fill=colour)
    return card


def _explain(face: Face, heat: np.ndarray, side: int) -> list[Image.Image]:
    """The face, and the face under the part of the activation map that is above 0, relative to its maximum."""
    plain = Image.fromarray(face.pixels).resize((side, side), Image.Resampling.BICUBIC).convert("RGB")
    heat = np.maximum(heat, 0) / max(heat.max(), 1e-12)
    large = Image.fromarray(heat.astype(np.float32)).resize((side, side), Image.Resampling.BICUBIC)
    share = np.clip(np.asarray(large), 0, 1)
    stops = np.linspace(0, 1, len(HEAT))
    colours = np.stack([np.interp(share, stops, channel) for channel in zip(*HEAT, strict=True)], axis=-1)
    mixed = np.asarray(plain) + 0.7 * share[..., None] * (colours - np.asarray(plain))
    return [plain, Image.fromarray(np.rint(mixed).astype(np.uint8))]


def _rows(blocks: list[Image.Image], width: int, gap: int) -> Image.Image:
    """A strip at least `width` wide: the blocks in rows, in columns as wide as the widest block."""
    if not blocks:
        return Image.new("RGB", (width, 0))
    wide, high = (max(sides) + gap for sides in zip(*(block.size for block in blocks), strict=True))
    columns = max(1, (width - gap) // wide)
    strip = Image.new("RGB", (max(width, wide + gap), gap + high * math.ceil(len(blocks) / columns)), PANEL)
    for place, block in enumerate(blocks):
        strip.paste(block, (gap + place % columns * wide, gap + place // columns * high))
    return strip


def _stack(pictures: list[Image.Image]) -> Image.Image:
    """The pictures below each other."""
    tops = np.cumsum([0, *(picture.height for picture in pictures)])
    whole = Image.new("RGB", (max(picture.width for picture in pictures), int(tops[-1])), PANEL)
    for picture, top in zip(pictures, tops, strict=False):
        whole.paste(picture, (0, int(top)))
    return whole


def _tile(name: str, face: Face) -> Image.Image:
    """A face of the contact sheet with its name, shortened in the middle, and probability."""
    letters, shown, kept = _font(SHEET_TEXT), name, len(name)
    while kept > 2 and letters.getlength(shown) > TILE:
        kept -= 1
        shown = f"{name[: (kept + 1) // 2]}…{name[-(kept // 2) :]}"
    tile = Image.new("RGB", (TILE, TILE + 3 * SHEET_TEXT), PANEL)
    tile.paste(Image.fromarray(face.pixels).resize((TILE, TILE), Image.Resampling.BICUBIC))
    words = _words(face).removeprefix(f"{NOT_SURE}: ")
    ImageDraw.Draw(tile).text((0, TILE + 2), f"{shown}\n{words}", "white", letters)
    return tile
