"""Requests that come at the end of a conversation, or under a system prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

Role = Literal["system", "user", "assistant"]
ROLES = ("system", "user", "assistant")


@dataclass(frozen=True)
class Message:
    """
    One turn of a conversation.

    Args:
        role (`str`): `"system"`, `"user"` or `"assistant"`.
        content (`str`): What was said.

    Raises:
        ValueError: the role is unknown, or the content is empty or no text.
    """

    role: Role
    content: str

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            raise ValueError(f"got role {self.role!r}; expected one of {list(ROLES)}; choose one of them")
        if not isinstance(self.content, str) or not self.content.strip():
            raise ValueError(
                f"got content {self.content!r} of role {self.role!r}; expected a text; write a string with content"
            )


class Request(str):
    """
    The last request of a conversation, with the turns before it.

    It is a text like any other request, so that templates, judges and tables see the request, and only what writes
    it for a model looks at the turns. Two requests are equal when their turns are, too.

    Args:
        text (`str`): The last request.
        before (`Sequence[Message]`): The turns before it, the oldest first.
    """

    before: tuple[Message, ...]

    def __new__(cls, text: str, before: Sequence[Message]) -> Request:
        made = super().__new__(cls, text)
        made.before = tuple(before)
        return made

    def __getnewargs__(self) -> Any:  # how copies are made
        return str(self), self.before

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Request) and str(self) == str(other) and self.before == other.before

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:
        return hash((str(self), self.before))

    @property
    def shown(self) -> str:
        """`str`: All turns, each with its role in front."""
        return "\n".join(f"[{turn.role}] {turn.content}" for turn in (*self.before, Message("user", str(self))))


def turns_of(request: str) -> list[dict[str, str]]:
    """
    A request as chat templates take it.

    Args:
        request (`str`): A text, or a [`Request`].

    Returns:
        `list[dict[str, str]]`: The turns; the last one is the user's.
    """
    before = request.before if isinstance(request, Request) else ()
    return [{"role": turn.role, "content": turn.content} for turn in before] + [
        {"role": "user", "content": str(request)}
    ]


def with_text(request: str, text: str) -> str:
    """
    Another text in the place of a request.

    Args:
        request (`str`): A text, or a [`Request`].
        text (`str`): The other text.

    Returns:
        `str`: The text, after the same turns.
    """
    return Request(text, request.before) if isinstance(request, Request) else text


def parse_messages(values: Any) -> tuple[Message, ...]:
    """
    Read the turns of a conversation.

    Args:
        values (`Any`): A list of [`Message`] or of objects with `role` and `content`.

    Returns:
        `tuple[Message, ...]`: The turns.

    Raises:
        ValueError: it is no such list, the last turn is not the user's, a system prompt is not the first turn, or
            user and assistant do not take turns.
    """
    if not isinstance(values, (list, tuple)) or not values:
        raise ValueError(f"got messages {values!r:.60}; expected a list of turns; write {{role, content}} objects")
    turns = []
    for number, value in enumerate(values, start=1):
        if not isinstance(value, Message) and (not isinstance(value, dict) or set(value) != {"role", "content"}):
            raise ValueError(
                f"got turn {number} of messages {value!r:.60}; expected an object with role and content; correct it"
            )
        turns.append(value if isinstance(value, Message) else Message(**value))
    spoken = turns[1:] if turns[0].role == "system" else turns
    expected = ["user", "assistant"] * len(spoken)
    roles = [turn.role for turn in spoken]
    if roles != expected[: len(spoken)] or len(roles) % 2 == 0:
        raise ValueError(
            f"got messages with the roles {[turn.role for turn in turns]}; expected a system prompt or none, then "
            "user and assistant in turns, the user last; correct their order"
        )
    return tuple(turns)
