"""Nothing private is published: no token, no path of this machine, no name of a user."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from huggingface_hub import get_token

from neurontune_peft.tuner.saved import is_local_name

# Tokens of the Hub, and the beginnings of absolute paths of users.
_TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{20,}")
_HOME = re.compile(r"(?:/home/|/Users/|/root/|[A-Z]:\\\\?Users\\)[^\s\"']*")


def check_publishable(files: Mapping[str, bytes]) -> None:
    """
    Refuse texts that hold a token, or a path that tells of this machine and its user.

    Args:
        files (`Mapping[str, bytes]`): Name to content of what shall be published.

    Raises:
        ValueError: Names the file; never shows a token.
    """
    token, home = get_token(), str(Path.home())
    for name, content in files.items():
        text = content.decode("utf-8", errors="ignore")
        if _TOKEN.search(text) or (token and token in text):
            raise ValueError(
                f"got '{name}' with what looks like an access token; expected none; revoke it and take it out"
            )
        found = _HOME.search(text)
        path = found[0] if found else home if len(home) > 2 and home in text else None
        if path:
            raise ValueError(
                f"got '{name}' with the local path '{path[:120]}'; expected nothing of this machine; take it out, or "
                "pass --base-model NAME when it is the base model"
            )


def published_base(name: str | None, base_model: str | None) -> str:
    """
    The name under which others find the base model.

    Args:
        name (`str`, *optional*): What the adapter's configuration says.
        base_model (`str`, *optional*): What the user says; it goes first.

    Raises:
        ValueError: When neither is a name on the Hub.
    """
    chosen = base_model or name
    parts = chosen.split("/") if chosen else []
    if chosen is None or len(parts) > 2 or not all(parts) or (not base_model and is_local_name(chosen)):
        raise ValueError(
            f"got an adapter of the base model {chosen!r}; expected a name on the Hub, as others do not have this "
            "path; pass --base-model USER/NAME"
        )
    return chosen


def shared_command(command: str, *, base_model: str) -> str:
    """
    A command without the paths of this machine.

    Args:
        command (`str`): The command, as it was typed.
        base_model (`str`): The base model's published name.
    """
    words = command.split(" ")
    if words[:2] == ["neurontune", "tune"] and len(words) > 2 and not words[2].startswith("-"):
        words[2] = base_model
    return " ".join(PurePosixPath(word).name if word.startswith(("/", "~")) else word for word in words)
