"""Predict from Python, with or without PyTorch: `Predictor` for photos and crops, and the engines that compute.

    from predictor import Predictor

    predictor = Predictor()                      # the shipped weights; Predictor("runs/NAME") takes others
    for face in predictor.faces("photo.jpg"):    # a path, bytes, a PIL image, or (H, W, 3) uint8 in RGB order
        print(face.box, face.emotion, face.probabilities)
    for frame in predictor.video("clip.mp4"):
        print(frame.seconds, [(face.track, face.smooth.emotion) for face in frame.faces])
    predictor.crops(crops)                       # (N, 48, 48) uint8 -> (N, C) float32, as in predictor.classes

No torch is imported unless the torch engine computes.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from classes import are_names
from dataset import tta_views
from errors import SHIPPED, UserError, counted, cpu_quota, find_weights
from faces.crop import crop, is_crop
from faces.detect import Box, Detector
from faces.face import Face, Frame, Tracked
from faces.track import SMOOTH_SECONDS, Smoother
from faces.video import DETECT_SECONDS, Reader, follow
from readers.decode import SIZE, BadImage, decode_or_rgb, read_file

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

FACES = ("auto", "find", "whole")
ENGINES = ("auto", "onnx", "torch")
ONNX_BATCH = 64  # images that onnxruntime computes at a time
# In protobuf: an entry of metadata_props (field 14) of 76 bytes, its key of 8 bytes, and the head of a value of 64
SEAL = b"\x72\x4c\x0a\x08checksum\x12\x40"


Look = list[tuple[Box | None, np.ndarray]]  # of each face: its box, and its pixels (48, 48) uint8


class Predictor:
    """Finds the faces in photos and names their emotions. Any number of threads may use one.

    `weights` are a weight file, a run's folder or an .onnx file; None are the shipped ones. `faces` says what is looked
    for: "auto" takes images of at most 64 pixels a side whole, as face crops, and finds the faces in larger ones;
    "find" always finds them, "whole" takes every image whole. For the others see `open_engine`. Raises UserError.
    """

    def __init__(self, weights: str | None = None, *, faces: str = "auto", **settings: Any) -> None:
        if faces not in FACES:
            raise UserError(f"faces={faces!r}: it is one of {', '.join(FACES)}")
        self.engine, self.path, self.notes = open_engine(weights or "", **settings)
        self.classes = tuple(self.engine.content["classes"])
        self.threshold = float(self.engine.content.get("threshold", 0.0))  # older files have none
        self.whole = {"auto": is_crop, "whole": lambda *_: True, "find": lambda *_: False}[faces]

    @cached_property
    def detector(self) -> Detector:
        return Detector()

    def faces(self, image: str | Path | bytes | Image.Image | np.ndarray) -> list[Face]:
        """Every face in `image`, from left to right, with its emotion; none where no face is found.

        An array is (H, W, 3) uint8 in RGB order. Raises BadImage for what cannot be read, and UserError.
        """
        return self.answer([self.look(image)])[0]

    def crops(self, pixels: np.ndarray) -> np.ndarray:
        """Probabilities (N, C) float32, in the order of `classes`, of face crops (N, 48, 48) uint8.

        Raises BadImage for other arrays.
        """
        if pixels.dtype != np.uint8 or pixels.shape[1:] != (SIZE, SIZE):
            raise BadImage(f"an array of {pixels.dtype} {pixels.shape}: (N, {SIZE}, {SIZE}) uint8 is expected")
        return self.engine.probabilities(pixels)

    def video(self, source: str | Path | Reader, *, every: int = 1, smooth: float = SMOOTH_SECONDS) -> Iterator[Frame]:
        """Every frame of a video, or each `every`-th, with its seconds and its faces, as tracks of a person each.

        `smooth` is the time constant of the smoothed probabilities in seconds, 0 for none. Frames are RGB, upright.
        Memory does not grow with the video. Raises UserError for what is no video.
        """
        smoother = Smoother(smooth)
        with source if isinstance(source, Reader) else Reader(source, every=every) as reader:
            wait = 0.0 if reader.live else DETECT_SECONDS
            for part in follow(reader, self.detector.find, detect_seconds=wait):
                looks = [cut_out(picture.image, [box for _, box in seen]) for picture, seen in part]
                for (picture, seen), faces in zip(part, self.answer(looks), strict=True):
                    tracked = []
                    for (track, _), face in zip(seen, faces, strict=True):
                        smoothed = smoother.update(track, picture.seconds, face.probabilities)
                        tracked.append(Tracked(track, face, replace(face, probabilities=smoothed)))
                    yield Frame(*picture, tracked)

    def look(self, image: str | Path | bytes | Image.Image | np.ndarray) -> Look:
        """What `faces` finds in `image`, before the network."""
        if isinstance(image, str | Path):
            image = read_file(Path(image))
        elif isinstance(image, np.ndarray):
            if image.dtype != np.uint8 or image.shape[2:] not in ((3,), ()):
                raise BadImage(f"an array of {image.dtype} {image.shape}: (H, W, 3) uint8 in RGB order is expected")
            image = Image.fromarray(image)
        found = decode_or_rgb(image, self.whole)
        if found.ndim == 2:  # taken whole
            return [(None, found)]
        return cut_out(found, self.detector.find(found))

    def answer(self, looks: Sequence[Look]) -> list[list[Face]]:
        """The faces of each of `looks` with their probabilities."""
        pixels = [pixels for look in looks for _, pixels in look]
        values = iter(self.crops(np.array(pixels, np.uint8).reshape(-1, SIZE, SIZE)))
        return [[Face(box, face, next(values), self.threshold, self.classes) for box, face in look] for look in looks]

    def maps(self, faces: Sequence[Face]) -> list[np.ndarray]:
        """For each face, how much each place of its pixels speaks for its emotion: (H, W) float32. Raises UserError."""
        if not faces:
            return []
        found = self.engine.activation_maps(np.stack([face.pixels for face in faces]))
        return [each[self.classes.index(face.emotion)] for each, face in zip(found, faces, strict=True)]


def cut_out(image: np.ndarray, boxes: Sequence[Box]) -> Look:
    """The faces in `boxes` of a photo or frame (H, W, 3) uint8 RGB, as the network sees them."""
    return [(box, crop(image, box)) for box in boxes]


# --- Engines ---


def open_engine(
    weights: str = "",
    *,
    engine: str = "auto",
    device: str = "auto",
    precision: str = "auto",
    threads: int = 0,
    tta: str = "none",
    maps: bool = False,
) -> "tuple[OnnxEngine | TorchEngine, Path, list[str]]":
    """The network in a weight file, a run's folder or an .onnx file, where it lies, and notes; "" is the shipped one.

    "auto" is onnxruntime where an .onnx file with the weights' own name was made from them (`export.py` does that), and
    neither device nor precision asks for something else; else PyTorch. With `maps` it is onnxruntime only where that
    gives activation maps. Raises UserError.
    """
    if engine not in ENGINES:
        raise UserError(f"engine={engine!r}: it is one of {', '.join(ENGINES)}")
    path, problems = find_weights(weights or SHIPPED), []
    beside = path.with_suffix(".onnx")
    plain = device in ("auto", "cpu") and precision in ("auto", "fp32")  # what onnxruntime does
    if path.suffix == ".onnx":
        return OnnxEngine(path, threads=threads, tta=tta), path, []
    if engine == "onnx" or (engine == "auto" and plain):
        try:
            if not beside.is_file():
                raise UserError(f"there is no {beside}: python export.py {path} makes it")
            found = OnnxEngine(beside, threads=threads, tta=tta)
            if not found.made_from(path):
                raise UserError(f"{beside} was made from other weights: python export.py {path} makes it anew")
            if found.has_maps or not maps or engine == "onnx":
                return found, path, []
        except UserError as error:
            if engine == "onnx":
                raise
            problems.append(str(error))
    try:
        torch = TorchEngine(path, device=device, precision=precision, threads=threads, tta=tta)
    except ModuleNotFoundError as error:
        needed = f"{path} needs PyTorch: python -m pip install -r requirements.txt"
        raise UserError("; else ".join([*problems, needed])) from error
    return torch, path, [f"note: {problem}; PyTorch is used" for problem in problems if beside.is_file()]


# --- onnxruntime ---


class OnnxEngine:
    """The graph in an .onnx file that export.py wrote. Any number of threads may use it.

    `content` is what the weight file says of itself, `name` where it computes, in words. Raises UserError for a file
    that is damaged or of another project.
    """

    device = "cpu"

    def __init__(self, path: Path, *, threads: int = 0, tta: str = "none") -> None:
        model = path.read_bytes()
        if model != sealed(model[: -len(SEAL) - 64]):
            raise UserError(f"{path} is damaged, or not an ONNX model that export.py wrote: export the weights again")
        self.session, self.tta = session(model, threads=threads, name=str(path)), tta
        facts = self.session.get_modelmeta().custom_metadata_map
        try:
            self.content = {**json.loads(facts["weights"]), "classes": json.loads(facts["classes"])}
            self.sha256, outputs = facts["sha256"], self.session.get_outputs()
            if not are_names(self.content["classes"]) or outputs[0].shape[1:] != [len(self.content["classes"])]:
                raise ValueError("its classes are not those of its outputs")
        except (LookupError, TypeError, ValueError) as error:
            raise UserError(f"{path} was not written by export.py of this project: export the weights again") from error
        self.has_maps = len(outputs) > 1
        self.name = f"onnxruntime ({counted(self.session.get_session_options().intra_op_num_threads, 'thread')})"

    def made_from(self, weights: Path) -> bool:
        """Whether export.py made the graph from the weight file `weights`."""
        return self.sha256 == digest(weights)

    def probabilities(self, pixels: np.ndarray) -> np.ndarray:
        """(N, C) float32, of pixels (N, 48, 48) uint8."""
        if self.tta == "none":
            return run_onnx(self.session, pixels)
        # The mean of logarithms is the mean of the logits, but for a number that is the same for all classes
        logs = [np.log(np.maximum(run_onnx(self.session, view), 1e-30)) for view in tta_views(pixels, self.tta)]
        powers = np.exp(np.mean(logs, 0))
        return powers / powers.sum(1, keepdims=True)

    def activation_maps(self, pixels: np.ndarray) -> np.ndarray:
        """(N, C, H, W) float32, how much each place of an image speaks for each emotion. Raises UserError."""
        if not self.has_maps:
            raise UserError(f"{self.content['model']} has no class activation maps: use --engine torch")
        return run_onnx(self.session, pixels, output="activation_maps")


def digest(path: Path) -> str:
    """The SHA-256 of a weight file, by which an .onnx file knows that it was made from it."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def sealed(model: bytes) -> bytes:
    """An ONNX `model` with one more entry of metadata, "checksum", the SHA-256 of all before it: protobuf allows it."""
    return model + SEAL + hashlib.sha256(model).hexdigest().encode()


