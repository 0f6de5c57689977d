"""What was measured before is read, not measured again: values kept in a file, by what they depend on."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers.utils import logging

from neurontune_peft.training.parallel import process

logger = logging.get_logger(__name__)


def digest(value: Any) -> str:
    """
    A name for a value of JSON types.

    Returns:
        `str`: SHA-256 of the value, hexadecimal.
    """
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


class Kept:
    """
    Values of one setting, kept in JSON-lines files and read again by the next run.

    Each line is written at once as its value is known, so that a killed run loses the line that it was writing at
    most; such a line is dropped when the file is read. Every process appends to a file of its own.

    Args:
        directory (`str` or `os.PathLike`, *optional*): Where the files stand; nothing is kept without one.
        setting (`Mapping[str, Any]`): JSON values on which every kept value depends. It is the first line of each
            file, and its digest is the file's name.

    Raises:
        OSError: the directory cannot be made or written to.
    """

    def __init__(self, directory: str | os.PathLike[str] | None, setting: Mapping[str, Any]) -> None:
        self.setting = dict(setting)
        self.values: dict[str, Any] = {}
        self._path: Path | None = None
        if directory is None:
            return
        folder, name = Path(directory), digest(self.setting)[:32]
        folder.mkdir(parents=True, exist_ok=True)
        rank, _ = process()
        self._path = folder / f"{name}-{rank}.jsonl"
        for path in sorted(folder.glob(f"{name}-*.jsonl")):
            self._read(path)

    def add(self, values: Mapping[str, Any]) -> None:
        """
        Keep values.

        Args:
            values (`Mapping[str, Any]`): Key to a value of JSON types.
        """
        self.values.update(values)
        if self._path is None or not values:
            return
        lines = [json.dumps({"key": key, "value": value}) for key, value in values.items()]
        if not self._path.exists() or self._path.stat().st_size == 0:
            lines.insert(0, json.dumps({"setting": self.setting}))
        with self._path.open("ab+") as stream:
            # A line that a killed run left without its end must not swallow the next one.
            stream.seek(max(0, stream.seek(0, os.SEEK_END) - 1))
            torn = stream.read() not in (b"", b"\n")
            stream.write((("\n" if torn else "") + "\n".join(lines) + "\n").encode())

    def _read(self, path: Path) -> None:
        dropped = 0
        for line in path.read_bytes().split(b"\n"):
            if not line.strip():
                continue
            try:
                entry = json.loads(line)
                if "setting" not in entry:
                    self.values[entry["key"]] = entry["value"]
            except (ValueError, KeyError, TypeError):
                dropped += 1
        if dropped:
            logger.warning("Dropped %d damaged lines of %s; what they held is measured again", dropped, path)
