"""A Modelfile for Ollama around a GGUF adapter, with the chat template in Ollama's own language where that can be."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from neurontune_peft.checks import write_atomically
from neurontune_peft.export.change import Change
from neurontune_peft.export.checkpoint import Checkpoint
from neurontune_peft.export.gguf import GGUF_NAME, adds_bos, write_gguf
from neurontune_peft.export.streaming import link_or_copy

BASE_NAME = "base.gguf"
_PROBES = ("Qa7", "Rb8", "Sc9", "Td6")

Messages = Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Template:
    """
    A chat template that puts fixed texts around each message.

    Args:
        head (`str`): What begins a conversation without a system message.
        system (`tuple[str, str]` or `None`): Around a system message, `head` included; `None` when it is ignored.
        user (`tuple[str, str]`): Around a user's message.
        assistant (`tuple[str, str]`): Around an answer.
        generation (`str`): What asks for the next answer.
    """

    head: str
    system: tuple[str, str] | None
    user: tuple[str, str]
    assistant: tuple[str, str]
    generation: str

    def render(self, messages: Messages) -> str:
        """Write a conversation, as Ollama does with [`go_template`]."""
        text, rest = self.head, messages
        if messages and messages[0][0] == "system":
            rest = messages[1:]
            if self.system is not None:
                text = self.system[0] + messages[0][1] + self.system[1]
        around = {"user": self.user, "assistant": self.assistant}
        return text + "".join(around[role][0] + said + around[role][1] for role, said in rest) + self.generation

    def go_template(self) -> str:
        """The same in the language of Go's templates."""
        head = self.head
        if self.system is not None:
            before, after = self.system
            head = f"{{{{ if .System }}}}{before}{{{{ .System }}}}{after}{{{{ else }}}}{head}{{{{ end }}}}"
        user = f'{{{{ if eq .Role "user" }}}}{self.user[0]}{{{{ .Content }}}}{self.user[1]}'
        answer = (
            f'{{{{ else if eq .Role "assistant" }}}}{self.assistant[0]}{{{{ .Content }}}}{self.assistant[1]}'
            "{{ end }}"
        )
        return f"{head}{{{{ range .Messages }}}}{user}{answer}{{{{ end }}}}{self.generation}"


def template_of(tokenizer: PreTrainedTokenizerBase) -> Template:
    """
    Take a chat template apart by rendering probes, and put it together again for conversations of one to five turns.

    Raises:
        ValueError: When it does more than to put fixed texts around messages.
    """
    text = str(tokenizer.chat_template or "")
    if not text or "strftime" in text:
        raise ValueError("it has none" if not text else "it writes the date")
    q, r, s, t = _PROBES
    first, _, last = _chat(tokenizer, [("user", q)], generation=False).partition(q)
    generation = _chat(tokenizer, [("user", q)]).removeprefix(first + q + last)
    turns = _chat(tokenizer, [("user", q), ("assistant", r), ("user", s), ("assistant", t)], generation=False)
    found = re.fullmatch(f"(.*){q}(.*){r}(.*){s}(.*){t}(.*)", turns, re.DOTALL)
    if found is None:
        raise ValueError("it does not write every message as it is")
    _, to_answer, to_user, _, end = found.groups()
    user = (to_user.removeprefix(end), last)
    assistant = (to_answer.removeprefix(last), end)
    template = Template(first.removesuffix(user[0]), _system_of(tokenizer, user), user, assistant, generation)
    _check(template, tokenizer)
    return template


def _system_of(tokenizer: PreTrainedTokenizerBase, user: tuple[str, str]) -> tuple[str, str] | None:
    """What stands around a system message; `None` when the template leaves it out."""
    q, s = _PROBES[:2]
    try:
        text = _chat(tokenizer, [("system", s), ("user", q)], generation=False)
    except Exception as error:  # templates raise what they like for roles that they do not know
        raise ValueError("it refuses system messages, which Ollama may send") from error
    if s not in text:
        return None
    before, _, after = text.partition(s)
    return before, after.removesuffix(user[0] + q + user[1])


