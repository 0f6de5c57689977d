"""Is an adapter only scales? Its configuration and its tensors, read with limits and without loading any model."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME

from neurontune_peft.checks import parse_json
from neurontune_peft.hub.findings import Finding
from neurontune_peft.tuner import NeuronTuneConfig
from neurontune_peft.tuner.config import MAX_CONFIG
from neurontune_peft.tuner.files import AdapterFile
from neurontune_peft.tuner.header import MAX_ADAPTER_HEADER, read_header
from neurontune_peft.tuner.names import METHOD, SAVED, TRIGGER
from neurontune_peft.tuner.remote import MAX_BYTES
from neurontune_peft.tuner.saved import is_local_name

# Scales that training can reach (`for_flagged_requests` allows deltas up to 4), and strengths of a trigger.
BOUNDS, STRENGTHS = (0.0, 5.0), (0.0, 3.0)
_SITE = re.compile(r"[A-Za-z0-9_]+(\.[A-Za-z0-9_]+){0,40}")
_FLOATS, _INTEGERS = {"F64", "F32", "F16", "BF16"}, {"I64", "I32", "I16", "U8", "I8"}


def check_config(directory: Path) -> Iterator[Finding]:
    """
    Judge `adapter_config.json`: does it ask for anything but scales?

    Args:
        directory (`Path`): The adapter's directory.
    """
    path = directory / CONFIG_NAME
    if (size := path.stat().st_size) > MAX_CONFIG:
        yield Finding("danger", "configuration", f"{size:,} bytes; at most {MAX_CONFIG:,} are read")
        return
    try:
        values = parse_json(path.read_bytes(), what=CONFIG_NAME)
    except ValueError as error:
        yield Finding("danger", "configuration", str(error))
        return
    found = list(_config_findings(values))
    yield from found or [Finding("ok", "configuration", "asks for scales alone")]


def _config_findings(values: dict[str, Any]) -> Iterator[Finding]:
    def danger(text: str) -> Finding:
        return Finding("danger", "configuration", text)

    if values.get("peft_type") != METHOD:
        yield danger(f"of type {str(values.get('peft_type'))[:80]!r}, not {METHOD}")
    if values.get("modules_to_save"):
        yield danger(f"replaces whole modules (modules_to_save={str(values['modules_to_save'])[:120]})")
    mapping = values.get("auto_mapping")
    library = mapping.get("parent_library") if isinstance(mapping, dict) else None
    if mapping and not str(library or "transformers").startswith("transformers."):
        yield danger(f"has PEFT import the module {str(library)[:120]!r} (auto_mapping)")
    known = {*NeuronTuneConfig.__dataclass_fields__, "runtime_config"}
    if unknown := sorted(set(values) - known):
        yield Finding("warning", "configuration", f"fields that are not this method's: {', '.join(unknown[:8])}")
    targets = values.get("target_modules")
    if isinstance(targets, str):
        yield Finding("warning", "configuration", f"targets by an expression ({targets[:120]!r}), not by names")
    sites = values.get("site_widths") if isinstance(values.get("site_widths"), dict) else {}
    names = [*(sites or {}), *(targets if isinstance(targets, list) else [])]
    if wrong := [name for name in names if not isinstance(name, str) or not _SITE.fullmatch(name)]:
        yield danger(f"{len(wrong)} names that no module can have, such as {str(wrong[0])[:120]!r}")
    base = values.get("base_model_name_or_path")
    if isinstance(base, str) and is_local_name(base):
        yield Finding("note", "configuration", "names its base model by a local path")
    for name in ("strength_on", "strength_off"):
        value = values.get(name, 1.0)
        if not isinstance(value, (int, float)) or not STRENGTHS[0] <= value <= STRENGTHS[1]:
            yield danger(f"{name}={str(value)[:40]} is not within {STRENGTHS[0]:g} to {STRENGTHS[1]:g}")


def check_tensors(directory: Path) -> tuple[list[Finding], AdapterFile | None]:
    """
    Judge `adapter_model.safetensors`: header first, then every number.

    Args:
        directory (`Path`): The adapter's directory, with a configuration that can be read.

    Returns:
        `tuple[list[Finding], AdapterFile or None]`: What was found, and the adapter where all of it can be read.
    """
    path = directory / SAFETENSORS_WEIGHTS_NAME
    if (size := path.stat().st_size) > MAX_BYTES:
        return [Finding("danger", "tensors", f"{size:,} bytes; at most {MAX_BYTES:,} are read")], None
    try:
        header = read_header(path, limit=MAX_ADAPTER_HEADER)
    except ValueError as error:
        return [Finding("danger", "tensors", str(error))], None
    found = []
    other = [name for name in header.tensors if name.rsplit(".", 1)[-1] not in (*SAVED, TRIGGER)]
    if other:
        found.append(Finding("danger", "tensors", f"{len(other)} tensors are no scales, such as '{other[0]}'"))
    for name, entry in header.tensors.items():
        wanted = _FLOATS if name.endswith(("_delta", "_trigger")) else _INTEGERS
        if name not in other and (entry.dtype not in wanted or len(entry.shape) > 2):
            found.append(Finding("danger", "tensors", f"'{name}' is {entry.dtype} of shape {list(entry.shape)}"))
            break
    try:
        file = AdapterFile.load(directory)
    except (ValueError, TypeError, KeyError, RuntimeError, RecursionError) as error:
        return [*found, Finding("danger", "tensors", f"cannot be loaded: {error}")], None
    if file.checksum is None:
        found.append(Finding("note", "tensors", "no checksum, so a bit that has changed since saving is not noticed"))
    if all(finding.level == "note" for finding in found):
        found.append(Finding("ok", "tensors", f"{len(header.tensors)} tensors, only scales; {size:,} bytes"))
    return found, file


def check_scales(file: AdapterFile, bounds: tuple[float, float] = BOUNDS) -> Iterator[Finding]:
    """
    Judge the scales themselves.

    Args:
        file ([`AdapterFile`]): The adapter.
        bounds (`tuple[float, float]`, *optional*): Lowest and highest scale that is taken for normal.
    """
    for role, sites in file.deltas.items():
        scales = torch.cat([1 + delta.float() for delta in sites.values()])
        low, high = float(scales.min()), float(scales.max())
        text = f"role {role}: {scales.numel()} neurons, scale {low:.3f} to {high:.3f}, mean {scales.mean():.3f}"
        if low < bounds[0] or high > bounds[1]:
            yield Finding("danger", "scales", f"{text}; not within {bounds[0]:g} to {bounds[1]:g}")
        elif role == "safety" and float(scales.mean()) < 1:
            yield Finding("warning", "scales", f"{text}; it turns its safety neurons down on the whole")
        else:
            yield Finding("ok", "scales", text)
