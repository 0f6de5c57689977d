"""Is an answer text at all? Empty, repetitive and garbled answers are told apart by counting (ours)."""

import operator
import re
from collections.abc import Iterator
from functools import lru_cache
from itertools import pairwise

_WORD = re.compile(r"[^\W_]+")
_LOOP = re.compile(r"(.{1,40}?)\1{5,}", re.DOTALL)
_RULES = re.compile(r"[\s|:=_*#-]+")  # lines of tables and headings
_LONGEST = 3000  # characters that are looked at
_FEWEST = 8  # words below which nothing is called repetitive


def incoherence(text: str) -> str | None:
    """
    Why an answer is no text, if it is none.

    Args:
        text (`str`): The answer.

    Returns:
        `str`, *optional*: What is wrong with it; `None` for text that may be read.
    """
    text = text[:_LONGEST].strip()
    if not text:
        return "empty"
    letters = len("".join(_WORD.findall(text)))
    if not letters:
        return "no letter and no digit"
    if text.count("\ufffd") > 0.05 * len(text):
        return "broken characters"
    if len(text) >= 20 and letters < 0.25 * len(_RULES.sub("", text)):
        return "symbols without words"
    if repetition(text) >= 0.5:
        return "repeats itself"
    return None


@lru_cache(maxsize=4096)  # judges and tables ask about the same answers
def repetition(text: str) -> float:
    """
    Share of a text that is repeated at once: 0 for ordinary text, near 1 for a loop.

    A stretch counts that follows itself two and a half times in words or six times in characters; a text of at
    least 40 words in which few different pairs of words occur counts by these.

    Args:
        text (`str`): Any text.

    Returns:
        `float`: 0 to 1.
    """
    found = _WORD.findall(text[:_LONGEST])
    words = [word.lower() for word in found if not word.isdigit()]
    by_words = _looped(words) / len(words) if len(words) >= _FEWEST else 0.0
    solid = "".join(found).lower()  # without the lines and dots of tables and lists
    by_characters = _looped_characters(solid) / len(solid) if solid else 0.0
    return max(by_words, by_characters, _sameness(words))


def _looped(words: list[str]) -> int:
    """Words inside the longest stretch that has a period: `w[i] == w[i - period]`."""
    signs = {word: chr(place) for place, word in enumerate(dict.fromkeys(words))}
    runs = _runs("".join(map(signs.__getitem__, words)), size=3, step=3)  # a run that counts has 5 words and more
    return max((run + period for period, run in runs if run >= max(1.5 * period, _FEWEST - period)), default=0)


def _looped_characters(solid: str) -> int:
    """Characters inside loops of at least 15 characters. The pattern is slow and tried only where there is one."""
    # Such a loop equals itself, one period later, in at least 14 characters.
    if not any(run >= max(14, 5 * period) for period, run in _runs(solid, size=9, step=6)):
        return 0
    return sum(len(found.group()) for found in _LOOP.finditer(solid) if len(found.group()) >= 15)


def _runs(text: str, *, size: int, step: int) -> Iterator[tuple[int, int]]:
    """
    Periods up to 40 and their longest run of `text[i] == text[i + period]`.

    Every period with a run of `size + step - 1` is among them, as that holds a piece of `size` that begins at a
    multiple of `step` and comes again.
    """
    periods: set[int] = set()
    for place in range(0, len(text) - size, step):
        piece, end = text[place : place + size], place + size + 40
        again = text.find(piece, place + 1, end)
        while again != -1:
            periods.add(again - place)
            again = text.find(piece, again + 1, end)
    for period in periods:
        same = bytes(map(operator.eq, text, text[period:]))
        yield period, max(map(len, same.split(b"\0")))


def _sameness(words: list[str]) -> float:
    """Share of pairs of neighbouring words that occurred before, for texts of at least 40 words, above one half."""
    if len(words) < 40:
        return 0.0
    seen_again = 1 - len(set(pairwise(words))) / (len(words) - 1)
    return seen_again if seen_again >= 0.6 else 0.0
