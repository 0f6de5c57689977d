"""How does a table name a setting of the dials?"""

from collections.abc import Mapping
from typing import Any


def setting_text(setting: Mapping[str, Any]) -> str:
    """
    Name a setting.

    Args:
        setting (`Mapping[str, Any]`): `strength`, and where they are set `counts` (by role) and `threshold`.

    Returns:
        `str`: For example `strength 0.5, safety 64, threshold 1.37`.
    """
    words = [f"strength {float(setting['strength']):g}"]
    words += [f"{role} {int(count)}" for role, count in (setting.get("counts") or {}).items()]
    if setting.get("threshold") is not None:
        words.append(f"threshold {float(setting['threshold']):.3g}")
    return ", ".join(words)
