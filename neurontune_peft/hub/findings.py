"""What an audit finds: statements with a level, from harmless to dangerous."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Level = Literal["ok", "note", "warning", "danger"]
LEVELS: tuple[Level, ...] = ("ok", "note", "warning", "danger")


@dataclass(frozen=True)
class Finding:
    """
    One statement about an adapter.

    Args:
        level (`str`): `"ok"`, `"note"`, `"warning"`, or `"danger"`: one of these fails the audit.
        about (`str`): `"files"`, `"configuration"`, `"tensors"`, `"scales"` or `"effect"`.
        text (`str`): The statement, without control characters.
    """

    level: Level
    about: str
    text: str

    def __post_init__(self) -> None:
        # Names come from strangers: they may not move the cursor of a terminal, nor fill it.
        shown = "".join(c if c.isprintable() else "�" for c in self.text)
        object.__setattr__(self, "text", shown if len(shown) <= 600 else f"{shown[:597]}...")


def worst(findings: tuple[Finding, ...]) -> Level:
    """The highest level among findings."""
    return max((finding.level for finding in findings), key=LEVELS.index, default="ok")
