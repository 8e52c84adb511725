"""Optimisers, schedules and the average of the weights."""

import math
from itertools import pairwise

import pytest
import torch
from torch import nn

from config import Config
from model import build_model
from training.optim import WeightAverage, cosine, make_optimizer, make_scheduler, warm_up
from utils import Machine, pick_machine

MACHINE = pick_machine("cpu", "fp32")


@pytest.mark.parametrize("rule", ["adam", "adamw", "sgd"])
def test_weight_decay_spares_biases_and_norms(rule):
    model = build_model("EmotionResNet-nano")
    optimizer = make_optimizer(model, Config(optimizer=rule, weight_decay=0.1), MACHINE)
    decayed, spared = optimizer.param_groups
    assert (decayed["weight_decay"], spared["weight_decay"]) == (0.1, 0.0)
    kinds = {weight: module for module in model.modules() for weight in module.parameters(recurse=False)}
    assert {type(kinds[weight]) for weight in decayed["params"]} == {nn.Conv2d, nn.Linear}
    assert {type(kinds[weight]) for weight in spared["params"]} == {nn.BatchNorm2d, nn.Linear}
    assert len(decayed["params"]) + len(spared["params"]) == len(list(model.parameters()))


@pytest.mark.parametrize("rule", ["adam", "adamw", "sgd"])
def test_a_first_step_skipped_in_float16_leaves_nothing_behind(rule):
    """The scale begins too large for it; nothing of that step may stay in the update rule's memory."""
    machine = Machine(torch.device("cpu"), torch.float16)
    model = nn.Linear(100, 100)
    optimizer = make_optimizer(model, Config(optimizer=rule, lr=0.1, weight_decay=0.0), machine)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    before = [weight.detach().clone() for weight in model.parameters()]
    for gradient in (torch.inf, 0.0):
        for weight in model.parameters():
            weight.grad = torch.full_like(weight, gradient)
        scaler.scale(torch.ones(1))  # as a backward pass would have
        scaler.step(optimizer)
        scaler.update()
        after = [weight.detach() for weight in model.parameters()]
        assert all(torch.equal(old, new) for old, new in zip(before, after, strict=True)), gradient


def test_without_a_gradient_only_the_decayed_shrink():
    model = nn.Linear(3, 2)
    before = [weight.detach().clone() for weight in model.parameters()]
    optimizer = make_optimizer(model, Config(optimizer="adamw", lr=0.5, weight_decay=0.1), MACHINE)
    for weight in model.parameters():
        weight.grad = torch.zeros_like(weight)
    optimizer.step()
    torch.testing.assert_close(model.weight.detach(), before[0] * 0.95)
    assert torch.equal(model.bias.detach(), before[1])


def rates(config: Config, steps: int) -> list[float]:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=config.lr)
    scheduler = make_scheduler(optimizer, config, steps)
    found = []
    for _ in range(config.epochs * steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


def test_cosine_rises_in_a_line_and_falls_to_nothing():
    found = rates(Config(schedule="cosine", lr=0.4, warmup=0.2, epochs=10), 10)
    assert found[:20] == pytest.approx([0.4 * (step + 1) / 20 for step in range(20)])
    assert found[60] == pytest.approx(0.2) and found[20] == 0.4
    assert all(now < before for before, now in pairwise(found[20:]))
    assert found[-1] == pytest.approx(0.2 * (1 + math.cos(math.pi * 79 / 80)))


@pytest.mark.parametrize(("total", "warmup"), [(1, 0.0), (1, 0.9), (3, 0.5), (7, 0.0)])
def test_cosine_fits_any_number_of_steps(total, warmup):
    found = [cosine(step, total=total, warmup=warmup) for step in range(total + 2)]
    assert all(0 <= value <= 1 for value in found) and found[0] > 0 and found[-1] == 0


@pytest.mark.parametrize("warmup", [0, 0.01, 0.05, 0.1, 0.2, 0.3, 0.5])
@pytest.mark.parametrize(("epochs", "steps"), [(2, 1), (5, 1), (7, 1), (10, 10), (100, 1)])
def test_one_cycle_fits_every_warm_up_and_is_highest_after_it(warmup, epochs, steps):
    found = rates(Config(schedule="onecycle", lr=0.4, warmup=warmup, epochs=epochs), steps)
    assert len(found) == epochs * steps and all(math.isfinite(rate) and 0 < rate <= 0.4001 for rate in found)
    if (warmup, steps) == (0.3, 10):
        assert found.index(max(found)) == 29 and max(found) == pytest.approx(0.4)


def test_on_the_plateau_schedule_the_rate_rises_in_a_line_to_its_highest():
    config = Config(schedule="plateau", lr=0.4, warmup=0.25)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=config.lr)
    found = []
    for step in range(8):
        warm_up(optimizer, config, step=step, steps=8)
        found.append(optimizer.param_groups[0]["lr"])
    assert found == pytest.approx([0.2] + [0.4] * 7)


@pytest.mark.parametrize(("fall", "cut"), [(0.995, True), (0.98, False)])
def test_a_loss_that_falls_by_half_a_percent_an_epoch_is_a_plateau(fall, cut):
    config = Config(schedule="plateau")
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=config.lr)
    scheduler = make_scheduler(optimizer, config, 1)
    for epoch in range(8):
        scheduler.step(fall**epoch)
    assert (optimizer.param_groups[0]["lr"] < config.lr) == cut


def test_the_average_leaves_the_first_weights_at_once_and_ends_at_its_decay():
    model = nn.Linear(1, 1, bias=False)
    average = WeightAverage(model, 0.9)
    expected = None
    for step in range(200):
        value = step % 7
        nn.init.constant_(model.weight, value)
        average.update()
        decay = min(0.9, (1 + step) / (10 + step))
        expected = value if expected is None else decay * expected + (1 - decay) * value
        assert average.module.weight.item() == pytest.approx(expected, rel=1e-5, abs=1e-6), step


def test_statistics_are_averaged_and_counts_copied():
    model = nn.BatchNorm1d(2)
    average = WeightAverage(model, 0.5)
    for _ in range(3):
        model(torch.randn(8, 2) + 5)
        average.update()
    assert int(average.module.num_batches_tracked) == 3
    assert not torch.equal(average.module.running_mean, model.running_mean) and average.module.running_mean.min() > 0.4
    assert not any(weight.requires_grad for weight in average.module.parameters())


def test_what_is_not_fused_is_left_to_torch():
    """None, not False, which would also keep torch from going through all weights at once."""
    half, single = (Machine(torch.device("cpu"), dtype) for dtype in (torch.float16, torch.float32))
    groups = [make_optimizer(nn.Linear(2, 2), Config(optimizer="sgd"), each).param_groups for each in (half, single)]
    assert [[group["fused"] for group in each] for each in groups] == [[None] * 2, [True] * 2]
