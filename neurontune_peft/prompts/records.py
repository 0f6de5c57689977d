"""What one line of `prompts.jsonl` and `attacks.jsonl` and the file `phrases.json` hold."""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

from neurontune_peft.prompts.conversation import Message, Request, parse_messages, with_text

Kind = Literal["harmful", "benign", "borderline"]
Split = Literal["train", "test"]
KINDS = ("harmful", "benign", "borderline")
SPLITS = ("train", "test")
PLACEHOLDER = "{prompt}"
T = TypeVar("T")


@dataclass(frozen=True)
class Prompt:
    """
    One request of a prompt set.

    Args:
        id (`str`): Name of the request, unique within its prompt set.
        prompt (`str`): The plain request.
        kind (`str`): `"harmful"`, `"benign"`, or `"borderline"` (safe, but it sounds dangerous).
        response (`str`, *optional*): Reference answer; `None` where there is none.
        split (`str`): `"train"` or `"test"`.
        source (`str`, *optional*): Where the request comes from.
        system (`str`, *optional*): System prompt.
        messages (`Sequence[Message]`, *optional*): The whole conversation, for a request that is its last turn, as
            [`Message`] or as objects with `role` and `content`. `prompt` is that turn's text.

    With `system` or `messages`, `prompt` is a [`Request`]: a text that knows the turns before it.

    Raises:
        ValueError: a field has the wrong type, is empty, or names an unknown kind or split; or `messages` are no
            conversation that ends in `prompt`.
    """

    id: str
    prompt: str
    kind: Kind
    response: str | None
    split: Split
    source: str | None = None
    system: str | None = None
    messages: tuple[Message, ...] | None = None

    def __post_init__(self) -> None:
        _check_texts(self, required=("id", "prompt"), optional=("response", "source"))
        _check_choice("kind", self.kind, KINDS)
        _check_choice("split", self.split, SPLITS)
        before: tuple[Message, ...] = ()
        if self.system is not None:
            before = (at("system", lambda: Message("system", cast(str, self.system))),)
        if self.messages is not None:
            turns = parse_messages(self.messages)
            object.__setattr__(self, "messages", turns)
            self._check_conversation(turns)
            before += turns[:-1]
        if before:
            object.__setattr__(self, "prompt", Request(str(self.prompt), before))

    def _check_conversation(self, turns: tuple[Message, ...]) -> None:
        if turns[-1].content != str(self.prompt):
            raise ValueError(
                f"got prompt {_short(str(self.prompt))} beside messages that end in {_short(turns[-1].content)}; "
                "expected the same text; leave prompt out"
            )
        if self.system is not None and turns[0].role == "system":
            raise ValueError("got system beside messages that begin with one; expected one of them; leave system out")


@dataclass(frozen=True)
class Attack:
    """
    One jailbreak: either a template for every request, or the attacked form of one request.

    Args:
        family (`str`): Class of jailbreaks, one meta-learning task.
        name (`str`): Name of this attack within its family.
        split (`str`): `"train"` or `"test"`.
        template (`str`, *optional*): Text that holds the literal `{prompt}`; other braces are kept as they are.
        prompt_id (`str`, *optional*): The request that this attack was made for.
        attacked_prompt (`str`, *optional*): The attacked form of that request.

    Raises:
        ValueError: a field is wrong, or the attack has both or neither of `template` and `prompt_id` with
            `attacked_prompt`.
    """

    family: str
    name: str
    split: Split
    template: str | None = None
    prompt_id: str | None = None
    attacked_prompt: str | None = None

    def __post_init__(self) -> None:
        optional = ("template", "prompt_id", "attacked_prompt")
        _check_texts(self, required=("family", "name"), optional=optional)
        _check_choice("split", self.split, SPLITS)
        given = tuple(name for name in optional if getattr(self, name) is not None)
        if given not in (("template",), ("prompt_id", "attacked_prompt")):
            raise ValueError(
                f"got {' and '.join(given) or 'no text'} in attack {self.name!r}; expected either template, or "
                "prompt_id and attacked_prompt; keep one of the two forms"
            )
        if self.template is not None and PLACEHOLDER not in self.template:
            raise ValueError(
                f"got the template {_short(self.template)} in attack {self.name!r}; expected a text that holds "
                f"{PLACEHOLDER}; mark the place of the request with the literal {PLACEHOLDER}"
            )

    def apply(self, prompt: str) -> str:
        """
        Put a request into the template.

        Args:
            prompt (`str`): The plain request. Turns before it stay as they are.

        Returns:
            `str`: The attacked request. An attack made for one request returns its own text.
        """
        # str.format would choke on braces in templates
        text = self.attacked_prompt if self.template is None else self.template.replace(PLACEHOLDER, str(prompt))
        return with_text(prompt, cast(str, text))


