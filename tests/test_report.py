"""report.py: every sentence follows from the figures of the study; the pages are whole; a damaged study is named."""

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from config import CLASSES
from errors import UserError
from study.confusions import confusion_shares, pair_rate
from study.figures_inside import gate_use
from study.findings import Gap, agreement, find
from study.pages import Heading, Table, html, markdown
from study.report import contents, curves_caption, feature_panels, perplexity, project, write_report
from study.report_text import discussion, summary
from study.report_words import p_text
from study.results import read_study
from study.stats import PAIRS, Interval, bootstrap, confused, holm, mcnemar

GROUPS = [["angry", "fear", "disgust"], ["sad", "neutral"], ["happy", "surprise"]]
LIKELY = {0: 2, 1: 0, 2: 0, 3: 6, 4: 6, 5: 2, 6: 4}  # what a class is most often taken for
KINDS = {
    "single": ("single", False, []),
    "wide": ("single", True, []),
    "ensemble": ("ensemble", True, []),
    "soft": ("mixture", False, GROUPS),
    "top": ("mixture", False, GROUPS),
}
PLAIN = [list(CLASSES)] * 3
DRAWN = [["angry", "sad"], [*CLASSES[1:4], *CLASSES[5:]]]


def make_study(
    folder,
    *,
    images=700,
    seeds=(0, 1, 2),
    gains=(),
    only=None,
    routed=0.8,
    idle=False,
    demo=False,
    conclusive=False,
    kinds=KINDS,
    shown=40,
    about=(),
):
    """A folder as experiments.py leaves it, from random numbers with a known structure.

    The base and "longer" have a third of the others' parameters and MACs. Weights go through the 6 epochs of the base,
    and in a mixture and in "longer" through 6 more; `about` maps a configuration to what study.json says otherwise.

    `gains` maps a configuration to the share of the base's mistakes that it mends (with all seeds, on the same images),
    or below zero of the base's right images that it spoils; `only` is the pair of classes that this is about. The gate
    of a mixture gives most of its weight to an expert of the true class for a share `routed` of the images; an `idle`
    last expert gets next to none.
    """
    rng, gains, about_each = np.random.default_rng(0), dict(gains), dict(about)
    labels = rng.choice(7, images, p=(0.13, 0.02, 0.14, 0.25, 0.18, 0.11, 0.17))
    copies = rng.random(images) < 0.08
    hard, chance = rng.random(images), rng.random(images)
    slips = np.where(rng.random(images) < 0.7, [LIKELY[label] for label in labels], rng.integers(0, 7, images))
    slips = np.where(slips == labels, (labels + 1) % 7, slips)
    meant = np.isin(labels, only) & np.isin(slips, only) if only else np.ones(images, bool)
    listed = []
    for place, (name, (kind, is_control, groups)) in enumerate(kinds.items()):
        gain, size = gains.get(name, 0.0), 1 if name in ("single", "longer") else 3
        epochs = 12 if groups or name == "longer" else 6
        listed.append(
            {
                "name": name,
                "title": f"{name} <network>",
                "kind": kind,
                "control": is_control,
                "groups": groups,
                "gating": ("top-1" if name.startswith("top") else "soft") if groups else "",
                "parameters": 300_000 * size,
                "macs": 28_000_000 * size,
                "epochs": epochs,
                "work": 6.0 * size + 6 * (epochs > 6),
                "note": "",
                **about_each.get(name, {}),
            }
        )
        for seed in seeds:
            draw = np.random.default_rng([place, seed])
            right = hard + 0.05 * draw.standard_normal(images) < 0.6
            right |= meant & (chance < gain)
            right &= ~(meant & (chance < -gain))
            predicted = np.where(right, labels, slips)
            run = folder / name / str(seed)
            run.mkdir(parents=True)
            p = np.full((images, 7), 0.05)
            p[np.arange(images), predicted] = 0.7
            arrays = {"log_p": np.log(p).astype(np.float32)}
            if groups:
                arrays["gate"] = make_gate(labels, groups, routed, idle, draw)
            np.savez(run / "predictions.npz", **arrays)
            features = draw.standard_normal((shown, 12)) + 3 * np.eye(7, 12)[labels[:shown]]
            np.savez(run / "features.npz", features=features.astype(np.float32))
            stages = ["expert one", "expert two", "gate"] if groups else ["base"]
            stages += ["together"] if name in ("soft", "top", "plain", "top-plain") else []
            history = [{"stage": stage, "epochs": [make_epoch(i, draw) for i in range(6)]} for stage in stages]
            (run / "history.json").write_text(json.dumps(history))
    np.savez(folder / "labels.npz", labels=labels.astype(np.int64), copies=copies, rows=np.arange(shown))
    about = {
        "name": "quick",
        "conclusive": conclusive,
        "why": "9,000 training images",
        "command": "python experiments.py",
        "machine": "two cores",
        "versions": {"torch": "2.15"},
        "minutes": 19.3,
        "seeds": list(seeds),
        "base": "single",
        "data": {
            "source": "archive.zip",
            "fingerprint": "14bc",
            "demo": demo,
            "train": [100] * 7,
            "val": np.bincount(labels, minlength=7).tolist(),
        },
        "configurations": listed,
    }
    (folder / "study.json").write_text(json.dumps(about))
    return folder


