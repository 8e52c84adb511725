"""Good files of every kind that the project reads, for the drill to damage: written here, or by the checkout."""

import gzip
import io
import json
import re
import shutil
import tarfile
import zipfile
from pathlib import Path

import av
import numpy as np
import pyarrow
from PIL import Image
from pyarrow import parquet

from bench.kills import NETWORK, Jobs
from config import CLASSES, Config
from dataset import load
from demo.faces import demo_faces
from errors import UserError

IMAGES, LARGE = 490, 3000  # faces in faces.zip; in large.zip
PICTURES = ("png", "jpeg", "bmp", "gif", "pnm", "webp", "tiff", "jp2", "avif")


def faces(data: str, cache: str, *, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Images (IMAGES, 48, 48) uint8 of all classes in turn, and their labels: of the dataset `data`, or rendered."""
    if not data:
        return demo_faces(IMAGES // 7, seed=seed)[:2]
    train = load(Config(data=data, cache=cache)).split("train")
    of_class = [np.flatnonzero(train.labels == label)[: IMAGES // 7] for label in range(7)]
    rows = np.stack(of_class, 1).ravel()
    return np.array(train.images[rows]), train.labels[rows]


def write_originals(home: Path, images: np.ndarray, labels: np.ndarray) -> None:
    """Write good files of each kind below `home`, of faces (IMAGES, 48, 48) uint8; all classes come in turn."""
    for name in (*PICTURES, "zip", "tar", "csv", "parquet", "votes", "video", "weights"):
        (home / name).mkdir()
    write_pictures(home, images)
    write_zip_of(home / "zip" / "dataset.zip", images, labels, train=28, val=14)
    write_zip_of(home / "faces.zip", images, labels, train=IMAGES - 140, val=140)
    noise = np.random.default_rng(0).integers(0, 32, (LARGE, 48, 48), np.uint8)
    many = np.arange(LARGE) % len(images)
    write_zip_of(home / "large.zip", images[many] // 2 + noise, labels[many], train=LARGE - 140, val=140)
    usages = ["Training"] * 28 + ["PublicTest"] * 14
    lines = [
        f"{label},{' '.join(map(str, image.ravel()))},{usage}\n"
        for label, image, usage in zip(labels, images, usages, strict=False)
    ]
    table = ("emotion,pixels,Usage\n" + "".join(lines)).encode()
    (home / "csv" / "fer2013.csv").write_bytes(table)
    words = {"Training": "train", "PublicTest": "dev"}
    named = [
        f"{words[usage]},{CLASSES[label]},{' '.join(map(str, image.ravel()))}\n"
        for label, image, usage in zip(labels, images, usages, strict=False)
    ]
    (home / "csv" / "named.csv").write_text("split,label,pixels\n" + "".join(named))
    write_parquet(home / "parquet" / "train.parquet", images[:28], labels[:28])
    header = tarfile.TarInfo("fer2013/fer2013.csv")
    header.size = len(table)
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        tar.addfile(header, io.BytesIO(table))
    (home / "tar" / "fer2013.tar").write_bytes(archive.getvalue())
    (home / "tar" / "fer2013.tar.gz").write_bytes(gzip.compress(archive.getvalue(), 6, mtime=0))
    columns = ("anger", "disgust", "fear", "happiness", "sadness", "surprise", "neutral")  # in the order of the labels
    rows = [
        f"{usage},fer{at}.png,{','.join('9' if at % 7 == label else '1' for label in range(7))},0,0,0\n"
        for at, usage in enumerate(usages)
    ]
    (home / "votes" / "fer2013new.csv").write_text(
        f"Usage,Image name,{','.join(columns)},contempt,unknown,NF\n{''.join(rows)}"
    )
    (home / "old.csv").write_text("file,face,x,y,width,height,score,answer,prediction,probability\n")


def write_pictures(home: Path, images: np.ndarray) -> None:
    """Write grey and coloured pictures in each format that is read, and a short video."""
    grey = Image.fromarray(images[0])
    rgb = Image.merge("RGB", [Image.fromarray(image).resize((100, 90)) for image in images[:3]])
    alpha = rgb.copy()
    alpha.putalpha(Image.fromarray(images[4]).resize(rgb.size))
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    several = (("grey", grey), ("colour", rgb), ("alpha", alpha))
    for name, picture, options in (
        ("png/grey.png", grey, {}),
        ("png/colour.png", rgb, {}),
        ("png/alpha.png", alpha, {}),
        ("png/palette.png", rgb.quantize(64), {}),
        ("png/deep.png", Image.fromarray(images[5].astype(np.uint16) * 257), {}),
        ("jpeg/grey.jpg", grey, {"quality": 95}),
        ("jpeg/colour.jpg", rgb, {"exif": exif}),
        ("jpeg/progressive.jpg", rgb, {"progressive": True}),
        ("jpeg/cmyk.jpg", rgb.convert("CMYK"), {}),
        ("bmp/grey.bmp", grey, {}),
        ("bmp/colour.bmp", rgb, {}),
        ("gif/two.gif", grey, {"save_all": True, "append_images": [Image.fromarray(images[1])]}),
        ("pnm/grey.pgm", grey, {}),
        ("pnm/colour.ppm", rgb, {}),
        ("webp/lossy.webp", rgb, {}),
        ("webp/lossless.webp", alpha, {"lossless": True}),
        *((f"{kind}/{name}.{kind}", picture, {}) for kind in ("jp2", "avif") for name, picture in several),
        *((f"tiff/{name}.tif", rgb, {"compression": name}) for name in ("raw", "tiff_lzw", "packbits", "jpeg")),
        ("tiff/deflate.tif", Image.fromarray(images[5].astype(np.uint16) * 257), {"compression": "tiff_adobe_deflate"}),
        ("tiff/fax.tif", grey.convert("1"), {"compression": "group4"}),
    ):
        picture.save(home / name, **options)
    plain = " ".join(map(str, images[0].ravel()))
    (home / "pnm" / "plain.pgm").write_text(f"P2\n# a face\n48 48\n255\n{plain}\n")
    with av.open(str(home / "video" / "faces.mp4"), "w") as file:
        stream = file.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 96, 96, "yuv420p"
        for image in images[:12]:
            picture = np.asarray(Image.fromarray(image).resize((96, 96)).convert("RGB"))
            file.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        file.mux(stream.encode())


def write_zip_of(path: Path, images: np.ndarray, labels: np.ndarray, *, train: int, val: int) -> None:
    """A zip of class folders in train/ and val/; PNGs, each third one deflated."""
    with zipfile.ZipFile(path, "w") as archive:
        for number in range(train + val):
            buffer = io.BytesIO()
            Image.fromarray(images[number]).save(buffer, "PNG", compress_level=1)
            part = "train" if number < train else "val"
            info = zipfile.ZipInfo(f"{part}/{CLASSES[labels[number]]}/face_{number:05}.png")
            info.compress_type = zipfile.ZIP_STORED if number % 3 else zipfile.ZIP_DEFLATED
            archive.writestr(info, buffer.getvalue())


def write_parquet(path: Path, images: np.ndarray, labels: np.ndarray) -> None:
    """A table of encoded images and numbers, with the names that Hugging Face's datasets note for these."""
    rows = []
    for image, label in zip(images, labels, strict=True):
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "PNG")
        rows.append({"image": {"bytes": buffer.getvalue(), "path": None}, "label": int(label)})
    said = json.dumps({"info": {"features": {"label": {"names": CLASSES, "_type": "ClassLabel"}}}})
    table = pyarrow.Table.from_pylist(rows).replace_schema_metadata({"huggingface": said})
    parquet.write_table(table, path, row_group_size=10)


