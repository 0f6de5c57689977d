"""How does another program serve this adapter? Exact conversions, each read back and checked."""

from neurontune_peft.export.run import Export, export_adapter

__all__ = ["Export", "export_adapter"]
