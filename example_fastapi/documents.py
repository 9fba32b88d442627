"""What Paperlane does with documents. A real one would do it better; here it is what the plans sell."""

from __future__ import annotations

import asyncio
import csv
import html
import io
from collections.abc import AsyncIterator, Iterable, Sequence


def is_html(document: str) -> bool:
    return document.lstrip().lower().startswith(("<!doctype html", "<html"))


def as_html(document: str) -> str:
    """Blank lines separate paragraphs, ``# `` begins a heading. Raises ValueError for a document that is damaged."""
    if "corrupt" in document:
        raise ValueError("the document is damaged")
    blocks = (block.strip() for block in document.split("\n\n"))
    return "\n".join(_block(block) for block in blocks if block)


def _block(text: str) -> str:
    tag, text = ("h1", text[2:]) if text.startswith("# ") else ("p", text)
    return f"<{tag}>{html.escape(text)}</{tag}>"


def recognised(pages: int) -> list[str]:
    return [f"Text of page {number}" for number in range(1, pages + 1)]


async def summary(document: str, max_tokens: int) -> AsyncIterator[str]:
    """The first sentence of each paragraph, token by token, as slowly as a language model."""
    sentences = (block.strip().partition(".")[0] for block in document.split("\n\n"))
    for token in " / ".join(sentences).split()[:max_tokens]:
        await asyncio.sleep(0.02)
        yield token


def as_csv(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    file = io.StringIO()
    writer = csv.writer(file)
    writer.writerow(columns)
    writer.writerows(rows)
    return file.getvalue()
