"""Groups of emotions for the experts of a mixture: by hand, from confusions, or at random as a control.

A grouping is a list of groups, a group a list of class indices in increasing order.
"""

import re
from collections.abc import Mapping, Sequence

import numpy as np

from config import CLASSES
from errors import UserError

Grouping = list[list[int]]

MADE = ("clusters", "random", "all-classes")  # made by the study itself: names that config.py may not use


def resolve(by_hand: Mapping[str, Sequence[Sequence[str]]], wanted: Sequence[str], experts: int) -> dict[str, Grouping]:
    """The groupings `wanted`, by name. `clusters` and `random` are empty: they need a trained network.

    `by_hand` is config.py's GROUPINGS; `experts` is the number of groups of `all-classes`. Raises UserError for a
    name that is no folder name or is one of MADE, and for groups that are not `parse`d or fewer than two.
    """
    for name in by_hand:
        if not re.fullmatch("[a-z0-9_-]+", name) or name in MADE:
            raise UserError(
                f"config.py, GROUPINGS: the name {name!r} is not allowed; use a to z, digits, - and _, and none of "
                f"{', '.join(MADE)}"
            )
    all_classes = [list(range(len(CLASSES)))] * experts
    made: dict[str, Grouping] = {"clusters": [], "random": [], "all-classes": all_classes}
    return {name: made[name] if name in made else parse(by_hand[name], name) for name in wanted}


def parse(groups: Sequence[Sequence[str]], name: str) -> Grouping:
    """The grouping that lists of emotions describe; groups may overlap, and together cover every emotion.

    Raises UserError for an unknown emotion, one that no group has, an empty or repeated group, and a single group.
    """
    where = f"config.py, GROUPINGS[{name!r}]"
    if unknown := sorted({name for group in groups for name in group} - set(CLASSES)):
        raise UserError(f"{where}: unknown {', '.join(unknown)}; the emotions are {', '.join(CLASSES)}")
    if missing := [name for name in CLASSES if not any(name in group for group in groups)]:
        raise UserError(f"{where}: no group has {', '.join(missing)}; together they must cover every emotion")
    grouping = [sorted({CLASSES.index(name) for name in group}) for group in groups]
    if len(grouping) < 2 or any(not group or grouping.count(group) > 1 for group in grouping):
        raise UserError(f"{where}: two or more groups are needed, all different and none of them empty")
    return grouping


def by_confusion(shares: np.ndarray, count: int) -> Grouping:
    """`count` groups of classes that a network confuses.

    `shares` (C, C) are mean probabilities: how much of a true class (row) the network gives to each class. They
    also tell apart classes that it never names. Average linkage over 1 less the share that two classes give each
    other, averaged over both directions (scikit-learn's agglomerative clustering).
    """
    from sklearn.cluster import AgglomerativeClustering  # late: it takes a second

    distance = 1 - (shares + shares.T) / 2
    np.fill_diagonal(distance, 0)
    found = AgglomerativeClustering(n_clusters=count, metric="precomputed", linkage="average").fit_predict(distance)
    return sorted(np.flatnonzero(found == group).tolist() for group in range(count))


def random_like(grouping: Grouping, seed: int) -> Grouping:
    """Random groups with the sizes of `grouping`, whose groups do not overlap; other groups where that is possible."""
    sizes = np.cumsum([len(group) for group in grouping])
    rng = np.random.default_rng([seed, 2013])
    for _ in range(100):
        parts = np.split(rng.permutation(sizes[-1]), sizes[:-1])
        sampled = sorted(sorted(part.tolist()) for part in parts)
        if sampled != sorted(grouping):
            break
    return sampled


def names(grouping: Grouping) -> list[list[str]]:
    """The emotions of each group."""
    return [[CLASSES[c] for c in group] for group in grouping]
