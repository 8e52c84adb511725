"""Groups of emotions for the experts of a mixture: by hand, from a confusion matrix, or drawn as a control.

A grouping is a list of groups, a group a list of class indices in increasing order.
"""

import re
from collections.abc import Mapping, Sequence

import numpy as np

from config import CLASSES
from errors import UserError

Grouping = list[list[int]]

MADE = ("clusters", "random", "all-classes")  # while a study runs
TAKEN = ("single", "longer", "wide", "wide-2", "ensemble", *MADE)  # names of other configurations of a study
ENDS = ("-gate", "-together", "-top-1")  # of the configurations and stages of a mixture


def given(by_hand: Mapping[str, Sequence[Sequence[str]]], wanted: Sequence[str], experts: int) -> dict[str, Grouping]:
    """The groupings `wanted`, by name, as far as they are known beforehand: without groups for clusters and random.

    Raises UserError for a name in `by_hand`, config.py's GROUPINGS, that is no plain folder name or is taken, and for
    a grouping wanted that is none, or has a single group.
    """
    for name in by_hand:
        where = f"config.py, GROUPINGS: the name {name!r}"
        if not re.fullmatch("[a-z0-9_-]+", name):
            raise UserError(f"{where} names folders: use the letters a to z, digits, - and _ only")
        if name in TAKEN or name.startswith("random-") or name.endswith(ENDS):
            raise UserError(f"{where} is taken by a part of the study: choose another one")
    found: dict[str, Grouping] = {}
    for name in wanted:
        if name in MADE:
            found[name] = [list(range(len(CLASSES)))] * experts if name == "all-classes" else []
            continue
        where = f"config.py, GROUPINGS[{name!r}]"
        found[name] = by_names(by_hand[name], where)
        if len(found[name]) < 2:
            raise UserError(f"{where}: a single group leaves a gate nothing to choose; give two or more")
    return found


def by_names(groups: Sequence[Sequence[str]], where: str) -> Grouping:
    """The grouping that lists of emotions stand for; they may overlap, and together hold every emotion.

    Raises UserError, with `where` they stand, for an unknown emotion, one that no group has, an empty group, and one
    that stands there twice.
    """
    if unknown := sorted({name for group in groups for name in group} - set(CLASSES)):
        raise UserError(f"{where}: unknown {', '.join(unknown)}; the emotions are {', '.join(CLASSES)}")
    if empty := [number for number, group in enumerate(groups, 1) if not group]:
        raise UserError(f"{where}: group {empty[0]} is empty; an expert needs an emotion")
    if lacking := [name for name in CLASSES if not any(name in group for group in groups)]:
        raise UserError(f"{where}: no group has {', '.join(lacking)}; together they must hold every emotion")
    grouping = [sorted({CLASSES.index(name) for name in group}) for group in groups]
    if twice := [names([group])[0] for at, group in enumerate(grouping) if group in grouping[:at]]:
        raise UserError(f"{where}: {', '.join(twice[0])} are a group twice; their experts would be the same")
    return grouping


def by_confusion(confusion: np.ndarray, count: int) -> Grouping:
    """`count` groups of classes that a network confuses, from its confusion matrix (C, C) in images, rows true.

    Average linkage over one less the rate at which two classes are taken for each other, averaged over both
    directions (scikit-learn's agglomerative clustering). Raises UserError for more groups than classes, fewer than
    one, and a class without images.
    """
    from sklearn.cluster import AgglomerativeClustering  # late: it takes a second

    classes = len(confusion)
    if not 1 <= count <= classes:
        raise UserError(f"{count} experts: {classes} classes make 1 to {classes} groups")
    true = confusion.sum(1)
    if not true.all():
        bare = ", ".join(CLASSES[c] for c in np.flatnonzero(true == 0))
        raise UserError(f"the validation part has no image of {bare}: how it is confused cannot be told; add some")
    rate = confusion / true[:, None]
    distance = 1 - (rate + rate.T) / 2
    np.fill_diagonal(distance, 0)
    found = AgglomerativeClustering(n_clusters=count, metric="precomputed", linkage="average").fit_predict(distance)
    return sorted(np.flatnonzero(found == group).tolist() for group in range(count))


def drawn_like(grouping: Grouping, seed: int) -> Grouping:
    """Groups of the same sizes with the classes drawn at random, other than `grouping` where that can be.

    For groups that do not overlap.
    """
    classes = sum(map(len, grouping))
    rng = np.random.default_rng([seed, 2013])
    drawn = grouping
    for _ in range(100):
        order = rng.permutation(classes)
        parts = np.split(order, np.cumsum([len(group) for group in grouping])[:-1])
        drawn = sorted(sorted(part.tolist()) for part in parts)
        if drawn != sorted(grouping):
            break
    return drawn


def names(grouping: Grouping) -> list[list[str]]:
    """The emotions of each group."""
    return [[CLASSES[c] for c in group] for group in grouping]
