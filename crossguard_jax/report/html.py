"""A report as one HTML file that asks nothing of any other: pictures inline, no script, no link.

Its Content-Security-Policy forbids everything but inline style and inline pictures, so that a row
that somebody wrote to be read by a browser stays text.
"""

import base64
import re
from collections.abc import Mapping, Sequence
from html import escape

from crossguard_jax.core.errors import UserError
from crossguard_jax.core.metrics import Estimate
from crossguard_jax.io import images
from crossguard_jax.report import drawing
from crossguard_jax.report.blocks import (
    Block,
    Bullets,
    Code,
    Definitions,
    Examples,
    Plot,
    Section,
    Text,
    resolve,
)
from crossguard_jax.report.examples import Example
from crossguard_jax.report.tables import Cell, Figure, Table
from crossguard_jax.report.text import printable

THUMBNAIL = 320  # pixels along the longer side of an example's picture

STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.55 system-ui, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
  color: #1c1f23; background: #fff; max-width: 1080px; margin: 0 auto; padding: 2rem 1.25rem 4rem; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 1rem; }
h2 { font-size: 1.3rem; margin: 2.6rem 0 .7rem; padding-top: .9rem; border-top: 1px solid #e3e6ea; }
p, ul, dl { max-width: 46rem; }
nav { font-size: .9rem; background: #f5f7f9; border-radius: 6px; padding: .6rem 1rem; }
nav ol { margin: 0; padding-left: 1.3rem; columns: 2 18rem; }
nav a { color: #00558a; text-decoration: none; }
nav a:hover { text-decoration: underline; }
code, pre { font: .88em/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
code { background: #f0f2f5; padding: .1em .3em; border-radius: 3px; }
pre { background: #f5f7f9; padding: .8rem 1rem; border-radius: 6px; overflow-x: auto; }
dt { font-weight: 600; margin-top: .5rem; }
dd { margin: 0 0 0 1.2rem; }
figure { margin: 1.4rem 0; }
figcaption { font-size: .88rem; color: #505861; max-width: 46rem; margin-top: .5rem; }
figure > img { max-width: 100%; height: auto; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .86rem; font-variant-numeric: tabular-nums; }
th, td { padding: .4rem .6rem; text-align: right; vertical-align: top; }
th:first-child, td:first-child { text-align: left; }
thead th { border-top: 2px solid #1c1f23; border-bottom: 1px solid #1c1f23; font-weight: 600;
  vertical-align: bottom; max-width: 8rem; line-height: 1.3; }
tbody td { border-bottom: 1px solid #eceff2; white-space: nowrap; }
tbody tr:last-child td { border-bottom: 2px solid #1c1f23; }
td small, th small { display: block; color: #616a74; font-size: .8em; font-weight: 400; }
.cards { display: flex; flex-wrap: wrap; gap: 1rem; }
.card { box-sizing: border-box; width: 240px; border: 1px solid #d9dee3; padding: 10px;
  border-top: 4px solid #009e73; border-radius: 4px; font-size: .84rem; line-height: 1.4;
  overflow-wrap: anywhere; }
.card.wrong { border-top-color: #d55e00; background: #fff8f3; }
.card img, .card .none { display: block; width: 218px; height: 218px; margin-bottom: .5rem;
  object-fit: contain; background: #f0f2f5; }
.card img.small { image-rendering: pixelated; }
.card .none { line-height: 218px; text-align: center; color: #616a74; }
.card p { margin: .4rem 0; }
.card b { color: #00795a; }
.card.wrong b { color: #b34e00; }
.card .id { color: #616a74; font-size: .92em; }
@media print { .card, figure > img { break-inside: avoid; } h2 { break-after: avoid; } }
"""

_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<h1>{title}</h1>
{contents}
{body}
</body>
</html>
"""


def render(title: str, sections: Sequence[Section], figures: Mapping[str, Estimate]) -> str:
    """The whole report as one page."""
    entries = (
        f'<li><a href="#s{i}">{_plain(section.title)}</a></li>'
        for i, section in enumerate(sections, start=1)
    )
    body = []
    for i, section in enumerate(sections, start=1):
        body.append(f'<section id="s{i}">\n<h2>{_plain(section.title)}</h2>')
        body += [_block(block, figures) for block in section.blocks]
        body.append("</section>")
    contents = f"<nav><ol>{''.join(entries)}</ol></nav>"
    return _PAGE.format(title=_plain(title), style=STYLE, contents=contents, body="\n".join(body))


def _block(block: Block, figures: Mapping[str, Estimate]) -> str:
    match block:
        case Text(text):
            return f"<p>{_inline(text, figures)}</p>"
        case Bullets(items):
            return f"<ul>{''.join(f'<li>{_inline(item, figures)}</li>' for item in items)}</ul>"
        case Definitions(items):
            pairs = (f"<dt>{_plain(t)}</dt><dd>{_inline(d, figures)}</dd>" for t, d in items)
            return f"<dl>{''.join(pairs)}</dl>"
        case Code(text):
            return f"<pre>{_plain(text)}</pre>"
        case Table():
            return _table(block)
        case Plot(name=name, png=png, caption=caption):
            # Drawn at DPI dots an inch; shown at 120, where its 9-point letters match the text's.
            width = round(int.from_bytes(png[16:20], "big") * 120 / drawing.DPI)
            image = f'<img src="{_data_uri(png)}" style="width:{width}px" alt="{_plain(name)}">'
            return f"<figure>{image}{_caption(caption)}</figure>"
        case Examples(items=items, caption=caption):
            cards = "\n".join(map(_card, items))
            return f'<figure><div class="cards">{cards}</div>{_caption(caption)}</figure>'


def _table(table: Table) -> str:
    head = "".join(f"<th>{_heading(column)}</th>" for column in table.columns)
    rows = ("<tr>" + "".join(map(_cell, row)) + "</tr>" for row in table.rows)
    body = "\n".join(rows)
    return (
        f'<figure><div class="scroll"><table><thead><tr>{head}</tr></thead>\n'
        f"<tbody>{body}</tbody></table></div>{_caption(table.caption)}</figure>"
    )


def _heading(column: str) -> str:
    """A column's heading, the count of its rows on a line of its own."""
    return re.sub(r", (n = [0-9,]+)$", r"<small>\1</small>", _plain(column))


def _cell(cell: Cell) -> str:
    if not isinstance(cell, Figure):
        return f"<td>{_plain(cell)}</td>"
    interval, n = cell.interval_text(), cell.n_text()
    under = "".join(f"<small>{part}</small>" for part in (interval and f"[{interval}]", n) if part)
    return f'<td title="{_plain(cell.name)}">{cell.value_text()}{under}</td>'


def _card(example: Example) -> str:
    kind = "card" if example.right else "card wrong"
    mark = "✓" if example.right else "✗"
    truth, verdict = ("unsafe" if flag else "safe" for flag in (example.unsafe, example.flagged))
    return (
        f'<div class="{kind}">{_thumbnail(example.picture)}'
        f"<div><b>{mark} {example.outcome}</b><br>truth {truth}, verdict {verdict}<br>"
        f"p(unsafe) = {example.p_unsafe:.3f}</div>"
        f"<p>“{_plain(example.text)}”</p>"
        f'<div class="id">{_plain(example.benchmark)}: {_plain(example.id)}</div></div>'
    )


def _thumbnail(picture: bytes | None) -> str:
    if picture is None:
        return '<div class="none">no picture</div>'
    try:
        decoded = images.decode(picture, "example")
    except UserError:
        return '<div class="none">unreadable picture</div>'
    # Pixels only, encoded anew: what else the file carried (EXIF, trailing bytes) stays behind.
    decoded.thumbnail((THUMBNAIL, THUMBNAIL))
    kind = ' class="small"' if max(decoded.size) <= 128 else ""
    return f'<img{kind} src="{_data_uri(images.encode_png(decoded))}" alt="the row\'s picture">'


def _caption(text: str) -> str:
    return f"<figcaption>{_plain(text)}</figcaption>"


def _inline(text: str, figures: Mapping[str, Estimate]) -> str:
    shown = _plain(resolve(text, figures))
    shown = re.sub(r"`([^`]+)`", r"<code>\1</code>", shown)
    return re.sub(r"\*\*([^*]+)\*\*", r"<strong>\1</strong>", shown)


def _plain(text: str) -> str:
    return escape(printable(text))


def _data_uri(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")
