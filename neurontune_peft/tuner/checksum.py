"""Checksums of an adapter's own numbers: has a bit changed since it was saved?"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from neurontune_peft.checks import write_atomically
from neurontune_peft.tuner.header import MAX_ADAPTER_HEADER, Header, parse_header
from neurontune_peft.tuner.modulation import TRIGGER_FIELDS

# Where the checksum of the tensors stands in the metadata of their file, and the configuration's in its own.
TENSORS_KEY, CONFIG_KEY = "neurontune_sha256", "checksum"
# Names of modules, matched in any order.
NAMES = ("target_modules", "exclude_modules")
# Fields of a configuration that decide what the adapter does. The others may be corrected by hand, such as the base
# model's name. Files hold a checksum over what this version knows: a field that joins later must be left out while it
# has its default, or the files of older versions would be refused.
CHECKED_FIELDS = (
    *NAMES,
    "layers_to_transform",
    "layers_pattern",
    "neuron_counts",
    "site_widths",
    "neuron_side",
    "base_model_fingerprint",
    "presets",
    *TRIGGER_FIELDS,
)
_BLOCK = 1 << 20


def with_checksum(data: bytes) -> bytes:
    """
    Put the checksum of its tensors into a safetensors file.

    safetensors itself writes several metadata in an order that changes from run to run, so only its header is made
    anew here: the same adapter stays the same bytes.

    Args:
        data (`bytes`): The whole file.

    Returns:
        `bytes`: The file with one more entry of metadata; its tensors are the same bytes.
    """
    found = tensors_checksum(io.BytesIO(data), parse_header(io.BytesIO(data), len(data), name="tensors"))
    start = 8 + int.from_bytes(data[:8], "little")
    values = json.loads(data[8:start])
    metadata = {**values.pop("__metadata__", {}), TENSORS_KEY: found}
    text = json.dumps({"__metadata__": metadata, **values}, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # tensors begin at a multiple of eight bytes
    return len(text).to_bytes(8, "little") + text + data[start:]


def add_checksum(path: Path) -> None:
    """
    Put the checksum into a file that has none, such as one that PEFT has just written; a checksum that is there stays.

    Args:
        path (`Path`): The file, which is replaced as a whole.
    """
    data = path.read_bytes()
    if TENSORS_KEY not in parse_header(io.BytesIO(data), len(data), name=path.name).metadata:
        write_atomically(path, with_checksum(data))


def check_checksum(path: Path) -> str | None:
    """
    Compare the tensors of a file with the checksum that was saved with them.

    Args:
        path (`Path`): The file.

    Returns:
        `str` or `None`: The checksum, or `None` for files of writers that leave none, which are not checked.

    Raises:
        ValueError: When the two differ, or the header of a file with a checksum cannot be read.
    """
    with path.open("rb") as stream:
        header = parse_header(stream, path.stat().st_size, name=path.name, limit=MAX_ADAPTER_HEADER)
        expected = header.metadata.get(TENSORS_KEY)
        if expected is None:
            return None
        found = tensors_checksum(stream, header)
    if found != expected:
        raise ValueError(
            f"got '{path.name}' whose tensors have the checksum {found:.12}…; expected {expected:.12}…, with which "
            "they were saved; bits of the file have changed since, so download or save the adapter again"
        )
    return expected


def tensors_checksum(stream: BinaryIO, header: Header) -> str:
    """
    SHA-256 over names, dtypes, shapes and bytes of all tensors, in the order of their names.

    Args:
        stream (`BinaryIO`): The file.
        header ([`Header`]): What it says about itself.
    """
    digest = hashlib.sha256()
    for name, entry in sorted(header.tensors.items()):
        digest.update(json.dumps([name, entry.dtype, entry.shape]).encode() + b"\n")
        stream.seek(entry.start)
        left = entry.stop - entry.start
        while left:
            block = stream.read(min(left, _BLOCK))
            left -= len(block)
            digest.update(block)
    return digest.hexdigest()


def config_checksum(values: Mapping[str, Any]) -> str:
    """
    SHA-256 over the fields of a configuration that decide what the adapter does.

    Args:
        values (`Mapping[str, Any]`): Name to JSON value, as `NeuronTuneConfig.to_dict` gives them.
    """
    checked = {name: values[name] for name in CHECKED_FIELDS if values.get(name) is not None}
    # Names that are matched have no order: files hold lists of them, configurations sets.
    return values_checksum(
        {name: sorted(v) if isinstance(v, (list, set)) and name in NAMES else v for name, v in checked.items()}
    )


def values_checksum(values: Mapping[str, Any]) -> str:
    """SHA-256 over JSON values, whatever their order."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def check_settings(found: str, expected: object, *, what: str) -> None:
    """
    Compare the checksum of settings with the one that was saved with them.

    Args:
        found (`str`): Checksum of what the file says.
        expected (`object`): What it says of its checksum.
        what (`str`): Name of the file, for the message.

    Raises:
        ValueError: When the two differ.
    """
    if found != expected:
        raise ValueError(
            f"got '{what}' whose settings have the checksum {found:.12}…; expected {str(expected)[:12]}…, with "
            f"which they were saved; download or save it again, or remove '{CONFIG_KEY}' from it if you changed it on "
            "purpose"
        )
