"""report.py: every sentence follows from the figures of the study; the pages are whole; a damaged study is named."""

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from config import CLASSES
from findings import confusion_shares, find, pair_rate
from pages import Heading, Table, html, markdown
from report import contents, perplexity, project, write_report
from report_data import read_study
from report_text import discussion, summary
from utils import UserError

GROUPS = [["angry", "fear", "disgust"], ["sad", "neutral"], ["happy", "surprise"]]
LIKELY = {0: 2, 1: 0, 2: 0, 3: 6, 4: 6, 5: 2, 6: 4}  # what a class is most often taken for
KINDS = {"single": ("single", False, []), "wide": ("single", True, []), "ensemble": ("ensemble", True, []),
         "soft": ("mixture", False, GROUPS), "top": ("mixture", False, GROUPS)}  # fmt: skip


def make_study(folder, *, images=700, seeds=(0, 1, 2), gains=(), only=None, routed=0.8, idle=False, demo=False,
               conclusive=False, kinds=KINDS, shown=40):  # fmt: skip
    """A folder as experiments.py leaves it, from random numbers with a known structure.

    `gains` maps a configuration to the share of the base's mistakes that it mends (with all seeds, on the same images),
    or below zero of the base's right images that it spoils; `only` is the pair of classes that this is about. The gate
    of a mixture gives most of its weight to an expert of the true class for a share `routed` of the images; an `idle`
    last expert gets next to none.
    """
    rng, gains = np.random.default_rng(0), dict(gains)
    labels = rng.choice(7, images, p=(0.13, 0.02, 0.14, 0.25, 0.18, 0.11, 0.17))
    copies = rng.random(images) < 0.08
    hard, chance = rng.random(images), rng.random(images)
    slips = np.where(rng.random(images) < 0.7, [LIKELY[label] for label in labels], rng.integers(0, 7, images))
    slips = np.where(slips == labels, (labels + 1) % 7, slips)
    about = np.isin(labels, only) & np.isin(slips, only) if only else np.ones(images, bool)
    listed = []
    for place, (name, (kind, is_control, groups)) in enumerate(kinds.items()):
        gain, size = gains.get(name, 0.0), 1 if kind == "single" else 3
        listed.append({
            "name": name, "title": f"{name} <network>", "kind": kind, "control": is_control, "groups": groups,
            "gating": {"top": "top-1"}.get(name, "soft") if groups else "", "parameters": 300_000 * size + place,
            "macs": 28_000_000 * size + place, "note": "",
        })  # fmt: skip
        for seed in seeds:
            draw = np.random.default_rng([place, seed])
            right = hard + 0.05 * draw.standard_normal(images) < 0.6
            right |= about & (chance < gain)
            right &= ~(about & (chance < -gain))
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
            stages += ["together"] if name in ("soft", "top") else []
            history = [{"stage": stage, "epochs": [make_epoch(i, draw) for i in range(6)]} for stage in stages]
            (run / "history.json").write_text(json.dumps(history))
    np.savez(folder / "labels.npz", labels=labels.astype(np.int64), copies=copies, rows=np.arange(shown))
    about = {
        "name": "quick", "conclusive": conclusive, "why": "9,000 training images", "command": "python experiments.py",
        "machine": "two cores", "versions": {"torch": "2.15"}, "minutes": 19.3, "seeds": list(seeds), "base": "single",
        "data": {"source": "archive.zip", "fingerprint": "14bc", "demo": demo, "train": [100] * 7,
                 "val": np.bincount(labels, minlength=7).tolist()},
        "configurations": listed,
    }  # fmt: skip
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
    return {"epoch": index + 1, "train_loss": 1.9 - 0.1 * index, "train_accuracy": accuracy + 0.05,
            "val_loss_unseen": 1.9 - 0.08 * index, "val_accuracy_unseen": accuracy, "seconds": 1.0}  # fmt: skip


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
    assert "Soft gating (“soft <network>”) is better than top-1 gating (“top <network>”)" in text


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
    assert "What the mixture gains, the ensemble “ensemble <network>” gains too, as far as these images" in text
    assert "No difference between the mixture and the ensemble" in text


def test_what_an_ensemble_gains_more_is_said(said):
    text = said(gains={"soft": 0.3, "ensemble": 0.8})
    assert "What the mixture gains, the ensemble “ensemble <network>” gains too, and more." in text
    assert "The mixture is worse than the ensemble" in text


def test_a_gain_of_a_control_alone_is_said(said):
    assert "The mixture is not shown to gain anything, the control “wide <network>” is." in said(gains={"wide": 0.5})


def test_a_mixture_that_is_a_control_is_not_picked(said):
    kinds = KINDS | {"random": ("mixture", True, [["angry", "sad"], [*CLASSES[1:4], *CLASSES[5:]]])}
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


def test_lacking_controls_are_named(said):
    text = said(kinds={name: KINDS[name] for name in ("single", "soft")})
    assert "Whether an ensemble of as many networks or a single network of the same size gains as much" in text
    assert "It is the only mixture of the study, so none was picked." in text
    assert "No mixture was tried with both soft and top-1 gating" in text


def test_a_pair_that_is_mended_or_spoilt_is_named(said):
    text = said(images=3000, gains={"soft": 0.9, "top": -0.001}, only=(0, 2))
    assert re.search(r"the mixture shows fewer confusions: angry / fear \([\d.]+ images to [\d.]+, adjusted", text)
    assert "none is shown to be confused more" in text
    text = said(images=3000, gains={"soft": -0.9, "top": -0.9}, only=(0, 2))
    assert "the mixture shows more confusions: angry / fear" in text and "none is shown to be confused less" in text
    assert re.search(r"Classes that share an expert are confused on .* \(more, which is shown", text)
    assert re.search(r"Classes that have no expert in common are confused on .* \(no change is shown", text)


def test_what_the_gate_does_is_said(said):
    text = said()
    assert "The gate uses all 3 experts with every seed" in text and "It follows the groups" in text
    text = said(idle=True, routed=0.0)
    assert "hardly uses 1 of 3 experts" in text and "(happy + surprise; mean weights from 2.0%" in text
    assert "It does not follow the groups" in text


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
    counts = np.bincount(study.labels[study.unseen], minlength=7)
    taken = shares[0, 2] * counts[0] + shares[2, 0] * counts[2]
    assert pair_rate(study, study.base, (0, 2)) == pytest.approx(100 * taken / (counts[0] + counts[2]))
    found = find(study)
    assert found.worst[0].base / found.worst[0].images == max(one.base / one.images for one in found.pairs)
    assert all(len(one.seeds) == 3 for one in found.worst) and found.base.gain is None


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


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: (f / "study.json").unlink(), r"study\.json: No such file"),
        (lambda f: (f / "study.json").write_text("{"), r"study\.json: it is not JSON"),
        (lambda f: (f / "study.json").write_text("[]"), r"study\.json: it is not an object"),
        (lambda f: spoil_json(f, minutes="long"), r"minutes: 'long' is of a wrong type"),
        (lambda f: spoil_json(f, conclusive=1), r"conclusive: 1 is of a wrong type"),
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
)  # fmt: skip
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
