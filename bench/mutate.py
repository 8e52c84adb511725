"""Damaged and hostile files for the drill, made at random from good ones: a seed always gives the same bytes.

`damage` changes bytes, whatever the file is. `fields` knows zips (weight files too), PNGs, tars, JSON, pickles and
tables: it sets their fields to extremes and writes right checksums, so that the damage gets past these.
"""

import gzip
import io
import json
import pickle
import pickletools
import random
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterable
from itertools import pairwise
from typing import Any

EDGES = (0, 1, 127, 128, 255, 2**15 - 1, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 1)
VALUES = (
    *(0, -1, 1, 7, 2**31, 2**63 - 1, 2**63, -(2**63), 3_000_000_000, 10**400, 0.5, -1.5, 1e308, float("nan")),
    *(float("inf"), None, True, "", "0", "\x1b[31mred\x1b[0m", "\ud800", "\u202e", "a\0b", "../..", "x" * 100_000),
    *([], {}, [[]], {"": None}, [0] * 1000),
)
CELLS = (
    "",
    "-1",
    "7",
    "256",
    "1e400",
    "nan",
    "9" * 5000,
    "=1+1",
    '"',
    "\0",
    "\x1b[31m",
    "é",
    "\t",
    "Training",
    "0 " * 3,
)
NAMES = (
    *(b"../../x.png", b"/etc/x.png", b"C:\\x.png", b"\\\\host\\x.png", b"", b"\0.png", b"\xff\xfe.png", b"=1+1.png"),
    *(b"train/happy/" + b"a" * 5000 + b".png", b"train/happy/\x1b[31m.png", "train/happy/\u202e.png".encode()),
    *(b"train/../happy/x.png", b"train//happy/x.png", b"./train/happy/x.png", b"a/" * 2000 + b"x.png", b"train"),
)
MOST = 2**20  # bytes that a run which is repeated adds


def extreme(rng: random.Random, size: int) -> int:
    """A number of `size` bytes that is on the edge of something, or any."""
    return rng.choice((*EDGES, rng.getrandbits(8 * size), 10 ** rng.randrange(20))) % 256**size


# --- Bytes ---


def spot(data: bytearray, rng: random.Random) -> int:
    """A place in `data`: anywhere, near the beginning or near the end, where formats keep their structure."""
    near = min(len(data), 2 ** rng.randrange(3, 13))
    return rng.choice((rng.randrange(len(data)), rng.randrange(near), len(data) - 1 - rng.randrange(near)))


def run_at(data: bytearray, rng: random.Random) -> slice:
    at = spot(data, rng)
    return slice(at, at + 2 ** rng.randrange(13))


def flip(data: bytearray, rng: random.Random) -> None:
    data[spot(data, rng)] ^= 1 << rng.randrange(8)


def overwrite(data: bytearray, rng: random.Random) -> None:
    at = spot(data, rng)
    some = rng.randbytes(2 ** rng.randrange(5))[: len(data) - at]
    data[at : at + len(some)] = some


def set_number(data: bytearray, rng: random.Random) -> None:
    at, size = spot(data, rng), rng.choice((1, 2, 4, 8))
    data[at : at + size] = extreme(rng, size).to_bytes(size, rng.choice(("little", "big")))


def truncate(data: bytearray, rng: random.Random) -> None:
    del data[spot(data, rng) :]


def remove(data: bytearray, rng: random.Random) -> None:
    del data[run_at(data, rng)]


def insert(data: bytearray, rng: random.Random) -> None:
    count = 2 ** rng.randrange(13)
    some = rng.choice((bytes(count), rng.randbytes(count), bytes(data[run_at(data, rng)])))
    at = spot(data, rng)
    data[at:at] = some


