"""Write a trained network as ONNX, for prediction without PyTorch: pixels in, probabilities out.

    python export.py                 # final_weights_new.pth -> final_weights_new.onnx, which predict.py then uses
    python export.py runs/NAME       # runs/NAME/best.pth -> runs/NAME/best.onnx
    python export.py --int8 --data archive.zip

The graph takes pixels (B, 48, 48) uint8, named "images", and gives "probabilities" (B, 7) float32: preprocessing,
temperature and softmax are in it. Where the network averages its last maps over all places, "activation_maps"
(B, 7, H, W) float32 say what each place adds to each logit (class activation maps, arXiv 1512.04150): their mean over
the places is the logit less the classifier's bias. The metadata has the class names and what the weight file says of
itself, and the SHA-256 of that file, by which predict.py knows that both belong together.

`--int8` writes NAME-int8.onnx, calibrated on training images and scored on validation ones. Needs onnx and onnxscript.
"""

import argparse
import hashlib
import io
import json
import logging
import sys
import warnings
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np

from cli import Parser, add_flags, nonempty
from errors import SHIPPED, UserError, exit_status, find_weights, write_file

if TYPE_CHECKING:
    from onnx import ModelProto

    from dataset import FaceData
    from model import FaceNet

OPSET = 20
TOLERANCE = 1e-4  # largest difference of a probability from PyTorch's, in float32
CALIBRATION = 1000  # training images that set the ranges of int8 activations
# The share of their activations that fits into the range. On 1,000 PublicTest images 69.7 % were right, in float32
# 69.6 %, with the full range (MinMax) 68.8 %.
PERCENTILE = 99.99


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser("export.py", "Write a trained network as ONNX, for prediction without PyTorch.")
    parser.add_argument("weights", nargs="?", default="", metavar="WEIGHTS", help="a weight file or a run's folder")
    parser.add_argument("--out", type=nonempty, metavar="FILE", help="the .onnx file (default: beside the weights)")
    parser.add_argument("--int8", action="store_true", help="write 8-bit weights and products; needs a dataset")
    add_flags(parser, names=("data", "cache"))
    return parser.resolve(parser.parse_args(argv))


def main(argv: Sequence[str] | None = None) -> int:
    return exit_status(export, parse(argv))


def export(args: argparse.Namespace) -> int:
    """Export the weights that `args` names. Raises UserError."""
    from dataset import load
    from utils import pick_machine
    from weights import load_weights

    path = find_weights(args.weights or SHIPPED, flag="another name")
    model, content = load_weights(path, machine=pick_machine("cpu", "fp32"))
    end = "-int8.onnx" if args.int8 else ".onnx"
    out = Path(args.out) if args.out else path.with_name(path.stem + end)
    if out.suffix != ".onnx":
        raise UserError(f"--out {out}: name a file that ends in .onnx")
    graph = to_onnx(model)
    add_metadata(graph, content, path)
    largest = check(graph, model)
    if args.int8:
        data = load(args.config)
        quantized = quantize(graph, data)
        print("\n".join(score_int8(graph, quantized, data)))
        add_metadata(quantized, content, path)
        graph = quantized
    write_file(out, graph.SerializeToString())
    print(f"{out} ({out.stat().st_size / 1e6:.1f} MB) holds the network of {path}")
    if not args.int8:
        print(f"largest difference of a probability from PyTorch's on rendered faces: {largest:.1e}")
    return 0


