"""Files of others become one prompt set: the same files give the same set, wherever and whenever they are read."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from dataclasses import fields as dataclass_fields
from pathlib import Path
from typing import Any

from neurontune_peft.prompts.conversation import Request
from neurontune_peft.prompts.convert.formats import FORMATS, JSONL, ORIGINS, Row, read_source
from neurontune_peft.prompts.prompt_set import PromptSet
from neurontune_peft.prompts.records import KINDS, PLACEHOLDER, SPLITS, Attack, Prompt, at, from_fields

ATTACK_FIELDS = ("family", "template", "attacked_prompt")


@dataclass(frozen=True)
class Options:
    """
    What files do not say.

    Args:
        format (`str`, *optional*): Format of all files; found from each file when left out.
        kind (`str`, *optional*): Kind of requests whose file does not say it.
        split (`str`, *optional*): Split of rows whose file does not say it; by the hash of their text when left out.
        test_share (`float`, *optional*, defaults to `0.5`): Share of the test split then, 0 to 1.
        held_out (`Sequence[str]`, *optional*): Families whose attacks all go to the test split.
        placeholder (`str`, *optional*): What templates hold in place of `{prompt}`.

    Raises:
        ValueError: an unknown format, kind or split, or a share outside 0 to 1.
    """

    format: str | None = None
    kind: str | None = None
    split: str | None = None
    test_share: float = 0.5
    held_out: Sequence[str] = ()
    placeholder: str | None = None

    def __post_init__(self) -> None:
        for name, choices in (("format", FORMATS), ("kind", KINDS), ("split", SPLITS)):
            value = getattr(self, name)
            if value is not None and value not in choices:
                raise ValueError(f"got {name} {value!r}; expected one of {list(choices)}; choose one of them")
        if not 0 <= self.test_share <= 1:
            raise ValueError(f"got test_share {self.test_share}; expected 0 to 1; give for example 0.5")

    def split_of(self, text: str) -> str:
        """The split of a text: chosen for all, or by its hash, which no other row can change."""
        if self.split is not None:
            return self.split
        return "test" if int(_digest(text)[:8], 16) / 16**8 < self.test_share else "train"


@dataclass
class SourceCount:
    """
    What became of the rows of one file.

    Args:
        name (`str`): Name of the file, without its directory.
        format (`str`): Its format.
        sha256 (`str`): Of its content, hexadecimal.
        counts (`Counter[str]`): `"rows"`, `"prompts"`, `"attacks"`, `"duplicates"` (dropped), and `"known requests"`
            (attacked again).
        left_out (`set[str]`): Columns that prompt sets have no field for.
    """

    name: str
    format: str
    sha256: str
    counts: Counter[str] = field(default_factory=Counter)
    left_out: set[str] = field(default_factory=set)


@dataclass(frozen=True)
class Conversion:
    """
    A converted prompt set and where it comes from.

    Args:
        prompts ([`PromptSet`]): The set.
        sources (`tuple[SourceCount, ...]`): What became of each file.
        licence (`str`, *optional*): What the user says about the licence of the files.
        attacks_from (`str`, *optional*): Where further templates come from.
    """

    prompts: PromptSet
    sources: tuple[SourceCount, ...]
    licence: str | None = None
    attacks_from: str | None = None

    @property
    def sources_markdown(self) -> str:
        """`str`: What the set's SOURCES.md says."""
        lines = [
            "# Where this prompt set comes from",
            "",
            "Written by `neurontune prompts convert`. Answers that comply with a harmful request are not copied.",
            "",
            "| file | format | published as | rows | requests | attacks | duplicates dropped | SHA-256 |",
            "|---|---|---|---|---|---|---|---|",
        ]
        for source in self.sources:
            counts = (source.counts[name] for name in ("rows", "prompts", "attacks", "duplicates"))
            cells = [source.name, source.format, ORIGINS[source.format], *map(str, counts), source.sha256]
            lines.append("| " + " | ".join(cells) + " |")
        for source in self.sources:
            if source.left_out:
                lines += ["", f"Columns of {source.name} that were left out: {', '.join(sorted(source.left_out))}."]
        if self.attacks_from is not None:
            lines += ["", f"Further attack templates and phrases: {self.attacks_from}."]
        lines += [
            "",
            "## Licence",
            "",
            self.licence or "Not given. Check the licence of each file before you share it.",
        ]
        return "\n".join(lines) + "\n"

    def save(self, directory: Path) -> None:
        """
        Write the set and its SOURCES.md.

        Args:
            directory (`Path`): Where.
        """
        self.prompts.save(directory)
        (directory / "SOURCES.md").write_text(self.sources_markdown, encoding="utf-8")

    def __str__(self) -> str:
        lines = []
        for source in self.sources:
            counts = ", ".join(f"{count} {name}" for name, count in source.counts.items())
            left_out = f"; left out the columns {sorted(source.left_out)}" if source.left_out else ""
            lines.append(f"{source.name} ({source.format}): {counts}{left_out}")
        return "\n".join([*lines, str(self.prompts)])


