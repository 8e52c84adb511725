"""Write a trained network as ONNX, for prediction without PyTorch: pixels in, probabilities out.

    python export.py                 # final_weights_new.pth -> final_weights_new.onnx, which predict.py then uses
    python export.py runs/NAME       # runs/NAME/best.pth -> runs/NAME/best.onnx
    python export.py --int8 --data archive.zip

The graph is hubconf.EmotionNet: "images" (B, 48, 48) uint8 to "probabilities" (B, 7) float32 and, where the network has
them, "activation_maps" (B, 7, H, W) float32. The metadata has the class names, what the weight file says of itself, and
the SHA-256 of that file, by which predict.py knows that both belong together. The file ends in a checksum of itself.

`--int8` writes NAME-int8.onnx, calibrated on training images and scored on validation ones. Needs onnx and onnxscript.
"""

from cli import Parser, add_flags

# isort: split
import argparse
import io
import json
import logging
import sys
import warnings
from collections.abc import Sequence
from contextlib import redirect_stdout, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np

from errors import SHIPPED, UserError, exit_status, find_weights, write_file

if TYPE_CHECKING:
    from onnx import ModelProto

    from model import FaceNet
    from splits import Split

TOLERANCE = 1e-4  # largest difference of a probability from PyTorch's, in float32
CALIBRATION = 1000  # training images that set the ranges of int8 activations
# The share of their activations that fits into the range. On 1,000 PublicTest images 69.7 % were right, in float32
# 69.6 %, with the full range (MinMax) 68.8 %.
PERCENTILE = 99.99


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser("export.py", "Write a trained network as ONNX, for prediction without PyTorch.")
    parser.add_argument("weights", nargs="?", default="", metavar="WEIGHTS", help="a weight file or a run's folder")
    parser.add_argument("--int8", action="store_true", help="write 8-bit weights and products; needs a dataset")
    add_flags(parser, names=("data", "cache"))
    return parser.resolve(parser.parse_args(argv))


def main(argv: Sequence[str] | None = None) -> int:
    return exit_status(export, parse(argv))


def export(args: argparse.Namespace) -> int:
    """Write the weights that `args` names as ONNX, beside them. Raises UserError."""
    import torch

    from dataset import load
    from demo.faces import demo_faces
    from predictor import digest, run_onnx, sealed, session
    from utils import pick_machine
    from val import forward
    from weights import load_weights

    path, machine = find_weights(args.weights or SHIPPED, flag="python export.py"), pick_machine("cpu", "fp32")
    if not args.int8 and holds(path.with_suffix(".onnx"), path):
        print(f"{path.with_suffix('.onnx')} holds the network of {path} already")
        return 0
    model, content = load_weights(path, machine=machine)
    graph = to_onnx(model)
    images, _, _ = demo_faces(5, seed=0)
    expected = forward(model, torch.from_numpy(images), machine=machine).softmax(1).numpy()
    largest = np.abs(run_onnx(session(graph.SerializeToString()), images) - expected).max()
    if not largest <= TOLERANCE:
        raise UserError(f"the exported graph differs from the network by {largest:.1e}: use other versions of onnx")
    print(f"largest difference of a probability from PyTorch's on rendered faces: {largest:.1e}")
    out = path.with_suffix(".onnx")
    if args.int8:
        data, exact, out = load(args.config), graph, path.with_name(f"{path.stem}-int8.onnx")
        graph = quantize(exact, data.split("train"))
        print_scores({"float32": exact, "int8": graph}, data.split("val"))
    about = {name: value for name, value in content.items() if name != "state_dict"}
    facts = {"classes": json.dumps(about["classes"]), "weights": json.dumps(about), "sha256": digest(path)}
    for name, value in facts.items():
        graph.metadata_props.add(key=name, value=value)
    write_file(out, sealed(graph.SerializeToString()))
    print(f"{out} ({out.stat().st_size / 1e6:.1f} MB) holds the network of {path}")
    return 0


def holds(onnx: Path, weights: Path) -> bool:
    """Whether there is an .onnx file that was made from these weights."""
    from predictor import OnnxEngine

    with suppress(UserError, OSError):
        return OnnxEngine(onnx).made_from(weights)
    return False


def to_onnx(model: "FaceNet") -> "ModelProto":
    """The graph of `model`, which is in evaluation mode on the CPU. Raises UserError without onnx."""
    import torch

    try:
        import onnxscript.optimizer
        from onnxscript import ir
    except ImportError as error:
        raise UserError(f"export.py needs {error.name}: python -m pip install onnx onnxscript") from error
    from hubconf import EmotionNet

    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # Unoptimised: the optimiser would fold batch norm into the convolutions, whose weights are then no longer those
        # of the file and lose accuracy in half precision. onnxruntime folds it when it reads the file.
        program = torch.onnx.export(
            EmotionNet(model, maps=model.averages).eval(),
            (torch.zeros(2, 48, 48, dtype=torch.uint8),),
            dynamic_shapes=({0: torch.export.Dim("images", min=1)},),
            input_names=["images"],
            output_names=["probabilities", "activation_maps"] if model.averages else ["probabilities"],
            opset_version=20,
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


def quantize(graph: "ModelProto", train: "Split") -> "ModelProto":
    """`graph` with 8-bit weights and products (uint8 times int8), calibrated on images of `train`."""
    import onnx
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    rows = np.sort(np.random.default_rng(0).permutation(len(train))[:CALIBRATION])

    class Reader(quantization.CalibrationDataReader):
        batches = ({"images": np.array(train.images[part])} for part in np.array_split(rows, 10))

        def get_next(self) -> dict[str, Any] | None:
            return next(self.batches, None)

    logging.getLogger().setLevel(logging.ERROR)  # else it warns of what quant_pre_process has just done
    with TemporaryDirectory() as folder, redirect_stdout(io.StringIO()):
        ready, after = Path(folder, "ready.onnx"), Path(folder, "after.onnx")
        quant_pre_process(graph, ready)
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


def print_scores(graphs: "dict[str, ModelProto]", val: "Split") -> None:
    """Print the accuracy of both graphs on `val`, and the share of answers that differ."""
    import torch

    from predictor import run_onnx, session
    from val import score

    answers = []
    for name, graph in graphs.items():
        probabilities = run_onnx(session(graph.SerializeToString()), np.array(val.images))
        answers.append(probabilities.argmax(1))
        for line in score(torch.from_numpy(probabilities).log(), val.labels, val.copies).lines():
            print(f"{name:<8}{line}")
    print(f"{(answers[0] != answers[1]).mean():.1%} of the answers differ")


if __name__ == "__main__":
    sys.exit(main())
