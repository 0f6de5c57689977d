"""`neurontune diff`: how do two adapters, or two reports, differ? No model is loaded."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from neurontune_peft.checks import parse_json

if TYPE_CHECKING:
    from neurontune_peft.tuner.arithmetic import Difference


REPORT = "report.json"


@dataclass(frozen=True)
class Diff:
    """
    Compare two adapters neuron by neuron, or two reports measure by measure.

    Example: neurontune diff user/adapter user/adapter --revisions main v1

    Args:
        first: Directory or Hub name of an adapter, or a report: its file or directory.
        second: The other one.
        revisions: Branches, tags or commits of the two on the Hub.
        top: How many of the largest changes to list.
        json: Print JSON for machines.
    """

    first: Annotated[str, tyro.conf.Positional]
    second: Annotated[str, tyro.conf.Positional]
    revisions: tuple[str, str] | None = None
    top: int = 10
    json: bool = False

    def run(self) -> None:
        """Read both and print how they differ."""
        from neurontune_peft.tuner.arithmetic import differences
        from neurontune_peft.tuner.files import AdapterFile

        paths = report_path(self.first), report_path(self.second)
        if paths[0] is not None and paths[1] is not None:
            self._reports(paths[0], paths[1])
            return
        if paths != (None, None):
            raise ValueError(
                f"got a report and an adapter ('{self.first}', '{self.second}'); expected two of a kind; give "
                "two adapters or two reports"
            )
        options = [{"revision": revision} for revision in self.revisions] if self.revisions else [{}, {}]
        files = [
            AdapterFile.load(name, **option) for name, option in zip((self.first, self.second), options, strict=True)
        ]
        found = differences(files[0], files[1])
        print(json.dumps(asdict(found), indent=1) if self.json else as_text(found, top=self.top))

    def _reports(self, first: Path, second: Path) -> None:
        from neurontune_peft.report import difference

        values = [parse_json(path.read_bytes(), what=f"'{path}'") for path in (first, second)]
        print(difference(values[0], values[1]))


def report_path(name: str) -> Path | None:
    """The report that a name stands for: a JSON file, or one in a directory without an adapter."""
    from peft.utils import CONFIG_NAME

    path = Path(name)
    if path.is_file():
        return path
    if path.is_dir() and (path / REPORT).is_file() and not (path / CONFIG_NAME).is_file():
        return path / REPORT
    return None


def as_text(found: Difference, *, top: int) -> str:
    """A difference for people."""
    if found.same:
        return "The same neurons, scales and configuration."
    lines = [f"{'role':<20}{'only first':>12}{'only second':>12}{'both':>8}{'other scale':>12}"]
    for role in found.both:
        changed = sum(1 for name, *_ in found.changes if name == role)
        counts = (found.only_first[role], found.only_second[role], found.both[role])
        lines.append(f"{role:<20}{counts[0]:>12}{counts[1]:>12}{counts[2]:>8}{changed:>12}")
    if found.changes:
        lines += ["", "largest changes of scales"]
        lines += [f"  {role}: {s}[{i}] {old:.4f} to {new:.4f}" for role, s, i, old, new in found.changes[:top]]
    if found.config:
        lines += ["", "configuration"]
        lines += [f"  {name}: {_short(old)} to {_short(new)}" for name, (old, new) in found.config.items()]
    return "\n".join(lines)


def _short(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, default=str)
    return text if len(text) <= 60 else f"{text[:57]}..."
