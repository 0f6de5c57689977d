"""Prompt sets made of files in the formats of others, checked, and described."""

from neurontune_peft.prompts.convert.check import Findings, check
from neurontune_peft.prompts.convert.convert import Conversion, convert
from neurontune_peft.prompts.convert.describe import describe

__all__ = ["Conversion", "Findings", "check", "convert", "describe"]
