"""A report as blocks, and the blocks as Markdown and as one HTML page: no script, nothing from elsewhere."""

import html as markup
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

STYLE = """
:root { color-scheme: light dark; --ink: #1c1f23; --paper: #fff; --line: #d5d9de; --soft: #f3f5f7; --mark: #9a3b00; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e8ea; --paper: #16191d; --line: #3a4048; --soft: #20252b; --mark: #ffb26b; }
}
body { margin: 0 auto; max-width: 62rem; padding: 1rem; color: var(--ink); background: var(--paper);
  font: 1rem/1.55 system-ui, sans-serif; overflow-wrap: break-word; }
h1 { font-size: 1.6rem; line-height: 1.25; }
h2 { margin-top: 2.5rem; border-bottom: 1px solid var(--line); font-size: 1.3rem; }
h3 { margin-bottom: .3rem; font-size: 1.05rem; }
nav ul { display: flex; flex-wrap: wrap; gap: .3rem 1rem; padding: 0; list-style: none; }
nav a { color: inherit; }
li { margin: .35rem 0; }
.note { padding: .6rem .9rem; border-left: .3rem solid var(--mark); background: var(--soft); font-weight: 600; }
.wide { overflow-x: auto; margin: 1.2rem 0; }
table { border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums; }
caption { padding-bottom: .4rem; text-align: left; }
th, td { padding: .3rem .6rem; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
thead th { background: var(--soft); }
.number { text-align: right; }
td.number { white-space: nowrap; }
pre { overflow-x: auto; padding: .6rem .9rem; background: var(--soft); }
figure { margin: 1.2rem 0; }
img { display: block; max-width: 100%; height: auto; border-radius: .3rem; background: #fff; }
figcaption { margin-top: .4rem; font-size: .9rem; }
"""
NUMBER = re.compile(r"[-+−<]?[\d.,]+[kMG]?( ± [\d.]+)?( \([-+\d. to]+\))?|[-+][\d.]+ to [-+][\d.]+|-?")


class Heading(NamedTuple):
    text: str
    level: int = 2


class Note(NamedTuple):
    """A sentence that must not be missed."""

    text: str


class Bullets(NamedTuple):
    items: Sequence[str]


class Code(NamedTuple):
    text: str


class Table(NamedTuple):
    """Rows of cells under a head; no head where all its cells are empty."""

    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]


class Picture(NamedTuple):
    """A PNG file that lies beside the page."""

    file: str
    caption: str


Block = Heading | Note | Bullets | Code | Table | Picture


# --- Markdown ---


def markdown(title: str, blocks: Sequence[Block]) -> str:
    """The blocks as Markdown (GitHub's, with tables)."""
    return "\n\n".join([f"# {_plain(title)}", *map(_to_markdown, blocks)]) + "\n"


def _to_markdown(block: Block) -> str:
    match block:
        case Heading(text, level):
            return f"{'#' * level} {_plain(text)}"
        case Note(text):
            return f"> **{_plain(text)}**"
        case Bullets(items):
            return "\n".join(f"- {_plain(item)}" for item in items)
        case Code(text):
            return "\n".join(f"    {line}" for line in text.splitlines())
        case Picture(file, caption):
            return f"![{_plain(_first(caption))}]({file})\n\n*{_plain(caption)}*"
        case Table(caption, head, rows):
            lines = [_row(head), _row([":--"] * len(head)), *(_row(map(_plain, row)) for row in rows)]
            return f"{_plain(caption)}:\n\n" + "\n".join(lines)


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _plain(text: str) -> str:
    """`text` on one line, with what Markdown would take for a sign of its own escaped."""
    return re.sub(r"([\\`*_|<\[\]])", r"\\\1", " ".join(text.split()))


# --- HTML ---


def html(title: str, blocks: Sequence[Block], folder: Path) -> str:
    """The blocks as one page that refers to the PNG files in `folder`, where it is to lie, and to nothing else."""
    numbered = [(f"part-{number}", block) for number, block in enumerate(blocks)]
    links = "\n".join(
        f'<li><a href="#{name}">{_text(block.text)}</a></li>'
        for name, block in numbered
        if isinstance(block, Heading) and block.level == 2
    )
    body = "\n".join(_to_html(name, block, folder) for name, block in numbered)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{_text(title)}</title>
<style>{STYLE}</style>
</head>
<body>
<header>
<h1>{_text(title)}</h1>
<nav aria-label="Parts"><ul>
{links}
</ul></nav>
</header>
<main>
{body}
</main>
</body>
</html>
"""


def _to_html(name: str, block: Block, folder: Path) -> str:
    match block:
        case Heading(text, level):
            return f'<h{level} id="{name}">{_text(text)}</h{level}>'
        case Note(text):
            return f'<p class="note" role="note">{_text(text)}</p>'
        case Bullets(items):
            return "<ul>\n" + "\n".join(f"<li>{_text(item)}</li>" for item in items) + "\n</ul>"
        case Code(text):
            return f"<pre><code>{_text(text)}</code></pre>"
        case Picture(file, caption):
            return _figure(file, caption, folder)
        case Table():
            return _table(block, name)


def _figure(file: str, caption: str, folder: Path) -> str:
    """The picture, which opens in full size where it is touched, with its caption."""
    from PIL import Image

    with Image.open(folder / file) as image:
        width, height = image.size
    shown = f'<img src="{_text(file)}" alt="{_text(_first(caption))}" width="{width}" height="{height}">'
    return f'<figure>\n<a href="{_text(file)}">{shown}</a>\n<figcaption>{_text(caption)}</figcaption>\n</figure>'


def _table(table: Table, name: str) -> str:
    numeric = [all(NUMBER.fullmatch(row[place]) for row in table.rows) for place in range(len(table.head))]
    kinds = [' class="number"' if each else "" for each in numeric]
    head = "".join(f'<th scope="col"{kind}>{_text(cell)}</th>' for kind, cell in zip(kinds, table.head, strict=True))
    label = min(1, len(table.head) - 1) if table.head[0] == "#" else 0  # the cell that names its row
    rows = []
    for row in table.rows:
        cells = []
        for place, cell in enumerate(row):
            named = place == label
            cells.append(f'<th scope="row">{_text(cell)}</th>' if named else f"<td{kinds[place]}>{_text(cell)}</td>")
        rows.append(f"<tr>{''.join(cells)}</tr>")
    top = f"<thead><tr>{head}</tr></thead>\n" if any(table.head) else ""
    body = "\n".join(rows)
    return (
        f'<div class="wide" role="region" tabindex="0" aria-labelledby="{name}">\n<table>\n'
        f'<caption id="{name}">{_text(table.caption)}</caption>\n{top}<tbody>\n{body}\n</tbody>\n</table>\n</div>'
    )


def _first(caption: str) -> str:
    """The first sentence: what stands for a picture that is not seen, above its caption."""
    return caption.split(". ")[0].removesuffix(".")


def _text(text: str) -> str:
    return markup.escape(text, quote=True)