def _check(template: Template, tokenizer: PreTrainedTokenizerBase) -> None:
    q, r, s, t = _PROBES
    chats: list[Messages] = [
        [("user", q)],
        [("user", q), ("assistant", r), ("user", s)],
        [("user", q), ("assistant", r), ("user", s), ("assistant", t), ("user", q + r)],
        [("system", t), ("user", q)],
        [("system", t), ("user", q), ("assistant", r), ("user", s)],
    ]
    for messages in chats:
        if template.render(messages) != _chat(tokenizer, messages):
            raise ValueError("it does more than to put fixed texts around messages")
    if '"""' in template.go_template():
        raise ValueError("it holds three quotation marks in a row")
    texts = [template.head, template.generation, *template.user, *template.assistant, *(template.system or ())]
    if any("{{" in text or "}}" in text for text in texts):
        raise ValueError("it holds double braces")


def keeps_whitespace(template: Template, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the chat template leaves blanks around a message, as Ollama does."""
    messages = [("user", f" {_PROBES[0]} ")]
    return template.render(messages) == _chat(tokenizer, messages)


def without_bos(template: Template, bos: str) -> Template:
    """
    Leave out the first token of a conversation.

    Raises:
        ValueError: When it begins every turn.
    """
    if template.user[0].startswith(bos):
        raise ValueError("it begins every turn with the token that Ollama puts in front of the first")
    system = None
    if template.system is not None:
        system = (template.system[0].removeprefix(bos), template.system[1])
    return replace(template, head=template.head.removeprefix(bos), system=system)


def write_ollama(
    change: Change, checkpoint: Checkpoint, directory: Path, *, dtype: torch.dtype, base: str
) -> tuple[dict[str, object], list[str]]:
    """
    Write `Modelfile`, `adapter.gguf` and, for a base model that is a file, a link to it.

    Args:
        change ([`Change`]): The change; Ollama applies an adapter in full, so the strength is in it.
        checkpoint ([`Checkpoint`]): The base model.
        directory (`Path`): Where to write.
        dtype (`torch.dtype`): As in [`write_gguf`].
        base (`str`): GGUF file of the base model, or the name of a model of Ollama's.

    Returns:
        `tuple`: What is known for the record, and lines for people.

    Raises:
        ValueError: As [`write_gguf`], or when `base` is neither a file nor a name.
    """
    file = Path(base) if base.endswith(".gguf") else None
    if (file is not None and not file.is_file()) or (file is None and not re.fullmatch(r"[\w][\w./:-]*", base)):
        raise ValueError(f"got base '{base}'; expected a GGUF file or the name of a model of Ollama's; correct --base")
    details = write_gguf(change, checkpoint, directory, dtype=dtype, base=file)
    if file is not None:
        link_or_copy(file, directory / BASE_NAME)
    lines = [f"FROM ./{BASE_NAME}" if file is not None else f"FROM {base}", f"ADAPTER ./{GGUF_NAME}"]
    notes: list[str] = []
    try:
        tokenizer = AutoTokenizer.from_pretrained(checkpoint.directory)
        lines += template_lines(tokenizer, notes, strip_bos=file is None or adds_bos(file))
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        notes.append(f"No TEMPLATE was written, as the chat template cannot be said in Ollama's ({reason}): add yours")
    write_atomically(directory / "Modelfile", "\n".join(lines) + "\n")
    return details, [*notes, "Ollama: ollama create NAME -f OUT/Modelfile (not run here)"]


def template_lines(tokenizer: PreTrainedTokenizerBase, notes: list[str], *, strip_bos: bool) -> list[str]:
    """
    The lines `TEMPLATE` and `PARAMETER stop`.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): Holds the chat template.
        notes (`list[str]`): Gets a line when a message's outer blanks are treated in another way.
        strip_bos (`bool`): Ollama puts the first token in front itself.

    Raises:
        ValueError: As [`template_of`].
    """
    template = template_of(tokenizer)
    if not keeps_whitespace(template, tokenizer):
        notes.append("The chat template trims messages and Ollama does not: blanks around a message will be kept")
    if strip_bos and tokenizer.bos_token:
        template = without_bos(template, str(tokenizer.bos_token))
    text = template.go_template()
    end = template.assistant[1].strip()
    stops = [stop for stop in dict.fromkeys([str(tokenizer.eos_token or ""), end]) if stop and "\n" not in stop]
    return [f'TEMPLATE """{text}"""', *(f'PARAMETER stop "{stop}"' for stop in stops if '"' not in stop)]


def _chat(tokenizer: PreTrainedTokenizerBase, messages: Messages, *, generation: bool = True) -> str:
    chat = [{"role": role, "content": said} for role, said in messages]
    return str(tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=generation))
