"""What every HTML page has in common: one file that needs nothing else, for a screen, a telephone or paper."""

from __future__ import annotations

import base64
import html
import json
import math
import re
from collections.abc import Sequence
from functools import cache
from importlib.resources import files

Facts = Sequence[tuple[str, str]]

# What a page may load: nothing. Scripts and styles stand in it, pictures are data; workers and decoders are made from blobs.
_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:; connect-src data: blob:; "
    "base-uri 'none'; form-action 'none'"
)


def page(title: str, body: str, styles: Sequence[str] = (), scripts: Sequence[str] = (), wide: bool = False) -> str:
    """Return a whole page.

    Args:
        title: Shown on the browser's tab.
        body: HTML.
        styles: CSS after that of every page.
        scripts: JavaScript, run in this order once the body is there.
        wide: Whether the page takes more room on a large screen.
    """
    inline = "\n".join(f"<script>{script_text(script)}</script>" for script in scripts)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{safe(title)}</title>\n<style>\n{''.join((asset('page.css'), *styles))}</style>\n</head>\n"
        f"<body{' class=wide' if wide else ''}>\n{body}\n{inline}\n</body>\n</html>\n"
    )


@cache
def asset(name: str) -> str:
    """Return a style or script of ours."""
    return files("medseg_se.reports").joinpath("assets", name).read_text(encoding="utf-8")


def script_text(script: str) -> str:
    """Return JavaScript that cannot end the element it stands in; `</script` is found within strings alone."""
    return re.sub("</(script)", r"<\\/\1", script, flags=re.IGNORECASE)


def json_script(name: str, content: object) -> str:
    """Return plain data for a script, which finds it by `name`."""
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    return f'<script type="application/json" id="{safe(name)}">{text}</script>'


def safe(text: object) -> str:
    """Return text with everything escaped that HTML would read as its own."""
    return html.escape(str(text), quote=True)


def section(heading: str, content: str, name: str = "") -> str:
    """Return a section below a heading; `name` is what links go to."""
    anchor = f' id="{safe(name)}"' if name else ""
    return f"<section{anchor}>\n<h2>{safe(heading)}</h2>\n{content}\n</section>"


def facts_table(facts: Facts) -> str:
    """Return a table of names and what is said of each."""
    rows = "".join(f"<tr><th>{safe(name)}</th><td>{safe(value)}</td></tr>" for name, value in facts)
    return f'<table class="facts">{rows}</table>' if rows else ""


def row(kind: str, cells: Sequence[tuple[str, str]]) -> str:
    """Return a row of a table.

    Args:
        kind: "td" or "th".
        cells: HTML and class of each.
    """
    return "<tr>" + "".join(f'<{kind} class="{group}">{cell}</{kind}>' for cell, group in cells) + "</tr>"


def warnings_list(lines: Sequence[str], broken: bool = False) -> str:
    """Return warnings, or what is broken, as a list; nothing where there is none."""
    items = "".join(f"<li>{safe(line)}</li>" for line in lines)
    return f'<ul class="warnings{" broken" if broken else ""}">{items}</ul>' if items else ""


def verdict_paragraph(text: str) -> str:
    """Return what a comparison comes to, set apart from the rest."""
    return f'<p class="verdict">{safe(text)}</p>'


def picture(content: bytes, words: str, kind: str = "png") -> str:
    """Return an image with its text alternative."""
    return f'<img src="{data_uri(content, kind)}" alt="{safe(words)}">'


def data_uri(content: bytes, kind: str = "png") -> str:
    """Return the address that holds a picture itself."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}"


def number(value: float, digits: int = 3) -> str:
    """Return a number with a fixed count of decimals, or a dash where there is none."""
    if math.isinf(value):
        return "∞"
    if math.isnan(value):
        return "–"
    text = f"{value:.{digits}f}"
    return text.lstrip("-") if float(text) == 0 else text.replace("-", "−")
