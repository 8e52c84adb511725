"""Faces in Parquet files, as datasets on Hugging Face have them: a column of encoded images, one of labels."""

import json
from collections.abc import Iterator
from functools import partial
from typing import BinaryIO

from errors import UserError
from readers.decode import DAMAGE, decode
from readers.layout import Item
from readers.tables import label_of

MAGIC = b"PAR1"
BATCH = 256  # rows read at a time
IMAGES, LABELS = ("image", "img", "img_bytes"), ("label", "labels", "emotion")  # columns; only images must be there


def read_parquet(file: BinaryIO, name: str, split: str) -> Iterator[Item]:
    """Yield an Item of `split` for each row of a Parquet file. Raises UserError, also where pyarrow is missing."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise UserError(f"{name}: Parquet files need pyarrow: python -m pip install pyarrow") from error
    try:
        table = parquet.ParquetFile(file)
        found = table.schema_arrow.names
        columns = [next((each for each in names if each in found), "") for names in (IMAGES, LABELS)]
        if not columns[0]:
            raise UserError(f"{name} has no column {' or '.join(IMAGES)}; it has {', '.join(found)[:200]}")
        names = _class_names(table.schema_arrow.metadata or {}, columns[1])
        rows = (
            row for batch in table.iter_batches(BATCH, columns=list(filter(None, columns))) for row in batch.to_pylist()
        )
        for number, row in enumerate(rows, 1):
            image, label = row[columns[0]], row.get(columns[1])
            data = image.get("bytes") if isinstance(image, dict) else image
            if isinstance(label, int) and 0 <= label < len(names):
                label = names[label]
            problem = "" if isinstance(data, bytes) and label is not None else "no image or no label"
            yield Item(
                f"{name} row {number}",
                split or "train",
                label_of(str(label), columns[1]),
                problem,
                partial(decode, data),
            )
    except (*DAMAGE, pyarrow.ArrowException) as error:
        raise UserError(f"{name}: no Parquet file, or damaged ({error}). Download it again.") from error


def _class_names(metadata: dict[bytes, bytes], column: str) -> list[str]:
    """Return the names that a file of Hugging Face gives its numbers of `column`; none where it gives none."""
    try:
        return json.loads(metadata[b"huggingface"])["info"]["features"][column]["names"]
    except (LookupError, ValueError, TypeError):
        return []
