import importlib
import json
import math
from dataclasses import asdict, fields

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

import config
from cli import OLD_NAMES, combine
from config import CLASSES, Config
from helpers import run_script
from losses import CrossEntropy, FocalLoss, class_weights, make_loss

LOGITS = torch.randn(50, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 3
LABELS = torch.arange(50) % 7


WEIGHT = (0.5, 4.0, 0.7, 0.4, 0.6, 1.0, 0.6)


def test_classes_stand_in_fer2013s_order():
    assert CLASSES == ("angry", "disgust", "fear", "happy", "sad", "surprise", "neutral")


def test_focal_loss_is_the_papers_formula():
    p = LOGITS.softmax(1)[torch.arange(50), LABELS]
    expected = -0.25 * (1 - p) ** 2 * p.log()
    got = FocalLoss(gamma=2, alpha=0.25, reduction="none")(LOGITS, LABELS)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


def test_focal_loss_weighs_each_image_by_its_class():
    alpha = [0.1 * (c + 1) for c in range(7)]
    plain = FocalLoss(reduction="none")(LOGITS, LABELS)
    got = FocalLoss(alpha=alpha, reduction="none")(LOGITS, LABELS)
    torch.testing.assert_close(got, plain * torch.tensor(alpha, dtype=torch.float64)[LABELS])


def test_focal_loss_at_gamma_0_is_cross_entropy():
    for reduction in ("none", "sum", "mean"):
        got = FocalLoss(gamma=0, reduction=reduction)(LOGITS, LABELS)
        torch.testing.assert_close(got, F.cross_entropy(LOGITS, LABELS, reduction=reduction))


@pytest.mark.parametrize("gamma", [0, 0.5, 1, 2, 5])
def test_focal_loss_has_a_finite_gradient_for_a_certain_answer(gamma):
    logits = torch.tensor([[200.0, 0, 0, 0, 0, 0, 0]], requires_grad=True)
    for label in (0, 1):
        (gradient,) = torch.autograd.grad(FocalLoss(gamma=gamma)(logits, torch.tensor([label])), logits)
        assert gradient.isfinite().all()


@pytest.mark.parametrize("weight", [None, [0.5, 3.0, 1.0, 0.2, 1.5, 1.0, 2.0]])
def test_smoothed_cross_entropy_is_torchs(weight):
    tensor = None if weight is None else torch.tensor(weight, dtype=torch.float64)
    expected = F.cross_entropy(LOGITS, LABELS, weight=tensor, label_smoothing=0.1, reduction="none")
    got = CrossEntropy(smoothing=0.1, weight=weight, reduction="none")(LOGITS, LABELS)
    torch.testing.assert_close(got, expected)


def test_mean_divides_by_images_not_by_weights():
    loss = CrossEntropy(weight=[5.0] * 7)
    assert loss(LOGITS, LABELS).item() == pytest.approx(5 * F.cross_entropy(LOGITS, LABELS).item())


@pytest.mark.parametrize(
    "loss",
    [
        FocalLoss(reduction="none"),
        FocalLoss(gamma=0.5, alpha=WEIGHT, reduction="none"),
        CrossEntropy(smoothing=0.1, reduction="none"),
        CrossEntropy(smoothing=0.2, weight=WEIGHT, reduction="none"),
    ],
)
def test_a_shared_target_averages_the_loss_of_its_classes(loss):
    logits, first, second = torch.randn(9, 7), torch.arange(9) % 7, (torch.arange(9) + 3) % 7
    shares = 0.75 * torch.eye(7)[first] + 0.25 * torch.eye(7)[second]
    torch.testing.assert_close(loss(logits, torch.eye(7)[first]), loss(logits, first))
    torch.testing.assert_close(loss(logits, shares), 0.75 * loss(logits, first) + 0.25 * loss(logits, second))


def test_an_unknown_reduction_is_refused():
    with pytest.raises(ValueError, match="reduction: 'max' is not one of none, sum, mean"):
        FocalLoss(reduction="max")(LOGITS, LABELS)


def test_class_weights_average_1_over_the_images():
    counts = [3995, 436, 4097, 7215, 4830, 3171, 4965]
    for kind in ("inverse", "effective"):
        weights = class_weights(kind, counts)
        assert sum(w * n for w, n in zip(weights, counts, strict=True)) == pytest.approx(sum(counts))
    inverse, effective = class_weights("inverse", counts), class_weights("effective", counts)
    assert inverse[1] / inverse[3] == pytest.approx(7215 / 436)
    assert effective[1] / effective[3] == pytest.approx((1 - 0.999**7215) / (1 - 0.999**436))
    assert class_weights("none", counts) is None


def test_class_weights_name_a_class_without_images():
    with pytest.raises(ValueError, match="class_weights: 'inverse' needs an image of every class"):
        class_weights("inverse", [1, 0, 1, 1, 1, 1, 1])


def test_the_loss_is_named_with_its_weighting():
    counts = [10] * 7
    assert make_loss(Config(), counts)[1] == "focal loss (gamma 2)"
    assert make_loss(Config(loss="cross_entropy", label_smoothing=0.1, class_weights="inverse"), counts)[1] == (
        "cross-entropy (smoothing 0.1), inverse class weights"
    )


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("epochs", 0, "epochs: 0 is not between 1 and 100000"),
        ("batch_size", 0, "batch_size: 0 is not between"),
        ("lr", -0.1, "lr: -0.1 is not between"),
        ("lr", math.nan, "lr: nan is not between"),
        ("lr", 10**400, "lr: 1000.*0 is not between"),
        ("limit", 10**400, "limit: 1000.*0 is not between"),
        ("lr", "fast", "lr: 'fast' is not of type float"),
        ("flip", 1, "flip: 1 is not of type bool"),
        ("epochs", 2.5, "epochs: 2.5 is not of type int"),
        ("model", "resnet", "model: 'resnet' is not one of TheModel"),
        ("run", "../x", "run: '../x' is no folder name"),
    ],
)
def test_a_value_that_is_not_allowed_is_refused_by_name(field, value, message):
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        Config(**{field: value})


