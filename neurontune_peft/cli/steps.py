"""The long steps of a command: their time, and results kept beside the output until the command is done."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers.utils import logging

from neurontune_peft.checks import write_atomically
from neurontune_peft.evaluation import Report
from neurontune_peft.neurons import Scores

logger = logging.get_logger(__name__)


@dataclass(frozen=True)
class Steps:
    """
    What a command keeps while it runs.

    Args:
        directory (`Path`): Where results and checkpoints stand, so that the same command can go on after a kill.
        seconds (`dict[str, float]`, *optional*): Time of each step so far.
    """

    directory: Path
    seconds: dict[str, float] = field(default_factory=dict)

    @classmethod
    def beside(cls, output: Path, options: Mapping[str, Any]) -> Steps:
        """
        In a hidden directory beside the output.

        Args:
            output (`Path`): Where the command will write.
            options (`Mapping[str, Any]`): Everything that decides what is kept there, as JSON types.

        Raises:
            ValueError: When the directory holds what a run with other options has left.
        """
        directory = output.parent / f".{output.name}.resume"
        text = json.dumps(options, sort_keys=True) + "\n"
        record = directory / "options.json"
        if record.exists() and record.read_text(encoding="utf-8") != text:
            raise ValueError(
                f"got '{directory}', left by an interrupted run with other options; expected the same options to go "
                "on with; repeat that command, or delete the directory"
            )
        directory.mkdir(parents=True, exist_ok=True)
        write_atomically(record, text)
        return cls(directory)

    @contextmanager
    def timed(self, step: str) -> Iterator[None]:
        """Note how long a step took, and say that it begins."""
        logger.warning("%s …", step)  # at the level that transformers shows by default
        start = time.monotonic()
        yield
        self.seconds[step] = time.monotonic() - start

    def scores(self, name: str, make: Callable[[Path], Scores]) -> Scores:
        """
        Scores of a round, made once.

        Args:
            name (`str`): Name of the file.
            make (`Callable`): From a checkpoint file to the scores.
        """
        path = self.directory / f"{name}.safetensors"
        with self.timed(f"scoring neurons, {name}"):
            if not path.exists():
                make(self.directory / f"{name}.checkpoint").save(path)
            return Scores.load(path)

    def report(self, step: str, make: Callable[[], Report]) -> Report:
        """A measurement of the base model, made once."""
        path = self.directory / "base.json"
        with self.timed(step):
            if not path.exists():
                make().save(path)
            return Report.load(path)
