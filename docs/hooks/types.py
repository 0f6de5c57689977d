"""Docstrings write `` `int`, *optional*, defaults to `1` ``; the reference has columns for types and defaults."""

import re
from typing import Any

import griffe

ARGUMENT = re.compile(r"^(\s+\*{0,2}\w+) \((`.+?`.*?)\):", re.MULTILINE)
RESULT = re.compile(r"^(\s+)(`[^`\n]+`)(, \*optional\*)?: ", re.MULTILINE)


def short(match: re.Match[str]) -> str:
    """The name and the bare types."""
    kinds = re.sub(r", \*optional\*.*", "", match[2]).replace("`", "")
    return f"{match[1]} ({kinds}):"


class ShortTypes(griffe.Extension):
    """Takes the markup out of the types of arguments."""

    def on_object(self, *, obj: griffe.Object, **options: Any) -> None:
        """Rewrite a docstring before it is parsed."""
        if obj.docstring is not None:
            text = ARGUMENT.sub(short, obj.docstring.value)
            obj.docstring.value = RESULT.sub(lambda m: f"{m[1]}{m[2].strip('`')}: ", text)