def to_onnx(model: "FaceNet") -> "ModelProto":
    """The graph of `model`, in evaluation mode on the CPU, without metadata. Raises UserError without onnx."""
    import torch

    try:
        import onnxscript.optimizer
        from onnxscript import ir
    except ImportError as error:
        raise UserError(f"export.py needs {error.name}: python -m pip install onnx onnxscript") from error
    from dataset import preprocess

    class Graph(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
            inputs = preprocess(images)
            if not model.averages:
                return ((model(inputs) / model.temperature).softmax(1),)
            maps = model.maps(inputs)
            logits = model.classifier(model.head(maps)) / model.temperature
            return logits.softmax(1), torch.einsum("bchw,kc->bkhw", maps, model.classifier.weight / model.temperature)

    outputs = ["probabilities", *(["activation_maps"] if model.averages else [])]
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # Unoptimised: the optimiser would fold batch norm into the convolutions, whose weights are then no longer those
        # of the file and lose accuracy in half precision. onnxruntime folds it when it reads the file.
        program = torch.onnx.export(
            Graph().eval(),
            (torch.zeros(2, 48, 48, dtype=torch.uint8),),
            dynamic_shapes=({0: torch.export.Dim("images", min=1)},),
            input_names=["images"],
            output_names=outputs,
            opset_version=OPSET,
            optimize=False,
            verbose=False,
        )
    onnxscript.optimizer.inline(program.model)
    onnxscript.optimizer.fold_constants(program.model)
    onnxscript.optimizer.remove_unused_nodes(program.model)
    graph = ir.serde.serialize_model(program.model)
    halve(graph)
    return graph


def halve(model: "ModelProto") -> None:
    """Store the weights that half precision holds exactly in it, as shipped ones are; they are cast when read."""
    from onnx import TensorProto, helper, numpy_helper

    graph = model.graph
    for weight in list(graph.initializer):
        values = numpy_helper.to_array(weight)
        if values.dtype != np.float32 or not np.array_equal(values.astype(np.float16), values):
            continue
        half = numpy_helper.from_array(values.astype(np.float16), f"{weight.name}.half")
        graph.initializer.remove(weight)
        graph.initializer.append(half)
        graph.node.insert(0, helper.make_node("Cast", [half.name], [weight.name], to=TensorProto.FLOAT))


def add_metadata(graph: "ModelProto", content: dict[str, Any], path: Path) -> None:
    """Give `graph` the class names, what the weight file `path` says of itself in its `content`, and its digest."""
    from onnx import helper

    known = {name: value for name, value in content.items() if name != "state_dict"}
    facts = {"classes": json.dumps(known["classes"]), "weights": json.dumps(known)}
    facts["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    helper.set_model_props(graph, facts)


def check(graph: "ModelProto", model: "FaceNet") -> float:
    """The largest difference of a probability from the one of `model`. Raises UserError above TOLERANCE."""
    import torch

    from demo.faces import demo_faces
    from predictor import run_onnx, session
    from utils import pick_machine
    from val import forward

    images, _, _ = demo_faces(5, seed=0)
    expected = forward(model, torch.from_numpy(images), machine=pick_machine("cpu", "fp32")).softmax(1).numpy()
    largest = float(np.abs(run_onnx(session(graph.SerializeToString()), images) - expected).max())
    if not largest <= TOLERANCE:
        raise UserError(f"the exported graph differs from the network by {largest:.1e}: use other versions of onnx")
    return largest


def quantize(graph: "ModelProto", data: "FaceData") -> "ModelProto":
    """`graph` with 8-bit weights and products (uint8 times int8), calibrated on training images of `data`."""
    import onnx
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    images = data.split("train").images
    rows = np.sort(np.random.default_rng(0).permutation(len(images))[:CALIBRATION])

    class Reader(quantization.CalibrationDataReader):
        def __init__(self) -> None:
            self.batches = ({"images": np.array(images[part])} for part in np.array_split(rows, 10))

        def get_next(self) -> dict[str, Any] | None:
            return next(self.batches, None)

    logging.getLogger().setLevel(logging.ERROR)  # else it warns of what quant_pre_process has just done
    with TemporaryDirectory() as folder, redirect_stdout(io.StringIO()):
        before, ready, after = (Path(folder, f"{name}.onnx") for name in ("before", "ready", "after"))
        before.write_bytes(graph.SerializeToString())
        quant_pre_process(before, ready)
        quantization.quantize_static(
            ready,
            after,
            Reader(),
            op_types_to_quantize=["Conv", "Add", "Relu", "MaxPool", "AveragePool"],  # the head keeps its precision
            quant_format=quantization.QuantFormat.QDQ,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            per_channel=True,
            calibrate_method=quantization.CalibrationMethod.Percentile,
            extra_options={"CalibPercentile": PERCENTILE},
        )
        return onnx.load(after)


def score_int8(graph: "ModelProto", quantized: "ModelProto", data: "FaceData") -> list[str]:
    """Lines with the validation accuracy of both forms, and the share of answers that differ."""
    import torch

    from predictor import run_onnx, session
    from val import score

    val, lines, answers = data.split("val"), [], []
    for name, each in (("float32", graph), ("int8", quantized)):
        probabilities = run_onnx(session(each.SerializeToString()), np.array(val.images))
        answers.append(probabilities.argmax(1))
        scores = score(torch.from_numpy(probabilities).log(), val.labels, val.copies)
        lines += [f"{name:<8}{line}" for line in scores.lines()]
    return [*lines, f"{(answers[0] != answers[1]).mean():.1%} of the answers differ"]


if __name__ == "__main__":
    sys.exit(main())
