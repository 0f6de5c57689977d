"""Answers to many requests: fast, independent of the batch, cached, and by several processes together."""

from neurontune_peft.evaluation.generation.answers import answer_all, answer_rows
from neurontune_peft.evaluation.generation.cache import Kept
from neurontune_peft.evaluation.generation.options import Generation

__all__ = ["Generation", "Kept", "answer_all", "answer_rows"]
