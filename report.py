"""The report of a finished study: report.md, report.html and their figures, from its folder alone."""

import statistics
from collections.abc import Sequence
from pathlib import Path

import numpy as np

import plots_study
from config import CLASSES
from findings import Findings, Gap, Result, confusion_shares, find, pair_rate
from pages import Block, Bullets, Code, Heading, Note, Picture, Table, html, markdown
from report_data import Configuration, Study, read_study
from report_text import amount, discussion, named, p_text, summary, warnings
from utils import UserError, plain, write_file

COMPONENTS = 50  # features are brought down to these before t-SNE, to take out noise (Van der Maaten and Hinton, 2008)
PERPLEXITY = 30  # of t-SNE, its authors' default range is 5 to 50
PLOT_SEED = 0  # of t-SNE, for every model


def write_report(study: Path, out: Path) -> None:
    """Write report.md, report.html and six PNG files about the study in the folder `study` into `out`.

    Raises UserError where `study` is no finished study, or `out` cannot be written.
    """
    found = find(read_study(Path(study)))
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{out} cannot be made: {error.strerror}; name another folder for the report") from error
    draw_all(found, out)
    blocks = contents(found)
    title = f"Mixtures of Experts against a single network: study {plain(found.study.about['name'])}"
    write_file(out / "report.md", markdown(title, blocks).encode())
    write_file(out / "report.html", html(title, blocks, out).encode())


# --- What it says ---


def contents(found: Findings) -> list[Block]:
    """The blocks of the report, from top to bottom."""
    blocks: list[Block] = [Note(sentence) for sentence in warnings(found)]
    blocks += [Heading("In short"), Bullets(summary(found))]
    blocks += [Heading("What was run"), *setting(found.study), configuration_table(found)]
    blocks += [Heading("Accuracy"), *accuracy_blocks(found)]
    blocks += [Heading("Confusions"), *confusion_blocks(found)]
    shown = len(found.study.rows)
    captions = {
        "gate": f"What the gate of {named(found.best)} does with its experts, over the images without copies and all "
        "seeds.",
        "curves": "Loss and accuracy per epoch, a line for each seed. Training figures are measured in passing, on "
        "augmented images; validation figures are without copies. A stage of a mixture may train and score a part of "
        "it only, so its figures need not be comparable.",
        "features": f"Features before the last layer, of {shown:,} validation images, with the first seed: two "
        f"principal components above, t-SNE below (perplexity {perplexity(shown):.3g}, the same random state for both "
        "networks). Distances between clusters and their sizes mean little in t-SNE. Expert: the one with the most "
        "weight.",
    }
    for heading, name in (("The gate", "gate"), ("Training", "curves"), ("Features", "features")):
        blocks += [Heading(heading), Picture(f"{name}.png", captions[name])]
    blocks.append(Heading("Discussion"))
    for heading, sentences in discussion(found):
        blocks += [Heading(heading, 3), Bullets(sentences)]
    return blocks


def setting(study: Study) -> list[Block]:
    """The command, and a table of data, seeds and machine."""
    about, data = study.about, study.about["data"]
    images = f"{sum(data['train']):,} train, {sum(data['val']):,} val; scored: {len(study.labels):,}"
    counts = [[name, *(f"{data[part][index]:,}" for part in ("train", "val"))] for index, name in enumerate(CLASSES)]
    facts = [
        ["data", f"{data['source']}, fingerprint {data['fingerprint']}"],
        ["images", f"{images}, of which {int(study.copies.sum()):,} also stand in train (copies)"],
        ["seeds", ", ".join(map(str, study.seeds))],
        ["minutes", f"{about['minutes']:.1f}"],
        ["machine", about["machine"]],
        ["versions", ", ".join(f"{name} {version}" for name, version in about["versions"].items())],
    ]
    return [Code(about["command"]), Table("The study", ["", ""], facts),
            Table("Images of each class", ["class", "train", "val"], counts)]  # fmt: skip


