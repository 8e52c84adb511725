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
PANEL, TRACK = "#1b1e22", "#43484e"  # behind the bars: the chart, and the rest of a bar up to probability 1
HEAT, OPACITY = "#ff8c00", 0.75  # of activation maps, where they are highest
LEAST_SIDE = 640  # pixels: a smaller photo is enlarged before anything is written on it
LEAST_TEXT = 13  # pixels
MAX_CARDS = 12  # faces that get a chart; with more, words only
TILE, GAP, SHEET_TEXT = 96, 14, 13  # pixels of a contact sheet
MAX_TILES = 200


@functools.cache
def colours(classes: tuple[str, ...] = CLASSES) -> dict[str, str]:
    """Return the colour of each of `classes`, and of "not sure"; other classes than FER2013's take what is left."""
    own = {name: colour for name, colour in zip(CLASSES, OKABE_ITO, strict=False) if name in classes}
    free = [colour for colour in OKABE_ITO[:-1] if colour not in own.values()]
    free += [f"hsl({137 * number % 360}, 55%, 55%)" for number in range(len(classes))]  # far from each other
    others = dict(zip((name for name in classes if name not in own), free, strict=False))
    return {name: (own | others)[name] for name in classes} | {NOT_SURE: OKABE_ITO[-1]}


def colour_of(face: Face) -> str:
    return colours(face.classes)[face.answer]


