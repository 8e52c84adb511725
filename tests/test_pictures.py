"""No picture that the project keeps shows a face of a dataset: plots are flat colour, faces are not."""

import base64
import io
import json
import re
import subprocess

import numpy as np
import pytest
import skimage
from PIL import Image

import plots
from config import Config
from dataset import load
from helpers import REPO, faces

ASTRONAUT = "docs/astronaut.jpg"
RENDERED = {"docs/demo_faces.png"}  # shows faces: rendered ones, which is tested
PICTURES = [file.relative_to(REPO).as_posix() for file in REPO.glob("docs/*.png")]
PICTURES += [file.relative_to(REPO).as_posix() for file in REPO.glob("reports/*/*.png")]
PAGES = [file.relative_to(REPO).as_posix() for file in REPO.glob("reports/*/*.*") if file.suffix in (".md", ".html")]
SIDE = 24  # of the patches, in pixels
LEAST = 0.2  # share of every patch that has one of its four commonest colours: 0.28 and more in plots, 0.1 in faces
SHEET = {"left": 118, "top": 44, "tile": 96, "across": 100}  # plots.contact_sheet, in pixels


def flatness(pixels: np.ndarray) -> float:
    """The least share, over all patches of `pixels` (H, W, 3), that has one of the four commonest colours there."""
    colours = pixels.astype(np.uint32) @ np.array([65536, 256, 1], dtype=np.uint32)
    shares = [1.0]
    for y in range(0, colours.shape[0] - SIDE + 1, SIDE // 2):
        for x in range(0, colours.shape[1] - SIDE + 1, SIDE // 2):
            counts = np.unique(colours[y : y + SIDE, x : x + SIDE], return_counts=True)[1]
            shares.append(np.sort(counts)[-4:].sum() / SIDE**2)
    return min(shares)


def pixels_of(file) -> np.ndarray:
    return np.asarray(Image.open(file).convert("RGB"))


def outputs() -> dict[str, list[bytes]]:
    """The PNG files in the outputs of the notebook: "sheet" from cells that draw contact sheets, "plot" from others."""
    notebook = json.loads((REPO / "emotion_recognition.ipynb").read_text(encoding="utf-8"))
    found: dict[str, list[bytes]] = {"sheet": [], "plot": []}
    for cell in notebook["cells"]:
        kind = "sheet" if re.search(r"contact_sheet|mistakes\(", "".join(cell["source"])) else "plot"
        found[kind] += [
            base64.b64decode("".join(output["data"]["image/png"]))
            for output in cell.get("outputs", ())
            if "image/png" in output.get("data", {})
        ]
    return found


def tiles(pixels: np.ndarray, down: int) -> list[np.ndarray]:
    """The faces (48, 48) on a contact sheet whose rows are `down` pixels apart; places without one are left out."""
    tile = SHEET["tile"]
    found = []
    for y in range(SHEET["top"], len(pixels) - tile + 1, down):
        for x in range(SHEET["left"], pixels.shape[1] - tile + 1, SHEET["across"]):
            face = pixels[y : y + tile : 2, x : x + tile : 2, 0]
            if face[4:-4, 4:-4].min() < 255:
                found.append(face)
    return found


@pytest.mark.parametrize("name", sorted({*PICTURES} - RENDERED))
def test_a_picture_shows_no_face(name):
    assert flatness(pixels_of(REPO / name)) > LEAST


def test_a_picture_with_faces_is_found_out(tmp_path):
    assert flatness(pixels_of(REPO / "docs/demo_faces.png")) < LEAST
    images, labels = faces(7)
    plots.contact_sheet(images, labels, tmp_path / "sheet.png", title="faces")
    assert flatness(pixels_of(tmp_path / "sheet.png")) < LEAST
    small = np.full((200, 200, 3), 255, dtype=np.uint8)
    small[90:138, 70:118] = images[3][..., None]  # a single one, at its own size
    assert flatness(small) < LEAST


def test_there_are_no_other_pictures():
    """Nothing but the files that are looked at here, in the folders that git keeps and in the notebook."""
    kept = subprocess.run(["git", "ls-files"], cwd=REPO, capture_output=True, text=True).stdout.splitlines()
    kinds = re.compile(r"\.(jpe?g|gif|webp|bmp|svg|tiff?|pdf|png|npz|npy)$", re.IGNORECASE)
    pictures = {
        name for name in kept if kinds.search(name) and not name.startswith("tests/faults/")
    }  # flat, or damaged
    assert pictures <= {*PICTURES, ASTRONAUT}
    text = (REPO / "emotion_recognition.ipynb").read_text(encoding="utf-8")
    assert not re.search(r"image/(?!png)|data:image|text/html|<svg", text)


def test_pages_hold_no_picture_of_their_own():
    for name in PAGES:
        text = (REPO / name).read_text(encoding="utf-8")
        assert not re.search(r"data:image|<canvas|<svg", text), name
        shown = re.findall(r"!\[[^]]*\]\(([^)]+)\)|<img[^>]*src=\"([^\"]+)\"", text)
        assert shown and all(re.fullmatch(r"\w+\.png", one or other) for one, other in shown), name


def test_the_plots_in_the_notebook_show_no_face():
    plots = outputs()["plot"]
    assert len(plots) == 7  # curves, confusion, and five of the study
    for png in plots:
        assert flatness(pixels_of(io.BytesIO(png))) > LEAST


@pytest.fixture(scope="module")
def rendered():
    """All faces of the demo dataset, without their outermost pixels: (N, 40, 40) float32."""
    data = load(Config(data="demo", cache=str(REPO / ".cache")))
    images = [np.asarray(data.split(name).images) for name in ("train", "val")]
    return np.concatenate(images)[:, 4:-4, 4:-4].astype(np.float32)


def test_the_faces_on_contact_sheets_are_rendered_ones(rendered):
    sheets = [REPO / "docs/demo_faces.png", *(io.BytesIO(png) for png in outputs()["sheet"])]
    assert len(sheets) == 3
    for sheet, down in zip(sheets, (100, 100, 115), strict=True):
        found = tiles(pixels_of(sheet), down)
        assert len(found) >= 7
        for face in found:  # a frame may lie over its edge
            assert np.abs(rendered - face[4:-4, 4:-4].astype(np.float32)).mean(axis=(1, 2)).min() < 2


def test_the_photo_is_the_astronaut_in_the_public_domain():
    shown = Image.open(REPO / ASTRONAUT).convert("RGB").resize((512, 512))
    difference = np.abs(np.asarray(shown, float) - skimage.data.astronaut()).mean(2)
    assert np.median(difference) < 3 and (difference > 40).mean() < 0.06  # the box and the chart
