"""Reading has a budget: what a small file claims is neither decoded nor unpacked, and pipes are not waited for."""

import base64
import bz2
import gzip
import io
import lzma
import os
import re
import struct
import subprocess
import sys
import tarfile
import tracemalloc
import zipfile
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from cli import read_config
from errors import UserError
from helpers import REPO
from readers import decode as module
from readers.decode import BadImage, decode, decode_rgb, read_file
from readers.sources import open_dataset, open_inputs
from votes import read_votes

NOISE = np.random.default_rng(0).integers(0, 256, (100, 100), dtype=np.uint8)


def encoded(image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(buffer, kind, **options)
    return buffer.getvalue()


def reason(data: bytes) -> str:
    with pytest.raises(BadImage) as caught:
        decode(data)
    return str(caught.value)


# --- Images: pixels ---


def tiff(width: int, height: int, tile: int, data: bytes, *, magic: bytes = b"II*\0") -> bytes:
    """A grey TIFF of one deflated tile of `tile` x `tile` pixels."""
    values = {256: width, 257: height, 258: 8, 259: 8, 262: 1, 277: 1, 322: tile, 323: tile, 324: 134, 325: len(data)}
    tags = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in values.items())
    return magic + struct.pack("<IH", 8, len(values)) + tags + bytes(4) + data


SMALL_JPEG = encoded(Image.new("L", (2000, 2000)), "JPEG", progressive=True)
LAST_SCAN = SMALL_JPEG[SMALL_JPEG.rindex(b"\xff\xda") : -2]
FEW_BYTES = {
    "WebP": base64.b64decode("UklGRhoAAABXRUJQVlA4TA0AAAAvP9/PFwcQERGIiP4HAA=="),
    "PNG": encoded(Image.new("1", (8000, 8000)), "PNG"),
    "TIFF": encoded(Image.new("1", (8000, 8000)), "TIFF", compression="group4"),
    "a tile larger than its image": tiff(100, 100, 8000, zlib.compress(bytes(10_000))),
    "JPEG 2000": encoded(Image.new("L", (3000, 3000)), "JPEG2000"),
    "AVIF": encoded(Image.new("L", (3000, 3000)), "AVIF", speed=10),
    "a JPEG of many scans": SMALL_JPEG[:-2] + LAST_SCAN * 5000 + SMALL_JPEG[-2:],
}


@pytest.mark.parametrize("data", FEW_BYTES.values(), ids=FEW_BYTES)
def test_more_pixels_than_so_few_bytes_hold_are_not_decoded(data):
    assert re.match(r"\d+x\d+ pixels is above the limit of [\d.]+ megapixels", reason(data))


FLAT = Image.new("RGB", (4000, 3000), (90, 100, 200))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "TIFF"])
def test_flat_pictures_of_twelve_megapixels_are_read(kind):
    options = {"JPEG": {"progressive": True}, "TIFF": {"compression": "tiff_deflate"}, "PNG": {"compress_level": 9}}
    image = FLAT.convert("L") if kind == "GIF" else FLAT
    pixels = decode(encoded(image, kind, **options.get(kind, {}))).astype(int)
    assert np.abs(pixels - 108).max() <= 2


def test_a_file_of_floats_above_sixteen_megapixels_is_refused():
    image = Image.new("F", (4100, 4000))
    assert "4100x4000 pixels is above the limit of 16 megapixels" in reason(encoded(image, "TIFF"))


JPEG2000 = encoded(NOISE, "JPEG2000", no_jp2=True)
SIZE_AT, STYLE_AT = JPEG2000.index(b"\xff\x51"), JPEG2000.index(b"\xff\x52")  # markers of their settings
STYLE, LEVELS = JPEG2000[STYLE_AT + 4 : STYLE_AT + 14], JPEG2000[STYLE_AT + 9]
AVIF = encoded(NOISE, "AVIF")


def placed(data: bytes, at: int, new: bytes) -> bytes:
    return data[:at] + new + data[at + len(new) :]


def segment(marker: bytes, data: bytes) -> bytes:
    return marker + struct.pack(">H", len(data) + 2) + data


PRECINCTS = segment(b"\xff\x52", b"\1" + STYLE[1:] + bytes(LEVELS + 1))
SMALL_PARTS = {
    "tiles": placed(JPEG2000, SIZE_AT + 22, struct.pack(">II", 1, 1)),
    "layers": placed(JPEG2000, STYLE_AT + 6, b"\xff\xff"),
    "blocks": placed(JPEG2000, STYLE_AT + 10, b"\0\0"),
    "precincts": JPEG2000[:STYLE_AT] + PRECINCTS + JPEG2000[STYLE_AT + 14 :],
    "precincts of a tile": JPEG2000.replace(b"\xff\x93", PRECINCTS + b"\xff\x93", 1),
    "blocks of a component": JPEG2000.replace(b"\xff\x93", segment(b"\xff\x53", b"\0\0\1\0\0\0\1") + b"\xff\x93", 1),
    "images in an AVIF": AVIF + b"\0\0\0\x1cfree" + b"av01" * 5,
}


