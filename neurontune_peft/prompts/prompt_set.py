"""Which requests and attacks is a model tuned and measured on? A prompt set, read from and written to a directory."""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path

from neurontune_peft.checks import write_atomically
from neurontune_peft.prompts.records import (
    KINDS,
    SPLITS,
    Attack,
    Phrases,
    Prompt,
    at,
    from_fields,
    parse_object,
    read_jsonl,
    read_text,
)

DEFAULT = Path(__file__).parent / "data" / "default"
CONTENTS = "a directory with prompts.jsonl, attacks.jsonl and, if you like, phrases.json"


@dataclass(frozen=True)
class PromptSet:
    """
    Plain requests, the attacks on them, and openings of answers.

    Args:
        prompts (`tuple[Prompt, ...]`): The requests; their order decides which template each gets.
        attacks (`tuple[Attack, ...]`, *optional*, defaults to `()`): Templates and attacks made per request.
        phrases (`Phrases`, *optional*): Openings for the refusal margin; built-in ones when left out.

    Raises:
        ValueError: two requests share an id, or an attack names a request that does not exist.
    """

    prompts: tuple[Prompt, ...]
    attacks: tuple[Attack, ...] = ()
    phrases: Phrases = field(default_factory=Phrases)

    def __post_init__(self) -> None:
        object.__setattr__(self, "prompts", tuple(self.prompts))
        object.__setattr__(self, "attacks", tuple(self.attacks))
        _check_ids((f"prompt {number}", p) for number, p in enumerate(self.prompts, start=1))
        ids = {prompt.id for prompt in self.prompts}
        for attack in self.attacks:
            at(f"attack {attack.name!r}", lambda attack=attack: _check_target(attack, ids))  # type: ignore[misc]

    @classmethod
    def load(cls, path: str | os.PathLike[str] | None = None) -> "PromptSet":
        """
        Read a prompt set.

        Args:
            path (`str` or `os.PathLike`, *optional*): Directory with `prompts.jsonl`, `attacks.jsonl` and an optional
                `phrases.json`. Left out, the set that ships with this package.

        Returns:
            `PromptSet`: The set.

        Raises:
            ValueError: a file is missing or a line is wrong; the message names the file and the line.
        """
        folder = DEFAULT if path is None else Path(path)
        if not folder.is_dir():
            raise ValueError(f"got {folder}, which is no directory; expected {CONTENTS}; give such a directory")
        for name in ("prompts.jsonl", "attacks.jsonl"):
            if not (folder / name).is_file():
                raise ValueError(f"got {folder} without {name}; expected {CONTENTS}; add the file")
        prompts = list(read_jsonl(folder / "prompts.jsonl", Prompt))
        _check_ids(prompts)
        ids = {prompt.id for _, prompt in prompts}
        attacks = []
        for place, attack in read_jsonl(folder / "attacks.jsonl", Attack):
            at(place, lambda attack=attack: _check_target(attack, ids))  # type: ignore[misc]
            attacks.append(attack)
        return cls(tuple(prompt for _, prompt in prompts), tuple(attacks), _read_phrases(folder / "phrases.json"))

    def save(self, path: str | os.PathLike[str]) -> None:
        """
        Write the set to a directory, which is made when it does not exist.

        Args:
            path (`str` or `os.PathLike`): The directory.
        """
        folder = Path(path)
        folder.mkdir(parents=True, exist_ok=True)
        for name, records in (("prompts.jsonl", self.prompts), ("attacks.jsonl", self.attacks)):
            write_atomically(folder / name, "".join(_line(record) for record in records))
        phrases = json.dumps(asdict(self.phrases), indent=1, ensure_ascii=False)
        write_atomically(folder / "phrases.json", phrases + "\n")

    @cached_property
    def fingerprint(self) -> str:
        """`str`: SHA-256 of the content (hexadecimal), independent of the order of keys and of formatting."""
        content = asdict(self)
        # Fields of conversations, which count where there are any.
        content["prompts"] = [
            {name: value for name, value in prompt.items() if value is not None or name not in ("system", "messages")}
            for prompt in content["prompts"]
        ]
        canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()

    def select(self, *, kind: str | None = None, split: str | None = None) -> tuple[Prompt, ...]:
        """
        Requests of one kind and split, in the order of the set.

        Args:
            kind (`str`, *optional*): `"harmful"`, `"benign"` or `"borderline"`; all kinds when left out.
            split (`str`, *optional*): `"train"` or `"test"`; both when left out.

        Returns:
            `tuple[Prompt, ...]`: The requests.
        """
        for name, value, choices in (("kind", kind, KINDS), ("split", split, SPLITS)):
            if value is not None and value not in choices:
                raise ValueError(f"got {name} {value!r}; expected one of {list(choices)}; choose one of them")
        return tuple(p for p in self.prompts if kind in (None, p.kind) and split in (None, p.split))

    @property
    def train_families(self) -> tuple[str, ...]:
        """`tuple[str, ...]`: Families with at least one attack for training, in the order of the set."""
        return tuple(dict.fromkeys(a.family for a in self.attacks if a.split == "train"))

    @property
    def held_out_families(self) -> tuple[str, ...]:
        """`tuple[str, ...]`: Families with attacks for testing only, in the order of the set."""
        train = self.train_families
        return tuple(dict.fromkeys(a.family for a in self.attacks if a.family not in train))

    def families(self, *, split: str) -> tuple[str, ...]:
        """
        Families that have an attack of one split, in the order of the set.

        Args:
            split (`str`): `"train"` or `"test"`.

        Returns:
            `tuple[str, ...]`: The families.
        """
        return tuple(dict.fromkeys(a.family for a in self.attacks if a.split == split))

    def templates(self, *, split: str, families: Sequence[str] | None = None) -> tuple[Attack, ...]:
        """
        Attacks with a template, families sorted by name and templates of a family in the order of the set.

        Args:
            split (`str`): `"train"` or `"test"`.
            families (`Sequence[str]`, *optional*): Families to take; all when left out.

        Returns:
            `tuple[Attack, ...]`: The attacks.
        """
        found = [a for a in self.attacks if a.split == split and a.template is not None]
        return tuple(sorted((a for a in found if families is None or a.family in families), key=lambda a: a.family))

    def attackable(self, prompts: Sequence[Prompt], *, family: str, split: str) -> tuple[Prompt, ...]:
        """
        Requests for which a family has an attack: all when it has templates, else those it was made for.

        Args:
            prompts (`Sequence[Prompt]`): Plain requests.
            family (`str`): The attack family.
            split (`str`): Split of the attacks.

        Returns:
            `tuple[Prompt, ...]`: The requests, in their order.
        """
        attacks = [a for a in self.attacks if a.family == family and a.split == split]
        if any(a.template is not None for a in attacks):
            return tuple(prompts)
        made_for = {a.prompt_id for a in attacks}
        return tuple(p for p in prompts if p.id in made_for)

    def attacked(self, prompts: Sequence[Prompt], *, family: str, split: str) -> list[str]:
        """
        Attack each request once: with an attack made for it where there is one, else with template `i % n`.

        Args:
            prompts (`Sequence[Prompt]`): Plain requests.
            family (`str`): The attack family.
            split (`str`): Split of the attacks.

        Returns:
            `list[str]`: Attacked requests, one for each of `prompts`.

        Raises:
            ValueError: the family has no attack of that split for one of the requests.
        """
        attacks = [a for a in self.attacks if a.family == family and a.split == split]
        templates = [a for a in attacks if a.template is not None]
        own: dict[str | None, list[Attack]] = {}
        for attack in attacks:
            if attack.template is None:
                own.setdefault(attack.prompt_id, []).append(attack)
        if lacking := [p.id for p in prompts if not templates and p.id not in own]:
            raise ValueError(
                f"got {len(lacking)} prompts (such as {lacking[0]!r}) without a {split} attack of family {family!r}; "
                f"expected a template or an attack for each; choose one of {list(self.families(split=split))} or "
                "take the prompts that attackable() returns"
            )
        turns = [own.get(prompt.id) or templates for prompt in prompts]
        return [turns[i][i % len(turns[i])].apply(prompt.prompt) for i, prompt in enumerate(prompts)]

    def wrapped(self, prompts: Sequence[Prompt], *, split: str, families: Sequence[str] | None = None) -> list[str]:
        """
        Put requests, usually benign ones, into attack templates: a defence may not simply refuse every template.

        Args:
            prompts (`Sequence[Prompt]`): Plain requests.
            split (`str`): Split of the templates.
            families (`Sequence[str]`, *optional*): Families to take templates from; all when left out.

        Returns:
            `list[str]`: One text for each of `prompts`; the templates of all families (sorted by name) take turns.

        Raises:
            ValueError: there is no such template.
        """
        templates = self.templates(split=split, families=families)
        if prompts and not templates:
            raise ValueError(
                f"got no {split} template in families {list(families or self.families(split=split))}; expected at "
                "least one; add attacks with a template"
            )
        return [templates[i % len(templates)].apply(p.prompt) for i, p in enumerate(prompts)]

    def __str__(self) -> str:
        counts: Counter[tuple[str, str]] = Counter((p.kind, p.split) for p in self.prompts)
        lines = [f"PromptSet {self.fingerprint[:12]}"]
        lines += [f"  {kind:<11}" + ", ".join(f"{counts[kind, s]} {s}" for s in SPLITS) for kind in KINDS]
        lines.append(f"  train families: {', '.join(self.train_families) or 'none'}")
        lines.append(f"  held-out families: {', '.join(self.held_out_families) or 'none'}")
        return "\n".join(lines)


