"""The rendered faces: the same every time, one person throughout, and the mouth is what `one_mouth` takes away."""

import numpy as np
import pytest
from PIL import Image

from config import CLASSES
from demo.faces import demo_faces, main


@pytest.fixture(scope="module")
def faces():
    return demo_faces(30, seed=3)


@pytest.fixture(scope="module")
def same_mouth():
    return demo_faces(30, seed=3, one_mouth=True)


def test_every_identity_has_one_face_per_class(faces):
    images, labels, identity = faces
    assert images.shape == (210, 48, 48) and images.dtype == np.uint8
    assert labels.dtype == identity.dtype == np.int64
    assert sorted(zip(identity.tolist(), labels.tolist(), strict=True)) == [(i, c) for i in range(30) for c in range(7)]


def test_a_seed_gives_its_own_pixels_however_many_identities_are_rendered(faces):
    assert np.array_equal(demo_faces(4, seed=3)[0], faces[0][:28])
    assert not (demo_faces(4, seed=4)[0] == faces[0][:28]).all((1, 2)).any()
    assert len(np.unique(faces[0].reshape(210, -1), axis=0)) == 210


def test_faces_of_one_person_are_more_alike_than_of_two(faces):
    skin = faces[0][:, 8:18, 8:40].astype(float)  # forehead and hair
    texture = (skin - skin.mean((1, 2), keepdims=True)).reshape(30, 7, -1)
    own = np.abs(texture[:, 0] - texture[:, 6]).mean()
    assert own < np.abs(texture[:, 0] - np.roll(texture[:, 6], 1, axis=0)).mean()


def test_classes_differ(faces):
    images, labels, _ = faces
    average = np.stack([images[labels == c].astype(float).mean(0) for c in range(7)])
    for a in range(7):
        for b in range(a):
            assert np.abs(average[a] - average[b])[12:44, 8:40].max() > 12, (CLASSES[a], CLASSES[b])


def test_one_mouth_changes_the_mouth_and_nothing_else(faces, same_mouth):
    assert np.array_equal(faces[0][:, :16], same_mouth[0][:, :16])  # rows that the mouth never reaches
    assert np.array_equal(faces[1], same_mouth[1]) and np.array_equal(faces[2], same_mouth[2])
    change = np.abs(faces[0].astype(int) - same_mouth[0])
    assert change[:, :26].sum() < 0.02 * change.sum()
    for c, name in enumerate(CLASSES[:6]):
        assert np.median(change[faces[1] == c][:, 24:].max((1, 2))) > 30, name


def test_the_command_writes_train_and_the_last_fifth_of_the_people_as_val(tmp_path, capsys):
    folder = tmp_path / "faces"
    call = ["--out", str(folder), "--identities", "5", "--seed", "2", "--one-mouth"]
    assert main(call) == 0 and capsys.readouterr().out == f"35 faces in {folder}\n"
    for image, label, i in zip(*demo_faces(5, seed=2, one_mouth=True), strict=True):
        file = folder / ("val" if i == 4 else "train") / CLASSES[label] / f"face_{i:05d}.png"
        assert np.array_equal(np.asarray(Image.open(file)), image)
    assert len(list(tmp_path.rglob("*.png"))) == 35
    assert main(call) == 2 and "name a new folder with --out" in capsys.readouterr().err