def session(model: bytes, *, threads: int = 0, name: str = "the graph") -> "InferenceSession":
    """An onnxruntime session on the CPU. Raises UserError where the library is missing or the model damaged."""
    # Else its builds keep an identity of this computer, and report to their makers (docs/Privacy.md in its repository)
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    try:
        import onnxruntime
        from onnxruntime.capi import onnxruntime_pybind11_state as errors
    except ImportError as error:
        raise UserError("onnxruntime is missing: python -m pip install onnxruntime") from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads or cpu_quota(), 1
    options.log_severity_level = 3  # errors
    try:
        return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except (errors.Fail, errors.InvalidArgument, errors.InvalidGraph, errors.InvalidProtobuf) as error:
        raise UserError(f"{name} is damaged, or not an ONNX model: write it again with export.py") from error


def run_onnx(session: "InferenceSession", pixels: np.ndarray, *, output: str = "probabilities") -> np.ndarray:
    """The `output` of the graph for pixels (N, 48, 48) uint8."""
    starts = range(0, max(len(pixels), 1), ONNX_BATCH)
    return np.concatenate([session.run([output], {"images": pixels[at : at + ONNX_BATCH]})[0] for at in starts])


# --- PyTorch ---


class TorchEngine:
    """As OnnxEngine, the network in a weight file. Raises UserError as `load_weights` and `pick_machine` do."""

    def __init__(
        self, path: Path, *, device: str = "cpu", precision: str = "fp32", threads: int = 0, tta: str = "none"
    ) -> None:
        from utils import pick_machine
        from weights import load_weights

        self.machine, self.tta = pick_machine(device, precision, threads), tta
        self.model, self.content = load_weights(path, machine=self.machine)
        self.name, self.device = str(self.machine), self.machine.device.type

    def probabilities(self, pixels: np.ndarray) -> np.ndarray:
        import torch

        from val import BATCH, forward

        images = torch.from_numpy(pixels)
        logits = [forward(self.model, part, machine=self.machine, tta=self.tta) for part in images.split(BATCH)]
        return torch.cat(logits).softmax(1).numpy()

    def activation_maps(self, pixels: np.ndarray) -> np.ndarray:
        import torch

        from dataset import preprocess
        from explain import activation_maps

        inputs = preprocess(torch.from_numpy(pixels).to(self.machine.device))
        return activation_maps(self.model, inputs).cpu().numpy()