def convert(
    paths: Sequence[Path],
    options: Options | None = None,
    *,
    templates: PromptSet | None = None,
    templates_name: str | None = None,
    licence: str | None = None,
) -> Conversion:
    """
    Make a prompt set of files in the formats of others.

    Args:
        paths (`Sequence[Path]`): The files, in the order in which their rows shall stand.
        options ([`Options`], *optional*): What the files do not say.
        templates ([`PromptSet`], *optional*): A set whose attack templates and phrases are taken over.
        templates_name (`str`, *optional*): What SOURCES.md calls that set.
        licence (`str`, *optional*): Licence of the files, for SOURCES.md.

    Returns:
        [`Conversion`]: The set. Rows that say the same are kept once.

    Raises:
        ValueError: a file or a row is wrong (the message names file and line), requests of two kinds are the same, or
            a held-out family does not exist.
        OSError: a file cannot be read.
    """
    given = options or Options()
    collected = _Collected(given)
    sources = []
    for path in paths:
        found, rows = read_source(path, given.format)
        content = hashlib.sha256(path.read_bytes()).hexdigest()
        source = SourceCount(path.name, found, content, Counter(rows=len(rows)))
        for row in rows:
            collected.take(row, source, prefix=_slug(path.stem) if found in ("csv", JSONL) else found)
        if not rows:
            raise ValueError(f"{path}: got no rows; expected at least one; fetch the file again")
        sources.append(source)
    own = () if templates is None else tuple(a for a in templates.attacks if a.template is not None)
    attacks = collected.finished_attacks(own)
    prompts = PromptSet(
        tuple(collected.prompts.values()), attacks, *([] if templates is None else [templates.phrases])
    )
    return Conversion(prompts, tuple(sources), licence, templates_name)