def repeat(data: bytearray, rng: random.Random) -> None:
    run = run_at(data, rng)
    data[run] = bytes(data[run]) * max(1, min(2 ** rng.randrange(1, 16), MOST // 2 ** rng.randrange(1, 13)))
    del data[len(data) + MOST :]


def blank(data: bytearray, rng: random.Random) -> None:
    """A page of zeros, as a disk leaves it after a crash."""
    at, size = spot(data, rng), rng.choice((512, 4096))
    at -= at % size
    data[at : at + size] = bytes(len(data[at : at + size]))


CHANGES = (flip, flip, flip, flip, overwrite, set_number, set_number, truncate, remove, insert, blank, repeat)


def damage(data: bytes, rng: random.Random) -> bytes:
    """`data` with one to three of CHANGES."""
    found = bytearray(data)
    for change in rng.choices(CHANGES, k=rng.choice((1, 1, 1, 2, 3))):
        if found:
            change(found, rng)
    return bytes(found)


# --- Fields ---


def fields(data: bytes, rng: random.Random) -> bytes:
    """`data`, of a form that is known by its first bytes, with some fields changed and its checksums right."""
    if data.startswith(b"PK"):
        return zip_fields(data, rng)
    if data.startswith(b"\x89PNG"):
        return png_fields(data, rng)
    if data.startswith(b"\x1f\x8b"):
        return gzip.compress(tar_fields(gzip.decompress(data), rng), 1, mtime=0)
    if data[257:262] == b"ustar":
        return tar_fields(data, rng)
    if data.startswith(b"\x80\x02"):
        return pickle_fields(data, rng)
    if data.startswith(b"{") and data[1:].lstrip().startswith(b'"'):  # not a tensor that begins so
        return json_fields(data, rng)
    return cells(data, rng) if b"," in data[:100] else damage(data, rng)


def either(data: bytes, rng: random.Random) -> bytes:
    """`data` changed by one of `damage` and `fields`."""
    return rng.choice((damage, fields))(data, rng)


LAYOUTS = {  # the records of a zip: their fields, each with its code in the module struct
    "local": "signature I, version H, flags H, method H, time H, date H, crc I, packed I, size I, named H, extra H",
    "central": "signature I, made H, version H, flags H, method H, time H, date H, crc I, packed I, size I, named H, "
    "extra H, comment H, disk H, kind H, mode I, at I",
    "end": "signature I, disk H, first H, here H, entries H, size I, at I, comment H",
}
SIGNATURES = {"local": 0x04034B50, "central": 0x02014B50, "end": 0x06054B50}
Entry = tuple[bytes, bytes, int]  # of a zip: name, contents, method


def record(kind: str, values: dict[str, Any], changed: dict[str, Any]) -> bytes:
    """A record of a zip: its fields, 0 where none is given, and its name."""
    values, found = {"signature": SIGNATURES[kind]} | values | changed, b""
    for field, code in (each.split() for each in LAYOUTS[kind].split(", ")):
        size = struct.calcsize(code)
        found += (values.get(field, 0) % 256**size).to_bytes(size, "little")
    return found + values.get("name", b"")


def write_zip(entries: Iterable[Entry], changed: dict[tuple[str, int], dict[str, Any]]) -> bytes:
    """A zip, with the fields in `changed` by record and number."""
    body, directory, count = bytearray(), bytearray(), 0
    for count, (name, contents, method) in enumerate(entries, 1):
        packed = zlib.compress(contents, 6, -15) if method == zipfile.ZIP_DEFLATED else contents
        values = {"version": 20, "method": method, "date": 33, "crc": zlib.crc32(contents), "packed": len(packed)}
        values |= {"size": len(contents), "name": name, "named": len(name), "at": len(body)}
        directory += record("central", values, changed.get(("central", count - 1), {}))
        body += record("local", values, changed.get(("local", count - 1), {})) + packed
    end = {"here": count, "entries": count, "size": len(directory), "at": len(body)}
    return bytes(body + directory + record("end", end, changed.get(("end", 0), {})))


def zip_fields(data: bytes, rng: random.Random) -> bytes:
    """A zip written anew with other fields, names or entries; or with `either` done to an entry's contents."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        entries = [(info.filename.encode(), archive.read(info), info.compress_type) for info in archive.infolist()]
    at, changed = rng.randrange(len(entries)), {}
    if pickles := [number for number, (name, *_) in enumerate(entries) if name.endswith(b".pkl")]:
        at = rng.choice((at, *pickles))
    name, contents, method = entries[at]
    what = rng.randrange(5)
    if what == 0:
        entries[at] = name, either(contents, rng), method
    elif what == 1:  # one name in both records, or another one in one of them
        new = rng.choice((*NAMES, *(name for name, *_ in entries), damage(name, rng)))
        changed = rng.choice(({("central", at): {"name": new, "named": len(new)}}, {}))
        entries[at] = entries[at] if changed else (new, contents, method)
    elif what == 2:
        entries.insert(rng.randrange(len(entries)), entries.pop(at))
        entries = rng.choice((entries[1:], entries + entries[at:] * 3, entries + entries[:1] * 3000))
    else:
        for _ in range(rng.choice((1, 1, 2, 3))):
            kind = rng.choice(("local", "central", "central", "end"))
            field = rng.choice(LAYOUTS[kind].split(", ")).split()[0]
            value = rng.choice((extreme(rng, 4), rng.randrange(100)))
            changed.setdefault((kind, 0 if kind == "end" else at), {})[field] = value
    return rng.choice((b"", b"", b"", rng.randbytes(50))) + write_zip(entries, changed)


def png_fields(data: bytes, rng: random.Random) -> bytes:
    """A PNG with its chunks changed, moved or added, and right checksums."""
    chunks, at = [], 8
    while at < len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        chunks.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + size]))
        at += size + 12
    number = rng.randrange(len(chunks))
    kind, content = chunks[number]
    what = rng.randrange(5)
    if what == 0:
        chunks[number] = kind, damage(content, rng)
    elif what == 1:
        edges = (*(rng.choice((extreme(rng, 4), rng.randrange(9000))) for _ in range(2)), *rng.choices(range(17), k=5))
        sound = struct.unpack(">IIBBBBB", chunks[0][1])
        kept = [rng.choice((new, old, old)) for new, old in zip(edges, sound, strict=True)]
        chunks[0] = b"IHDR", struct.pack(">IIBBBBB", *kept)
    elif what == 2:
        chunks.insert(rng.randrange(len(chunks)), chunks.pop(number))
    elif what == 3:
        chunks = [each for each in chunks if each[0] != b"IDAT"]
        pixels = zlib.compress(rng.choice((b"", rng.randbytes(500), bytes(10**7))))
        chunks.insert(len(chunks) - 1, (b"IDAT", pixels))
    else:
        names = (b"tRNS", b"PLTE", b"zTXt", b"iTXt", b"iCCP", b"eXIf", b"acTL", b"fcTL", b"fdAT", b"gAMA", b"IEND")
        text = b"x\0\0" + zlib.compress(bytes(10**7))
        new = rng.choice(names), rng.choice((b"", text, rng.randbytes(rng.randrange(900)), b"Exif\0\0MM\0*"))
        chunks[1:1] = [new] * rng.choice((1, 2, 2000))
    lines = (
        struct.pack(">I", len(each)) + kind + each + struct.pack(">I", zlib.crc32(kind + each)) for kind, each in chunks
    )
    return data[:8] + b"".join(lines)


TAR = {  # fields of a header: place and size
    **{"name": (0, 100), "mode": (100, 8), "size": (124, 12), "time": (136, 12), "kind": (156, 1), "link": (157, 100)},
    **{"magic": (257, 8), "major": (329, 8), "prefix": (345, 155), "sparse": (386, 100)},
}
PAX = ("size", "path", "mtime", "hdrcharset", "GNU.sparse.major", "GNU.sparse.map", "GNU.sparse.size", "SCHILY.x", "")


def tar_header(block: bytes, values: dict[str, bytes]) -> bytes:
    """A tar header with other `values`, its checksum right."""
    header = bytearray(block[:512].ljust(512, b"\0"))
    for name, value in values.items():
        at, size = TAR[name]
        header[at : at + size] = value[:size].ljust(size, b"\0")
    header[148:156] = b"        "
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)


def tar_fields(data: bytes, rng: random.Random) -> bytes:
    """A tar with other fields in its first header, or with extended headers before it; checksums are right."""
    if rng.random() < 0.5:
        name = rng.choice(list(TAR))
        size = TAR[name][1]
        octal = b"%o" % extreme(rng, rng.choice((1, 2, 4, 8)))
        binary = rng.choice((b"\x80", b"\xff")) + rng.randbytes(size)
        kinds = rng.choice(b"0123456789xgLKSVDMNA\0").to_bytes(1, "big")
        value = kinds if name == "kind" else rng.choice((octal, binary, b"-1", b" ", rng.randbytes(size), *NAMES))
        return tar_header(data, {name: value}) + data[512:]
    text = rng.choice((*CELLS, "99999999999999999999", "-5", "1,2,3", "fer2013.csv", "\n"))
    body = f" {rng.choice(PAX)}={text}\n".encode()
    body = str(rng.choice((len(body) + 2, len(body) + 3, extreme(rng, 2)))).encode() + body
    body = rng.choice((body, damage(body, rng)))
    kind = rng.choice((b"x", b"x", b"g", b"L", b"K"))
    header = tar_header(data, {"kind": kind, "size": b"%011o" % len(body)})
    return (header + body.ljust(-(-len(body) // 512) * 512, b"\0")) * rng.choice((1, 1, 2, 3000)) + data


def pickle_fields(data: bytes, rng: random.Random) -> bytes:
    """A pickle with one to three of its numbers and texts replaced by VALUES."""
    for _ in range(rng.choice((1, 1, 2, 3))):
        found = list(pickletools.genops(data))
        spans = [(op.name, at, after) for (op, _, at), (_, _, after) in pairwise(found)]
        numbers = [each for each in spans if each[0].startswith(("BININT", "LONG", "BINFLOAT", "NEWTRUE", "NEWFALSE"))]
        texts = [each for each in spans if each[0] in ("BINUNICODE", "NONE", "EMPTY_DICT", "EMPTY_TUPLE", "EMPTY_LIST")]
        _, start, end = rng.choice(rng.choice((numbers, numbers, texts)) or spans)
        value = rng.choice((*VALUES, extreme(rng, 4)))
        new = pickle.dumps("?" if value == "\ud800" else value, 2)
        data = data[:start] + pickletools.optimize(new)[2:-1] + data[end:]
    return data


def json_fields(data: bytes, rng: random.Random) -> bytes:
    """JSON, or one of its lines, with a value replaced by one of VALUES, removed or renamed."""
    lines = data.splitlines()
    whole = len(lines) < 2 or not lines[0].rstrip().endswith(b"}")
    number = rng.randrange(len(lines))
    values = json.loads(data if whole else lines[number])
    inside, key = values, rng.choice(list(values))
    while isinstance(inside[key], dict) and inside[key] and rng.random() < 0.8:
        inside, key = inside[key], rng.choice(list(inside[key]))
    what = rng.randrange(6)
    if what == 0:
        inside[rng.choice(("", "x", "\x1b[31m", "\ud800", key.upper()))] = inside.pop(key)
    elif what == 1:
        del inside[key]
    else:
        inside[key] = rng.choice(VALUES)
    text = json.dumps(values)
    if rng.random() < 0.05:
        text = rng.choice((f"[{text}]", "[" * 100_000, '{"a":' * 5000, "null", "1e400", '"x"', text * 2))
    return text.encode() if whole else b"\n".join([*lines[:number], text.encode(), *lines[number + 1 :], b""])


def cells(data: bytes, rng: random.Random) -> bytes:
    """A table with one to three cells, or a pixel among those of a cell, replaced by one of CELLS."""
    rows = [line.split(b",") for line in data.split(b"\n")]
    for _ in range(rng.choice((1, 1, 2, 3))):
        row = rng.choice((rows[0], rng.choice(rows)))
        column, new = rng.randrange(len(row)), rng.choice(CELLS).encode()
        some = row[column].split(b" ")
        some[rng.randrange(len(some))] = new
        row[column] = rng.choice((new, b" ".join(some)))
        if rng.random() < 0.1:
            row.insert(column, new)
    return b"\n".join(b",".join(row) for row in rows)


Change = Callable[[bytes, random.Random], bytes]