def make_runs(jobs: Jobs) -> None:
    """Train the runs, and make the caches, that are damaged and promoted. Raises UserError if that fails."""
    home, small = jobs.home, str(jobs.home / "zip" / "dataset.zip")
    (home / "made").mkdir()
    places = ["--data", small, "--cache", str(home / "caches"), "--runs", str(home)]
    ended = [*places, *NETWORK, "--epochs", "2", "--run"]
    train = f"interface.report = lambda *_, **__: None; sys.exit(interface.main({[*ended, 'state']}))"
    quick = ["--batch-size", "8", "--no-augment", "--ema", "0"]
    runs = {"good": ("6", "0.003"), "fair": ("2", "0.003"), "worst": ("1", "1e-9")}
    commands = [
        *([*jobs.train, *quick, "--run", run, "--epochs", n, "--lr", lr] for run, (n, lr) in runs.items()),
        ["interface.py", *ended, "ended"],
        ["-c", f"import sys, interface; {train}"],
        ["dataset.py", "--data", small, "--cache", str(home / "cache")],
    ]
    for command in commands:
        done = jobs.run(command, home / "made")
        if done.status != 0:
            raise UserError(f"{' '.join(command)} fails:\n{done.text[-2000:]}")
    shutil.move(home / "made" / "runs", home / "runs")
    best = [best_accuracy(home / "runs" / run) for run in runs]
    if not best[0] > best[1] > best[2]:
        raise UserError(f"the runs to promote do not differ as they should: {best}; try another --seed")
    shutil.copyfile(home / "runs" / "worst" / "best.pth", home / "weights" / "worst.pth")
    shutil.copyfile(home / "ended" / "best.pth", home / "weights" / "small.pth")


def best_accuracy(run: Path) -> float:
    """The best validation accuracy of a run, deduplicated."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return max(value for row in rows for key, value in row.items() if re.match(r"val_accuracy_.", key))
