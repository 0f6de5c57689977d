"""What is wrong with a prompt set? Everything at once, with file and line."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from neurontune_peft.prompts.convert.formats import check_content
from neurontune_peft.prompts.prompt_set import CONTENTS, PromptSet, check_tunable
from neurontune_peft.prompts.records import Attack, Phrases, Prompt, at, from_fields, parse_object, read_text

T = TypeVar("T", Prompt, Attack)


@dataclass(frozen=True)
class Findings:
    """
    What a look at a prompt set found.

    Args:
        errors (`tuple[str, ...]`): What keeps it from being loaded.
        notes (`tuple[str, ...]`): What it lacks for tuning or for a claim.
        prompts (`int`): Requests that can be read.
        attacks (`int`): Attacks that can be read.
    """

    errors: tuple[str, ...]
    notes: tuple[str, ...]
    prompts: int
    attacks: int


def check(path: str | os.PathLike[str]) -> Findings:
    """
    Look for everything that is wrong with a prompt set.

    Args:
        path (`str` or `os.PathLike`): Its directory.

    Returns:
        [`Findings`]: All errors with file and line, and what is missing.

    Raises:
        ValueError: there is no such directory.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise ValueError(f"got {folder}, which is no directory; expected {CONTENTS}; give such a directory")
    errors: list[str] = []
    prompts = _records(folder / "prompts.jsonl", Prompt, errors)
    attacks = _records(folder / "attacks.jsonl", Attack, errors)
    seen: dict[str, str] = {}
    for place, prompt in prompts:
        if prompt.id in seen:
            errors.append(
                f"{place}: got the id {prompt.id!r} again (first in {seen[prompt.id]}); expected unique ids; "
                "rename one"
            )
        seen.setdefault(prompt.id, place)
    for place, attack in attacks:
        if attack.prompt_id is not None and attack.prompt_id not in seen:
            errors.append(
                f"{place}: got prompt_id {attack.prompt_id!r}; expected the id of a prompt in prompts.jsonl; correct "
                "the id or remove the attack"
            )
    _check_phrases(folder / "phrases.json", errors)
    notes = () if errors else _notes(PromptSet(tuple(p for _, p in prompts), tuple(a for _, a in attacks)))
    return Findings(tuple(errors), notes, len(prompts), len(attacks))


def _records(path: Path, make: type[T], errors: list[str]) -> list[tuple[str, T]]:
    try:
        if not path.is_file():
            raise ValueError(f"got no such file; expected {CONTENTS}; add the file")
        text = read_text(path)
        if make is Prompt or text.strip():  # a set may do without attacks
            check_content(text)
    except ValueError as error:
        errors.append(f"{path}: {error}")
        return []
    found = []
    for number, line in enumerate(text.split("\n"), start=1):
        place = f"{path}, line {number}"
        if line.strip():
            try:
                found.append((place, from_fields(parse_object(line), make)))
            except ValueError as error:
                errors.append(f"{place}: {error}")
    return found


def _check_phrases(path: Path, errors: list[str]) -> None:
    if path.exists():
        try:
            at(str(path), lambda: from_fields(parse_object(read_text(path)), Phrases))
        except ValueError as error:
            errors.append(str(error))


def _notes(prompts: PromptSet) -> tuple[str, ...]:
    notes = []
    try:
        check_tunable(prompts)
    except ValueError as error:
        notes.append(f"cannot be tuned on: {error}")
    tests = prompts.select(kind="harmful", split="test")
    for family in prompts.families(split="test"):
        if not prompts.attackable(tests, family=family, split="test"):
            notes.append(f"family '{family}' fits no harmful test request; it would not be measured")
    if not prompts.held_out_families:
        notes.append("no held-out family: nothing shows how tuning fares on attacks that it never saw")
    if not prompts.select(kind="borderline", split="test"):
        notes.append("no borderline test requests: over-refusal would not be measured")
    if not prompts.templates(split="test"):
        notes.append("no test templates: refusals of benign requests inside templates would not be measured")
    texts: dict[str, list[str]] = {}
    for prompt in prompts.prompts:
        texts.setdefault(" ".join(prompt.prompt.casefold().split()), []).append(prompt.split)
    if repeated := sum(len(splits) > 1 for splits in texts.values()):
        crossing = sum(len(set(splits)) > 1 for splits in texts.values())
        notes.append(f"{repeated} requests stand there more than once, {crossing} of them in both splits")
    return tuple(notes)
