"""Where are the neurons? The only part that knows architectures: which modules of a causal LM are sites."""

from neurontune_peft.sites.find import find_sites, sites_from_config

__all__ = ["find_sites", "sites_from_config"]
