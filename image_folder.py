"""torchvision's ImageFolder, with the fixed order of classes and the one decoder."""

import os
from collections.abc import Callable
from pathlib import Path

import torch
from torchvision.datasets import ImageFolder

from config import CLASSES
from errors import UserError
from readers.decode import BadImage, decode, read_file
from readers.layout import check_all_classes, check_class_folders, is_image_name, is_junk, renamed_folders


def load_image(path: str | Path) -> torch.Tensor:
    """Return the image in a file as a (48, 48) uint8 tensor; raises BadImage with the file's name."""
    try:
        return torch.from_numpy(decode(read_file(Path(path))).pixels)
    except BadImage as error:
        raise BadImage(f"{path}: {error}") from error


class EmotionFolder(ImageFolder):
    """Images in one folder per class, as ((48, 48) uint8 tensor, label).

    Labels are indices into CLASSES, whatever order the folders stand in on disk. Letter case and synonyms of the
    folders' names are mapped (`renamed`: folder -> class); hidden and junk files and folders are passed over.
    Raises UserError for a folder that is no class and, unless `allow_empty`, for a class without images.
    Taking a bad file out of it raises BadImage with the file's name.
    """

    def __init__(
        self,
        root: str | Path,
        *,
        transform: Callable[[torch.Tensor], object] | None = None,
        target_transform: Callable[[int], object] | None = None,
        allow_empty: bool = False,
    ):
        if not os.path.isdir(root):  # Path.is_dir raises for a folder that may not be searched
            raise UserError(f"{root}: no such folder. Expected one that holds {', '.join(CLASSES)}.")
        super().__init__(
            str(root),
            transform=transform,
            target_transform=target_transform,
            loader=load_image,
            is_valid_file=self._is_wanted,
            allow_empty=True,
        )
        folders = _class_folders(root)
        if not allow_empty:
            check_all_classes(str(root), self.targets, folders)
        self.renamed = renamed_folders(folders)
        # As everywhere in torchvision: class -> index. While the files were listed it was folder -> index.
        self.class_to_idx = {name: index for index, name in enumerate(CLASSES)}

    def find_classes(self, directory: str | Path) -> tuple[list[str], dict[str, int]]:
        """Return CLASSES, and folder -> class index; raises UserError for a folder that is no class."""
        return list(CLASSES), check_class_folders(str(directory), _class_folders(directory))

    def _is_wanted(self, path: str) -> bool:
        name = os.path.relpath(path, self.root).replace(os.sep, "/")
        return is_image_name(name) and not is_junk(name)


def _class_folders(directory: str | Path) -> list[str]:
    # os.path.isdir, unlike DirEntry.is_dir, takes a link round in a circle
    return [entry.name for entry in os.scandir(directory) if os.path.isdir(entry.path) and not is_junk(entry.name)]
