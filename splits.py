"""The parts of a dataset: how train and validation are told apart, and the images of each."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from config import CLASSES
from errors import UserError
from readers.cache import SPLITS

VAL_SEED = 2013  # of the sampled validation part: the same for every run, so that runs compare on the same images


class Rows:
    """The images at some rows of a mapped array (N, 48, 48), or of Rows; read when they are asked for."""

    def __init__(self, images: "np.ndarray | Rows", rows: np.ndarray) -> None:
        self.images, self.rows = images, rows
        self.nbytes = len(rows) * images[:1].nbytes

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, at: Any) -> np.ndarray:
        return self.images[self.rows[at]]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self.images[self.rows], dtype)


@dataclass(frozen=True)
class Split:
    """One part of the data: `images` (N, 48, 48) uint8, mapped from the cache, `labels` (N,) int64, `copies` (N,) bool.

    `copies` marks the images whose pixels are in train too. `votes` (N, 7) float32 are FER+'s, zeros where an image
    has none. Labels are places in `classes`.
    """

    name: str
    images: Rows | np.ndarray
    labels: np.ndarray
    digests: np.ndarray
    copies: np.ndarray
    votes: np.ndarray | None = None
    classes: tuple[str, ...] = CLASSES

    def __len__(self) -> int:
        return len(self.labels)

    def counts(self) -> list[int]:
        """Images per class."""
        return np.bincount(self.labels, minlength=len(self.classes)).tolist()

    def take(self, rows: np.ndarray) -> "Split":
        """The images at `rows` (a sorted index), as a split of the same name."""
        votes = None if self.votes is None else self.votes[rows]
        images = Rows(self.images, rows)
        return Split(self.name, images, self.labels[rows], self.digests[rows], self.copies[rows], votes, self.classes)


def split_rows(index: np.ndarray, fraction: float) -> tuple[dict[str, np.ndarray], bool]:
    """The rows of each split in a cache's `index`, and whether validation was sampled, a `fraction` of train.

    The whole rule: validation is a folder val/ if there is one; else the PublicTest_* files of test/ or the rows of
    Usage PublicTest, as FER2013 has them; else a tenth of each class of train, always the same. Test is what else is in
    test/. The first two are settled by names, in readers/layout.py and readers/tables.py; the third is sampled here.
    Raises UserError where train has no two different images of any class to sample from.
    """
    rows = {name: np.flatnonzero(index["splits"] == number) for number, name in enumerate(SPLITS)}
    train = index[rows["train"]]
    sampled = not len(rows["val"])
    if sampled:
        chosen = sample_validation(train["labels"], train["digests"], fraction)
        rows["val"], rows["train"] = rows["train"][chosen], rows["train"][~chosen]
        if not chosen.any():
            raise UserError(
                "there is no validation part, and no class has two different images to sample one from; add images, or "
                "a val/ folder"
            )
    return {name: at for name, at in rows.items() if len(at)}, sampled


def sample_validation(labels: np.ndarray, digests: np.ndarray, fraction: float) -> np.ndarray:
    """A mask (N,) of the images sampled for validation: `fraction` of each class that has two different images.

    Whole groups of pixel-identical images are sampled, so that copies stay on one side. A group larger than the wanted
    part stays in train, unless all are: an image copied over and over would take the class with it.
    """
    _, group = np.unique(digests, return_inverse=True)
    group_label = np.full(group.max() + 1, labels.max())
    np.minimum.at(group_label, group, labels)
    group_size = np.bincount(group)
    rng = np.random.default_rng(VAL_SEED)
    chosen = np.zeros(len(group_label), bool)
    for label in range(labels.max() + 1):
        groups = rng.permutation(np.flatnonzero(group_label == label))
        if len(groups) < 2:  # the only one stays in train
            continue
        wanted = fraction * group_size[groups].sum()
        groups = groups[group_size[groups] <= max(wanted, group_size[groups].min())]
        before = np.cumsum(group_size[groups]) - group_size[groups]
        chosen[groups[before < wanted]] = True
    return chosen[group]


def stratified_rows(labels: np.ndarray, limit: int) -> np.ndarray:
    """Sorted rows of about `limit` images with every class in its share, at least one of each."""
    rng = np.random.default_rng(VAL_SEED)
    rows = []
    for label in np.unique(labels):
        at = np.flatnonzero(labels == label)
        rows.append(rng.permutation(at)[: max(1, round(limit * len(at) / len(labels)))])
    return np.sort(np.concatenate(rows))
