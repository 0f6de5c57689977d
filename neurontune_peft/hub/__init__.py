"""Adapters on the Hub: the card, publishing, and what an adapter of unknown origin really is."""

from neurontune_peft.hub.audit import Audit, Finding, audit
from neurontune_peft.hub.card import model_card
from neurontune_peft.hub.push import push

__all__ = ["Audit", "Finding", "audit", "model_card", "push"]
