"""`neurontune sites`: where are a model's neurons? From its config alone."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Annotated

import tyro


@dataclass(frozen=True)
class Sites:
    """
    Show the sites of a model, their widths and the rule that found each. No weight is loaded, whatever the size.

    Example: neurontune sites user/chat-model

    Args:
        model: Directory or Hub name of a causal language model; its config is enough.
        json: Print JSON for machines.
    """

    model: Annotated[str, tyro.conf.Positional]
    json: bool = False

    def run(self) -> None:
        """Read the config and print."""
        from neurontune_peft.sites import sites_from_config

        sites = list(sites_from_config(self.model).values())
        if self.json:
            print(json.dumps([asdict(site) for site in sites], indent=1))
            return
        longest = max(len(site.name) for site in sites)
        print(f"{'site'.ljust(longest)}  neurons     kind     rule")
        for site in sites:
            print(f"{site.name.ljust(longest)}  {site.width:<10,}  {site.kind:<7}  {site.rule}")
        print(f"{len(sites)} sites, {sum(site.width for site in sites):,} neurons")
