"""The tables of a report, with the pictures that belong to them: what was run, accuracies, costs, confusions."""

import statistics
from collections.abc import Sequence

from config import CLASSES
from study.confusions import PairResult, pair_rate
from study.findings import Findings, Gap
from study.pages import Block, Code, Heading, Picture, Table
from study.report_words import amount, named, p_text, span
from study.results import Configuration, Study
from study.stats import F1_DRAWS, Interval


def setting(study: Study) -> list[Block]:
    """The command, and a table of data, seeds and machine."""
    about, data = study.about, study.about["data"]
    images = f"{sum(data['train']):,} train, {sum(data['val']):,} val; scored: {len(study.labels):,}"
    counts = [[name, *(f"{data[part][index]:,}" for part in ("train", "val"))] for index, name in enumerate(CLASSES)]
    facts = [
        ["data", f"{data['source']}, fingerprint {data['fingerprint']}"],
        ["images", f"{images}, of which {int(study.copies.sum()):,} also stand in the dataset's train part (copies)"],
        ["seeds", ", ".join(map(str, study.seeds))],
        [
            "minutes",
            f"{about['minutes']:.1f}, the sum of all epochs, training and scoring; without loading the data, "
            "scoring the finished networks, and this report",
        ],
        ["machine", about["machine"]],
        ["versions", ", ".join(f"{name} {version}" for name, version in about["versions"].items())],
    ]
    return [
        Code(about["command"]),
        Table("The study", ["", ""], facts),
        Table("Images of each class", ["class", "train", "val"], counts),
    ]


def configuration_table(found: Findings) -> Table:
    rows = []
    for number, one in enumerate(found.study.configurations, 1):
        groups = "; ".join(one.experts) + (" (first seed)" if found.study.has_other_groups(one) else "")
        rows.append(
            [
                str(number),
                one.title,
                role(found, one),
                groups,
                one.gating,
                amount(one.parameters),
                amount(one.macs),
                f"{one.epochs:,}",
                f"{one.work:,.1f}",
                one.note,
            ]
        )
    head = [
        "#",
        "configuration",
        "role",
        "experts' classes",
        "gating",
        "parameters",
        "MACs",
        "epochs",
        "training work",
        "note",
    ]
    used = [place for place, name in enumerate(head) if any(row[place] for row in rows)]
    top = any(one.gating == "top-1" for one in found.study.configurations)
    caption = (
        "Configurations. MACs are multiply-adds for one image; epochs the most that any of the weights went through; "
        "training work is that of all stages, in epochs of the base"
    )
    if top:
        caption += (
            ". Top-1: trained with soft gating, top-1 in use; its MACs are those of the gate and one expert, though "
            "here all experts are computed"
        )
    return Table(caption, [head[place] for place in used], [[row[place] for place in used] for row in rows])


def role(found: Findings, one: Configuration) -> str:
    if one is found.study.base:
        return "base"
    return f"control, {one.kind}" if one.is_control else one.kind


def accuracy_blocks(found: Findings) -> list[Block]:
    """Three tables of all configurations, and their pictures."""
    return [
        score_table(found),
        gain_table(found),
        Picture(
            "accuracy.png",
            "Accuracy of every configuration, and its gain over the base, with 95 % intervals over "
            "images. Two configurations are to be compared by the gain: it is paired, image by image.",
        ),
        cost_table(found),
        Picture("cost.png", "Accuracy deduplicated against parameters and against multiply-adds."),
    ]


def score_table(found: Findings) -> Table:
    rows = [
        [
            str(number),
            one.title,
            with_interval(one.official, one.official_interval),
            with_interval(one.deduplicated, one.deduplicated_interval),
            with_interval(one.f1, one.f1_interval),
        ]
        for number, one in enumerate(found.results, 1)
    ]
    over = "of one seed" if len(found.study.seeds) == 1 else "mean ± standard deviation over seeds"
    caption = (
        f"Accuracy and macro-F1 in %, {over}, with 95 % intervals over images (bootstrap; of macro-F1 with "
        f"{F1_DRAWS:,} draws)"
    )
    return Table(caption, ["#", "configuration", "official", "deduplicated", "macro-F1 deduplicated"], rows)


def gain_table(found: Findings) -> Table:
    several = len(found.study.seeds) > 1
    rows = [
        [
            str(number),
            one.title,
            in_points(one.official_gain) if one.official_gain else "",
            *gap_cells(one.gain, several=several),
        ]
        for number, one in enumerate(found.results, 1)
    ]
    head = ["#", "configuration", "gain, official", "gain, deduplicated", "adjusted p"]
    if several:
        head.insert(4, "gain over seeds")
    caption = (
        f"Gain in accuracy over the base, in points with its 95 % interval over images (paired bootstrap)"
        f"{student(found)}; p of the sign-flip test deduplicated, adjusted by "
        f"Holm for {len(found.results) - 1} configurations"
    )
    return Table(caption, head, rows)