def annotate(image: np.ndarray, faces: Sequence[Face], maps: Sequence[np.ndarray] | None = None) -> Image.Image:
    """Return a copy of the photo with a box, the answer and a bar chart of the probabilities for each face.

    `image` is (H, W, 3) uint8 RGB; below LEAST_SIDE it is enlarged by a whole factor. `maps` are activation maps of the
    likeliest class, for each face an (H', W') float array that covers its `pixels`; they are shown in a strip below.
    Charts are beside the faces if all of them fit there and hide no face, else in the strip. Where not even the answers
    fit beside the faces, the faces are numbered and the answers are in the strip. Without a face, the strip says so.
    """
    photo = Image.fromarray(image)
    factor = max(1, math.ceil(LEAST_SIDE / max(photo.size)))
    if factor > 1:
        photo = photo.resize((factor * photo.width, factor * photo.height), Image.Resampling.BICUBIC)
    least = max(LEAST_TEXT, max(photo.size) // 100)
    boxes = [np.rint(factor * np.array(face.box[:4] if face.box else (0, 0, *image.shape[1::-1]))) for face in faces]
    size = round(np.clip(min((box[2] for box in boxes), default=0) / 8, least, 2.2 * least))
    line = max(2, size // 7)
    frames = [(box + line * np.array((-1, -1, 2, 2))).astype(int) for box in boxes]
    beside, below = _layout(faces, frames, photo.size, maps, size)
    picture = _stack([photo, _rows(below, photo.width, least)] if below else [photo])
    draw = ImageDraw.Draw(picture)
    for face, (x, y, width, height) in zip(faces, frames, strict=True):
        if face.box:
            draw.rectangle((x, y, x + width - 1, y + height - 1), outline=colour_of(face), width=line)
    for block, place in beside:
        picture.paste(block, place)
    return picture


def sheet(faces: Sequence[tuple[str, Face]], *, columns: int = 10) -> Image.Image:
    """Return a contact sheet of (file name, face): the answers in the order of their classes, then "not sure".

    The most probable come first. Of more than MAX_TILES faces, each answer shows at most the same number, and says so.
    """
    shown = colours(faces[0][1].classes if faces else CLASSES)
    groups = {answer: [pair for pair in faces if pair[1].answer == answer] for answer in shown}
    most = MAX_TILES
    while sum(min(most, len(group)) for group in groups.values()) > MAX_TILES:
        most -= 1
    width, parts = columns * (TILE + GAP) + GAP, []
    for answer, group in groups.items():
        group.sort(key=lambda pair: -pair[1].probability)
        left_out = f", the {most} most probable" if len(group) > most else ""
        heading = _label(f"{answer}: {len(group):,}{left_out}", shown[answer], round(1.4 * SHEET_TEXT), width - 2 * GAP)
        if group:
            parts += [_rows([heading], width, GAP), _rows([_tile(*pair) for pair in group[:most]], width, GAP)]
    return _stack(parts or [_rows([_label("no face found", shown[NOT_SURE], 2 * SHEET_TEXT)], width, GAP)])


def mark(image: np.ndarray, faces: Sequence[tuple[str, Face]]) -> np.ndarray:
    """Return a copy of a frame of a video with a box and a label for each (name, face), in the same size.

    `image` is (H, W, 3) uint8 RGB.
    """
    picture = Image.fromarray(image)
    draw = ImageDraw.Draw(picture)
    for name, face in faces:
        x, y, width, height = (round(value) for value in face.box[:4])
        size = int(np.clip(width / 7, max(LEAST_TEXT, max(picture.size) // 90), max(picture.size) // 40 + LEAST_TEXT))
        line = max(2, size // 7)
        frame = (x - line, y - line, x + width + line - 1, y + height + line - 1)
        draw.rectangle(frame, outline=colour_of(face), width=line)
        label = _label(f"{name} {_words(face)}", colour_of(face), size)
        above = y - line - label.height
        left = max(0, min(x - line, picture.width - label.width))
        picture.paste(label, (left, above if above >= 0 else min(y + height + line, picture.height - label.height)))
    return np.asarray(picture)


def _layout(faces, frames, photo_size, maps, size) -> tuple[list, list[Image.Image]]:
    """Return (block, (x, y)) of what is written in the photo, and the blocks of the strip below it."""
    if not faces:
        return [], [_label("no face found", OKABE_ITO[-1], 2 * size)]
    few = len(faces) <= MAX_CARDS or maps
    numbers = [f"{number} " for number in range(1, len(faces) + 1)] if len(faces) > 1 else [""]
    if few and not maps:
        cards = [_card(face, number + _words(face), size) for face, number in zip(faces, numbers, strict=True)]
        if beside := _arrange(cards, frames, photo_size, sideways=True):
            return beside, []
    each = list(zip(faces, numbers, maps or [None] * len(faces), strict=True))
    if few:
        below = [_card(face, number + _words(face), size, heat) for face, number, heat in each]
        labels = [_label(number + face.answer, colour_of(face), size) for face, number, _ in each]
    else:
        below = [_label(number + _words(face), colour_of(face), size) for face, number, _ in each]
        labels = [_label(face.answer, colour_of(face), size) for face in faces]
    if beside := _arrange(labels, frames, photo_size):
        return beside, below if few else []
    tags = [_label(number.strip(), colour_of(face), size) for face, number, _ in each if number]
    corners = [(max(0, x), max(0, y)) for x, y, _, _ in frames]
    return list(zip(tags, corners, strict=False)), below


def _arrange(blocks, frames, photo_size, *, sideways: bool = False) -> list:
    """Return each block with a place (x, y) that touches its frame, is inside the photo, and hides no face or block.

    Empty if one has no such place. Above and below the frame are tried first, or with `sideways` right and left.
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
            return []
        placed.append((block, (int(left), int(top))))
        taken = np.vstack([taken, (left, top, wide, high)])
    return placed


def _words(face: Face) -> str:
    return ("" if face.sure else f"{NOT_SURE}: ") + f"{face.emotion} {face.probability:.2f}"


@functools.cache
def font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.load_default(size=size)


def _label(text: str, colour: str, size: int, width: int = 0) -> Image.Image:
    """Text on a colour, at least `width` pixels wide."""
    width = max(width, math.ceil(font(size).getlength(text) + 0.8 * size))
    block = Image.new("RGB", (width, round(1.4 * size)), colour)
    ink = ink_on(np.array(ImageColor.getrgb(colour)) / 255)
    ImageDraw.Draw(block).text((0.4 * size, 0.7 * size), text, ink, font(size), anchor="lm")
    return block


def _card(face: Face, text: str, size: int, heat: np.ndarray | None = None) -> Image.Image:
    """A label, a bar per class below it, and with `heat` the face beside them, without and with its activation map."""
    small = max(LEAST_TEXT - 2, round(0.75 * size))
    step, pad, bar = round(1.2 * small), small // 2, 8 * small
    names = math.ceil(max(font(small).getlength(name) for name in face.classes))
    high = len(face.classes) * step + 2 * pad
    pictures = [] if heat is None else _explain(face, heat, high)
    head = _label(text, colour_of(face), size, len(pictures) * high + names + bar + 3 * pad)
    card = Image.new("RGB", (head.width, head.height + high), PANEL)
    for place, picture in enumerate(pictures):
        card.paste(picture, (place * high, head.height))
    card.paste(head)
    draw, left = ImageDraw.Draw(card), len(pictures) * high + pad
    for row, (name, value) in enumerate(zip(face.classes, face.probabilities, strict=True)):
        middle, start = head.height + pad + (row + 0.5) * step, left + names + pad
        draw.text((left, middle), name, "white", font(small), anchor="lm")
        for share, colour in ((1, TRACK), (float(value), colours(face.classes)[name])):
            draw.rectangle((start, middle - 0.3 * small, start + share * bar, middle + 0.3 * small), fill=colour)
    return card


def _explain(face: Face, heat: np.ndarray, side: int) -> list[Image.Image]:
    """The face, and the face under the part of the activation map that is above 0, relative to its maximum."""
    plain = Image.fromarray(face.pixels).convert("RGB").resize((side, side), Image.Resampling.BICUBIC)
    shares = np.maximum(heat, 0) / max(heat.max(), 1e-12)
    opacity = Image.fromarray((OPACITY * 255 * shares).astype(np.uint8)).resize((side, side), Image.Resampling.BICUBIC)
    return [plain, Image.composite(Image.new("RGB", (side, side), HEAT), plain, opacity)]


def _rows(blocks: list[Image.Image], width: int, gap: int) -> Image.Image:
    """A strip at least `width` wide: the blocks in rows, in columns as wide as the widest block."""
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
    """A face of the contact sheet with the end of its name, and probability."""
    while font(SHEET_TEXT).getlength(name) > TILE:
        name = f"…{name[2:]}"
    tile = Image.new("RGB", (TILE, TILE + 3 * SHEET_TEXT), PANEL)
    tile.paste(Image.fromarray(face.pixels).resize((TILE, TILE), Image.Resampling.BICUBIC))
    words = f"{name}\n{face.emotion} {face.probability:.2f}"
    ImageDraw.Draw(tile).text((0, TILE + 2), words, "white", font(SHEET_TEXT))
    return tile
