"""Annotated photos and contact sheets: what is marked, where, and that nothing hides a face."""

import numpy as np
import pytest
from PIL import ImageColor

from config import CLASSES
from faces.detect import Box
from faces.draw import MAX_TILES, PANEL, annotate, colours, sheet
from faces.face import NOT_SURE, Face

GREEN = (10, 200, 30)  # a photo's only colour, which no block has


def face(box: Box | None, emotion: str = "happy", probability: float = 0.9, *, grey: int = 128) -> Face:
    probabilities = np.full(7, (1 - probability) / 6, dtype=np.float32)
    probabilities[CLASSES.index(emotion)] = probability
    return Face(box, np.full((48, 48), grey, dtype=np.uint8), probabilities, threshold=0.5)


def photo(height: int = 800, width: int = 1000) -> np.ndarray:
    return np.full((height, width, 3), GREEN, dtype=np.uint8)


def changed(picture, height: int = 800, width: int = 1000) -> np.ndarray:
    """(height, width) bool: which pixels of the photo are not as they were."""
    return (np.asarray(picture)[:height, :width] != GREEN).any(axis=2)


def grid(columns: int, rows: int, pitch: int, side: int) -> list[Box]:
    gap = (pitch - side) / 2
    return [Box(x * pitch + gap, y * pitch + gap, side, side) for y in range(rows) for x in range(columns)]


def count(picture, colour: str) -> int:
    """How many pixels have exactly this colour."""
    return int((np.asarray(picture) == ImageColor.getrgb(colour)).all(axis=-1).sum())


# --- Face ---


@pytest.mark.parametrize(("probability", "answer"), [(0.5, "sad"), (0.49, NOT_SURE)])
def test_an_answer_needs_the_threshold(probability, answer):
    one = face(None, "sad", probability)
    assert (one.answer, one.emotion, one.sure) == (answer, "sad", answer == "sad")
    assert one.probability == pytest.approx(probability)


# --- Annotated photos ---


def test_the_face_is_not_written_on_and_the_given_photo_is_left_alone():
    image = photo()
    picture = annotate(image, [face(Box(300, 200, 200, 240))])
    assert picture.size == (1000, 800) and (image == GREEN).all()
    marks = changed(picture)
    assert not marks[200:440, 300:500].any()
    assert marks[198:442, 298:502].any(axis=0).all(), "the frame is around the box"
    assert count(picture, colours()["happy"]) > count(picture, colours()["sad"])


def test_without_confidence_the_frame_has_the_colour_of_not_sure():
    picture = annotate(photo(), [face(Box(300, 200, 200, 240), "sad", 0.4)])
    assert picture.getpixel((400, 199)) == ImageColor.getrgb(colours()[NOT_SURE])


@pytest.mark.parametrize(("x", "y"), [(0, 0), (900, 0), (0, 700), (900, 700), (-30, -30), (930, 730)])
def test_labels_stay_inside_the_photo_and_off_the_face_in_every_corner(x, y):
    whole = annotate(photo(), [face(Box(450, 350, 100, 100))])
    marks = changed(annotate(photo(), [face(Box(x, y, 100, 100))]))
    assert not marks[max(0, y) : y + 100, max(0, x) : x + 100].any()
    panel = count(whole, PANEL)
    assert panel and count(annotate(photo(), [face(Box(x, y, 100, 100))]), PANEL) == panel, (
        "part of the chart is missing"
    )


@pytest.mark.parametrize("side", [300, 1200, 3000])
def test_what_is_written_grows_with_the_photo(side):
    picture = annotate(photo(side, side), [face(Box(side / 3, side / 4, side / 6, side / 6))])
    assert max(picture.size) >= 640 and picture.width % side == 0
    panel = (np.asarray(picture) == ImageColor.getrgb(PANEL)).all(axis=2)
    assert 0.12 < panel.any(axis=1).sum() / picture.height < 0.3


