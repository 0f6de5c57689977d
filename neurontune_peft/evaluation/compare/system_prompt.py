"""What if we only ask the model nicely? A safety system prompt, a control."""

from __future__ import annotations

import json

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from neurontune_peft.prompts import format_prompt

IN_FRONT = "in front of the request, as the chat template has no system role"
PROBE = "What is a probe?"


def with_system_prompt(
    tokenizer: PreTrainedTokenizerBase, text: str, *, chat_template: str | None = None
) -> tuple[str, str]:
    """
    A chat template that begins every chat with a system prompt, in the system role where the template has one.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): The model's tokenizer.
        text (`str`): The system prompt.
        chat_template (`str`, *optional*): Replaces the tokenizer's own.

    Returns:
        `tuple[str, str]`: The template, and where the text stands when that is not the system role.
    """
    own = tokenizer.chat_template if chat_template is None else chat_template
    quoted = json.dumps(text)  # JSON strings are Jinja strings
    if own is None:  # `format_prompt` writes plain text then: what comes before the request, and a line break
        plain = format_prompt(tokenizer, f"{{{{ {quoted} }}}}{{{{ '\\n\\n' + messages[0]['content'] + '\\n' }}}}")
        return plain.removesuffix("\n"), IN_FRONT
    system = f"{{%- set messages = [{{'role': 'system', 'content': {quoted}}}] + messages -%}}{own}"
    try:
        if text in format_prompt(tokenizer, PROBE, chat_template=system):
            return system, ""
    except (TemplateError, ValueError):  # some templates refuse the role
        pass
    joined = f"[{{'role': 'user', 'content': {quoted} + '\\n\\n' + messages[0]['content']}}]"
    return f"{{%- set messages = {joined} -%}}{own}", IN_FRONT
