"""Trying an adapter by hand: base and tuned answers side by side, with the dials at hand."""

from neurontune_peft.playground.session import Answered, Fired, Playground, TriggerState

__all__ = ["Answered", "Fired", "Playground", "TriggerState"]
