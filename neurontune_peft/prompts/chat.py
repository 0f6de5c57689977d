"""How is a request put to the model? The chat template, and plain text for tokenizers without one."""

import os
import warnings
from collections.abc import Callable
from pathlib import Path

from transformers import PreTrainedTokenizerBase


def format_prompt(
    tokenizer: PreTrainedTokenizerBase, text: str, *, chat_template: str | os.PathLike[str] | None = None
) -> str:
    """
    Write a request as the model expects it, up to the place where its answer begins.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): The model's tokenizer.
        text (`str`): The request.
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
    template = _read_template(chat_template)
    if template is None and tokenizer.chat_template is None:
        warn_once(
            tokenizer,
            f"got the tokenizer {tokenizer.name_or_path!r} without a chat template; prompts are plain text followed "
            "by a line break; pass chat_template=... to use a template",
        )
        bos = _leading_bos(tokenizer)
        return lambda text: f"{bos}{text}\n"

    def fill(text: str) -> str:
        chat = [{"role": "user", "content": text}]
        return str(
            tokenizer.apply_chat_template(chat, chat_template=template, tokenize=False, add_generation_prompt=True)
        )

    return fill


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


def _read_template(chat_template: str | os.PathLike[str] | None) -> str | None:
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