def configuration_table(found: Findings) -> Table:
    rows = []
    for number, one in enumerate(found.study.configurations, 1):
        role = {"base": "base", "control": f"control, {one.kind}"}.get(look(found, one), one.kind)
        groups = "; ".join(one.experts)
        rows.append(
            [str(number), one.title, role, groups, one.gating, amount(one.parameters), amount(one.macs), one.note]
        )
    head = ["#", "configuration", "role", "experts' classes", "gating", "parameters", "MACs", "note"]
    used = [place for place, name in enumerate(head) if any(row[place] for row in rows)]
    rows = [[row[place] for place in used] for row in rows]
    return Table("Configurations; MACs are multiply-adds for one image", [head[place] for place in used], rows)


def accuracy_blocks(found: Findings) -> list[Block]:
    """Two tables of all configurations, and their pictures."""
    head = ["#", "configuration", "official", "without copies", "gain, official", "gain, without copies",
            "gain over seeds", "adjusted p"]  # fmt: skip
    rows = [
        [str(number), one.title, spread(one.official), spread(one.unseen),
         f"{one.official_gain.mean:+.2f} ({one.official_gain.low:+.2f} to {one.official_gain.high:+.2f})"
         if one.official_gain else "", *gap_cells(one.gain)]
        for number, one in enumerate(found.results, 1)
    ]  # fmt: skip
    one_seed = len(found.study.seeds) == 1
    over = "of one seed" if one_seed else "mean ± standard deviation over seeds"
    caption = (
        f"Accuracy in %, {over}; gain over the base in points with its 95 % interval over images (paired bootstrap), "
        f"and over seeds (Student's t); p of the sign-flip test, adjusted by Holm for {len(found.results) - 1} "
        f"configurations"
    )
    worst = found.worst
    more_head = ["#", "configuration", "macro-F1", "parameters", "MACs", *(one.name for one in worst)]
    more = [
        [str(number), one.title, f"{100 * statistics.mean(one.configuration.f1):.2f}",
         f"{one.configuration.parameters:,}", amount(one.configuration.macs),
         *(f"{pair_rate(found.study, one.configuration, pair.pair):.1f}" for pair in worst)]
        for number, one in enumerate(found.results, 1)
    ]  # fmt: skip
    more_caption = (
        f"Macro-F1 in %, cost, and for the {len(worst)} pairs that the base confuses most the share in % of both "
        f"classes' images that is taken for the other class; all without copies, means over seeds"
    )
    return [
        Table(caption, head, rows),
        Picture("accuracy.png", "Accuracy of every configuration, and its gain over the base, with 95 % intervals over "
                "images. Two configurations are to be compared by the gain: it is paired, image by image."),
        Table(more_caption, more_head, more),
        Picture("cost.png", "Accuracy without copies against parameters and against multiply-adds."),
    ]  # fmt: skip


def confusion_blocks(found: Findings) -> list[Block]:
    """The matrices, and the tables of pairs."""
    pairs = [[one.name, f"{one.images:,}", "yes" if one.together else "no", f"{one.base:.1f}", f"{one.best:.1f}",
              f"{one.best - one.base:+.1f}", p_text(one.p), p_text(one.adjusted)] for one in found.pairs]  # fmt: skip
    head = ["pair", "images", "shared expert", "base", "best mixture", "difference", "p", "adjusted p"]
    tests = [[one.name, str(seed), str(test.first), str(test.second), p_text(test.p)]
             for one in found.worst for seed, test in zip(found.study.seeds, one.seeds, strict=True)]  # fmt: skip
    return [
        Picture("confusion.png", f"Base {named(found.base)}, best mixture {named(found.best)}, and the difference; "
                "without copies, mean over seeds."),
        Table("Images of a pair of classes that are taken for the other class, mean over seeds, without copies; p of "
              f"the sign-flip test, and adjusted by Holm for {len(found.pairs)} pairs", head, pairs),
        Table("McNemar's exact test of each seed alone, not corrected: images of the pair that only one of the two "
              "networks takes for the other class", ["pair", "seed", "only base", "only mixture", "p"], tests),
    ]  # fmt: skip


def spread(values: Sequence[float]) -> str:
    """Mean ± standard deviation, or the one value."""
    mean = statistics.mean(values)
    return f"{mean:.2f} ± {statistics.stdev(values):.2f}" if len(values) > 1 else f"{mean:.2f}"


