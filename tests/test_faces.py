"""faces: every face of a photo is found and cut out, nothing is found where there is none, crops stay as they are."""

import sys
import threading

import numpy as np
import pytest
import skimage
from PIL import Image

import dataset
from errors import UserError
from faces import crop as cropping
from faces import detect
from faces.crop import crop, frame, is_crop, notes
from faces.detect import Box, Detector
from faces.folder import crop_folder
from readers.decode import decode, decode_or_rgb, read_file

ASTRONAUT = skimage.data.astronaut()
GREY = np.random.default_rng(0).integers(0, 256, (48, 48), dtype=np.uint8)


@pytest.fixture(scope="module")
def detector():
    return Detector()


@pytest.fixture
def haar(monkeypatch):
    monkeypatch.setattr(detect, "find_spec", lambda name: None)
    return Detector()


def is_the_astronaut(box: Box, scale: float = 1) -> bool:
    """Whether the box covers her eyes and mouth and not much more."""
    x, y, width, height = (value / scale for value in box[:4])
    return 150 < x < 195 and 30 < y < 90 and 250 < x + width < 300 and 155 < y + height < 200


# --- Finding ---


def test_the_face_is_found_with_its_landmarks(detector):
    (box,) = detector.find(ASTRONAUT)
    assert detector.kind == "YuNet" and is_the_astronaut(box) and 0.8 < box.score <= 1
    assert box.landmarks.shape == (5, 2)
    assert (box.landmarks[0, 0] < box.landmarks[1, 0]) and (box.landmarks[:2, 1] < box.landmarks[3:, 1]).all()


@pytest.mark.parametrize("scale", [0.25, 5])
def test_a_face_is_found_in_small_and_large_photos_in_pixels_of_the_photo(detector, scale):
    photo = Image.fromarray(ASTRONAUT)
    (box,) = detector.find(np.array(photo.resize([round(side * scale) for side in photo.size])))
    assert is_the_astronaut(box, scale)


def test_a_face_that_fills_the_photo_is_found(detector):
    face = Image.fromarray(ASTRONAUT).crop((170, 55, 280, 185)).resize((1100, 1300), Image.Resampling.BICUBIC)
    (box,) = detector.find(np.array(face))
    assert box.width > 700


def test_several_faces_come_from_left_to_right(detector):
    boxes = detector.find(np.concatenate([ASTRONAUT] * 3, axis=1))
    assert len(boxes) == 3
    for at, box in enumerate(boxes):
        assert is_the_astronaut(box._replace(x=box.x - 512 * at))


@pytest.mark.parametrize("name", ["chelsea", "coffee", "brick", "gravel", "rocket", "moon", "coins"])
def test_nothing_is_found_where_there_is_no_face(detector, name):
    photo = getattr(skimage.data, name)()
    assert detector.find(np.array(Image.fromarray(photo).convert("RGB"))) == []


@pytest.mark.parametrize("shape", [(1, 20_000), (20_000, 1), (1, 1), (160, 2000), (20, 1000), (300, 16)])
def test_a_strip_has_no_face(detector, shape):
    assert detector.find(np.full((*shape, 3), 90, np.uint8)) == []


def test_small_faces_of_many_people(detector):
    """lfw_subset: 100 faces, then 100 pictures of something else, each of 25x25 pixels."""
    small = (
        np.load(skimage.data.lbp_frontal_face_cascade_filename().rpartition("/")[0] + "/lfw_subset.npy") * 255
    ).round()
    found = [len(detector.find(np.repeat(picture.astype(np.uint8)[:, :, None], 3, axis=2))) for picture in small]
    assert sum(map(bool, found[:100])) >= 95 and not any(found[100:])