def make_gate(labels, groups, routed, idle, draw):
    own = np.array([next(e for e, group in enumerate(groups) if CLASSES[label] in group) for label in labels])
    chosen = np.where(draw.random(len(labels)) < routed, own, draw.integers(0, len(groups), len(labels)))
    if idle:
        chosen[chosen == len(groups) - 1] = 0
    gate = np.full((len(labels), len(groups)), 0.02)
    gate[np.arange(len(labels)), chosen] += 1 - 0.02 * len(groups)
    return gate.astype(np.float32)


def make_epoch(index, draw):
    accuracy = 0.2 + 0.06 * index + 0.01 * draw.random()
    return {
        "epoch": index + 1,
        "train_loss": 1.9 - 0.1 * index,
        "train_accuracy": accuracy + 0.05,
        "val_loss_deduplicated": 1.9 - 0.08 * index,
        "val_accuracy_deduplicated": accuracy,
        "seconds": 1.0,
    }


@pytest.fixture
def said(tmp_path):
    """Makes a study and gives the text of its discussion and summary."""

    def say(**changes):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        found = find(read_study(make_study(folder, **changes)))
        return "\n".join([*summary(found), *(line for _, lines in discussion(found) for line in lines)])

    return say


# --- Sentences ---


def test_a_better_mixture_is_called_better(said):
    text = said(gains={"soft": 0.4})
    assert "The mixture “soft <network>” is better than the base “single <network>”, by " in text
    assert "bears it out" in text and "picked as the highest of 2 mixtures on the very images" in text
    assert "The mixture's gain is more than the ensemble “ensemble <network>” brings." in text
    assert "The mixture's gain is more than the control “wide <network>” brings." in text
    soft = "Soft gating (“soft <network>”) is better than top-1 gating (“top <network>”, "
    assert f"{soft}trained with soft gating, top-1 in use), by" in text


def test_a_worse_mixture_is_called_worse(said):
    text = said(gains={"soft": -0.4, "top": -0.4})
    assert re.search(r"The mixture “(soft|top) <network>” is worse than the base", text)
    assert "worse than the base: “soft <network>” and “top <network>”" in text
    assert "better than the base" not in text
    assert "No difference between soft gating" in text
    assert "Neither the mixture nor the ensemble “ensemble <network>” is shown to gain anything" in text
    assert "the mixture is worse than “wide <network>” and “ensemble <network>”." in text


def test_where_nothing_differs_no_difference_is_shown(said):
    text = said()
    assert "No difference between the mixture " in text and "no difference from the base shown: 2 of 2" in text
    assert "is better than" not in text and "is worse than" not in text
    assert "No pair of classes is shown to be confused more or less" in text


def test_what_an_ensemble_gains_too_is_said(said):
    text = said(gains={"soft": 0.4, "ensemble": 0.4})
    assert "The mixture is not shown to gain more than the ensemble “ensemble <network>”, which gains too." in text
    assert "No difference between the mixture and the ensemble" in text


def test_what_an_ensemble_gains_more_is_said(said):
    text = said(gains={"soft": 0.3, "ensemble": 0.8})
    assert "What the mixture gains, the ensemble “ensemble <network>” gains too, and more." in text
    assert "The mixture is worse than the ensemble" in text


def test_a_gain_of_a_control_alone_is_said(said):
    assert "The mixture is not shown to gain anything, the control “wide <network>” is." in said(gains={"wide": 0.5})


def test_a_mixture_that_is_a_control_is_not_picked(said):
    kinds = KINDS | {"random": ("mixture", True, DRAWN)}
    text = said(kinds=kinds, gains={"random": 0.5, "soft": 0.3})
    assert "The mixture “soft <network>” is better than the base" in text and "highest of 2 mixtures" in text
    assert "What the mixture gains, the control mixture “random <network>” gains too, and more." in text


def test_further_stages_and_groupings_are_compared(said):
    kinds = KINDS | {"gate": ("mixture", False, GROUPS), "halves": ("mixture", False, [[*CLASSES[:4]], [*CLASSES[4:]]])}
    text = said(kinds=kinds, gains={"soft": 0.4})
    assert "“soft <network>”, trained further (together), is better than “gate <network>”, by" in text
    assert "Soft gating (“gate" not in text, "its training is another"
    assert "The best grouping (“soft <network>”) is better than the lowest (“halves <network>”), by" in text
    text = said(kinds=kinds)
    assert "No difference between “soft <network>”, trained further (together), and “gate <network>” is shown" in text


