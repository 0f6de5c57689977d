"""What a command will cost, from two batches."""

from __future__ import annotations
from dataclasses import dataclass
from typing import Any

COMMANDS: dict[str, Any] = {}


@dataclass(frozen=True)
class Estimate:
    """todo"""


def measure(name: str, command: Any) -> Estimate:
    """todo"""
    raise NotImplementedError
