"""The report as one page: no network, works from disk, runs no script but its own."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from neurontune_peft.report.document import EXPECTED, Document
from neurontune_peft.report.page import number, page_context, percent

DATA = Path(__file__).parent / "data"


def report_html(document: Document) -> str:
    """
    One self-contained page. All that comes from the report is escaped, and a content security policy lets only the
    page's own style and script act.

    Args:
        document ([`Document`]): What to show.

    Returns:
        `str`: HTML.

    Raises:
        ValueError: When a part of the document has another form than it should.
    """
    style, script = ((DATA / name).read_text(encoding="utf-8") for name in ("report.css", "report.js"))
    environment = Environment(
        loader=FileSystemLoader(DATA),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": percent, "number": number}
    try:
        return environment.get_template("report.html").render(
            style=Markup(style),
            script=Markup(script),
            style_hash=_hash(style),
            script_hash=_hash(script),
            **page_context(document),
        )
    except (KeyError, TypeError, AttributeError, IndexError, ValueError) as error:
        raise ValueError(
            f"got a report with a part of an unknown form ({type(error).__name__}: {error}); expected {EXPECTED}; "
            "measure again"
        ) from error


def _hash(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii")