def check_tunable(prompt_set: PromptSet) -> None:
    """
    Check that a prompt set holds what tuning and measuring need.

    Args:
        prompt_set (`PromptSet`): The set.

    Raises:
        ValueError: it has no harmful or no benign prompts for training, none of one of the two for testing, or no
            attack family for training.
    """
    for split in ("train", "test"):
        if not prompt_set.select(split=split):
            raise ValueError(
                f"got a prompt set without {split} prompts; expected harmful and benign prompts of both splits; "
                f'add prompts with "split": "{split}"'
            )
    for split in ("train", "test"):
        for kind in ("harmful", "benign"):
            if not prompt_set.select(kind=kind, split=split):
                raise ValueError(
                    f"got a prompt set without {kind} {split} prompts; expected harmful and benign prompts of both "
                    f'splits; add prompts with "kind": "{kind}" and "split": "{split}"'
                )
    if not prompt_set.train_families:
        raise ValueError(
            "got a prompt set without an attack family for training; expected at least one; "
            'add attacks with "split": "train"'
        )


def _check_ids(prompts: Iterable[tuple[str, Prompt]]) -> None:
    seen: dict[str, str] = {}
    for place, prompt in prompts:
        if prompt.id in seen:
            raise ValueError(
                f"{place}: got the id {prompt.id!r} again (first in {seen[prompt.id]}); expected unique ids; "
                "rename one"
            )
        seen[prompt.id] = place


def _check_target(attack: Attack, ids: set[str]) -> None:
    if attack.prompt_id is not None and attack.prompt_id not in ids:
        raise ValueError(
            f"got prompt_id {attack.prompt_id!r}; expected the id of a prompt in prompts.jsonl; "
            "correct the id or remove the attack"
        )


def _read_phrases(path: Path) -> Phrases:
    if not path.exists():
        return Phrases()
    return at(str(path), lambda: from_fields(parse_object(read_text(path)), Phrases))


def _line(record: Prompt | Attack) -> str:
    shown = {name: value for name, value in asdict(record).items() if value is not None or name == "response"}
    if "messages" in shown:
        del shown["prompt"]  # it is the last of them
    return json.dumps(shown, ensure_ascii=False) + "\n"
