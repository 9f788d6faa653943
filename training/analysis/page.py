"""One page that holds everything: pictures inside it, no script, nothing from any other place."""

import html
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass

STYLE = """
:root {
  color-scheme: light dark;
  --ground: #f5f6f9; --panel: #ffffff; --ink: #17202b; --muted: #545f6d; --line: #d9dee6;
  --link: #1a5dbf;
}
@media (prefers-color-scheme: dark) {
  :root {
    --ground: #0f141b; --panel: #18202a; --ink: #e8edf4; --muted: #a5b1c0; --line: #2b3644;
    --link: #84b6ff;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--ground); color: var(--ink); overflow-wrap: anywhere;
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, Arial, sans-serif;
}
main { max-width: 1200px; margin: 0 auto; padding: 20px 14px 40px; }
h1 { font-size: 1.6rem; margin: 8px 0; }
h2 { font-size: 1.15rem; margin: 0 0 6px; }
p { margin: 6px 0; max-width: 80ch; }
nav ul { columns: 2 16rem; padding-left: 1.2em; margin: 10px 0 18px; }
a { color: var(--link); }
section, footer {
  background: var(--panel); border: 1px solid var(--line); border-radius: 14px;
  padding: 16px; margin: 16px 0; scroll-margin-top: 12px;
}
.what, footer { color: var(--muted); font-size: 0.92rem; }
.found { font-weight: 600; }
img { display: block; width: 100%; max-width: 720px; height: auto; margin: 10px auto; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: 0.9rem; font-variant-numeric: tabular-nums; }
th, td {
  padding: 5px 14px 5px 0; border-top: 1px solid var(--line); text-align: right;
  white-space: nowrap;
}
th:first-child, td:first-child { text-align: left; }
thead th { border-top: 0; color: var(--muted); }
pre { white-space: pre-wrap; margin: 0; font: 0.85rem/1.5 ui-monospace, Menlo, monospace; }
"""
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


@dataclass(frozen=True)
class Panel:
    """A part of the page.

    Attributes:
        name: of its place in the page and of its files.
        title: heading.
        what: how to read it, and what the paper says.
        found: what is to be seen here; may be empty.
        pictures: the plot as PNG on a light and on a dark ground; None has no plot.
        table: rows of text, the header first; may be empty.
    """

    name: str
    title: str
    what: str
    found: str
    pictures: tuple[bytes, bytes] | None
    table: Sequence[Sequence[str]] = ()


def page(title: str, summary: str, panels: Sequence[Panel], conditions: str) -> str:
    """The whole page as HTML.

    Args:
        title: heading.
        summary: a sentence under it.
        panels: in order.
        conditions: command, hardware and versions, lines of text.
    """
    links = "".join(f'<li><a href="#{p.name}">{html.escape(p.title)}</a></li>' for p in panels)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<title>{html.escape(title)}</title>
<style>{STYLE}</style>
</head>
<body>
<main>
<h1>{html.escape(title)}</h1>
<p>{html.escape(summary)}</p>
<nav aria-label="Contents"><ul>{links}</ul></nav>
{"".join(_section(panel) for panel in panels)}
<footer><pre>{html.escape(conditions)}</pre></footer>
</main>
</body>
</html>
"""


def _section(panel: Panel) -> str:
    what = f'<p class="what">{html.escape(panel.what)}</p>' if panel.what else ""
    found = f'<p class="found">{html.escape(panel.found)}</p>' if panel.found else ""
    return (
        f'<section id="{panel.name}"><h2>{html.escape(panel.title)}</h2>'
        f"{what}{found}{_picture(panel)}{_table(panel)}</section>\n"
    )


def _picture(panel: Panel) -> str:
    if panel.pictures is None:
        return ""
    light, dark = (f"data:image/png;base64,{b64encode(png).decode()}" for png in panel.pictures)
    return (
        f'<picture><source srcset="{dark}" media="(prefers-color-scheme: dark)">'
        f'<img src="{light}" alt="{html.escape(panel.title)}"></picture>'
    )


def _table(panel: Panel) -> str:
    if not panel.table:
        return ""
    head, *body = panel.table
    cells = "".join(f"<th scope=col>{html.escape(cell)}</th>" for cell in head)
    rows = "".join(
        f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in row)}</tr>" for row in body
    )
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{html.escape(panel.title)}">'
        f"<table><thead><tr>{cells}</tr></thead><tbody>{rows}</tbody></table></div>"
    )
