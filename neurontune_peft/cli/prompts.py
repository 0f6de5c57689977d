"""`neurontune prompts`: make, check and look at prompt sets."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from neurontune_peft.cli.common import check_output, written_whole

if TYPE_CHECKING:
    from neurontune_peft.prompts.convert.check import Findings


@dataclass(frozen=True)
class Convert:
    """
    Make a prompt set of files from AdvBench, HarmBench, XSTest, StrongREJECT, JailbreakBench, or of CSV or JSONL.

    Example: neurontune prompts convert harmful_behaviors.csv xstest_prompts.csv --attacks default --output my_set

    Args:
        files: Files of requests, or of attacks (JSONL with family and template).
        output: New directory for the prompt set.
        format: Format of all files: advbench, harmbench, xstest, strongreject, jailbreakbench,
            jailbreakbench-behaviors, csv or jsonl; found from each file's columns by default.
        kind: harmful, benign or borderline, for rows that do not say it.
        split: train or test, for rows that do not say it; by default a hash of the text decides.
        test_share: Share of the test split when the hash decides.
        held_out: Families of attacks that go to the test split as a whole.
        placeholder: What templates hold in place of {prompt}.
        attacks: Directory of a prompt set whose attack templates are taken over; "default" is the shipped one.
        licence: Licence of the files, or a file with its text, for SOURCES.md.
    """

    files: Annotated[tuple[Path, ...], tyro.conf.Positional]
    output: Path = field(kw_only=True)
    format: str | None = None
    kind: str | None = None
    split: str | None = None
    test_share: float = 0.5
    held_out: tuple[str, ...] = ()
    placeholder: str | None = None
    attacks: str | None = None
    licence: str | None = None

    def run(self) -> None:
        """Convert, save and print."""
        from neurontune_peft.prompts import PromptSet
        from neurontune_peft.prompts.convert import check, convert
        from neurontune_peft.prompts.convert.convert import Options

        check_output(self.output)
        if not self.files:
            raise ValueError("got no files; expected at least one; name the files to convert")
        options = Options(
            format=self.format,
            kind=self.kind,
            split=self.split,
            test_share=self.test_share,
            held_out=self.held_out,
            placeholder=self.placeholder,
        )
        templates = (
            None if self.attacks is None else PromptSet.load(None if self.attacks == "default" else self.attacks)
        )
        licence = self.licence
        if licence is not None and Path(licence).is_file():
            licence = Path(licence).read_text(encoding="utf-8")
        name = None if self.attacks is None else f"prompt set '{Path(self.attacks).name}'"
        conversion = convert(self.files, options, templates=templates, templates_name=name, licence=licence)
        with written_whole(self.output) as directory:
            conversion.save(directory)
        print(conversion)
        _print_notes(check(self.output))
        print(f"Prompt set: {self.output}")


@dataclass(frozen=True)
class Validate:
    """
    Look for everything that is wrong with a prompt set. Exit code 1 when it cannot be loaded.

    Example: neurontune prompts validate my_set

    Args:
        directory: The prompt set.
    """

    directory: Annotated[Path, tyro.conf.Positional]

    def run(self) -> None:
        """
        Check and print.

        Raises:
            SystemExit: With code 1 when there are errors.
        """
        from neurontune_peft.prompts.convert import check

        found = check(self.directory)
        for error in found.errors:
            print(error)
        _print_notes(found)
        if found.errors:
            print(f"{len(found.errors)} errors")
            raise SystemExit(1)
        print(f"{found.prompts} requests and {found.attacks} attacks; no errors")


@dataclass(frozen=True)
class Show:
    """
    Show what is in a prompt set. Harmful requests are folded unless asked for.

    Example: neurontune prompts show my_set --n 3

    Args:
        directory: The prompt set; the shipped one by default.
        n: Examples of each kind and attack family.
        family: Attacks of this family only.
        show_harmful: Write harmful requests out.
    """

    directory: Annotated[Path | None, tyro.conf.Positional] = None
    n: int = 0
    family: str | None = None
    show_harmful: bool = False

    def run(self) -> None:
        """Print."""
        from neurontune_peft.prompts import PromptSet
        from neurontune_peft.prompts.convert import describe

        prompts = PromptSet.load(self.directory)
        print(describe(prompts, examples=self.n, family=self.family, show_harmful=self.show_harmful))


@dataclass(frozen=True)
class Prompts:
    """
    Make, check and look at prompt sets.

    Args:
        action: What to do.
    """

    action: (
        Annotated[Convert, tyro.conf.subcommand("convert")]
        | Annotated[Validate, tyro.conf.subcommand("validate")]
        | Annotated[Show, tyro.conf.subcommand("show")]
    )

    def run(self) -> None:
        """Do it."""
        self.action.run()


def _print_notes(found: Findings) -> None:
    for note in found.notes:
        print(f"note: {note}", file=sys.stderr)