def test_only_control_mixtures_trained_like_the_mixture_are_held_to_it(said):
    kinds = KINDS | {
        name: ("mixture", True, groups)
        for name, groups in (("plain-gate", PLAIN), ("plain", PLAIN), ("top-plain", PLAIN), ("drawn-gate", DRAWN))
    }
    text = said(kinds=kinds, gains={"soft": 0.4}, images=200, seeds=(0,))
    assert "Control mixture “plain <network>” (900k parameters, 84M MACs, 12 epochs, training work 24.0): " in text
    assert "Each of its experts has all classes." in text and "the control mixture “drawn-gate <network>”" in text
    assert "the control mixture “plain-gate" not in text and "the control mixture “top-plain" not in text
    assert "where their gating and last stage are the mixture's (2 of 4); the tables have the others." in text


def test_a_study_with_control_mixtures_alone_says_so(tmp_path, said):
    kinds = {name: KINDS[name] for name in ("single", "wide")} | {"plain": ("mixture", True, PLAIN)}
    text = said(kinds=kinds, images=200)
    assert text.count("The study has no mixtures but those that serve as controls: whether experts for groups") == 2
    assert "Every expert of “plain <network>” has all classes: it has no groups of its own" in text
    assert "Every pair of classes shares an expert of the mixture, so that confusions within groups" in text
    found = find(read_study(make_study(tmp_path / "plain", kinds=kinds, images=200)))
    assert "| control, mixture |" in markdown("t", contents(found))
    use, best = found.gate, found.best.configuration
    gate_use(use.load, use.chosen, use.per_class, best.groups, best.experts, tmp_path / "gate.png")
    assert (tmp_path / "gate.png").stat().st_size > 1000


@pytest.mark.parametrize("seeds", [(0,), (0, 1)])
def test_groups_that_are_drawn_are_not_taken_for_those_of_all_seeds(tmp_path, seeds):
    kinds = {"single": KINDS["single"], "random": ("mixture", True, GROUPS)}
    found = find(read_study(make_study(tmp_path, kinds=kinds, images=200, seeds=seeds)))
    text = "\n".join(line for _, lines in discussion(found) for line in lines)
    assert "The groups of “random <network>” are drawn at random." in text
    alone = len(seeds) == 1
    assert ("The random control (“random <network>”) is a single draw of groups" in text) == alone
    assert ("The groups are drawn anew with each seed" in text) != alone and ("share an expert" in text) == alone
    assert ("experts with the first seed (mean weights" in text) != alone
    assert {one.together for one in found.pairs} == ({True, False} if alone else {None})
    page = markdown("t", contents(found))
    assert ("happy + surprise (first seed)" in page and "the first seed, whose groups are shown" in page) != alone
    assert found.gate.load == pytest.approx(found.best.configuration.gate[0][found.study.deduplicated].mean(0))


@pytest.mark.parametrize("seeds", [(0,), (0, 1)])
def test_groups_made_of_what_is_scored_are_said_to_be(said, seeds):
    kinds = {"single": KINDS["single"], "clusters": ("mixture", False, GROUPS)}
    text = said(kinds=kinds, images=200, seeds=seeds)
    later = ", for all seeds" if len(seeds) > 1 else ""
    assert (
        "The groups of “clusters <network>” were made of the first single network's confusions on the very images "
        f"that are scored{later}: no p-value and no interval allows for that, so their figures may be too good." in text
    )
    assert "were made of the first single network's confusions" not in said(images=200, seeds=seeds)


def test_lacking_controls_are_named(said):
    text = said(kinds={name: KINDS[name] for name in ("single", "soft")})
    assert "Whether an ensemble of as many networks or a single network of the same size gains as much" in text
    assert "It is the only mixture of the study, so none was picked." in text
    assert "No mixture was tried with both soft and top-1 gating" in text


def test_a_pair_that_is_mended_or_spoilt_is_named(said):
    text = said(images=3000, gains={"soft": 0.9, "top": -0.001}, only=(0, 2))
    shows = r"the mixture shows, against the base, fewer confusions: angry / fear \([\d.]+ images to [\d.]+, "
    assert re.search(rf"{shows}adjusted p [<\d.]+; over seeds -[\d.]+ to -[\d.]+\)", text)
    assert "none is shown to be confused more" in text
    text = said(images=3000, gains={"soft": -0.9, "top": -0.9}, only=(0, 2))
    assert "against the base, more confusions: angry / fear" in text and "none is shown to be confused less" in text
    assert re.search(r"Classes that share an expert are confused on .* \(more, which is shown", text)
    assert re.search(r"Classes that have no expert in common are confused on .* \(no change is shown", text)


