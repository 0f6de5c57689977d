"""What does a report hold? Two measurements, the adapter between them, and every decision that was made on them."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from neurontune_peft.checks import check_format_version, write_atomically
from neurontune_peft.evaluation import Report
from neurontune_peft.report.verdict import verdict

KIND = "neurontune-report"
SCHEMA_VERSION = 1
SCHEMA = Path(__file__).parent / "data" / "report.schema.json"
PARTS = ("frontier", "certificate", "stress")
EXPECTED = "what neurontune tune, evaluate --output or report writes"


@dataclass(frozen=True)
class Document:
    """
    Everything that a report page shows. Parts that were not measured are `None` or empty, and are not shown.

    Args:
        before (`Report`, *optional*): The base model; `None` where one model was measured alone.
        after (`Report`): The tuned model.
        counts (`Mapping[str, Report]`, *optional*): Share of the neurons to what they achieve alone.
        adapter (`Mapping[str, Any]`, *optional*): The adapter, as `adapter_part` describes it.
        frontier (`Mapping[str, Any]`, *optional*): The settings of the dial and their rates, as `Frontier.as_dict`
            gives them.
        certificate (`Mapping[str, Any]`, *optional*): The certified setting, as `Certificate.as_dict` gives it.
        stress (`Mapping[str, Any]`, *optional*): What held under stress, as `Stress.as_dict` gives it.
        provenance (`Mapping[str, Any]`, *optional*): Versions, model, prompt set, judges, seed and options.
        command (`str`, *optional*, defaults to `""`): The command that reproduces the measurements.
        details (`Mapping[str, str]`, *optional*): Title to a text, such as the log of training.

    Raises:
        ValueError: When the two measurements come from different prompt sets, judges or options.

    Example:

        ```py
        >>> document = Document.load("adapter/report.json")
        >>> print(document.verdict)
        ```
    """

    before: Report | None
    after: Report
    counts: Mapping[str, Report] = field(default_factory=dict)
    adapter: Mapping[str, Any] | None = None
    frontier: Mapping[str, Any] | None = None
    certificate: Mapping[str, Any] | None = None
    stress: Mapping[str, Any] | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)
    command: str = ""
    details: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        verdict(self.before, self.after)  # refuses measurements that cannot be compared

    @property
    def verdict(self) -> str:
        """`str`: The outcome in a sentence."""
        return verdict(self.before, self.after)

    def as_dict(self, *, examples: bool = True) -> dict[str, Any]:
        """
        The document as JSON types, in the form that `report.schema.json` describes.

        Args:
            examples (`bool`, *optional*, defaults to `True`): Whether to keep the answers.

        Returns:
            `dict[str, Any]`: Fields by name, with `kind`, `schema_version` and `verdict`.
        """
        return {
            "kind": KIND,
            "schema_version": SCHEMA_VERSION,
            "verdict": self.verdict,
            "before": self.before and self.before.as_dict(examples=examples),
            "after": self.after.as_dict(examples=examples),
            "counts": {share: part.as_dict(examples=False) for share, part in self.counts.items()},
            "adapter": self.adapter and dict(self.adapter),
            **{name: getattr(self, name) and dict(getattr(self, name)) for name in PARTS},
            "provenance": {name: value for name, value in self.provenance.items() if name != "metrics"},
            "command": self.command,
            "details": dict(self.details),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Document:
        """
        Make a document of what `as_dict` gave, of a comparison that version 0.1 wrote, or of one measurement.

        Args:
            values (`Mapping[str, Any]`): Fields by name.

        Raises:
            ValueError: When fields are missing or wrong, or the file is of a newer version.
        """
        if values.get("kind") == KIND:
            _check_version(values.get("schema_version"))
        elif "before" not in values:
            return cls(None, Report.from_dict(values), provenance=_measured_by(Report.from_dict(values)))
        else:
            check_format_version(values.get("format_version"), 1, what="comparison")
        try:
            before, after = values["before"], Report.from_dict(values["after"])
            provenance = dict(_object(values, "provenance") or _measured_by(after))
            provenance.pop("metrics", None)  # the same figures as in the two reports
            return cls(
                before=None if before is None else Report.from_dict(before),
                after=after,
                counts={share: Report.from_dict(part) for share, part in (_object(values, "counts") or {}).items()},
                adapter=_object(values, "adapter"),
                **{name: _object(values, name) for name in PARTS},
                provenance=provenance,
                command=str(values.get("command", "")),
                details={title: str(text) for title, text in (_object(values, "details") or {}).items()},
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"got a report with a missing or wrong field ({error}); expected {EXPECTED}; measure again"
            ) from None

    def save(self, path: str | os.PathLike[str], *, examples: bool = True) -> None:
        """
        Write the document as JSON.

        Args:
            path (`str` or `os.PathLike`): The file.
            examples (`bool`, *optional*, defaults to `True`): Whether to keep the answers.
        """
        write_atomically(path, json.dumps(self.as_dict(examples=examples), indent=1, ensure_ascii=False) + "\n")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Document:
        """
        Read a report: `report.json`, a comparison of version 0.1, or one measurement.

        Args:
            path (`str` or `os.PathLike`): The file, or a directory that holds `report.json`. `frontier.json`,
                `certificate.json` and `stress.json` beside it are read where they exist.

        Raises:
            ValueError: When there is no such file, or it is no report.
        """
        given = Path(path)
        file = given / "report.json" if given.is_dir() else given
        if not file.is_file():
            raise ValueError(f"got '{path}' without a report; expected {EXPECTED}; name such a file or its directory")
        document = cls.from_dict(_read(file))
        found = {name: file.with_name(f"{name}.json") for name in PARTS}
        parts: dict[str, Any] = {name: _read(part) for name, part in found.items() if part.is_file() and part != file}
        return replace(document, **parts)


def _check_version(version: object) -> None:
    if not isinstance(version, int) or isinstance(version, bool) or not 1 <= version <= SCHEMA_VERSION:
        raise ValueError(
            f"got schema_version {version!r} in the report; expected 1 to {SCHEMA_VERSION}; upgrade neurontune_peft "
            "to read it"
        )


def _object(values: Mapping[str, Any], name: str) -> Mapping[str, Any] | None:
    """A part of the file that is an object, if it is there."""
    part = values.get(name)
    if part is not None and not isinstance(part, Mapping):
        raise TypeError(f"{name} is {part!r:.40}, no object")
    return part


def _measured_by(report: Report) -> dict[str, Any]:
    """What a measurement says about itself, for files without provenance."""
    return {"prompt_set": report.prompt_set, "judges": [report.judge], "options": dict(report.options)}


def _read(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # no JSON, or no UTF-8
        raise ValueError(f"got {path} with invalid JSON ({error}); expected {EXPECTED}; measure again") from None
    if not isinstance(values, dict):
        raise ValueError(f"got {path} without a JSON object; expected {EXPECTED}; measure again")
    return values
