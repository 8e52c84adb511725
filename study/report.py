"""The report of a finished study: report.md, report.html and their figures, from its folder alone."""

from pathlib import Path

import numpy as np

from config import CLASSES
from errors import UserError, plain, write_file
from study import figures as plots_study
from study import figures_inside as plots_inside
from study.confusions import confusion_shares
from study.findings import Findings, Result, find
from study.pages import Block, Bullets, Heading, Note, Picture, html, markdown
from study.report_tables import accuracy_blocks, configuration_table, confusion_blocks, setting
from study.report_text import discussion, summary, warnings
from study.report_words import named
from study.results import Configuration, read_study

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
    for heading, name, caption in (
        ("The gate", "gate", gate_caption(found)),
        ("Training", "curves", curves_caption(found)),
        ("Features", "features", features_caption(found)),
    ):
        blocks += [Heading(heading), Picture(f"{name}.png", caption)]
    blocks.append(Heading("Discussion"))
    for heading, sentences in discussion(found):
        blocks += [Heading(heading, 3), Bullets(sentences)]
    return blocks


def gate_caption(found: Findings) -> str:
    best = found.best.configuration
    seeds = " and all seeds" if len(found.study.seeds) > 1 else ""
    if found.study.has_other_groups(best):
        seeds = " and the first seed, whose groups are shown"
    return f"What the gate of {named(found.best)} does with its experts, over the images deduplicated{seeds}."


def curves_caption(found: Findings) -> str:
    soft = ""
    if found.best.configuration.gating == "top-1":
        soft = f" {named(found.best)} was trained with soft gating, which its curves show."
    lines = ", a line for each seed" if len(found.study.seeds) > 1 else ""
    return (
        f"Loss and accuracy per epoch{lines}. Training figures are measured in passing, on augmented images: windows "
        "of faces, but whole ones in the last fifth of a stage, its last epoch at least, where the figures may step. "
        "Validation figures are deduplicated. A stage of a mixture may train and score a part of it only, so its "
        f"figures need not be comparable.{soft}"
    )


def features_caption(found: Findings) -> str:
    shown = int(found.study.shown.sum())
    return (
        f"Features before the last layer, of {shown:,} validation images deduplicated, with the first seed: two "
        f"principal components above, t-SNE below (perplexity {perplexity(shown):.3g}, the same random state for both "
        "networks). Distances between clusters and their sizes mean little in t-SNE. The mixture's features are its "
        "experts' side by side, each times its weight, so images of one expert lie together by their making. Expert: "
        "the one with the most weight."
    )


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
    plots_inside.confusions(*shares, out / "confusion.png", names=names)
    titles = [one.title for one in found.results]
    looks = [look(found, one.configuration) for one in found.results]
    official, deduplicated = (
        np.array([getattr(one, f"{name}_interval") for one in found.results]) for name in ("official", "deduplicated")
    )
    gains = np.array([_gain(one) for one in found.results])
    seeds = np.array([one.deduplicated for one in found.results])
    plots_study.accuracies(titles, looks, official, deduplicated, gains, out / "accuracy.png", seeds=seeds)
    parameters, macs = ([getattr(one, name) for one in study.configurations] for name in ("parameters", "macs"))
    plots_study.costs(titles, looks, deduplicated, parameters, macs, out / "cost.png")
    use = found.gate
    plots_inside.gate_use(use.load, use.chosen, use.per_class, best.groups, best.experts, out / "gate.png")
    plots_inside.feature_maps(feature_panels(found), out / "features.png")


def _gain(one: Result) -> tuple[float, float, float]:
    return tuple(one.gain.images) if one.gain else (np.nan,) * 3


def feature_panels(found: Findings) -> list[plots_inside.Panel]:
    """Base and best mixture by class, and the mixture by the expert with the most weight, with the first seed.

    Of the images whose features are kept, those deduplicated.
    """
    study, best = found.study, found.best.configuration
    rows = study.rows[study.shown]
    classes, experts = study.labels[rows], best.gate[0][rows].argmax(1)
    first, second = (project(one.features[study.shown]) for one in (found.base.configuration, best))
    return [
        plots_inside.Panel(f"base: {found.base.title}, by class", *first, classes, CLASSES),
        plots_inside.Panel(f"best mixture: {best.title}, by class", *second, classes, CLASSES),
        plots_inside.Panel(
            f"best mixture: {best.title}, by expert", *second, experts, best.experts, plots_inside.OTHERS
        ),
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