def test_pairs_are_held_to_the_base_that_was_trained_for_as_long(tmp_path, said):
    text = said(images=3000, kinds=LONGER, gains={"soft": 0.9, "longer": 0.9}, only=(0, 2))
    assert "the mixture shows, against the base, fewer confusions: angry / fear" in text
    alone = "No pair of classes is shown to be confused more or less by the mixture than by “longer <network>”: after"
    assert text.count(f"{alone} correction for 21 pairs") == 2  # in short, and at length
    assert re.search(r"have no expert in common are confused on [\d.,]+ images by “longer <network>” and on", text)
    study = read_study(make_study(tmp_path, images=3000, kinds=LONGER, gains={"soft": 0.9}, only=(0, 2)))
    found = find(study)
    longer = next(one for one in study.configurations if one.name == "longer")
    labels = study.labels[study.deduplicated]
    for one in found.pairs_longer:
        counts = [
            confused(labels, each.predicted[:, study.deduplicated], one.pair).sum(1).mean()
            for each in (longer, found.best.configuration)
        ]
        assert [one.base, one.best] == pytest.approx(counts)
    assert found.pairs_longer[1].sign == 1  # angry / fear
    page = markdown("t", contents(found))
    assert "### The same against “longer" in page and "| longer | best mixture | difference |" in page
    text = said(images=300, about={"longer": {"epochs": 10}}, kinds=LONGER)
    assert text.count("no control for as long: what is confused more or less than by the base may be owed to") == 2
    text = said(images=300, about={"soft": {"epochs": 6}, "top": {"epochs": 6}})
    assert "may be owed to length" not in text


@pytest.mark.parametrize(
    ("silent", "message"),
    [
        (
            ("single", "soft", "top"),
            "Neither the base nor the mixture ever names disgust on images ",
        ),
        (("single",), "The base never names disgust on images "),
        (("soft", "top"), "The mixture never names disgust on images "),
    ],
)
def test_a_class_that_is_never_named_is_said(tmp_path, said, silent, message):
    assert "names disgust" not in said()
    study = read_study(make_study(tmp_path / "one"))
    for one in study.configurations:
        if one.name in silent:
            one.predicted[one.predicted == 1] = 0  # disgust: angry
    text = "\n".join(line for _, lines in discussion(find(study)) for line in lines)
    assert f"{message}deduplicated, with any seed." in text and text.count("names disgust") == 1


def test_what_the_gate_does_is_said(said):
    text = said()
    assert "The gate uses all 3 experts with every seed" in text and "It follows the groups" in text
    text = said(idle=True, routed=0.0)
    assert "hardly uses 1 of 3 experts" in text and "(happy + surprise; mean weights from 2.0%" in text
    assert "It does not follow the groups" in text


def test_a_gate_that_looks_at_nothing_does_not_follow_the_groups(tmp_path):
    study = read_study(make_study(tmp_path, images=300))
    for one in study.configurations:
        if one.gate is not None:
            one.gate[:] = [0.01, 0.98, 0.01]  # the largest group has most of the weight
    found = find(study)
    assert found.gate.own == pytest.approx(found.gate.blind) and found.gate.own > 0.3
    text = "\n".join(line for _, lines in discussion(found) for line in lines)
    assert "It does not follow the groups" in text
    has = np.isin(study.labels[study.deduplicated], [CLASSES.index(name) for name in GROUPS[1]])
    assert found.gate.missed == pytest.approx(1 - has.mean())
    assert f"of all images {found.gate.missed:.1%}: " in text


def test_an_expert_of_all_classes_cannot_be_missed(said):
    kinds = KINDS | {name: ("mixture", False, [list(CLASSES)] * 2) for name in ("soft", "top")}
    text = said(kinds=kinds, idle=True, routed=0)
    assert "hardly uses 1 of 2 experts" in text and "(all classes (2);" in text
    assert "no choice of the gate can miss the true one" in text and "cannot be set apart" in text
    text = said(kinds=KINDS | {name: ("mixture", False, [list(CLASSES)]) for name in ("soft", "top")})
    assert "has one expert, so its gate has nothing to choose" in text


def test_one_seed_says_nothing_of_other_trainings(said):
    text = said(seeds=(5,), gains={"soft": 0.4})
    assert "one seed cannot say whether another training would show it" in text and "There is one seed" in text
    assert "over seeds" not in text.replace("over them", "")
    assert text.count("one seed cannot say whether another training would show the same") == 2  # of pairs


