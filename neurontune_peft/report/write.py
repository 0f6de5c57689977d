"""The files of a report: one page, one text for cards, one JSON from which all is rebuilt."""

from __future__ import annotations

import json
from pathlib import Path

from neurontune_peft.checks import write_atomically
from neurontune_peft.report.document import Document
from neurontune_peft.report.html import report_html
from neurontune_peft.report.markdown import report_markdown


def write_report(document: Document, directory: Path) -> list[Path]:
    """
    Write `report.html`, `report.md` and `report.json`. All is made before the first file is replaced.

    Args:
        document ([`Document`]): What to show.
        directory (`Path`): Where to; created when missing.

    Returns:
        `list[Path]`: The files.

    Raises:
        ValueError: When a part of the document has another form than it should. Nothing is written then.
    """
    texts = {
        "report.html": report_html(document),
        "report.md": report_markdown(document),
        "report.json": json.dumps(document.as_dict(), indent=1, ensure_ascii=False) + "\n",
    }
    for name, text in texts.items():
        write_atomically(directory / name, text)
    return [directory / name for name in texts]
