"""The README's picture: rendered faces and what predict.py answers for them, in a light and a dark version.

python -m demo.picture      # writes docs/prediction.png and docs/prediction-dark.png
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from config import CLASSES
from demo.faces import demo_faces
from plots import write_png

REPO = Path(__file__).resolve().parent.parent
SEED = 7  # the demo dataset has seed 0
SHOWN = ((4, "happy"), (15, "angry"), (36, "surprise"), (41, "fear"))  # identity, emotion; chosen by hand, one is wrong
CARD, TOP, SIDE, HEIGHT = 440, 84, 288, 850  # pixels: width of a card, height of its title, side of a face, height
THEMES = {  # background, text, bar, bar of a right and of a wrong prediction
    "prediction.png": ("#ffffff", "#1f2328", "#d1d9e0", "#0072b2", "#d55e00"),
    "prediction-dark.png": ("#0d1117", "#e6edf3", "#3d444d", "#58a6ff", "#f0883e"),
}


def shown_faces() -> list[np.ndarray]:
    """The faces of SHOWN, (48, 48) uint8 each."""
    images = demo_faces(1 + max(who for who, _ in SHOWN), seed=SEED)[0]
    return [images[who * len(CLASSES) + CLASSES.index(emotion)] for who, emotion in SHOWN]


def answers(images: list[np.ndarray]) -> list[dict[str, float]]:
    """For each image the probability of each emotion, from `python predict.py` with the shipped weights."""
    with tempfile.TemporaryDirectory() as folder:
        files = [f"{folder}/{number}.png" for number in range(len(images))]
        for image, file in zip(images, files, strict=True):
            Image.fromarray(image).save(file)
        command = [sys.executable, "predict.py", *files, "--json", "-", "--device", "cpu"]
        done = subprocess.run(command, cwd=REPO, check=True, stdout=subprocess.PIPE, text=True)
    return [row["probabilities"] for row in json.loads(done.stdout)]


def draw(images: list[np.ndarray], probabilities: list[dict[str, float]], path: Path, theme: tuple[str, ...]) -> None:
    """Write a PNG with a card per face: the emotion it was rendered with, the face, a bar per emotion."""
    from matplotlib.figure import Figure

    background, text, plain, right, wrong = theme
    width = CARD * len(images)
    canvas = np.zeros((HEIGHT, width, 4), dtype=np.uint8)
    figure = Figure(figsize=(width / 200, HEIGHT / 200), dpi=200, facecolor=background)
    for card, ((_, emotion), image, row) in enumerate(zip(SHOWN, images, probabilities, strict=True)):
        left = card * CARD + (CARD - SIDE) // 2
        large = np.asarray(Image.fromarray(image).resize((SIDE, SIDE), Image.Resampling.BICUBIC))
        canvas[TOP : TOP + SIDE, left : left + SIDE] = np.stack([large, large, large, np.full_like(large, 255)], axis=2)
        title = {"color": text, "fontsize": 10, "ha": "center", "va": "center"}
        figure.text((left + SIDE / 2) / width, 1 - TOP / 2 / HEIGHT, f"rendered as {emotion}", **title)
        axes = figure.add_axes(((left + 52) / width, 0.03, 230 / width, 0.97 - (TOP + SIDE + 30) / HEIGHT))
        best = max(row, key=row.get)
        for place, (name, value) in enumerate(row.items()):
            colour = plain if name != best else right if best == emotion else wrong
            style = {"color": text, "fontsize": 8.5, "va": "center", "fontweight": "bold" if name == best else None}
            axes.barh(place, max(value, 0.01), height=0.62, color=colour)
            axes.text(-0.04, place, name, ha="right", **style)
            axes.text(value + 0.04, place, f"{value:.0%}", ha="left", **style)
        axes.set(xlim=(0, 1), ylim=(len(row) - 0.5, -0.5))
        axes.axis("off")
    figure.figimage(canvas, origin="upper")
    write_png(figure, path)


if __name__ == "__main__":
    shown = shown_faces()
    predicted = answers(shown)
    for name, theme in THEMES.items():
        draw(shown, predicted, REPO / "docs" / name, theme)