def test_a_lead_that_the_seeds_do_not_bear_out_is_called_so(tmp_path):
    study = read_study(make_study(tmp_path, gains={"soft": 0.4}))
    wide = next(one for one in study.configurations if one.name == "wide")
    wide.predicted[0] = study.labels  # with one seed it is right throughout, with the others never of two classes
    for seed in (1, 2):
        wide.predicted[seed] = np.where(np.isin(study.labels, (3, 4, 6)), 0, study.labels)
    found = find(study)
    gap = next(gap for one, gap in found.controls if one.configuration is wide)
    assert gap.sign == 1 and gap.unsure
    text = "\n".join([*summary(found), *(line for _, lines in discussion(found) for line in lines)])
    assert "“wide <network>” (not borne out over seeds)" in text
    assert "With these trainings the mixture's gain is more than the control “wide <network>” brings." in text
    assert re.search(r"; the interval over seeds, -\S+ to \S+, does not bear it out: other trainings may", text)


def test_a_lead_of_a_control_that_the_seeds_do_not_bear_out_is_called_so(tmp_path):
    study = read_study(make_study(tmp_path, gains={"soft": 0.2}))
    wide = next(one for one in study.configurations if one.name == "wide")
    for seed in range(2):  # with two seeds it is right throughout, with the third as it was
        wide.predicted[seed] = study.labels
    found = find(study)
    gap = next(gap for one, gap in found.controls if one.configuration is wide)
    assert gap.sign == -1 and gap.unsure
    text = "\n".join(line for _, lines in discussion(found) for line in lines)
    assert "the mixture gains, the control “wide <network>” gains too, and with these trainings more." in text


@pytest.mark.parametrize("half, sign", [(0.0, 0), (0.5, 1), (1.5, 0)])
def test_an_interval_over_seeds_bears_nothing_out_without_width(half, sign):
    gap = Gap(Interval(1.0, 0.5, 1.5), (1.0, half), 0.001, 0.001, 1)
    assert gap.sign == 1 and gap.seeds_sign == sign and gap.unsure == (sign == 0)


def test_tables_of_one_seed_have_no_column_for_seeds(tmp_path):
    one, several = (
        markdown("t", contents(find(read_study(make_study(tmp_path / str(len(seeds)), images=200, seeds=seeds)))))
        for seeds in ((4,), (4, 5))
    )
    assert "over seeds" not in one.replace("over them", "") and "all seeds" not in one
    assert "| gain over seeds |" in several and several.count("| over seeds |") == 1 and "and all seeds" in several


def test_the_summary_says_how_the_mixture_was_picked(said):
    lines = said(images=200).split("\n")
    short = "It is the highest of 2 mixtures on the very images it is scored on, which flatters its figures."
    assert lines.index(short) == 1
    assert "flatters" not in said(images=200, kinds={name: KINDS[name] for name in ("single", "soft")})


def test_the_curve_of_a_top_1_mixture_is_that_of_its_soft_gating(tmp_path):
    found = find(read_study(make_study(tmp_path, images=300, gains={"top": 0.5})))
    text = "\n".join(line for _, lines in discussion(found) for line in lines)
    ends = "“top <network>” ends its last stage (together), with the soft gating that it was trained with, at"
    assert ends in text and "“single <network>” ends its last stage (base) at" in text
    assert "“top <network>” was trained with soft gating, which its curves show." in curves_caption(found)
    assert "soft" not in curves_caption(replace(found, best=found.base))


LONGER = KINDS | {"longer": ("single", True, [])}


@pytest.mark.parametrize(
    ("about", "message"),
    [
        ({}, "“longer <network>”, with 12 epochs, is what tells length from structure, and the mixture is better than"),
        (
            {"longer": {"epochs": 10}},
            "a training of the base alone for as long was not tried (“longer <network>” went through 10), so",
        ),
        ({"longer": {"epochs": 6}}, "the base's through 6: a longer training of the base alone was not tried, so"),
        ({"longer": {"parameters": 400_000}}, "a longer training of the base alone was not tried"),
        ({"soft": {"epochs": 6}}, "No weights of the mixture went through more epochs than the base's (6 and 6)."),
    ],
)
def test_how_long_the_mixture_was_trained_is_said(said, about, message):
    text = said(kinds=LONGER, gains={"soft": 0.5}, images=300, about=about)
    assert message in text
    longer = "Weights of the mixture went through up to 12 epochs, the base's through 6: " in text
    assert longer == ("soft" not in about)


def test_what_training_costs_is_said(tmp_path, said):
    text = said(gains={"soft": 0.5}, images=300, about={"soft": {"work": 2468.0}})
    assert "Its training is 2,468.0 epochs of the base's work, 411.3 times the 6.0 of the base." in text
    assert "None of the 4 others with no more training work has a higher mean." in text
    page = markdown("t", contents(find(read_study(make_study(tmp_path / "table", images=100)))))
    assert "| parameters | MACs | epochs | training work |" in page and "| 900k | 84M | 12 | 24.0 |" in page
    assert "Top-1: trained with soft gating, top-1 in use" in page
    assert "19.3, the sum of all epochs, training and scoring; without loading the data" in page


