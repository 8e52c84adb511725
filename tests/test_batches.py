from dataclasses import replace

import numpy as np
import pytest
import torch

from dataset import Split
from helpers import faces
from readers.cache import DIGEST
from training import batches
from training.batches import TrainingImages
from utils import Machine

CPU = Machine(torch.device("cpu"), torch.float32)
ROWS = np.array([5, 1, 30, 2, 19])


@pytest.fixture(params=["mapped array", "device"])
def place(request, monkeypatch):
    """Where the images are: the second as on a GPU that has room for all of them."""
    monkeypatch.setattr(batches, "fit_on_gpu", lambda size, device: request.param == "device")


def split(count: int = 35) -> Split:
    images, labels = faces(count)
    return Split("train", images, labels, np.zeros(count, DIGEST), np.zeros(count, bool))


def test_a_batch_has_the_rows_that_were_asked_for(place):
    data = split()
    images = TrainingImages(data, CPU)
    batch = images.batch(ROWS)
    assert len(images) == 35 and np.array_equal(batch.at, ROWS)
    assert np.array_equal(batch.images, data.images[ROWS]) and batch.images.dtype is torch.uint8
    assert np.array_equal(batch.labels, data.labels[ROWS]) and torch.equal(batch.targets, batch.labels)


def test_soft_targets_are_all_for_the_label(place):
    batch = TrainingImages(split(), CPU, soft=True).batch(ROWS)
    assert torch.equal(batch.targets, torch.eye(7)[batch.labels])


@pytest.mark.parametrize("soft", [False, True])
def test_votes_are_targets_where_an_image_has_some(place, soft):
    votes = np.random.default_rng(0).integers(1, 5, (35, 7)).astype(np.float32)
    votes[[5, 19]] = 0
    batch = TrainingImages(replace(split(), votes=votes), CPU, soft=soft).batch(ROWS)
    wanted = votes / votes.sum(1, keepdims=True).clip(1)
    wanted[[5, 19]] = np.eye(7)[split().labels[[5, 19]]]
    assert batch.targets.dtype is torch.float32 and np.allclose(batch.targets, wanted[ROWS], rtol=1e-6, atol=0)


@pytest.mark.parametrize(("free", "fits"), [(10**9, True), (2 * 35 * 48 * 48, False)])
def test_a_gpu_holds_what_takes_under_half_of_its_free_memory(monkeypatch, free, fits):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 2 * free))
    assert batches.fit_on_gpu(split().images.nbytes, torch.device("cuda")) is fits
    assert not batches.fit_on_gpu(1, torch.device("cpu"))
