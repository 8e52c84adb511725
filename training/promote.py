"""Promotion: when the weights of a run take the place of the shipped ones, which predict.py uses by default."""

from itertools import count
from pathlib import Path
from typing import Any

from dataset import FaceData
from errors import SHIPPED, UserError, locked, write_file
from utils import Machine, write_checkpoint
from val import Scores, evaluate
from weights import load_weights, same_validation

CODE = Path(__file__).resolve().parent.parent  # has the shipped weights


def promote(run: Path, data: FaceData, *, machine: Machine, asked: bool = False) -> str:
    """Let the best weights of `run` replace the shipped ones if that is safe, or `asked` for; a line that says so.

    It is safe where both were trained on the same dataset with the same validation images, the run's did not begin
    with or learn from weights that may know these, it is no demo or --limit run, and it scores higher on them,
    deduplicated. The old file is kept in the run's folder as replaced_weights.pth (-2, -3... where that is taken).
    Where the current folder has none, the run must beat the file beside the code, which stays. From the comparison to
    the replacement other runs wait. Raises UserError.
    """
    shipped = Path(SHIPPED)
    model, content = load_weights(run / "best.pth", machine=machine)
    state = {k: v.half() if v.is_floating_point() else v for k, v in content["state_dict"].items()}
    model.load_state_dict(state)
    if not asked and (unfit := why_never(content, data)):
        return f"{shipped} is left as it is: {unfit}"
    ours = evaluate(model, data.split("val"), machine=machine)  # as shipped: in 16 bits a few answers may differ
    with locked(shipped.parent, f".{SHIPPED}.lock", wait=True):
        there = shipped.exists()
        rival = shipped if there else CODE / shipped
        kept, reason = (False, "as asked for") if asked else compare(content, ours, rival, data, machine=machine)
        if kept:
            return f"{rival if rival.exists() else shipped} is left as it is: {reason}"
        if there:
            numbered = (run / f"replaced_weights-{number}.pth" for number in count(2))
            old = run / "replaced_weights.pth"
            old = old if not old.exists() else next(path for path in numbered if not path.exists())
            write_file(old, shipped.read_bytes())
            reason += f"; the old file is kept as {old}"
        write_checkpoint(shipped, content | {"state_dict": state, "metrics": ours.plain()})
    done = "replaced" if there else "written"
    return f"{shipped} is {done}: {ours.deduplicated.accuracy:.4f} deduplicated, once rounded to 16 bits; {reason}"


def why_never(content: dict[str, Any], data: FaceData) -> str:
    """Why the weights of a run, a file's `content`, are not compared at all, or nothing."""
    if data.demo:
        return "the faces are rendered"
    if limit := content["config"]["limit"]:
        return f"the run was made with --limit {limit}"
    leaked = "the run began with, or learned from, weights that may know its validation images"
    return leaked if content["dataset"].get("leakage") else ""


def compare(
    content: dict[str, Any], ours: Scores, rival: Path, data: FaceData, *, machine: Machine
) -> tuple[bool, str]:
    """Whether the shipped weights `rival` are kept, and why. Those of the run, a file's `content`, score `ours`."""
    if not rival.exists():
        return False, "there was none"
    try:
        old, old_content = load_weights(rival, machine=machine)
        if not same_validation(old_content, data, content["config"]["val_fraction"]):
            return True, "it was trained on another dataset, or with other validation images"
        theirs = evaluate(old, data.split("val"), machine=machine).deduplicated.accuracy
    except UserError as error:
        return True, str(error)
    figures = f"the shipped weights reach {theirs:.4f} on these validation images deduplicated"
    return ours.deduplicated.accuracy <= theirs, f"{figures}, this run {ours.deduplicated.accuracy:.4f} in 16 bits"