def cost_table(found: Findings) -> Table:
    worst, rows = found.worst, []
    for number, one in enumerate(found.results, 1):
        own = one.configuration
        rates = [pair_rate(found.study, own, pair.pair) for pair in worst]
        rows.append(
            [
                str(number),
                one.title,
                f"{own.parameters:,}",
                amount(own.macs),
                *("-" if rate is None else f"{rate.mean:.1f} ({rate.low:.1f} to {rate.high:.1f})" for rate in rates),
            ]
        )
    caption = (
        f"Cost, and for the {len(worst)} pairs that the base confuses most the share in % of both classes' images that "
        f"is taken for the other class, deduplicated{over_seeds(found)}, with its 95 % interval over these "
        f"images (bootstrap)"
    )
    return Table(caption, ["#", "configuration", "parameters", "MACs", *(one.name for one in worst)], rows)


def confusion_blocks(found: Findings) -> list[Block]:
    """The matrices, and the tables of pairs."""
    blocks = [
        Picture(
            "confusion.png",
            f"Base {named(found.base)}, best mixture {named(found.best)}, and the difference; "
            f"deduplicated{over_seeds(found)}.",
        ),
        pair_table(found, found.pairs, "base"),
    ]
    if found.longer:
        blocks += [
            Heading(f"The same against {named(found.longer)}", 3),
            pair_table(found, found.pairs_longer, "longer"),
        ]
    if found.tests:
        rows = [
            [
                one.pair.name,
                str(one.seed),
                str(one.found.first),
                str(one.found.second),
                p_text(one.found.p),
                p_text(one.adjusted),
            ]
            for one in found.tests
        ]
        blocks.append(
            Table(
                f"McNemar's exact test of each seed alone, for the {len(found.worst)} pairs that the base confuses "
                f"most: images that only one of the two networks takes for the other class; p adjusted by Holm for "
                f"{len(found.tests)} tests (pairs times seeds)",
                ["pair", "seed", "only base", "only mixture", "p", "adjusted p"],
                rows,
            )
        )
    return blocks


def pair_table(found: Findings, pairs: Sequence[PairResult], against: str) -> Table:
    """All pairs; with one seed, with the images that only one of the two networks confuses."""
    several = len(found.study.seeds) > 1
    head = ["pair", "images", "shared expert", against, "best mixture", "difference"]
    head += ["over seeds"] if several else [f"only {against}", "only mixture"]
    if several:
        test = (
            "the sign-flip test, in which an image counts once, with its mean over the seeds (with one seed it "
            "is McNemar's exact test)"
        )
    else:
        test = "McNemar's exact test (with several seeds it would be the sign-flip test, which is the same for one)"
    alike = ", without width where all seeds agree, which does not make it sure either" if several else ""
    caption = (
        f"Images of a pair of classes that are taken for the other class, deduplicated{over_seeds(found)}; the "
        f"difference with its 95 % interval over images (paired bootstrap: without width where no image changed, which "
        f"does not make it sure){student(found)}{alike}; p of {test}; adjusted by Holm for {len(pairs)} pairs"
    )
    return Table(caption, [*head, "p", "adjusted p"], [pair_row(one) for one in pairs])


def pair_row(one: PairResult) -> list[str]:
    gap, shared = one.change, {True: "yes", False: "no", None: "-"}[one.together]
    digits = 0 if one.seeds is None else 1
    more = [str(count) for count in one.discordant[:2]] if one.seeds is None else [span(one.seeds, 1)]
    return [
        one.name,
        f"{one.images:,}",
        shared,
        f"{one.base:.{digits}f}",
        f"{one.best:.{digits}f}",
        f"{gap.mean:+.{digits}f} ({gap.low:+.1f} to {gap.high:+.1f})",
        *more,
        p_text(one.p),
        p_text(one.adjusted),
    ]


# --- Words in tables ---


def over_seeds(found: Findings) -> str:
    return ", mean over seeds" if len(found.study.seeds) > 1 else ""


def student(found: Findings) -> str:
    return ", and over seeds (Student's t)" if len(found.study.seeds) > 1 else ""


def spread(values: Sequence[float]) -> str:
    """Mean ± standard deviation, or the one value."""
    mean = statistics.mean(values)
    return f"{mean:.2f} ± {statistics.stdev(values):.2f}" if len(values) > 1 else f"{mean:.2f}"


def with_interval(values: Sequence[float], interval: Interval) -> str:
    return f"{spread(values)} ({interval.low:.2f} to {interval.high:.2f})"


def in_points(gap: Interval) -> str:
    return f"{gap.mean:+.2f} ({gap.low:+.2f} to {gap.high:+.2f})"


def gap_cells(gap: Gap | None, *, several: bool) -> list[str]:
    """The gain with its intervals over images and, with `several`, over seeds, and the adjusted p."""
    if gap is None:
        return [""] * (2 + several)
    seeds = [span(gap.seeds, 2)] if several else []
    return [in_points(gap.images), *seeds, p_text(gap.adjusted)]
