"""Groups of emotions for the experts of a mixture: by hand, from confusions, or at random as a control.

A grouping is a list of groups, a group a list of class indices in increasing order.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from sklearn.cluster import AgglomerativeClustering

from config import CLASSES
from errors import UserError

Grouping = list[list[int]]


def resolve(by_hand: Mapping[str, Sequence[Sequence[str]]], wanted: Sequence[str], experts: int) -> dict[str, Grouping]:
    """The groupings `wanted`, by name. `clusters` and `random` are empty: they need a trained network.

    `by_hand` is config.py's GROUPINGS; `experts` is the number of groups of `all-classes`. Raises UserError.
    """
    made: dict[str, Grouping] = {"clusters": [], "random": [], "all-classes": [list(range(len(CLASSES)))] * experts}
    return {name: made[name] if name in made else parse(by_hand[name], name) for name in wanted}


def parse(groups: Sequence[Sequence[str]], name: str) -> Grouping:
    """The grouping that lists of emotions describe, which may overlap. Raises UserError for one that is not allowed."""
    if len(groups) < 2 or {emotion for group in groups for emotion in group} != set(CLASSES) or not all(groups):
        raise UserError(
            f"config.py, GROUPINGS[{name!r}]: two or more groups are needed, none of them empty, that together have "
            f"every emotion ({', '.join(CLASSES)}) and no other"
        )
    return [sorted({CLASSES.index(emotion) for emotion in group}) for group in groups]


def by_confusion(shares: np.ndarray, count: int) -> Grouping:
    """`count` groups of classes that a network confuses.

    `shares` (C, C) are mean probabilities: how much of a true class (row) the network gives to each class. They
    also tell apart classes that it never names. Average linkage over 1 less the share that two classes give each
    other, averaged over both directions (scikit-learn's agglomerative clustering).
    """
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