@pytest.mark.parametrize("data", SMALL_PARTS.values(), ids=SMALL_PARTS)
def test_very_small_parts_are_not_decoded(data):
    assert reason(data).startswith("in too many small parts")


@pytest.mark.parametrize(
    "options",
    [{"tile_size": (128, 200)}, {"codeblock_size": (16, 16)}, {"quality_mode": "dB", "quality_layers": [30, 40, 50]}],
)
def test_a_jpeg_2000_in_ordinary_parts_is_read(options):
    pixels = np.random.default_rng(0).integers(0, 256, (600, 500, 3), dtype=np.uint8)
    assert np.abs(decode_rgb(encoded(pixels, "JPEG2000", **options)).astype(int) - pixels).mean() < 20


def test_a_jpeg_2000_has_at_most_32_megapixels():
    large = struct.pack(">II", 8000, 8000)
    data = placed(placed(JPEG2000, SIZE_AT + 6, large), SIZE_AT + 22, large) + bytes(30_000)
    assert "8000x8000 pixels is above the limit of 32 megapixels" in reason(data)


# --- Images: headers, parts and complaints ---


def chunk(name: bytes, data: bytes = b"") -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


MANY = 2**17
PNG, JPEG = encoded(NOISE, "PNG"), encoded(NOISE, "JPEG")
EXIF = b"\xff\xe1\0\x10Exif\0\0MM\0*\0\0\0\x08"
GIF = b"GIF89a" + struct.pack("<HHBBB", 48, 48, 0, 0, 0)
BITMAP = struct.pack("<IHHIIiiHHIIIIII", 0, 0, 0, 1078, 40, 100, 100, 1, 8, 1, 2 * MANY, 0, 0, 0, 0)
PARTS = {
    "PNG chunks before the pixels": PNG[:33] + chunk(b"abCd") * MANY + PNG[33:],
    "PNG chunks without pixels": PNG[:33] + chunk(b"IDAT") * MANY + PNG[33:],
    "PNG chunks after the pixels": PNG[:-12] + chunk(b"abCd") * MANY + PNG[-12:],
    "a long PGM comment": b"P5\n#" + b"x" * MANY + b"\n100 100 255\n" + NOISE.tobytes(),
    "many PGM comments": b"P2\n100 100 255\n" + b"#\n" * MANY + b"7 " * 10_000,
    "JPEG fill bytes": JPEG[:2] + b"\xff" * MANY + JPEG[2:],
    "JPEG notes, each of which copies those before": JPEG[:2] + EXIF * (MANY // 4) + JPEG[2:],
    "GIF comments": GIF + b"!\xfe" + b"\x01x" * MANY + b"\0,",
    "a BMP that goes nowhere": b"BM" + BITMAP + bytes(1024) + bytes([0, 2, 0, 0]) * MANY,
}


@pytest.mark.parametrize("data", PARTS.values(), ids=PARTS)
def test_a_file_in_very_many_parts_is_refused(data, monkeypatch):
    monkeypatch.setattr(module, "MAX_PARTS", 100_000)
    assert re.match("in too many small parts|above the limit of 100 comments", reason(data))


def test_a_large_file_in_ordinary_parts_is_read():
    pixels = np.random.default_rng(0).integers(0, 256, (1500, 1500), dtype=np.uint8)
    notes = {"icc_profile": bytes(300_000), "xmp": b"x" * 60_000}
    for kind in ("PNG", "JPEG", "GIF", "TIFF", "PPM"):
        assert decode(encoded(pixels, kind, **(notes if kind == "JPEG" else {}))).std() < 20
    deep = b"P5 500 500 4095\n" + (pixels[:500, :500].astype(">u2") * 16).tobytes()  # Pillow reads it pixel by pixel
    assert decode(deep).std() < 20


COMPLAINTS = """
import sys
from readers import decode
for data in eval(sys.stdin.read()):
    try:
        decode.decode(data)
        print("read")
    except decode.BadImage as error:
        print(error)
"""


def test_a_tiff_about_which_libtiff_complains_is_damaged():
    fax = encoded(Image.fromarray(NOISE > 127), "TIFF", compression="group4")
    damaged = [fax[:at] + bytes([fax[at] ^ 0xFF]) + fax[at + 1 :] for at in range(500, 600)]
    done = subprocess.run(
        [sys.executable, "-c", COMPLAINTS], cwd=REPO, input=repr([fax, *damaged]), capture_output=True, text=True
    )
    good, *others = done.stdout.splitlines()
    assert good == "read" and others.count("damaged (libtiff: Fax4Decode)") > 50 and not done.stderr


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg", "lzma", "zstd"])
def test_a_tiff_in_order_is_read_whatever_another_thread_reads(compression):
    damaged = encoded(Image.fromarray(NOISE > 127), "TIFF", compression="group4")[:-300]
    good = encoded(NOISE, "TIFF", compression=compression)

    def work(data: bytes) -> str:
        try:
            return str(decode(data).shape)
        except BadImage:
            return "damaged"

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(work, [damaged, good] * 40)) == ["damaged", "(48, 48)"] * 40


