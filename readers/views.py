"""Test-time augmentation: the views of an image whose logits are averaged."""

import numpy as np


def tta_views(pixels: np.ndarray, tta: str) -> list[np.ndarray]:
    """Pixels (N, H, W) in each way in which they are scored.

    "none": as they are; "flip": mirrored too; "crops": both, in place and moved by two pixels to each corner, where
    the edge is repeated.
    """
    views = [pixels]
    if tta == "crops":
        height, width = pixels.shape[1:]
        padded = np.pad(pixels, ((0, 0), (2, 2), (2, 2)), mode="edge")
        views += [padded[:, down : down + height, right : right + width] for down in (0, 4) for right in (0, 4)]
    if tta != "none":
        views += [view[:, :, ::-1] for view in views]
    return [np.ascontiguousarray(view) for view in views]