def test_a_control_that_is_of_another_size_than_the_mixture_is_called_so(said):
    kinds = KINDS | {"half": ("single", True, [])}
    about = {"soft": {"parameters": 990_000, "macs": 60_000_000}, "half": {"parameters": 600_000, "macs": 56_000_000}}
    text = said(kinds=kinds, gains={"soft": 0.5}, images=300, about=about)
    nearest = "It comes nearest to the mixture in {} of the single controls, but has {}. The mixture is"
    assert text.count("of the single controls, but has") == 2
    assert nearest.format("parameters", "9 % fewer parameters") in text
    assert nearest.format("MACs", "7 % fewer MACs") in text
    about["soft"] = {"parameters": 720_000, "macs": 70_000_000}
    about["half"] = {"parameters": 400_000, "macs": 50_000_000}
    text = said(kinds=kinds, gains={"soft": 0.5}, images=300, about=about)
    assert nearest.format("parameters and MACs", "25 % more parameters and 20 % more MACs") in text
    about = {"soft": {"parameters": 940_000, "macs": 58_000_000}, "half": {"parameters": 600_000, "macs": 56_000_000}}
    text = said(kinds=kinds, gains={"soft": 0.5}, images=300, about=about)
    assert "of the single controls, but has" not in text, "5 % are let pass"
    about = {"soft": {"parameters": 800_000, "macs": 84_000_000}, "ensemble": {"parameters": 1_000_000}}
    text = said(kinds=LONGER, gains={"soft": 0.5}, images=300, about=about)
    assert "It has 25 % more parameters than the mixture. The mixture is" in text
    text = said(kinds=LONGER, gains={"soft": 0.5}, images=300, about={"wide": {"parameters": 300_000}})
    assert "but has" not in text and "Whether a single network of the same size gains as much was not" in text


def test_limits_follow_the_study(said):
    text = said(conclusive=True)
    assert "This study counts as conclusive: 9,000" in text and "too small" not in text
    text = said()
    assert "too small to conclude from: 9,000 training images." in text and "There are 3 seeds" in text
    assert re.search(
        r"On \d+ images, \d+ copies left out, the gain over the base is known to within [\d.]+ points", text
    )


# --- Figures ---


def test_rates_are_those_of_the_images_without_copies(tmp_path):
    study = read_study(make_study(tmp_path))
    shares = confusion_shares(study, study.base)
    assert shares.shape == (7, 7) and np.allclose(shares.sum(1), 1)
    counts = np.bincount(study.labels[study.deduplicated], minlength=7)
    taken = shares[0, 2] * counts[0] + shares[2, 0] * counts[2]
    rate = pair_rate(study, study.base, (0, 2))
    assert rate.mean == pytest.approx(100 * taken / (counts[0] + counts[2])) and rate.low < rate.mean < rate.high
    found = find(study)
    assert found.worst[0].base / found.worst[0].images == max(one.base / one.images for one in found.pairs)
    assert found.base.gain is None
    for one in found.results:
        assert one.f1_interval.mean == pytest.approx(np.mean(one.f1)) and len(one.f1) == 3
        assert one.f1_interval.low < one.f1_interval.mean < one.f1_interval.high


def test_pairs_are_tested_by_mcnemar_where_there_is_one_seed(tmp_path):
    study = read_study(make_study(tmp_path, seeds=(4,), gains={"soft": 0.3}))
    found, labels = find(study), study.labels[study.deduplicated]
    base, best = (one.predicted[0][study.deduplicated] for one in (study.base, found.best.configuration))
    tests = [mcnemar(confused(labels, base, pair), confused(labels, best, pair)) for pair in PAIRS]
    assert [one.discordant for one in found.pairs] == tests and [one.p for one in found.pairs] == [t.p for t in tests]
    assert [one.adjusted for one in found.pairs] == pytest.approx(holm([test.p for test in tests]))
    assert [one.change.mean for one in found.pairs] == pytest.approx([test.second - test.first for test in tests])
    page = markdown("t", contents(found))
    assert not found.tests and "of each seed alone" not in page and "| only base | only mixture |" in page
    assert "p of McNemar's exact test (with several seeds it would be the sign-flip test" in page


def test_pairs_are_tested_over_all_seeds_and_the_worst_with_each(tmp_path):
    study = read_study(make_study(tmp_path, gains={"soft": 0.3}))
    found, labels = find(study), study.labels[study.deduplicated]
    worst, best = found.worst[0], found.best.configuration.predicted[:, study.deduplicated]
    base = study.base.predicted[:, study.deduplicated]
    both = [confused(labels, predicted, worst.pair) for predicted in (best, base)]
    assert worst.change == pytest.approx(np.array(bootstrap(*both)) * len(labels) / 100)
    assert worst.change.mean == pytest.approx(worst.best - worst.base) and worst.discordant is None
    assert [(one.pair, one.seed) for one in found.tests] == [(pair, seed) for pair in found.worst for seed in (0, 1, 2)]
    assert [one.found for one in found.tests[:3]] == [mcnemar(*each) for each in zip(*both[::-1], strict=True)]
    assert [one.adjusted for one in found.tests] == pytest.approx(holm([one.found.p for one in found.tests]))
    page = markdown("t", contents(found))
    assert "McNemar's exact test of each seed alone, for the 3 pairs" in page
    assert "adjusted by Holm for 9 tests (pairs times seeds)" in page
    assert "p of the sign-flip test" in page and "up to Monte Carlo error" in page


