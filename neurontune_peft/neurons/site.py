"""One module whose neurons can be scaled."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Site:
    """
    One module whose neurons can be scaled.

    Args:
        name (`str`): Path of the module in the causal LM, for example `model.layers.0.mlp.down_proj`.
        width (`int`): Number of its neurons (input features; for fused experts, experts times intermediate size).
        kind (`str`, *optional*, defaults to `"linear"`): `"linear"` (a projection) or `"experts"` (3-D weights).
        rule (`str`, *optional*, defaults to `""`): How the site was found: `"table"`, `"structure"` or `"user"`.
    """

    name: str
    width: int
    kind: Literal["linear", "experts"] = "linear"
    rule: str = ""
