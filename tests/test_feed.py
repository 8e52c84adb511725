from dataclasses import replace

import numpy as np
import pytest
import torch

from config import Config
from dataset import Split
from helpers import faces
from readers.cache import DIGEST
from training import batches as feed
from training.batches import Feed, grouped, where_to_keep
from utils import Machine

CPU = Machine(torch.device("cpu"), torch.float32)
PARTS = [np.array(rows) for rows in ([5, 1, 30], [2, 8], [19, 0, 7], [33], [11, 12, 13])]


def split(count: int = 35) -> Split:
    images, labels = faces(count)
    return Split("train", images, labels, np.zeros(count, DIGEST), np.zeros(count, bool))


@pytest.mark.parametrize("knobs", [{}, {"augment": False}, {"cutout": 0.25}], ids=str)
@pytest.mark.parametrize("place", ["host", "device", "chunks"])
def test_every_place_gives_the_rows_that_were_asked_for(monkeypatch, place, knobs):
    monkeypatch.setattr(feed, "CHUNK", 5)  # 3 + 2, 3 + 1, 3
    data, config = split(), Config(**knobs)
    batches = list(Feed(data, config, CPU, place=place).batches(PARTS, epoch=2))
    assert len(batches) == len(PARTS)
    for rows, batch in zip(PARTS, batches, strict=True):
        assert np.array_equal(batch.images, data.images[rows]) and np.array_equal(batch.labels, data.labels[rows])
        wanted = feed.draw(config, rows, epoch=2)
        if wanted is None:
            assert batch.draws is None
            continue
        assert torch.equal(batch.draws.theta, wanted.theta)
        assert (wanted.boxes is None) is (batch.draws.boxes is None)
        assert wanted.boxes is None or torch.equal(batch.draws.boxes, wanted.boxes)


@pytest.mark.parametrize("place", ["host", "device", "chunks"])
def test_every_place_gives_the_targets_of_the_rows(monkeypatch, place):
    monkeypatch.setattr(feed, "CHUNK", 5)
    votes = np.random.default_rng(0).integers(0, 5, (35, 7)).astype(np.float32)
    votes[[5, 19]] = 0
    data = replace(split(), votes=votes)
    batches = list(Feed(data, Config(), CPU, place=place).batches(PARTS, epoch=2))
    for rows, batch in zip(PARTS, batches, strict=True):
        assert np.array_equal(batch.images, data.images[rows]) and np.array_equal(batch.labels, data.labels[rows])
        assert batch.targets.dtype is torch.float32
        for row, target in zip(rows, batch.targets.numpy(), strict=True):
            wanted = votes[row] / votes[row].sum() if votes[row].any() else np.eye(7)[data.labels[row]]
            assert np.allclose(target, wanted, rtol=1e-6, atol=0), row


@pytest.mark.parametrize("place", ["host", "device", "chunks"])
def test_without_votes_there_are_no_targets(place):
    assert all(batch.targets is None for batch in Feed(split(), Config(), CPU, place=place).batches(PARTS, epoch=0))


@pytest.mark.parametrize("place", ["host", "device", "chunks"])
def test_no_parts_are_no_batches(place):
    assert not list(Feed(split(), Config(), CPU, place=place).batches([], epoch=0))


def test_a_loop_that_ends_early_leaves_no_thread(monkeypatch):
    import threading

    monkeypatch.setattr(feed, "CHUNK", 3)
    batches = Feed(split(), Config(), CPU, place="chunks").batches(PARTS, epoch=0)
    next(batches)
    batches.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("feed")]


def test_groups_hold_whole_parts_up_to_the_limit():
    assert [[len(part) for part in group] for group in grouped(PARTS, 5)] == [[3, 2], [3, 1], [3]]
    assert [len(group) for group in grouped(PARTS, 1)] == [1] * 5
    assert grouped([], 5) == []


@pytest.mark.parametrize(("free", "place"), [(10**9, "device"), (2 * 35 * 48 * 48, "chunks")])
def test_a_gpu_holds_what_takes_under_half_of_its_free_memory(monkeypatch, free, place):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 2 * free))
    assert where_to_keep(split(), Machine(torch.device("cuda"), torch.bfloat16)) == place


def test_the_place_is_said():
    said = [str(Feed(split(), Config(), CPU, place=place)) for place in ("device", "chunks")]
    assert said[0].startswith("held by the GPU (0 MB, under 50%") and said[1].startswith("streamed to the GPU")


def test_what_a_gpu_does_to_the_images_it_holds_is_drawn_in_parts(monkeypatch):
    monkeypatch.setattr(feed, "DRAWN", 5)
    drawn, draw = [], feed.draw
    monkeypatch.setattr(
        feed, "draw", lambda config, rows, **named: drawn.append(len(rows)) or draw(config, rows, **named)
    )
    batches = list(Feed(split(), Config(), CPU, place="device").batches(PARTS, epoch=2))
    assert [len(batch.images) for batch in batches] == [3, 2, 3, 1, 3] and drawn == [5, 4, 3]
