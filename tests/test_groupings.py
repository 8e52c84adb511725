"""Groupings: what is refused, and what a confusion matrix gives."""

import numpy as np
import pytest

from config import CLASSES, GROUPINGS
from errors import UserError
from study.groupings import MADE, TAKEN, by_confusion, by_names, drawn_like, given, names

# Two blocks that are confused among themselves: 0, 2, 4 and 1, 3, 5; 6 with nobody
BLOCKS = np.full((7, 7), 1) + 90 * np.eye(7, dtype=int)
for first, second in ((0, 2), (2, 4), (0, 4), (1, 3), (3, 5), (1, 5)):
    BLOCKS[first, second] = BLOCKS[second, first] = 30


@pytest.mark.parametrize("name", GROUPINGS)
def test_every_grouping_of_the_config_is_one(name):
    grouping = by_names(GROUPINGS[name], f"GROUPINGS[{name!r}]")
    assert {c for group in grouping for c in group} == set(range(7)) and len(grouping) == 3  # all of one size
    assert [sorted(group) for group in GROUPINGS[name]] == [sorted(group) for group in names(grouping)]


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ([["angry", "joy"], list(CLASSES)], "here: unknown joy; the emotions are angry, disgust"),
        ([list(CLASSES), []], "here: group 2 is empty; an expert needs an emotion"),
        ([["angry", "sad"], ["fear"]], "here: no group has disgust, happy, surprise, neutral; together"),
        ([], "here: no group has angry"),
        ([["sad", "fear"], list(CLASSES), ["fear", "sad"]], "here: fear, sad are a group twice"),
    ],
)
def test_what_is_no_grouping_is_refused(groups, message):
    with pytest.raises(UserError, match=message):
        by_names(groups, "here")


def test_groupings_are_given_as_far_as_they_are_known():
    found = given(GROUPINGS, ["random", "valence", "all-classes", "clusters"], 2)
    assert found == {
        "random": [],
        "valence": by_names(GROUPINGS["valence"], "here"),
        "all-classes": [list(range(7))] * 2,
        "clusters": [],
    }
    assert list(found) == ["random", "valence", "all-classes", "clusters"]


HALVES = [["angry", "disgust", "fear"], ["happy", "sad", "surprise", "neutral"]]


@pytest.mark.parametrize("name", ["", "Mood", "a b", "../up", "..", "a.b", "einé", "line\n"])
def test_a_grouping_is_named_as_a_folder(name):
    with pytest.raises(UserError, match=r"config.py, GROUPINGS: the name .* names folders: use the letters a to z"):
        given({name: HALVES, "mood": HALVES}, ["mood"], 3)


@pytest.mark.parametrize("name", [*TAKEN, "mood-gate", "mood-top-1", "mood-together"])
def test_a_grouping_has_a_name_of_its_own(name):
    assert {"single", "longer", "wide", "wide-2", "ensemble", *MADE} == set(TAKEN)
    with pytest.raises(UserError, match=f"GROUPINGS: the name '{name}' is taken by a part of the study"):
        given({name: HALVES, "mood": HALVES}, ["mood"], 3)


def test_only_groupings_wanted_are_extract_features():
    bad = {"mood": [list(CLASSES)], "half": HALVES[:1], "good": HALVES}
    assert list(given(bad, ["good"], 3)) == ["good"]
    with pytest.raises(
        UserError, match=r"config.py, GROUPINGS\['mood'\]: a single group leaves a gate nothing to choose"
    ):
        given(bad, ["good", "mood"], 3)
    with pytest.raises(UserError, match=r"config.py, GROUPINGS\['half'\]: no group has happy"):
        given(bad, ["good", "half"], 3)


def test_confused_classes_come_together():
    assert by_confusion(BLOCKS, 3) == [[0, 2, 4], [1, 3, 5], [6]]
    assert by_confusion(BLOCKS, 1) == [list(range(7))] and by_confusion(BLOCKS, 7) == [[c] for c in range(7)]


def test_rates_count_and_not_images():
    rare = BLOCKS.copy()
    rare[1] = rare[1] // 15 + (rare[1] > 0)  # few images of disgust, confused as often
    assert by_confusion(rare, 3) == by_confusion(BLOCKS, 3)


@pytest.mark.parametrize("count", [0, 8])
def test_more_experts_than_classes_are_refused(count):
    with pytest.raises(UserError, match=f"{count} experts: 7 classes make 1 to 7 groups"):
        by_confusion(BLOCKS, count)


def test_a_class_without_validation_images_is_named():
    bare = BLOCKS.copy()
    bare[1] = 0
    with pytest.raises(UserError, match="the validation part has no image of disgust"):
        by_confusion(bare, 3)


@pytest.mark.parametrize("seed", range(5))
def test_drawn_groups_have_the_sizes_of_the_others(seed):
    grouping = [[0, 2, 4], [1, 3, 5], [6]]
    drawn = drawn_like(grouping, seed)
    assert sorted(map(len, drawn)) == [1, 3, 3] and sorted(c for group in drawn for c in group) == list(range(7))
    assert drawn != grouping and drawn == drawn_like(grouping, seed)
