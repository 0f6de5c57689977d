"""`neurontune doctor`: would it work here? Versions, devices, settings of the Hub, known conflicts."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlsplit

from packaging.requirements import Requirement

PACKAGE = "neurontune-peft"
OPTIONAL = ("bitsandbytes", "hqq", "torchao", "optimum-quanto", "matplotlib", "gguf", "lm-eval", "trl", "hf-xet")
# Settings of huggingface_hub and transformers that change what the commands do; secrets are none of them.
SETTINGS = (
    "HF_ENDPOINT",
    "HF_HUB_OFFLINE",
    "TRANSFORMERS_OFFLINE",
    "HF_HUB_DISABLE_XET",
    "HF_HUB_DISABLE_IMPLICIT_TOKEN",
    "HF_HUB_ETAG_TIMEOUT",
    "HF_HUB_DOWNLOAD_TIMEOUT",
)


@dataclass(frozen=True)
class Doctor:
    """
    Print versions, devices, settings of the Hub and known conflicts. No token is ever shown.

    The exit code is 0 when all is well and 1 when there is a conflict.

    Example: neurontune doctor --json

    Args:
        json: Print JSON for machines.
    """

    json: bool = False

    def run(self) -> None:
        """
        Look around and print.

        Raises:
            SystemExit: With code 1 when there is a conflict.
        """
        conflicts = find_conflicts()
        sections = {"versions": package_versions(), "devices": devices(), "hub": hub_settings()}
        if self.json:
            print(json.dumps({**sections, "conflicts": conflicts}, indent=1))
        else:
            for title, values in sections.items():
                print(title)
                print("\n".join(f"  {name:<30} {value}" for name, value in values.items()))
            print("conflicts")
            print("\n".join(f"  {text}" for text in conflicts) if conflicts else "  none")
        if conflicts:
            raise SystemExit(1)


def requirements() -> list[Requirement]:
    """What the package needs, as its own metadata say; empty when it runs from a source tree."""
    try:
        wanted = [Requirement(text) for text in requires(PACKAGE) or []]
    except PackageNotFoundError:
        return []
    return [one for one in wanted if one.marker is None or one.marker.evaluate({"extra": ""})]


def package_versions() -> dict[str, str]:
    """Versions of Python, this package, what it needs and what it can use."""
    names = dict.fromkeys([PACKAGE, *(one.name for one in requirements()), *OPTIONAL])
    return {"python": platform.python_version(), **{name: _version(name) or "not installed" for name in names}}


def devices() -> dict[str, str]:
    """What can compute here."""
    import torch

    found = {"cpu": f"{os.cpu_count()} cores, {torch.get_num_threads()} threads"}
    for number in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(number)
        found[f"cuda:{number}"] = f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"
    if torch.backends.mps.is_available():
        found["mps"] = "Apple GPU"
    return found


def hub_settings() -> dict[str, str]:
    """Where models come from, without any secret."""
    from huggingface_hub import constants, get_token

    found = {"endpoint": without_password(constants.ENDPOINT), "cache": constants.HF_HUB_CACHE}
    found |= {name: without_password(os.environ[name]) for name in SETTINGS if name in os.environ}
    place = Path(constants.HF_HUB_CACHE)
    place = next(parent for parent in (place, *place.parents) if parent.exists())
    found["free space in the cache"] = f"{shutil.disk_usage(place).free / 2**30:.0f} GiB"
    found["token"] = "set (not shown)" if get_token() else "not set"
    return found


def find_conflicts() -> list[str]:
    """What will not work, and what to do about it."""
    from huggingface_hub import constants, get_token
    from peft import PeftType

    from neurontune_peft.tuner.names import METHOD

    found = []
    for one in requirements():
        held = _version(one.name)
        if held is None:
            found.append(f"got no {one.name}; expected {one}; pip install '{one}'")
        elif not one.specifier.contains(held, prereleases=True):
            found.append(f"got {one.name} {held}; expected {one}; pip install '{one}'")
    member = PeftType.__members__.get(METHOD)
    if member is None or PeftType(METHOD) is not member:
        found.append(f"got a PEFT without {METHOD}; expected import neurontune_peft to register it; report this")
    cache = Path(constants.HF_HUB_CACHE)
    if cache.exists() and not os.access(cache, os.W_OK):
        found.append(
            "got a cache of the Hub that cannot be written; expected one that can; set HF_HOME to such a place"
        )
    if constants.HF_HUB_DISABLE_IMPLICIT_TOKEN and get_token():
        found.append("got a token, and HF_HUB_DISABLE_IMPLICIT_TOKEN that keeps it from being sent; unset one of them")
    own_server = not constants.ENDPOINT.endswith("huggingface.co")
    if own_server and find_spec("hf_xet") and not constants.HF_HUB_DISABLE_XET:
        found.append(
            "got HF_ENDPOINT and hf-xet; expected a server with Xet storage for model.push_to_hub; set "
            "HF_HUB_DISABLE_XET=1 where it has none (neurontune push does not need it)"
        )
    return found


def without_password(url: str) -> str:
    """An address without the user and password that it may hold."""
    parts = urlsplit(url)
    if parts.username or parts.password:
        url = url.replace(parts.netloc, parts.netloc.rpartition("@")[2])
    return re.sub(r"\bhf_[A-Za-z0-9]+", "hf_…", url)


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
