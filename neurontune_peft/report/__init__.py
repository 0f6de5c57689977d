"""Reports for people: tables that compare measurements, and one page that shows them."""

from neurontune_peft.report.adapter import adapter_part
from neurontune_peft.report.difference import difference
from neurontune_peft.report.document import Document
from neurontune_peft.report.html import report_html
from neurontune_peft.report.markdown import report_markdown
from neurontune_peft.report.tables import compare_markdown, counts_markdown, summary
from neurontune_peft.report.write import write_report

__all__ = [
    "Document",
    "adapter_part",
    "compare_markdown",
    "counts_markdown",
    "difference",
    "report_html",
    "report_markdown",
    "summary",
    "write_report",
]
