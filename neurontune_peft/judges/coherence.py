"""Is an answer text at all? Empty, repetitive and garbled answers are told apart by counting (ours)."""

import re
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
    letters = sum(character.isalnum() for character in text)
    if not letters:
        return "no letter and no digit"
    if text.count("\ufffd") > 0.05 * len(text):
        return "broken characters"
    if len(text) >= 20 and letters < 0.25 * len(_RULES.sub("", text)):
        return "symbols without words"
    if repetition(text) >= 0.5:
        return "repeats itself"
    return None


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
    text = text[:_LONGEST]
    words = [word.lower() for word in _WORD.findall(text) if not word.isdigit()]
    by_words = _looped(words) / len(words) if len(words) >= _FEWEST else 0.0
    solid = "".join(_WORD.findall(text)).lower()  # without the lines and dots of tables and lists
    looped = sum(len(found.group()) for found in _LOOP.finditer(solid) if len(found.group()) >= 15)
    by_characters = looped / len(solid) if solid else 0.0
    return max(by_words, by_characters, _sameness(words))


def _looped(words: list[str]) -> int:
    """Words inside the longest stretch that has a period: `w[i] == w[i - period]`."""
    longest = 0
    for period in range(1, min(40, len(words) // 2) + 1):
        run = 0
        for i in range(period, len(words)):
            run = run + 1 if words[i] == words[i - period] else 0
            if run >= max(1.5 * period, _FEWEST - period):
                longest = max(longest, run + period)
    return longest


def _sameness(words: list[str]) -> float:
    """Share of pairs of neighbouring words that occurred before, for texts of at least 40 words, above one half."""
    if len(words) < 40:
        return 0.0
    pairs = list(pairwise(words))
    seen_again = 1 - len(set(pairs)) / len(pairs)
    return seen_again if seen_again >= 0.6 else 0.0
