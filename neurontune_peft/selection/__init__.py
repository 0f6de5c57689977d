"""Which neurons are kept: the best-scored ones of every role, and rules for neurons that two roles want."""

from neurontune_peft.selection.select import select

__all__ = ["select"]
