"""Which rows are done? A file with one line per finished row, so that a comparison goes on where it stopped."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from neurontune_peft.checks import write_atomically
from neurontune_peft.evaluation.compare.points import Point

FORMAT_VERSION = 1


class Journal:
    """
    Finished points and chosen learning rates, written as they come.

    Args:
        path (`str` or `os.PathLike`, *optional*): JSON-lines file; nothing is written without one.
        key (`Mapping[str, Any]`): JSON values that a file must have been started with.

    Raises:
        ValueError: When the file belongs to another comparison, or is no such file.
    """

    def __init__(self, path: str | os.PathLike[str] | None, key: Mapping[str, Any]) -> None:
        self.points: dict[tuple[str, int, float | None], Point] = {}
        self.rates: dict[str, float] = {}
        self._path = None if path is None else Path(path)
        if self._path is None:
            return
        head = json.dumps({"comparison": key}, sort_keys=True, ensure_ascii=False)
        # A line that a crash has cut off has no end; it is measured again.
        lines = self._path.read_text(encoding="utf-8").split("\n")[:-1] if self._path.exists() else []
        if lines and lines[0] != head:
            raise ValueError(
                f"got checkpoint '{self._path}', which was started with another model, prompt set or options; "
                "expected one of this comparison; choose another file, or repeat the call that started it"
            )
        try:
            for line in lines[1:]:
                self._take(json.loads(line))
        except (TypeError, KeyError, ValueError) as error:
            raise ValueError(
                f"got checkpoint '{self._path}' with a damaged line ({error}); expected what compare writes; delete it"
            ) from error
        write_atomically(self._path, "\n".join([head, *lines[1:]]) + "\n")

    def add(self, point: Point) -> None:
        """Keep a finished point."""
        self._write({"point": point.as_dict()})

    def add_rate(self, method: str, rate: float) -> None:
        """Keep the learning rate that was chosen for a method."""
        self._write({"method": method, "learning_rate": rate})

    def _write(self, entry: Mapping[str, Any]) -> None:
        self._take(entry)
        if self._path is not None:
            with self._path.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(entry, ensure_ascii=False) + "\n")

    def _take(self, entry: Mapping[str, Any]) -> None:
        if "point" in entry:
            point = Point(**entry["point"])
            self.points[point.key] = point
        else:
            self.rates[entry["method"]] = entry["learning_rate"]
