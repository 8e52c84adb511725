"""The report of a study: its figures follow from the results, and the page and its PNG files are whole."""

import re
from itertools import combinations

import numpy as np
import pytest
from PIL import Image

from config import CLASSES
from errors import UserError
from study.configurations import project, same_class_neighbours
from study.findings import Gap, find
from study.report import answer, write_report
from study.results import Configuration, Inside, Study, read_results, save_results
from study.stats import PAIRS, Interval, bootstrap, confused, holm, sign_flip

GROUPS = [["angry", "fear", "disgust"], ["sad", "neutral"], ["happy", "surprise"]]
PLAIN = [list(CLASSES)] * 3
EXPERT, WHOLE = [[10, 1.0], [5, 1 / 3]], [[10, 1.0], [5, 1 / 3], [2, 1 / 15]]
# name: kind, control, schedule, grouping, variant, groups
KINDS = {
    "single": ("single", False, [[10, 1.0]], "", "", []),
    "ensemble": ("ensemble", True, [[10, 1.0]], "", "", []),
    "schedule": ("single", True, WHOLE, "", "", []),
    "mixture-mood.gate alone": ("mixture", False, EXPERT, "mood", "gate alone", GROUPS),
    "mixture-mood": ("mixture", False, WHOLE, "mood", "together", GROUPS),
    "mixture-mood.top-1": ("mixture", False, WHOLE, "mood", "top-1", GROUPS),
    "mixture-all-classes": ("mixture", True, WHOLE, "all-classes", "together", PLAIN),
    "mixture-all-classes.top-1": ("mixture", True, WHOLE, "all-classes", "top-1", PLAIN),
}


def make_study(*, images=1500, seeds=3, gains=(), only=None, demo=False, other_groups=False, idle=False):
    """A study of random predictions with a known structure.

    `gains` maps a configuration to the share of the base's mistakes that it mends, with all seeds and on the same
    images, or below zero of the base's hits that it spoils; `only` is the pair of classes that this is about. The gate
    has 0.8 of its weight on an expert of the true class; an `idle` one has even weights.
    """
    rng, gains = np.random.default_rng(0), dict(gains)
    labels = rng.choice(7, images, p=(0.13, 0.02, 0.14, 0.25, 0.18, 0.11, 0.17))
    labels[:7], copies = range(7), rng.random(images) < 0.08
    copies[:7] = False
    hard, chance = rng.random(images), rng.random(images)
    slips = (labels + rng.integers(1, 7, images)) % 7
    meant = np.isin(labels, only) & np.isin(slips, only) if only else np.ones(images, bool)
    made = []
    for place, (name, (kind, control, schedule, grouping, variant, groups)) in enumerate(KINDS.items()):
        predicted, gain = [], gains.get(name, 0.0)
        for seed in range(seeds):
            noise = np.random.default_rng([place, seed]).standard_normal(images)
            right = (hard + 0.05 * noise < 0.6) | meant & (chance < gain)
            predicted.append(np.where(right & ~(meant & (chance < -gain)), labels, slips))
        size = 3 if groups or kind == "ensemble" else 1
        shift = [[*groups[seed:], *groups[:seed]] if other_groups else groups for seed in range(seeds)]
        cost = {"parameters": 308_000 * size, "macs": 28_000_000 * size, "work": 10.0 * size}
        about = {"grouping": grouping, "variant": variant, "groups": shift if groups else [], "schedule": schedule}
        made.append(Configuration(name, name, kind, control, predicted=np.stack(predicted), **cost, **about))
    about = {"name": "quick", "why": "", "command": "python experiments.py --quick", "machine": "cpu_x", "minutes": 9.5}
    about |= {"versions": {"torch": "2.14"}, "source": "archive.zip", "fingerprint": "14bc"}
    about |= {"demo": demo, "seeds": seeds}
    about |= {"train": [100] * 7, "val": np.bincount(labels, minlength=7).tolist(), "rate": 0.15}
    study = Study(about, labels, copies, np.flatnonzero(~copies)[:60], made)
    for one in (study.base, study.best):
        features = rng.standard_normal((60, 9)) + 3 * np.eye(7, 9)[labels[study.rows]]
        has = np.array([[c in group for group in (one.groups or [PLAIN])[0]] for c in CLASSES])
        gate = np.full(has.shape, 1 / has.shape[1]) if idle else (has + 0.125) / (has + 0.125).sum(1, keepdims=True)
        epochs = [dict.fromkeys(("train_loss", "train_accuracy", "val_loss_deduplicated"), 0.5)] * 3
        curves = [[{"stage": f"part {part}", "epochs": epochs} for part in (1, 2)]] * seeds
        curves[0][0]["epochs"] = [row | {"val_accuracy_deduplicated": None} for row in epochs]
        curves[0][1]["epochs"] = [row | {"val_accuracy_deduplicated": 0.4} for row in epochs]
        pca, variance, tsne = project(features)
        near = same_class_neighbours(features, labels[study.rows])
        chosen = np.stack([gate[labels].argmax(1)] * seeds)
        study.inside[one.name] = Inside(pca, variance, tsne, near, curves, chosen, np.stack([gate] * seeds))
    return study


