"""The page itself: one file that holds all it needs and asks for nothing."""

from __future__ import annotations

import base64
import hashlib
import html
import json
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

from repshift.analysis.output.files import write_text

SCRIPTS = ("elements.js", "maps.js", "groups.js", "explorer.js", "charts.js", "tables.js", "start.js")


def make_page(title: str, content: Mapping[str, Any]) -> str:
    """Put content, style and scripts into one HTML file.

    The page's policy lets nothing load and runs only the script that is named by its hash, so text that came from a
    file name or a results file could not do anything even if it were taken for HTML; and it is not: the scripts write
    text only.

    Args:
        title: Of the window.
        content: Plain values for the scripts: strings, finite numbers, lists, mappings, ``None``.
    """
    style, script = _read("page.css"), "".join(map(_read, SCRIPTS))
    return Template(_read("page.html")).substitute(
        title=html.escape(title),
        style=style,
        style_hash=_hash(style),
        script=script,
        script_hash=_hash(script),
        content=as_embedded_json(content),
    )


def write_page(path: Path, title: str, content: Mapping[str, Any]) -> int:
    """Write the page in one piece and return its size in bytes.

    Raises:
        DataError: If it cannot be written.
    """
    write_text(path, make_page(title, content))
    return path.stat().st_size


def as_embedded_json(content: Mapping[str, Any]) -> str:
    """Write JSON that can stand inside a script element: nothing in it ends the element or begins a comment."""
    text = json.dumps(content, allow_nan=False, separators=(",", ":"))
    for letter in "<>&":
        text = text.replace(letter, f"\\u{ord(letter):04x}")
    return text


def _read(name: str) -> str:
    text = (resources.files("repshift.analysis.report") / "page" / name).read_text(encoding="utf-8")
    return text.replace("\r\n", "\n")  # browsers hash what they parsed, and line ends are parsed to \n


def _hash(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
