"""The drawn faces: same every time, one person throughout, and the mouth is what `one_mouth` takes away."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from config import CLASSES
from demo import faces as demo_faces
from demo import strokes as demo_strokes

SCRIPT = Path(demo_faces.__file__)


@pytest.fixture(scope="module")
def faces():
    return demo_faces.demo_faces(30, seed=3)


@pytest.fixture(scope="module")
def same_mouth():
    return demo_faces.demo_faces(30, seed=3, one_mouth=True)


def test_shapes_and_types(faces):
    images, labels, identity = faces
    assert images.shape == (210, 48, 48) and images.dtype == np.uint8
    assert labels.shape == identity.shape == (210,)
    assert labels.dtype == identity.dtype == np.int64


def test_every_identity_has_one_face_per_class(faces):
    _, labels, identity = faces
    assert sorted(zip(identity.tolist(), labels.tolist(), strict=True)) == [(i, c) for i in range(30) for c in range(7)]


def test_no_identities_are_empty_arrays():
    images, labels, identity = demo_faces.demo_faces(0, seed=0)
    assert images.shape == (0, 48, 48) and len(labels) == len(identity) == 0


def test_same_seed_gives_the_same_pixels(faces):
    assert np.array_equal(demo_faces.demo_faces(30, seed=3)[0], faces[0])


def test_another_seed_gives_other_faces(faces):
    other = demo_faces.demo_faces(30, seed=4)[0]
    assert not any(np.array_equal(a, b) for a, b in zip(other, faces[0], strict=True))


def test_identity_looks_the_same_however_many_are_drawn(faces):
    assert np.array_equal(demo_faces.demo_faces(4, seed=3)[0], faces[0][:28])


def test_no_two_faces_are_alike(faces):
    assert len(np.unique(faces[0].reshape(210, -1), axis=0)) == 210


def test_faces_of_one_person_are_more_alike_than_of_two(faces):
    skin = faces[0][:, 8:18, 8:40].astype(float)  # forehead and hair
    texture = (skin - skin.mean((1, 2), keepdims=True)).reshape(30, 7, -1)
    own = np.abs(texture[:, 0] - texture[:, 6]).mean()
    foreign = np.abs(texture[:, 0] - np.roll(texture[:, 6], 1, axis=0)).mean()
    assert own < foreign


def test_pictures_are_lit_like_photographs(faces):
    means = faces[0].mean((1, 2))
    assert 60 < means.mean() < 180 and means.std() > 5
    assert faces[0].std((1, 2)).min() > 12


def test_classes_differ(faces):
    """The average face of each class is more than chance away from every other."""
    images, labels, _ = faces
    average = np.stack([images[labels == c].astype(float).mean(0) for c in range(7)])
    for a in range(7):
        for b in range(a):
            assert np.abs(average[a] - average[b])[12:44, 8:40].max() > 12, (CLASSES[a], CLASSES[b])


def test_one_mouth_leaves_the_upper_third_untouched(faces, same_mouth):
    """Pose, light, noise, brows and eyes come from the same draws; rows 0 to 15 never reach the mouth."""
    assert np.array_equal(faces[0][:, :16], same_mouth[0][:, :16])
    assert np.array_equal(faces[1], same_mouth[1]) and np.array_equal(faces[2], same_mouth[2])


def test_one_mouth_changes_the_lower_face_of_every_emotion(faces, same_mouth):
    change = np.abs(faces[0].astype(int) - same_mouth[0])[:, 24:].max((1, 2))
    for c, name in enumerate(CLASSES[:6]):
        assert np.median(change[faces[1] == c]) > 30, name


def test_one_mouth_changes_hardly_anything_above_the_mouth(faces, same_mouth):
    change = np.abs(faces[0].astype(int) - same_mouth[0])
    assert change[:, :26].sum() < 0.02 * change.sum()


def test_one_mouth_draws_the_mouth_at_rest_for_all(monkeypatch):
    drawn = []
    mouth = demo_strokes.mouth_strokes

    def noted(who, units, side):
        drawn.append(units)
        return mouth(who, units, side)

    monkeypatch.setattr(demo_strokes, "mouth_strokes", noted)
    demo_faces.demo_faces(2, seed=0, one_mouth=True)
    assert drawn == [demo_faces.AT_REST] * 14


def test_mouth_and_upper_half_are_drawn_from_every_emotion():
    assert set(demo_faces.UPPERS) == set(demo_faces.MOUTHS) == set(CLASSES)


def test_command_writes_train_and_the_last_fifth_as_val(tmp_path):
    command = [sys.executable, SCRIPT, "--out", tmp_path / "demo", "--identities", "5", "--seed", "2"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"35 faces in {tmp_path / 'demo'}\n"
    images, labels, identity = demo_faces.demo_faces(5, seed=2)
    for image, label, i in zip(images, labels, identity, strict=True):
        split = "val" if i == 4 else "train"
        written = Image.open(tmp_path / "demo" / split / CLASSES[label] / f"face_{i:05d}.png")
        assert np.array_equal(np.asarray(written), image)
    assert len(list(tmp_path.rglob("*.png"))) == 35


def test_command_one_mouth(tmp_path):
    demo_faces.main(["--out", str(tmp_path), "--identities", "2", "--one-mouth"])
    expected = demo_faces.demo_faces(2, seed=0, one_mouth=True)[0]
    assert np.array_equal(np.asarray(Image.open(tmp_path / "train" / "happy" / "face_00000.png")), expected[3])


def test_command_refuses_a_folder_that_is_not_empty(tmp_path, capsys):
    (tmp_path / "mine.txt").write_text("keep")
    assert demo_faces.main(["--out", str(tmp_path)]) == 2
    said = f"error: {tmp_path} exists and is not an empty folder: name a new one with --out\n"
    assert capsys.readouterr().err == said
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


def test_command_refuses_a_file(tmp_path, capsys):
    (tmp_path / "file").write_text("keep")
    assert demo_faces.main(["--out", str(tmp_path / "file")]) == 2
    assert "is not an empty folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--identities", "1"], "error: --identities 1: at least 2, one to train on and one to validate on\n"),
        (["--seed", "-1"], "error: --seed -1: 0 or more\n"),
    ],
)
def test_command_refuses_numbers_out_of_range(tmp_path, capsys, flags, message):
    assert demo_faces.main(["--out", str(tmp_path / "demo"), *flags]) == 2
    assert capsys.readouterr().err == message
    assert not (tmp_path / "demo").exists()


def test_command_knows_no_abbreviations(tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        demo_faces.main(["--out", str(tmp_path), "--ident", "3"])
    assert "unrecognized arguments: --ident 3" in capsys.readouterr().err