# --- Findings ---


def test_gains_are_paired_and_corrected_together():
    study = make_study(gains={"mixture-mood": 0.3, "schedule": 0.3})
    found = find(study)
    assert found.best.of.name == "mixture-mood" and found.base.gain is None
    others = [one for one in found.scores if one.gain]
    hits = [(study.hits(one.of), study.hits(study.base)) for one in others]
    assert [one.gain.p for one in others] == pytest.approx(holm([sign_flip(*each) for each in hits]).tolist())
    assert [one.gain.images for one in others] == [bootstrap(*each) for each in hits]
    assert found.best.gain.images.mean == pytest.approx(np.mean(found.best.accuracy) - np.mean(found.base.accuracy))
    official = 100 * (found.best.of.predicted == study.labels).mean(1)
    assert found.best.official == pytest.approx(official.tolist()) and found.best.official != found.best.accuracy


def test_verdicts_follow_the_figures():
    found = find(make_study(gains={"mixture-mood": 0.3, "schedule": 0.3, "mixture-mood.top-1": -0.2}))
    verdicts = {one.of.name: one.gain.verdict() for one in found.scores if one.gain}
    assert verdicts["mixture-mood"] == verdicts["schedule"] == "better" and verdicts["mixture-mood.top-1"] == "worse"
    assert verdicts["ensemble"] == "no difference shown"
    against = {one.second.name: one.gap.shown for one in found.controls}
    assert against == {"ensemble": 1, "schedule": 0, "mixture-all-classes": 1}  # of mixtures, those of its variant
    variants = {(one.first.name, one.second.name): one.gap.shown for one in found.variants}
    assert variants[("mixture-mood", "mixture-mood.top-1")] == 1 and len(variants) == 3


@pytest.mark.parametrize(
    ("seeds", "verdict", "shown"),
    [
        (None, "better", 1),
        ((1.0, 0.5), "better", 1),
        ((1.0, 1.5), "better, but not over seeds", 0),
        ((1.0, 0.0), "better, but not over seeds", 0),  # without width it shows nothing
    ],
)
def test_seeds_must_agree(seeds, verdict, shown):
    gap = Gap(Interval(1.0, 0.5, 1.5), seeds, 0.001)
    assert (gap.verdict(), gap.shown) == (verdict, shown)
    assert gap._replace(p=0.2).verdict() == "no difference shown"


def test_pairs_are_counted_and_a_change_is_found():
    study = make_study(images=4000, gains={"mixture-mood": 0.9, "mixture-mood.top-1": -0.01}, only=(0, 2))
    found = find(study)
    labels, best = study.true, found.best.of
    for pair, row in zip(PAIRS, found.pairs, strict=False):
        counts = [confused(labels, study.named(one), pair).sum(1).mean() for one in (study.base, best)]
        assert [row.first, row.second] == pytest.approx(counts)
        assert row.gap.images.mean == pytest.approx(counts[1] - counts[0])
    changed = [row.name for row in found.pairs if row.gap.shown == -1]
    assert changed == ["angry / fear", "all that share an expert"]
    shared = {frozenset(row.name.split(" / ")) for row in found.pairs[:21] if row.shared}
    assert shared == {frozenset(pair) for group in GROUPS for pair in combinations(group, 2)}
    assert sum(row.first for row in found.pairs[21:]) == pytest.approx((1 - study.hits(study.base)).sum(1).mean())
    assert found.rival.name == "schedule" and found.pairs_rival[1].first != found.pairs[1].first


