"""Draws the report: a PDF of several pages about the people, pictures and events of the site."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from time import sleep
from typing import Any

WIDTH, HEIGHT = 595.0, 842.0
"""A4 in points."""
LINES = 44
PAUSE = 0.5
"""Seconds a page. Stands in for the slow queries that make real reports slow: drawing these few pages takes milliseconds."""


@dataclass(frozen=True, slots=True)
class Page:
    """One page: a headline, lines of text, and perhaps a picture beneath them."""

    title: str
    lines: Sequence[str]
    picture: Path | None = None


def listed(title: str, lines: Sequence[str]) -> Iterable[Page]:
    """As many pages as the lines need, at least one."""
    for start in range(0, max(len(lines), 1), LINES):
        yield Page(title, lines[start : start + LINES] or ["(none yet)"])


def draw(target: Path, pages: Sequence[Page], progress: Callable[[float, str], None]) -> None:
    """Write the pages as a PDF file, which appears whole or not at all."""
    drawing: Any = importlib.import_module("reportlab.pdfgen.canvas")  # has no type information
    unfinished = target.with_suffix(".part")
    canvas = drawing.Canvas(str(unfinished), pagesize=(WIDTH, HEIGHT))
    canvas.setTitle("The demo's report")
    for number, page in enumerate(pages, 1):
        progress((number - 1) / len(pages), f"page {number} of {len(pages)}")
        _draw_page(canvas, page, f"page {number} of {len(pages)}")
        sleep(PAUSE)
    canvas.save()
    unfinished.replace(target)


def _printable(line: str) -> str:
    """The line in the characters that every PDF reader's own fonts have."""
    return line.encode("cp1252", "replace").decode("cp1252")


def _draw_page(canvas: Any, page: Page, footer: str) -> None:
    canvas.setFont("Helvetica-Bold", 20)
    canvas.drawString(56, HEIGHT - 80, page.title)
    canvas.setFont("Helvetica", 10)
    for row, line in enumerate(page.lines):
        canvas.drawString(56, HEIGHT - 112 - row * 15, _printable(line[:100]))
    if page.picture is not None:
        canvas.drawImage(str(page.picture), 56, 90, width=WIDTH - 112, height=420, preserveAspectRatio=True, anchor="n")
    canvas.setFillGray(0.5)
    canvas.drawString(56, 48, f"{footer} · {datetime.now(UTC):%Y-%m-%d %H:%M} UTC")
    canvas.showPage()