def test_every_configuration_has_its_figures_with_intervals(tmp_path):
    found = find(read_study(make_study(tmp_path)))
    tables = {tuple(block.head): block.rows for block in contents(found) if isinstance(block, Table)}
    scores = tables["#", "configuration", "official", "deduplicated", "macro-F1 deduplicated"]
    costs = next(rows for head, rows in tables.items() if head[2:4] == ("parameters", "MACs") and len(head) == 7)
    assert len(scores) == len(costs) == len(KINDS)
    for row in scores:
        assert all(re.fullmatch(r"[\d.]+ ± [\d.]+ \([\d.]+ to [\d.]+\)", cell) for cell in row[2:]), row
    for row in costs:
        assert all(re.fullmatch(r"[\d.]+ \([\d.]+ to [\d.]+\)", cell) for cell in row[4:]), row


def test_features_are_those_of_the_images_without_copies(tmp_path):
    study = read_study(make_study(tmp_path, shown=60, images=200))
    kept = replace(study, copies=study.copies & ~np.isin(np.arange(200), study.rows))
    assert study.copies[:60].any() and study.shown.sum() + study.copies[:60].sum() == 60 == kept.shown.sum()
    fewer = [replace(one, features=one.features[study.shown]) for one in study.configurations]
    without = replace(study, rows=study.rows[study.shown], configurations=fewer)
    assert agreement(study, study.base) == agreement(without, fewer[0]) != agreement(kept, study.base)
    found = find(study)
    for panel in feature_panels(found):
        assert len(panel.pca) == len(panel.tsne) == len(panel.members) == study.shown.sum()
    assert f"first seed, {study.shown.sum()} images deduplicated" in markdown("t", contents(found))


def test_a_p_value_below_the_level_looks_so():
    texts = [p_text(p) for p in (1.0, 0.0499999, 0.05, 0.0501, 0.00004, 0.0001, 0.12)]
    assert texts == ["1.00", "<0.05", "0.0500", "0.0501", "<0.0001", "0.0001", "0.12"]


def test_a_class_without_images_is_left_open(tmp_path):
    study = read_study(make_study(tmp_path))
    found = find(replace(study, labels=np.where(study.labels == 1, 0, study.labels)))
    assert np.isnan(confusion_shares(found.study, study.base)[1]).all()
    assert "There is no image of disgust" in "\n".join(line for _, lines in discussion(found) for line in lines)
    assert "nan" not in markdown("t", contents(found))


def test_features_that_are_all_alike_are_put_at_the_origin():
    parts, axes, points = project(np.ones((20, 5), np.float32))
    assert not parts.any() and not points.any() and axes[0] == "first component (0.0 % of the variance)"
    assert perplexity(3000) == 30 and perplexity(31) == 10


# --- Pages ---