def test_a_gate_that_looks_at_nothing_has_the_weights_of_a_blind_one():
    gate = find(make_study(images=400)).gate
    assert gate.own == pytest.approx(1.125 / 1.375) and gate.own > gate.blind + 0.3
    idle = find(make_study(images=400, idle=True)).gate
    assert idle.own == pytest.approx(idle.blind) == pytest.approx(1 / 3) and idle.load == pytest.approx([1 / 3] * 3)
    assert idle.chosen == pytest.approx([1, 0, 0])


def test_groups_that_differ_between_seeds_are_not_taken_for_the_same():
    found = find(make_study(images=400, other_groups=True))
    assert len(found.pairs) == 21 and all(row.shared is None for row in found.pairs)


@pytest.mark.parametrize(
    ("gains", "begins"),
    [
        ({}, "No gain is shown"),
        ({name: -0.4 for name in KINDS if "mood" in name}, "No gain is shown"),
        ({"mixture-mood": 0.3, "schedule": 0.3}, "No gain from the groups is shown"),
        ({"mixture-mood": 0.4}, "A gain from the groups is shown"),
    ],
)
def test_the_answer_follows_the_figures(gains, begins):
    found = find(make_study(gains=gains))
    assert answer(found).startswith(begins) and f"{abs(found.best.gain.images.mean):.2f} points" in answer(found)


# --- The page ---


@pytest.mark.parametrize("seeds", [1, 2])
def test_a_report_is_a_page_and_five_figures(tmp_path, seeds):
    study = make_study(seeds=seeds, images=400, gains={"mixture-mood": 0.3}, demo=True)
    path = write_report(study, tmp_path)
    text = path.read_text()
    pictures = sorted(file.name for file in tmp_path.glob("*.png"))
    assert pictures == ["confusion.png", "curves.png", "features.png", "gains.png", "gate.png"]
    assert sorted(re.findall(r"\]\(([^)]+)\)", text)) == pictures
    for name in pictures:
        with Image.open(tmp_path / name) as picture:
            assert min(picture.size) > 250 and (tmp_path / name).stat().st_size < 400_000
    first, _, second = text.partition("## Discussion")
    assert first.count("\n![") == 1 and len(re.findall(r"^\| (?!network|:)", first, re.M)) == 5
    assert 5 <= second.count("\n- **") <= 8 and "rendered" in first
    assert all(row.of.title in second and f"{np.mean(row.accuracy):.2f}" in text for row in find(study).scores)
    assert "nan" not in text
    rows = [line for line in text.splitlines() if line.startswith("|")]
    cells = {len(re.findall(r"(?<!\\)\|", line)) for line in rows}
    assert cells <= {3, 7, 8, 9, 10} and "\n| mixture-mood.top-1 |" in text


def test_results_come_back_from_their_file(tmp_path):
    study = make_study(images=300)
    save_results(study, tmp_path / "results.json")
    again = read_results(tmp_path / "results.json")
    assert again.about == study.about and (again.labels == study.labels).all() and (again.copies == study.copies).all()
    for one, other in zip(study.configurations, again.configurations, strict=True):
        assert (one.predicted == other.predicted).all() and (one.name, one.groups) == (other.name, other.groups)
    one, other = (each.inside[study.best.name] for each in (study, again))
    assert (one.chosen == other.chosen).all() and np.allclose(one.tsne, other.tsne, atol=0.01)
    (tmp_path / "results.json").write_bytes((tmp_path / "results.json").read_bytes()[:-99])
    with pytest.raises(UserError, match=r"results\.json cannot be read"):
        read_results(tmp_path / "results.json")
    with pytest.raises(UserError, match=r"results\.json cannot be read .*No such file"):
        read_results(tmp_path / "nowhere" / "results.json")


def test_neighbours_of_the_same_class_are_counted():
    labels = np.repeat([0, 1], 30)
    apart = np.random.default_rng(0).standard_normal((60, 3)) + 50 * labels[:, None]
    assert same_class_neighbours(apart, labels) == 1.0
    assert same_class_neighbours(apart, np.arange(60) % 2) == pytest.approx(0.5, abs=0.1)
