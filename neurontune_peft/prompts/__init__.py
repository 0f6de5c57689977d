"""Prompt sets, attacks, chat templates, batches and answers."""

from neurontune_peft.prompts.answers import complete_responses, generate_answers
from neurontune_peft.prompts.batches import Batch, encode
from neurontune_peft.prompts.chat import format_prompt
from neurontune_peft.prompts.conversation import Message, Request
from neurontune_peft.prompts.prompt_set import PromptSet, check_tunable
from neurontune_peft.prompts.records import Attack, Phrases, Prompt

__all__ = [
    "Attack",
    "Batch",
    "Message",
    "Phrases",
    "Prompt",
    "PromptSet",
    "Request",
    "check_tunable",
    "complete_responses",
    "encode",
    "format_prompt",
    "generate_answers",
]