@pytest.mark.parametrize(
    ("columns", "rows", "pitch", "side"),
    [(2, 1, 400, 150), (4, 3, 240, 120), (10, 10, 90, 50), (10, 10, 90, 90)],
    ids=["charts beside", "words, and charts below", "words", "numbers, and words below"],
)
def test_no_label_hides_a_face(columns, rows, pitch, side):
    boxes = grid(columns, rows, pitch, side)
    marks = changed(annotate(photo(rows * pitch, columns * pitch), [face(box) for box in boxes]), rows * pitch)
    middles = [(round(box.y + side / 2), round(box.x + side / 2)) for box in boxes]
    quarter = side // 5 if side < pitch else side // 10
    assert not any(marks[y - quarter : y + quarter, x - quarter : x + quarter].any() for y, x in middles)


def test_many_faces_without_room_are_listed_below():
    boxes = grid(10, 10, 90, 90)
    crowded = annotate(photo(900, 900), [face(box) for box in boxes])
    roomy = annotate(photo(900, 900), [face(box._replace(width=50, height=50)) for box in boxes])
    assert crowded.height > 900 == roomy.height


def test_a_crop_taken_whole_keeps_its_pixels_and_has_the_chart_below():
    picture = annotate(photo(48, 48), [face(None)])
    side = picture.width
    assert side % 48 == 0 and picture.height > side
    assert not changed(picture, side, side).any()


@pytest.mark.parametrize(("height", "width"), [(600, 800), (1, 5000), (5000, 1)])
def test_a_photo_without_faces_says_so_in_a_strip_below(height, width):
    picture = annotate(photo(height, width), [])
    assert not changed(picture, height, width).any()
    assert count(picture.crop((0, picture.height - 100, picture.width, picture.height)), colours()[NOT_SURE]) > 500


def test_maps_are_shown_over_each_face_below_the_photo():
    boxes = [Box(100, 200, 150, 150), Box(500, 200, 150, 150)]
    hot = np.zeros((6, 6))
    hot[2, 2] = 3.0
    faces = [face(box) for box in boxes]
    cold, warm = (np.asarray(annotate(photo(), faces, [one, one]))[800:] for one in (-hot, hot))
    assert len(cold) == len(warm) > 100
    differs = (cold != warm).any(axis=2)
    assert 0 < differs.mean() < 0.1
    assert (cold[differs] == 128).all(), "where nothing speaks for the answer, the face is shown as it is"


# --- Contact sheets ---


def positions(picture, faces) -> list[int]:
    """The middle of each face's crop, counted in pixels row by row; letters have a few such grey pixels too."""
    pixels = np.asarray(picture)
    return [int(np.median(np.flatnonzero((pixels == one.pixels[0, 0]).all(axis=2)))) for one in faces]


def test_a_sheet_is_sorted_by_answer_and_probability():
    wanted = [
        face(None, "angry", 0.6, grey=61),
        face(None, "happy", 0.9, grey=71),
        face(None, "happy", 0.7, grey=81),
        face(None, "neutral", 0.8, grey=91),
        face(None, "angry", 0.4, grey=101),
    ]
    given = [wanted[index] for index in (3, 2, 4, 1, 0)]
    picture = sheet([(f"a_long_name_of_a_photo_{index}.jpg", one) for index, one in enumerate(given)])
    where = positions(picture, wanted)
    assert where == sorted(where)
    assert all(count(picture, colours()[one.answer]) > 1000 for one in wanted)
    assert not count(picture, colours()["surprise"])


def test_a_long_sheet_leaves_faces_out_but_no_answer():
    many = [("photo.jpg", face(None, "happy", 0.9, grey=77))] * (2 * MAX_TILES)
    few = [("photo.jpg", face(None, "sad", 0.9, grey=99))] * 3
    pixels = np.asarray(sheet(many + few, columns=20))
    shown = [round((pixels == grey).all(axis=2).sum() / 96**2) for grey in (77, 99)]
    assert shown == [MAX_TILES - 3, 3]


def test_a_sheet_of_nothing_says_so():
    assert count(sheet([]), colours()[NOT_SURE]) > 500