def gap_cells(gap: Gap | None) -> list[str]:
    """The gain with its intervals over images and over seeds, and the adjusted p."""
    if gap is None:
        return ["", "", ""]
    seeds = "-" if gap.seeds is None else f"{gap.seeds[0] - gap.seeds[1]:+.2f} to {gap.seeds[0] + gap.seeds[1]:+.2f}"
    return [f"{gap.images.mean:+.2f} ({gap.images.low:+.2f} to {gap.images.high:+.2f})", seeds, p_text(gap.adjusted)]


# --- What it draws ---


def look(found: Findings, one: Configuration) -> str:
    """The role of a configuration, one of plots_study.LOOKS."""
    if one is found.study.base:
        return "base"
    return "mixture" if one in found.study.mixtures else "control" if one.is_control else "other"


def draw_all(found: Findings, out: Path) -> None:
    """Write the six PNG files."""
    study, base, best = found.study, found.base.configuration, found.best.configuration
    models = [(f"{one.title} ({role})", one.histories) for one, role in ((base, "base"), (best, "best mixture"))]
    plots_study.stage_curves(models, out / "curves.png", title="Training, stage by stage")
    shares = [confusion_shares(study, one) for one in (base, best)]
    names = (f"base: {base.title}", f"best mixture: {best.title}")
    plots_study.confusions(*shares, out / "confusion.png", names=names)
    titles = [one.title for one in found.results]
    looks = [look(found, one.configuration) for one in found.results]
    official, unseen = (np.array([getattr(one, f"{name}_interval") for one in found.results])
                        for name in ("official", "unseen"))  # fmt: skip
    gains = np.array([_gain(one) for one in found.results])
    seeds = np.array([one.unseen for one in found.results])
    plots_study.accuracies(titles, looks, official, unseen, gains, out / "accuracy.png", seeds=seeds)
    parameters, macs = ([getattr(one, name) for one in study.configurations] for name in ("parameters", "macs"))
    plots_study.costs(titles, looks, unseen, parameters, macs, out / "cost.png")
    use = found.gate
    plots_study.gate_use(use.load, use.chosen, use.per_class, best.groups, best.experts, out / "gate.png")
    plots_study.feature_maps(feature_panels(found), out / "features.png")


def _gain(one: Result) -> tuple[float, float, float]:
    return tuple(one.gain.images) if one.gain else (np.nan,) * 3


def feature_panels(found: Findings) -> list[plots_study.Panel]:
    """Base and best mixture by class, and the mixture by the expert with the most weight, with the first seed."""
    study, best = found.study, found.best.configuration
    classes = study.labels[study.rows]
    first, second = (project(one.features) for one in (found.base.configuration, best))
    experts = best.gate[0][study.rows].argmax(1)
    return [
        plots_study.Panel(f"base: {found.base.title}, by class", *first, classes, CLASSES),
        plots_study.Panel(f"best mixture: {best.title}, by class", *second, classes, CLASSES),
        plots_study.Panel(f"best mixture: {best.title}, by expert", *second, experts, best.experts),
    ]


def perplexity(points: int) -> float:
    """t-SNE's for so many points: PERPLEXITY, or a third of them where they are few."""
    return min(PERPLEXITY, (points - 1) / 3)


def project(features: np.ndarray) -> tuple[np.ndarray, tuple[str, str], np.ndarray]:
    """(M, 2) of features (M, D) by their principal components, the axes' labels, and (M, 2) by t-SNE.

    Features that are all alike are all put at the origin. t-SNE: Van der Maaten and Hinton, 2008, JMLR 9.
    """
    from sklearn.decomposition import PCA  # late: it takes a second, and only reports need it
    from sklearn.manifold import TSNE

    features = features.astype(np.float64)
    if not features.var(0).sum() > 0:
        nowhere = np.zeros((len(features), 2))
        return nowhere, ("first component (0.0 % of the variance)", "second component (0.0 % of the variance)"), nowhere
    count = min(COMPONENTS, *features.shape)
    pca = PCA(count, svd_solver="full")
    parts = pca.fit_transform(features)
    first, second = 100 * pca.explained_variance_ratio_[:2]
    axes = (f"first component ({first:.1f} % of the variance)", f"second component ({second:.1f} % of the variance)")
    tsne = TSNE(perplexity=perplexity(len(parts)), init="pca", learning_rate="auto", random_state=PLOT_SEED)
    return parts[:, :2], axes, tsne.fit_transform(parts.astype(np.float32))