@dataclass(frozen=True)
class Phrases:
    """
    Openings of answers, for objectives on the margin between refusing and complying.

    Args:
        refusal (`tuple[str, ...]`, *optional*): Openings of refusals.
        compliance (`tuple[str, ...]`, *optional*): Openings of answers that comply.

    Raises:
        ValueError: one of the two is empty or holds something other than texts.
    """

    refusal: tuple[str, ...] = (
        "I'm sorry, but I can't help with that.",
        "I cannot assist with that request.",
        "I can't help with this because it could cause harm.",
        "Sorry, but I won't do that.",
        "I'm not able to help with anything illegal or dangerous.",
        "I must decline this request.",
        "As an AI, I cannot provide that information.",
        "Unfortunately, I can't help with that request.",
    )
    compliance: tuple[str, ...] = (
        "Sure, here is",
        "Sure, I can help with that.",
        "Of course! Here is",
        "Here are some steps you can take:",
        "The first step is to",
        "One way to do this is to",
        "Yes, here is how to do it:",
        "To do this, you need to",
    )

    def __post_init__(self) -> None:
        for role in ("refusal", "compliance"):
            texts = getattr(self, role)
            if not texts or isinstance(texts, str) or not all(isinstance(t, str) and t.strip() for t in texts):
                raise ValueError(
                    f"got {role} phrases {texts!r}; expected a list of at least one text; give openings of answers"
                )
            object.__setattr__(self, role, tuple(texts))


def read_jsonl(path: Path, make: type[T]) -> Iterator[tuple[str, T]]:
    """
    Read one record from each line of a JSONL file.

    Args:
        path (`Path`): The file; empty lines are skipped.
        make (`type`): Dataclass of the records.

    Yields:
        `tuple[str, T]`: Place of the record (file and line) and the record.

    Raises:
        ValueError: a line is not a JSON object of the fields of `make`; the message names the file and the line.
    """
    # not splitlines: JSON strings may hold U+2028 and other characters that it takes for the end of a line
    for number, line in enumerate(at(str(path), lambda: read_text(path)).split("\n"), start=1):
        if line.strip():
            place = f"{path}, line {number}"
            yield place, at(place, lambda text=line: from_fields(parse_object(text), make))  # type: ignore[misc]


def read_text(path: Path) -> str:
    """
    Read a text file.

    Args:
        path (`Path`): The file.

    Returns:
        `str`: Its content.

    Raises:
        ValueError: the file is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"got bytes that are not UTF-8 ({error}); expected UTF-8; convert it") from None


def parse_object(text: str) -> dict[str, Any]:
    """
    Parse a JSON object.

    Args:
        text (`str`): JSON.

    Returns:
        `dict[str, Any]`: The object.

    Raises:
        ValueError: the text is not JSON or not an object.
    """
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, " if error.lineno > 1 else ""
        raise ValueError(
            f"got invalid JSON ({error.msg}, {where}column {error.colno}); expected one JSON object; correct it"
        ) from None
    if not isinstance(value, dict):
        raise ValueError(f"got a JSON {type(value).__name__}; expected a JSON object; write {{...}}")
    return value


def from_fields(values: Mapping[str, Any], make: type[T]) -> T:
    """
    Make a record from the fields of a JSON object; fields that may be null may be left out.

    Args:
        values (`Mapping[str, Any]`): Fields by name.
        make (`type`): Dataclass of the record.

    Returns:
        `T`: The record.

    Raises:
        ValueError: a field is unknown, missing or wrong.
    """
    known = {field.name: field for field in fields(make)}  # type: ignore[arg-type]
    if "messages" in known and values.get("messages") is not None and "prompt" not in values:
        values = {**values, "prompt": parse_messages(values["messages"])[-1].content}
    if unknown := sorted(set(values) - set(known)):
        raise ValueError(f"got unknown fields {unknown}; expected {list(known)}; rename or remove them")
    null = {"response"} & set(known)
    missing = [n for n, f in known.items() if f.default is MISSING and n not in values and n not in null]
    if missing:
        raise ValueError(f"got no {missing}; expected the fields {list(known)}; add what is missing")
    return make(**{**dict.fromkeys(null), **values})


def at(place: str, make: Callable[[], T]) -> T:
    """
    Call a function and put the place into the message of a `ValueError`.

    Args:
        place (`str`): File and line.
        make (`Callable`): Function without arguments.

    Returns:
        `T`: Its result.

    Raises:
        ValueError: with the place in front of the message.
    """
    try:
        return make()
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from None


def _check_texts(record: object, *, required: tuple[str, ...], optional: tuple[str, ...]) -> None:
    for name in required + optional:
        value = getattr(record, name)
        if value is None and name in optional:
            continue
        if not isinstance(value, str) or (name in required and not value.strip()):
            raise ValueError(f"got {name} {_short(value)}; expected a text; write a string that is not empty")


def _check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"got {name} {_short(value)}; expected one of {list(choices)}; choose one of them")


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
