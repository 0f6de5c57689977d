"""Trying an adapter by hand: base and tuned answers side by side, with the dials at hand."""

from neurontune_peft.playground.answered import Answered, Fired, TriggerState
from neurontune_peft.playground.session import Playground

__all__ = ["Answered", "Fired", "Playground", "TriggerState"]
