"""Reports for people: tables that compare measurements."""

from neurontune_peft.report.tables import compare_markdown, counts_markdown, summary

__all__ = ["compare_markdown", "counts_markdown", "summary"]