class _Collected:
    """Requests and attacks so far, each once."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.prompts: dict[str, Prompt] = {}  # what a request says to the request
        self.places: dict[str, str] = {}
        self.ids: set[str] = set()
        self.attacks: list[tuple[str, Attack]] = []
        self.attack_texts: set[tuple[str, str | None, str]] = set()

    def take(self, row: Row, source: SourceCount, *, prefix: str) -> None:
        is_attack = any(name in row.fields for name in ATTACK_FIELDS)
        known_fields = {f.name for f in dataclass_fields(Attack if is_attack else Prompt)}
        fields = {name: value for name, value in row.fields.items() if name in known_fields}
        source.left_out |= set(row.fields) - known_fields
        if is_attack:
            self._add_attack(row.place, at(row.place, lambda: self._attack(fields)), source)
            return
        prompt = at(row.place, lambda: self._prompt(fields, prefix))
        said = _said(prompt)
        known = self.prompts.get(said)
        if known is None:
            self.prompts[said], self.places[said] = self._with_new_id(prompt, said), row.place
            source.counts["prompts"] += 1
        else:
            self._check_same_kind(row.place, prompt, known, said)
            source.counts["known requests" if row.attack else "duplicates"] += 1
        if row.attack:
            kept = self.prompts[said]
            fields = {**row.attack, "prompt_id": kept.id, "split": kept.split}
            self._add_attack(row.place, at(row.place, lambda: from_fields(fields, Attack)), source)

    def finished_attacks(self, further: Sequence[Attack]) -> tuple[Attack, ...]:
        """All attacks, those of held-out families in the test split; their requests must exist."""
        ids = {prompt.id for prompt in self.prompts.values()}
        for place, attack in self.attacks:
            if attack.prompt_id is not None and attack.prompt_id not in ids:
                raise ValueError(
                    f"{place}: got prompt_id {attack.prompt_id!r}; expected the id of a request of these files; "
                    "correct it or remove the attack"
                )
        attacks = [*(attack for _, attack in self.attacks), *further]
        families = sorted({attack.family for attack in attacks})
        if unknown := sorted(set(self.options.held_out) - set(families)):
            raise ValueError(f"got held-out families {unknown}; expected some of {families}; correct the names")
        return tuple(replace(a, split="test") if a.family in self.options.held_out else a for a in attacks)

    def _prompt(self, fields: dict[str, Any], prefix: str) -> Prompt:
        values = {"id": "?", "response": None, "split": self.options.split or "train", **fields}
        if values.get("kind", self.options.kind) is None:
            raise ValueError(
                f"got a request without kind; expected one of {list(KINDS)}; pass --kind for rows that do not say it"
            )
        values = {"kind": self.options.kind, "source": prefix, **values}
        prompt = from_fields(values, Prompt)
        if "split" not in fields:
            prompt = replace(prompt, split=self.options.split_of(_said(prompt)))  # type: ignore[arg-type]
        return replace(prompt, id=f"{prefix}-{_digest(_said(prompt))[:10]}") if prompt.id == "?" else prompt

    def _with_new_id(self, prompt: Prompt, said: str) -> Prompt:
        taken = prompt.id in self.ids
        prompt = replace(prompt, id=f"{prompt.id}-{_digest(said)[:6]}") if taken else prompt
        self.ids.add(prompt.id)
        return prompt

    def _check_same_kind(self, place: str, prompt: Prompt, known: Prompt, said: str) -> None:
        if prompt.kind != known.kind:
            raise ValueError(
                f"{place}: got a {prompt.kind} request that is {known.kind} in {self.places[said]}; expected one "
                "kind; remove one of the two"
            )

    def _attack(self, fields: dict[str, Any]) -> Attack:
        values = dict(fields)
        if "family" not in values:
            raise ValueError("got an attack without family; expected the name of its class of attacks; add family")
        text = str(values.get("template") or values.get("attacked_prompt") or "")
        if self.options.placeholder and "template" in values:
            values["template"] = text.replace(self.options.placeholder, PLACEHOLDER)
        values = {"name": f"{values['family']}-{_digest(text)[:10]}", "split": self.options.split_of(text), **values}
        return from_fields(values, Attack)

    def _add_attack(self, place: str, attack: Attack, source: SourceCount) -> None:
        key = (attack.family, attack.prompt_id, str(attack.template or attack.attacked_prompt))
        if key in self.attack_texts:
            source.counts["duplicates"] += 1
            return
        self.attack_texts.add(key)
        self.attacks.append((place, attack))
        source.counts["attacks"] += 1


def _said(prompt: Prompt) -> str:
    """What a request says, whatever its case and spacing."""
    text = prompt.prompt.shown if isinstance(prompt.prompt, Request) else prompt.prompt
    return " ".join(text.casefold().split())


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "prompts"
