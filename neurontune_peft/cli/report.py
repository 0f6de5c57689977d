"""`neurontune report`: the page, the text and the pictures of a measurement, from its JSON alone."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import tyro


@dataclass(frozen=True)
class Report:
    """
    Write report.html, report.md and report.json from what `neurontune tune` or `evaluate --output` measured.

    The page is one file that needs no network. frontier.json, certificate.json and stress.json beside the report, and
    the adapter of the directory, become parts of it.

    Example: neurontune report adapter --pictures

    Args:
        source: Directory with report.json, or a JSON file that `neurontune evaluate --output` wrote.
        output: Where to write; by default the directory of the source.
        pictures: Also write the pictures as PNG and SVG, which needs the `plot` extra.
    """

    source: Annotated[Path, tyro.conf.Positional]
    output: Path | None = None
    pictures: bool = False

    def run(self) -> None:
        """Read, write, and say where the files are."""
        from neurontune_peft.report import Document, adapter_part, write_report
        from neurontune_peft.tuner.files import AdapterFile

        document = Document.load(self.source)
        home = self.source if self.source.is_dir() else self.source.parent
        if (home / "adapter_config.json").is_file():
            document = replace(document, adapter=adapter_part(AdapterFile.load(home)))
        output = self.output or home
        if output.exists() and not output.is_dir():
            raise ValueError(f"got output '{output}', which is a file; expected a directory; name another")
        written = write_report(document, output)
        if self.pictures:
            from neurontune_peft.report.pictures import write_pictures

            written += write_pictures(document, output)
        print(document.verdict)
        for path in written:
            print(path)