def test_a_whole_number_is_fine_where_a_fraction_is_asked():
    assert Config(lr=1).lr == 1


def test_later_layers_win(tmp_path, monkeypatch):
    monkeypatch.setitem(config.RECIPES, "try", {"lr": 0.5, "epochs": 3, "seed": 0})
    file = tmp_path / "config.json"
    file.write_text(json.dumps({"epochs": 4}))
    got, notes = combine({"seed": 9}, recipe="try", config_path=str(file))
    assert (got.lr, got.epochs, got.seed, got.batch_size) == (0.5, 4, 9, 128) and not notes


# As commit 1ec3311 wrote the config of every run and of the weights that it shipped
OLD = {"erase": 0.3, "teaching": 0.6, "whole": 0.25, "window": 40, "recalibrate": 2048, "compile": False}


def test_a_config_of_an_older_version_is_read_by_the_names_of_today(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(OLD))
    got, notes = combine({}, config_path=str(tmp_path))
    assert (got.cutout, got.distill_weight, got.full_size_share, got.window) == (0.3, 0.6, 0.25, 40)
    assert len(notes) == 1 and "recalibrate 2048" in notes[0] and str(tmp_path) in notes[0]


def test_every_old_name_leads_to_a_setting_or_is_ignored():
    known = {spec.name for spec in fields(Config)}
    assert all(new is None or new in known for new in OLD_NAMES.values()) and not known & set(OLD_NAMES)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"epoch": 3}', "unknown epoch; known are data"),
        ("[1]", "holds no JSON object"),
        ("{", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ('{"run": "a\\u0000b"}', r"run: 'a\\x00b' holds a zero character"),
        ('{"epochs": 0}', "epochs: 0 is not between"),
        ('{"lr": 1' + "0" * 400 + "}", "lr: 1000.*0 is not between"),
        ('{"lr": 1' + "0" * 5000 + "}", "is not JSON"),
    ],
)
def test_a_bad_config_file_is_refused(tmp_path, text, message):
    file = tmp_path / "config.json"
    file.write_text(text)
    with pytest.raises(ValueError, match=message):
        combine({}, config_path=str(file))