def test_threads_share_a_detector():
    detector, found = Detector(), []
    photos = [ASTRONAUT, ASTRONAUT[:, ::-1].copy(), ASTRONAUT[:300, :400].copy()] * 2
    threads = [threading.Thread(target=lambda at=at: found.append((at, detector.find(photos[at])))) for at in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for at, boxes in found:
        assert [box[:5] for box in boxes] == [box[:5] for box in detector.find(photos[at])]
    assert len(found) == 6


def test_haar_where_the_file_of_yunet_is_missing(haar):
    (box,) = haar.find(ASTRONAUT)
    assert haar.kind == "Haar" and is_the_astronaut(box) and 0 < box.score < 1 and box.landmarks is None
    assert haar.find(skimage.data.coffee()) == []


def test_without_opencv_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(UserError, match="pip install"):
        Detector()


# --- Cutting ---


def test_the_crop_shows_the_face_as_fer2013_does(detector):
    """Eyes and mouth stand where they do in FER2013: at 37 and 75 % of the height (medians of its faces)."""
    (box,) = detector.find(ASTRONAUT)
    left, top, side = frame(box)
    places = (box.landmarks - (left, top)) / side
    assert crop(ASTRONAUT, box).shape == (48, 48)
    assert np.allclose(places[:, 0], [0.31, 0.69, 0.49, 0.35, 0.66], atol=0.1)
    assert np.allclose(places[:, 1], [0.37, 0.37, 0.58, 0.74, 0.74], atol=0.1)


def test_a_face_pasted_at_its_own_size_comes_back(monkeypatch):
    monkeypatch.setattr(cropping, "SIDE", 1.0)
    photo = np.full((100, 120, 3), 77, np.uint8)
    photo[30:78, 50:98] = GREY[:, :, None]
    assert np.array_equal(crop(photo, Box(50, 30, 48, 48)), GREY)


@pytest.mark.parametrize("box", [Box(-30, -20, 60, 80), Box(90, 70, 60, 60), Box(-100, -100, 400, 400)])
def test_the_edge_is_repeated_where_a_crop_leaves_the_photo(box):
    photo = np.full((100, 120, 3), 200, np.uint8)
    assert (crop(photo, box) == 200).all()


def test_a_crop_is_antialiased():
    stripes = np.zeros((960, 960, 3), np.uint8)
    stripes[:, ::2] = 255
    pixels = crop(stripes, Box(100, 100, 700, 700))
    assert abs(pixels.astype(int) - 127).max() <= 3


def test_a_tilted_head_is_turned_upright(detector):
    photo = np.array(Image.fromarray(ASTRONAUT).rotate(15, Image.Resampling.BICUBIC, fillcolor=(128, 128, 128)))
    straight, tilted = (crop(image, detector.find(image)[0]).astype(int) for image in (ASTRONAUT, photo))
    unturned = crop(photo, detector.find(photo)[0]._replace(landmarks=None))
    assert abs(tilted - straight).mean() < abs(unturned - straight).mean()


# --- Crops and notes ---


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_a_face_crop_is_taken_whole_bit_for_bit(tmp_path, mode):
    Image.fromarray(GREY).convert(mode).save(tmp_path / "face.png")
    taken = decode_or_rgb((tmp_path / "face.png").read_bytes(), is_crop)
    assert np.array_equal(taken, GREY)


def test_a_photo_is_no_face_crop():
    assert not is_crop(640, 480) and not is_crop(48, 80)


def test_what_makes_an_answer_doubtful_is_noted():
    assert notes(GREY, Box(0, 0, 60, 80)) == []
    assert "small" in notes(GREY, Box(0, 0, 22, 30))[0]
    assert notes(np.full((48, 48), 130, np.uint8)) == ["nearly one colour"]
    assert "very dark" in notes(GREY // 8)


# --- A folder of photos ---


@pytest.fixture
def photos(tmp_path):
    """A folder of labelled photos: one face; three of which the middle is the largest; none; a crop; a broken file."""
    folder = tmp_path / "photos"
    for name in ("train/happy", "train/sad"):
        (folder / name).mkdir(parents=True)
    Image.fromarray(ASTRONAUT).save(folder / "train/happy/one.jpg")
    Image.fromarray(ASTRONAUT).save(folder / "train/happy/one.png")
    small = np.asarray(Image.fromarray(ASTRONAUT).resize((256, 256)))
    several = np.full((512, 1024, 3), 128, np.uint8)
    several[:256, :256], several[:, 256:768], several[:256, 768:] = small, ASTRONAUT, small
    Image.fromarray(several).save(folder / "train/sad/several.png")
    Image.fromarray(skimage.data.coffee()).save(folder / "train/sad/cup.png")
    Image.fromarray(GREY).save(folder / "train/sad/crop.png")
    (folder / "train/sad/broken.jpg").write_bytes(b"\xff\xd8\xff")
    return folder


def test_the_faces_of_a_folder_of_photos_are_written_by_class(photos, tmp_path, detector):
    out = tmp_path / "crops"
    lines = list(crop_folder(photos, out))
    written = sorted(path.relative_to(out).as_posix() for path in out.rglob("*.*"))
    assert written == [f"train/{name}.png" for name in ("happy/one", "happy/one.png", "sad/crop", "sad/several")]
    assert np.array_equal(decode(read_file(out / "train/sad/crop.png")), GREY)
    expected = crop(ASTRONAUT, detector.find(ASTRONAUT)[0])
    assert np.array_equal(decode(read_file(out / "train/happy/one.png.png")), expected)
    largest = decode(read_file(out / "train/sad/several.png"))
    assert abs(largest.astype(int) - expected).mean() < 20
    said = "\n".join(lines)
    assert "cup.png: no face" in said and "broken.jpg" in said and "3 faces" in said
    assert lines[-1].startswith("4 faces in ")


def test_dataset_py_crops_a_folder_of_photos(photos, tmp_path, capsys):
    assert dataset.main(["--data", str(photos), "--crop", str(tmp_path / "new")]) == 0
    assert "cup.png" in capsys.readouterr().out and (tmp_path / "new/train/happy/one.png").exists()
    assert dataset.main(["--crop", str(tmp_path / "another")]) == 2


def test_crops_are_not_written_among_photos_nor_over_files(photos, tmp_path):
    (tmp_path / "there").mkdir()
    for source, out in (
        (photos, photos / "crops"),
        (photos, tmp_path / "there"),
        (tmp_path / "none.zip", tmp_path / "new"),
    ):
        with pytest.raises(UserError):
            list(crop_folder(source, out))
    assert not (tmp_path / "new").exists() and not (photos / "crops").exists()
