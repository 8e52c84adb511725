"""The plan of a study: which stages it has, in which order, how long they are, and what they cost."""

import pytest

from config import CLASSES, GROUPINGS, RECIPES, Config
from study.groupings import given
from study.plan import AFTER, OVERHEAD, Size, Step, seconds, steps

NANO = Config(**{**RECIPES["nano"], "window": 40})
MEANT = {"base": 10, "expert": 5, "gate": 3, "together": 2}


def test_stages_stand_in_the_order_of_training():
    wanted = given(GROUPINGS, ["valence", "random", "all-classes"], 2)
    found = steps(Size(NANO, 1, **MEANT, experts=2), wanted)
    assert [step.name for step in found] == [
        *("0-single-0", "0-single-1", "0-single-2", "0-longer", "0-wide", "0-wide-2"),
        *("0-expert-angry+disgust+fear+sad", "0-expert-happy+surprise", "0-expert-neutral"),
        *("0-valence-gate", "0-valence-together"),
        *("0-expert-random-1", "0-expert-random-2", "0-random-gate", "0-random-together"),
        *("0-expert-all-1", "0-expert-all-2", "0-all-classes-gate", "0-all-classes-together"),
    ]
    assert [step.epochs for step in found] == [10, 10, 10, 10, 10, 10, 5, 5, 5, 3, 2, 5, 5, 3, 2, 5, 5, 3, 2]
    work = {step.name.partition("-")[2]: (step.work, step.nets) for step in found}
    assert work["single-1"] == work["longer"] == work["expert-neutral"] == (1, 1)
    assert work["wide"] == (0.63 * 3, 0.63 * 3) and work["wide-2"] == (0.63 * 2, 0.63 * 2)
    assert work["valence-gate"] == (2, 4) and work["valence-together"] == (4, 4)
    assert work["random-gate"] == (pytest.approx(5 / 3), 3) and work["random-together"] == (3, 3)


def test_every_seed_and_use_of_a_stage_counts():
    pairs = [["angry", "sad"], ["happy", "surprise"], ["fear", "neutral", "disgust"]]
    other = [["angry", "sad"], ["happy", "fear"], ["surprise", "neutral", "disgust"]]
    found = steps(Size(NANO, 2, **MEANT), given({"one": pairs, "two": other}, ["one", "two"], 3))
    assert len(found) == 2 * (4 + 3 + 2 * 5)
    assert [step.name for step in found].count("1-expert-angry+sad") == 2
    assert found[17].name == "1-single-0"


@pytest.mark.parametrize(
    ("scratch", "before", "of_expert", "further", "through"),
    [
        (False, 10, 5, 10, 15),
        (True, 0, 10, 5, 10),
    ],
)
def test_scratch_begins_anew_and_trains_experts_as_long(scratch, before, of_expert, further, through):
    size = Size(NANO, 1, **MEANT, scratch=scratch)
    assert (size.before, size.of_expert, size.further, size.through) == (before, of_expert, further, through)
    found = {step.name: step.epochs for step in steps(size, given(GROUPINGS, ["valence"], 3))}
    assert found["0-expert-neutral"] == of_expert and found["0-longer"] == further
    assert (found["0-valence-gate"], found["0-valence-together"]) == (3, 2)


def test_a_gate_that_trains_longest_is_what_counts():
    assert Size(NANO, 1, base=10, expert=2, gate=6, together=2).through == 16


def test_epochs_of_whole_faces_and_all_passes_take_longer():
    # 10 epochs, the last 2 of whole faces; 10 scorings and some more of whole faces, each a third of a step
    larger = (48 / 40) ** 2
    whole = seconds(Step("a", 10), NANO, train=1000, val=300, each=0.01)
    assert whole == pytest.approx(OVERHEAD * 0.01 * (1000 * (8 + 2 * larger) + 300 * larger * (10 + AFTER) / 3))
    assert seconds(Step("a", 10, 2.0, 4.0), NANO, train=1000, val=0, each=0.01) == pytest.approx(
        OVERHEAD * 0.01 * 2 * 1000 * (8 + 2 * larger)
    )
    same = Config(model=NANO.model, window=48, full_size_share=0.2)
    assert seconds(Step("a", 10, 1.0, 4.0), same, train=0, val=300, each=0.01) == pytest.approx(
        OVERHEAD * 0.01 * 4 * 300 * (10 + AFTER) / 3
    )


def test_the_work_of_a_mixture_grows_with_its_experts():
    full = given({"each": [[name] for name in CLASSES]}, ["each"], 3)
    found = {step.name: step for step in steps(Size(NANO, 1, **MEANT), full)}
    assert found["0-each-gate"].work == pytest.approx(1 + 7 / 3) and found["0-each-together"].work == 8