class Page(HTMLParser):
    """Checks that tags are closed in turn, and keeps what the page refers to."""

    def __init__(self):
        super().__init__()
        self.open, self.tags, self.refers = [], set(), set()

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.refers |= {value for name, value in attrs if name in ("src", "href", "srcset", "data")}
        if tag not in ("meta", "img", "link", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    out = tmp_path_factory.mktemp("report") / "new" / "out"
    write_report(make_study(tmp_path_factory.mktemp("study"), demo=True, gains={"soft": 0.3}), out)
    return out


def test_a_report_is_two_pages_and_small_figures(written):
    pictures = sorted(path.name for path in written.glob("*.png"))
    assert pictures == ["accuracy.png", "confusion.png", "cost.png", "curves.png", "features.png", "gate.png"]
    assert sorted(path.name for path in written.iterdir()) == sorted([*pictures, "report.md", "report.html"])
    assert sum((written / name).stat().st_size for name in pictures) < 1_500_000
    text = (written / "report.md").read_text()
    assert set(re.findall(r"\]\(([^)]+)\)", text)) == set(pictures)


def test_the_page_is_whole_and_refers_to_nothing_else(written):
    page = Page()
    page.feed((written / "report.html").read_text())
    assert not page.open and not page.tags & {"script", "iframe", "link", "object", "network"}
    files = {name for name in page.refers if not name.startswith("#")}
    assert files == {path.name for path in written.glob("*.png")}
    assert "url(" not in (written / "report.html").read_text()


def test_both_pages_warn_at_the_top(written):
    for name in ("report.md", "report.html"):
        text = (written / name).read_text().split("<main>")[-1]
        assert 0 < text.index("drawn demo faces") < text.index("too small to conclude") < text.index("In short")


def test_a_report_is_the_same_each_time(tmp_path, written):
    write_report(make_study(tmp_path, demo=True, gains={"soft": 0.3}), tmp_path / "again")
    for path in written.iterdir():
        assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes(), path.name


def test_foreign_text_is_escaped(tmp_path):
    blocks = [Heading("a <b> | *c*"), Table("cap", ["x|y", "n"], [["<i>", "+1.00"]])]
    text = markdown("t_t", blocks)
    assert r"a \<b> \| \*c\*" in text and r"| \<i> | +1.00 |" in text and text.startswith("# t\\_t\n")
    page = html("t", blocks, tmp_path)
    assert "&lt;i&gt;" in page and '<td class="number">+1.00</td>' in page


# --- Folders that are no finished study ---


def spoil_json(folder, **changes):
    path = folder / "study.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def spoil_configuration(folder, **changes):
    """Change the fourth configuration, "soft"; None takes a key out."""
    listed = json.loads((folder / "study.json").read_text())["configurations"]
    listed[3] = {key: value for key, value in (listed[3] | changes).items() if value is not None}
    spoil_json(folder, configurations=listed)


def spoil_copies(folder, count):
    arrays = dict(np.load(folder / "labels.npz"))
    np.savez(folder / "labels.npz", **arrays | {"copies": np.arange(len(arrays["labels"])) < count})


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: (f / "study.json").unlink(), r"study\.json: No such file"),
        (lambda f: (f / "study.json").write_text("{"), r"study\.json: it is not JSON"),
        (lambda f: (f / "study.json").write_text("[]"), r"study\.json: it is not an object"),
        (lambda f: spoil_json(f, minutes="long"), r"minutes: 'long' is of a wrong type"),
        (lambda f: spoil_json(f, conclusive=1), r"conclusive: 1 is of a wrong type"),
        (lambda f: spoil_configuration(f, epochs=None), r"configurations\[3\]: epochs is missing"),
        (lambda f: spoil_configuration(f, epochs=2.5), r"configurations\[3\]: epochs: 2\.5 is of a wrong type"),
        (lambda f: spoil_configuration(f, work=None), r"configurations\[3\]: work is missing"),
        (lambda f: spoil_configuration(f, work="much"), r"configurations\[3\]: work: 'much' is of a wrong type"),
        (lambda f: spoil_configuration(f, work=0.0), r"'soft': parameters, macs, epochs, work must be above 0"),
        (lambda f: spoil_configuration(f, work=float("nan")), r"'soft': .* must be above 0"),
        (lambda f: spoil_copies(f, 31), r"rows hold 9 images deduplicated, 10 are needed"),
        (lambda f: spoil_json(f, base="none"), r"base: 'none' is not among the configurations"),
        (lambda f: spoil_json(f, base="soft"), r"base: 'soft' is a mixture"),
        (lambda f: spoil_json(f, seeds=[]), r"seeds: \[\] is not a list"),
        (lambda f: spoil_json(f, seeds=[0, 7]), r"single/7/predictions\.npz: No such file"),
        (lambda f: (f / "labels.npz").write_bytes(b"PK\3\4 cut"), r"labels\.npz: it is damaged"),
        (lambda f: (f / "soft/0/history.json").write_text("[]"), r"history\.json: it is not a list of stages"),
        (lambda f: np.savez(f / "soft/0/predictions.npz", log_p=np.zeros((3, 7))), r"predictions\.npz: it lacks"),
        (lambda f: np.savez(f / "wide/0/predictions.npz", log_p=np.zeros((3, 7))), r"shape \(3, 7\), not \(60, 7\)"),
        (lambda f: np.savez(f / "wide/0/predictions.npz", log_p=np.zeros((60, 7))), r"shares that sum to 1"),
        (lambda f: np.savez(f / "wide/0/features.npz", features=np.zeros((9, 4))), r"features are not \(40, "),
        (lambda f: (f / "wide/0/features.npz").unlink(), r"features\.npz: No such file"),
        (lambda f: np.zeros(9).dump(f / "wide/0/features.npz"), r"features\.npz: it is damaged"),
    ],
)
def test_a_folder_that_is_no_finished_study_is_named(tmp_path, spoil, message):
    folder = make_study(tmp_path / "study", images=60, seeds=(0,))
    spoil(folder)
    with pytest.raises(UserError, match=message) as raised:
        write_report(folder, tmp_path / "out")
    assert "experiments.py" in str(raised.value) and not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_made_is_the_users_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot be made: .*name another folder"):
        write_report(make_study(tmp_path / "study"), Path(tmp_path, "file", "out"))
