"""Groupings: what is refused, and what confusions give."""

import numpy as np
import pytest

from config import CLASSES, GROUPINGS
from errors import UserError
from study.groupings import by_confusion, parse, random_like, resolve

# Two blocks that are confused among themselves: 0, 2, 4 and 1, 3, 5; 6 with nobody
BLOCKS = np.full((7, 7), 0.01) + 0.6 * np.eye(7)
for first, second in ((0, 2), (2, 4), (0, 4), (1, 3), (3, 5), (1, 5)):
    BLOCKS[first, second] = BLOCKS[second, first] = 0.15


@pytest.mark.parametrize("name", GROUPINGS)
def test_every_grouping_of_the_config_is_one(name):
    grouping = parse(GROUPINGS[name], name)
    assert {c for group in grouping for c in group} == set(range(7)) and len(grouping) == 3  # all of one size


@pytest.mark.parametrize(
    "groups",
    [
        [["angry", "joy"], list(CLASSES)],
        [["angry", "sad"], ["fear"]],
        [],
        [list(CLASSES), []],
        [list(CLASSES)],
    ],
)
def test_what_is_no_grouping_is_refused_with_its_place(groups):
    with pytest.raises(UserError, match=r"config.py, GROUPINGS\['mood'\]: two or more .* every emotion \(angry, "):
        resolve({"mood": groups}, ["mood"], 3)


def test_groupings_are_resolved_in_the_order_wanted_and_no_others():
    found = resolve(GROUPINGS | {"bad": [[]]}, ["random", "valence", "all-classes", "clusters"], 2)
    assert list(found) == ["random", "valence", "all-classes", "clusters"]
    assert found["random"] == found["clusters"] == [] and found["all-classes"] == [list(range(7))] * 2


def test_confused_classes_come_together():
    assert by_confusion(BLOCKS, 3) == [[0, 2, 4], [1, 3, 5], [6]]
    shares = BLOCKS.copy()
    shares[1] = [0.05, 0.06, 0.05, 0.40, 0.05, 0.34, 0.05]  # the most probable class is never 1
    shares[:, 1] = 0.02
    assert [1, 3, 5] in by_confusion(shares, 3)


@pytest.mark.parametrize("seed", range(3))
def test_random_groups_have_the_sizes_of_the_others(seed):
    grouping = [[0, 2, 4], [1, 3, 5], [6]]
    found = random_like(grouping, seed)
    assert sorted(map(len, found)) == [1, 3, 3] and sorted(c for group in found for c in group) == list(range(7))
    assert found != grouping and found == random_like(grouping, seed) != random_like(grouping, seed + 1)
