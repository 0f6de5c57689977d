"""How is a request put to the model? The chat template, and plain text for tokenizers without one."""

import os
import warnings
from collections.abc import Callable
from pathlib import Path

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from neurontune_peft.prompts.conversation import turns_of

# Requests that end differently: what prompts made of them end in alike is the template's.
PROBES = ("a", "Is it 7?", "Go there.", "x = [1]", "B")


def format_prompt(
    tokenizer: PreTrainedTokenizerBase, text: str, *, chat_template: str | os.PathLike[str] | None = None
) -> str:
    """
    Write a request as the model expects it, up to the place where its answer begins.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): The model's tokenizer.
        text (`str`): The request; a [`Request`] brings the turns before it.
        chat_template (`str` or `os.PathLike`, *optional*): Jinja template, or a file that holds one, instead of the
            tokenizer's own.

    Returns:
        `str`: The request inside the chat template, or, for a tokenizer without one, followed by a line break.

    Raises:
        ValueError: `chat_template` is neither a template nor a file.
    """
    return prompt_formatter(tokenizer, chat_template=chat_template)(text)


def prompt_formatter(
    tokenizer: PreTrainedTokenizerBase, *, chat_template: str | os.PathLike[str] | None = None
) -> Callable[[str], str]:
    """
    The function behind `format_prompt`, for many requests: the template is found (and warned about) once.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): The model's tokenizer.
        chat_template (`str` or `os.PathLike`, *optional*): As in `format_prompt`.

    Returns:
        `Callable[[str], str]`: From the request to the text that is put to the model.

    Raises:
        ValueError: `chat_template` is neither a template nor a file.
    """
    template = read_template(chat_template)
    if template is None and tokenizer.chat_template is None:
        warn_once(
            tokenizer,
            f"got the tokenizer {tokenizer.name_or_path!r} without a chat template; prompts are plain text followed "
            "by a line break; pass chat_template=... to use a template",
        )
        bos = _leading_bos(tokenizer)
        return lambda text: bos + "".join(f"{turn['content']}\n" for turn in turns_of(text))

    def fill(text: str) -> str:
        chat = turns_of(text)
        try:
            return str(
                tokenizer.apply_chat_template(chat, chat_template=template, tokenize=False, add_generation_prompt=True)
            )
        except TemplateError as error:
            roles = [turn["role"] for turn in chat]
            raise ValueError(
                f"got turns with the roles {roles}, which the chat template refuses ({error}); expected turns that it "
                "knows; leave out what it does not know, such as a system prompt, or pass chat_template=..."
            ) from error

    return fill


def generation_suffix(
    tokenizer: PreTrainedTokenizerBase, *, chat_template: str | os.PathLike[str] | None = None
) -> list[int] | None:
    """
    Token ids with which every prompt ends, whatever the request: the chat template's generation prompt.

    They are taken out of whole prompts, as tokens at a seam depend on both sides. A template without generation
    prompt of its own, such as those that end in `[/INST]`, has what follows the request in its place.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): The model's tokenizer.
        chat_template (`str` or `os.PathLike`, *optional*): As in `format_prompt`.

    Returns:
        `list[int]` or `None`: The ids; `None` without a template, or for one that puts nothing after the request.

    Raises:
        ValueError: `chat_template` is neither a template nor a file.
    """
    template = read_template(chat_template)
    if template is None and tokenizer.chat_template is None:
        return None
    fill = prompt_formatter(tokenizer, chat_template=chat_template)
    rows = [tokenizer(fill(text), add_special_tokens=False)["input_ids"] for text in PROBES]
    suffix = _shared_start([row[::-1] for row in rows])[::-1]
    prompt = _generation_prompt(tokenizer, template)
    # The end of the user's turn is no part of it: in other turns of a conversation it stands elsewhere.
    while prompt and len(suffix) > 1 and len(tokenizer.decode(suffix[1:])) >= len(prompt):
        suffix = suffix[1:]
    return suffix or None


def turn_opening(
    tokenizer: PreTrainedTokenizerBase, *, chat_template: str | os.PathLike[str] | None = None
) -> list[int] | None:
    """
    Token ids with which the chat template opens every user's turn, the first and later ones alike.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): The model's tokenizer.
        chat_template (`str` or `os.PathLike`, *optional*): As in `format_prompt`.

    Returns:
        `list[int]` or `None`: The ids; `None` without a template, or for one that puts nothing before a request.

    Raises:
        ValueError: `chat_template` is neither a template nor a file.
    """
    template = read_template(chat_template)
    if template is None and tokenizer.chat_template is None:
        return None
    earlier = [{"role": "user", "content": "Good morning."}, {"role": "assistant", "content": "Good morning!"}]
    openings = []
    for before in ([], earlier):
        rows = []
        for text in PROBES:
            chat = [*before, {"role": "user", "content": text}]
            prompt = tokenizer.apply_chat_template(
                chat, chat_template=template, tokenize=False, add_generation_prompt=True
            )
            rows.append(tokenizer(prompt, add_special_tokens=False)["input_ids"])
        openings.append(_shared_start(rows))
    reversed_openings = [opening[::-1] for opening in openings]
    return _shared_start(reversed_openings)[::-1] or None


def _shared_start(rows: list[list[int]]) -> list[int]:
    """The tokens with which all rows begin."""
    shared = 0
    while shared < min(map(len, rows)) and len({row[shared] for row in rows}) == 1:
        shared += 1
    return rows[0][:shared]


def _generation_prompt(tokenizer: PreTrainedTokenizerBase, template: str | None) -> str:
    """What `add_generation_prompt` adds; empty for templates that do not know it."""
    chat = [{"role": "user", "content": PROBES[0]}]
    without, full = (
        str(tokenizer.apply_chat_template(chat, chat_template=template, tokenize=False, add_generation_prompt=add))
        for add in (False, True)
    )
    return full.removeprefix(without) if full.startswith(without) else ""


def warn_once(tokenizer: PreTrainedTokenizerBase, message: str) -> None:
    """
    Warn, unless the same was said about this tokenizer before.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): The tokenizer that the warning is about; it remembers the message.
        message (`str`): The warning.
    """
    said: set[str] = tokenizer.__dict__.setdefault("_neurontune_warnings", set())
    if message not in said:
        said.add(message)
        warnings.warn(message, UserWarning, stacklevel=3)


def read_template(chat_template: str | os.PathLike[str] | None) -> str | None:
    """
    The text of a chat template. Records hold it in place of its path, which says nothing and belongs to one machine.

    Args:
        chat_template (`str` or `os.PathLike`, *optional*): As in `format_prompt`.

    Raises:
        ValueError: It is neither a template nor a file.
    """
    if chat_template is None:
        return None
    text = os.fspath(chat_template)
    if "{{" in text or "{%" in text:  # no file name looks like Jinja, and a template without braces loses the request
        return text
    if not Path(text).is_file():
        raise ValueError(
            f"got chat_template {text[:80]!r}; expected a Jinja template or the path of a file that holds one; "
            "correct the path"
        )
    return Path(text).read_text(encoding="utf-8")


def _leading_bos(tokenizer: PreTrainedTokenizerBase) -> str:
    """The text of the special token that the tokenizer itself puts in front: chat templates bring their own."""
    first = tokenizer("")["input_ids"][:1]
    return str(tokenizer.bos_token) if tokenizer.bos_token_id is not None and first == [tokenizer.bos_token_id] else ""