def test_a_missing_config_file_is_named():
    with pytest.raises(ValueError, match=r"config: nowhere\.json: No such file"):
        combine({}, config_path="nowhere.json")


def test_every_recipe_is_a_valid_config():
    for name in config.RECIPES:
        combine({}, recipe=name)


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        (["--epoch", "3"], "error: unrecognized arguments: --epoch 3 (did you mean --epochs?)"),
        (["--gpu"], "error: unrecognized arguments: --gpu (did you mean --device cuda?)"),
        (["--batchsize=64"], "error: unrecognized arguments: --batchsize=64 (did you mean --batch-size?)"),
        (["--teaching", "0.5"], "error: unrecognized arguments: --teaching 0.5 (did you mean --distill-weight?)"),
        (["--zzz", "data"], "error: unrecognized arguments: --zzz data; see"),
        (["--epochs", "0"], "error: epochs: 0 is not between 1 and 100000"),
        (["--batch-size", "0"], "error: batch_size: 0 is not between"),
        (["--lr", "-0.001"], "error: lr: -0.001 is not between"),
        (["--lr", "fast"], "error: argument --lr: invalid float value: 'fast'"),
        (["--model", "resnet"], "error: argument --model: invalid choice: 'resnet'"),
        (["--resume", "runs/a", "--lr", "1"], "error: --resume goes on with the run's own"),
        (["--resume", ""], "error: argument --resume: it is empty: name something, or leave the flag out"),
        (["--config", ""], "error: argument --config: it is empty"),
    ],
)
def test_a_wrong_call_ends_with_one_line_and_status_2(tmp_path, typed, message):
    done = run_script("interface.py", *typed, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith(message) and done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_runs_config_is_found_in_its_folder_and_gives_no_name(tmp_path):
    values = asdict(Config(epochs=7, run="before"))
    (tmp_path / "config.json").write_text(json.dumps(values))
    for path in (tmp_path, tmp_path / "config.json"):
        made, _ = combine({}, config_path=str(path))
        assert (made.epochs, made.run) == (7, "")
    assert combine({"run": "after"}, config_path=str(tmp_path))[0].run == "after"


@pytest.mark.parametrize("loss", [FocalLoss(alpha=[1.0, 2.0, 3.0]), CrossEntropy(weight=[1.0, 2.0, 3.0])])
def test_class_weights_are_not_copied_from_the_host_at_each_step(loss):
    """A GPU would wait for that. Fake tensors show every operation of one, and do none."""
    called = []

    class Record(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            called.append(str(function))
            return function(*args, **(kwargs or {}))

    with FakeTensorMode():
        logits, targets = torch.empty(4, 3, device="cuda"), torch.empty(4, dtype=torch.int64, device="cuda")
        with Record():
            loss(logits, targets)
    assert called and not [name for name in called if "copy" in name or "lift" in name]


@pytest.mark.parametrize(
    ("module", "args"),
    [
        ("test", ["--json", ""]),
        ("predict", ["--csv", ""]),
        ("predict", ["--json", ""]),
    ],
)
def test_an_empty_name_of_what_is_to_be_written_is_refused(module, args, monkeypatch, capsys):
    script = importlib.import_module(module)
    monkeypatch.setattr("sys.argv", ["script", *args])
    with pytest.raises(SystemExit) as raised:
        script.main()
    assert raised.value.code == 2 and "it is empty: name something, or leave the flag out" in capsys.readouterr().err