def test_sixteen_bits_in_the_order_of_other_processors():
    values = NOISE.astype(np.uint16) * 257
    image = Image.frombytes("I;16B", (100, 100), values.byteswap().tobytes())
    assert np.array_equal(decode_rgb(encoded(image, "TIFF"))[:, :, 0], NOISE)


# --- Archives and pipes ---


def tar_header(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    return info.tobuf()


def sparse_header(name: str, size: int) -> bytes:
    """A GNU sparse file, all of it a hole: `size` bytes of zeros that are not in the archive."""
    header = bytearray(tar_header(name, 0, tarfile.GNUTYPE_SPARSE))
    header[483:494] = b"%011o" % size
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)


BIG = 2**26
TAR_BOMBS = {
    "one header that fills the memory": tar_header("x", BIG, tarfile.XHDTYPE) + b"%d comment=" % BIG + bytes(BIG),
    "many headers": (tar_header("x", 512, tarfile.XHDTYPE) + b"11 path=xy\n".ljust(512, b"\0")) * (BIG // 1024),
    "a large file before the table": tar_header("x", BIG) + bytes(BIG) + tar_header("fer2013.csv", 0),
    "an endless table": tar_header("fer2013.csv", BIG) + b"emotion,pixels,Usage\n" + (b" " * 65_535 + b"\n") * 1024,
    "a hole": sparse_header("fer2013.csv", 2**40),
    "a size below zero": tar_header("x", -(2**20)),
}


@pytest.mark.parametrize("data", TAR_BOMBS.values(), ids=TAR_BOMBS)
def test_a_tar_is_not_unpacked_without_limit(tmp_path, data):
    (tmp_path / "a.tar").write_bytes(gzip.compress(data, 1))
    tracemalloc.start()
    with pytest.raises(UserError, match=re.escape("a.tar")):
        list(open_dataset(tmp_path / "a.tar").items())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < BIG / 2


def test_a_table_in_a_zip_is_not_inflated_without_limit(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("fer2013.csv", bytes(BIG))
    with pytest.raises(UserError, match="far more bytes when unpacked"):
        open_dataset(tmp_path / "a.zip")


@pytest.mark.parametrize("pack", [bytes, gzip.compress, bz2.compress, lzma.compress])
def test_a_table_in_a_tar_is_read_however_it_is_packed(tmp_path, pack):
    table = f"emotion,pixels,Usage\n3,{' '.join(map(str, range(48)))}{' 7' * 47 * 48},Training\n".encode()
    archive = tar_header("fer2013/", 0, tarfile.DIRTYPE) + tar_header("README", 5) + b"hello".ljust(512, b"\0")
    archive += tar_header("fer2013/fer2013.csv", len(table)) + table + bytes(-len(table) % 512 + 1024)
    (tmp_path / "a.tar").write_bytes(pack(archive))
    (item,) = open_dataset(tmp_path / "a.tar").items()
    assert item.load()[0].tolist() == list(range(48)) and item.split == "train"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes on this system")
def test_a_pipe_is_refused_at_once(tmp_path):
    def refused(read, name: str) -> str:
        os.mkfifo(tmp_path / name)
        with pytest.raises((UserError, BadImage, ValueError)) as caught:
            read(tmp_path / name)
        return str(caught.value)

    for number, (read, ending) in enumerate(
        [(open_dataset, ".zip"), (open_dataset, ".csv"), (open_dataset, ".tar"), (open_inputs, ".png")]
    ):
        assert "no such file or folder" in refused(read, f"{number}{ending}")
    for number, read in enumerate((read_file, read_votes, read_config)):
        assert "not a regular file" in refused(read, f"{number}.x")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "folder/fer2013.csv")
    with pytest.raises(UserError, match="not a regular file"):
        open_dataset(tmp_path / "folder")
