"""The header of a safetensors file, read alone and with limits: names, dtypes, shapes and places of its tensors."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from neurontune_peft.checks import parse_json

# Bytes per number of the dtypes that safetensors names; those that share a byte are left out.
SIZES = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 1),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 2),
    **dict.fromkeys(("U32", "I32", "F32"), 4),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 8),
}
# safetensors' own limit for any file, and ours for an adapter (80 layers of a large model need 30 kB).
MAX_HEADER, MAX_ADAPTER_HEADER = 100_000_000, 8_000_000


@dataclass(frozen=True)
class TensorEntry:
    """
    One tensor of a file.

    Args:
        dtype (`str`): Its dtype in safetensors' words, such as `"BF16"`.
        shape (`tuple[int, ...]`): Its shape.
        start (`int`): First byte in the file.
        stop (`int`): First byte behind it.
    """

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


@dataclass(frozen=True)
class Header:
    """
    What a safetensors file says about itself.

    Args:
        tensors (`dict[str, TensorEntry]`): Name to entry.
        metadata (`dict[str, str]`): Free text.
        size (`int`): Bytes of the file.
    """

    tensors: dict[str, TensorEntry]
    metadata: dict[str, str]
    size: int


def read_header(path: str | os.PathLike[str], *, limit: int = MAX_HEADER) -> Header:
    """
    Read the header of a safetensors file; no tensor is touched, and no more than `limit` bytes are read.

    Args:
        path (`str` or `os.PathLike`): The file.
        limit (`int`, *optional*, defaults to `100_000_000`): Most bytes of a header.

    Raises:
        ValueError: When the header is too long, cut off, no JSON, names a tensor twice, or places tensors outside the
            file, with gaps or over one another.
    """
    path = Path(path)
    with path.open("rb") as stream:
        return parse_header(stream, path.stat().st_size, name=path.name, limit=limit)


def parse_header(stream: BinaryIO, size: int, *, name: str, limit: int = MAX_HEADER) -> Header:
    """
    [`read_header`] of a file that is open, or in memory.

    Args:
        stream (`BinaryIO`): The file, at its beginning.
        size (`int`): Bytes of the whole file.
        name (`str`): Its name, for messages.
        limit (`int`, *optional*, defaults to `100_000_000`): Most bytes of a header.

    Raises:
        ValueError: As [`read_header`].
    """
    length = int.from_bytes(stream.read(8), "little")
    if not 2 <= length <= min(limit, size - 8):
        raise _broken(name, f"a header of {length:,} bytes in a file of {size:,}", f"2 to {limit:,} and a whole file")
    text = stream.read(length)
    values = parse_json(text, what=f"the header of '{name}'")
    metadata = values.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise _broken(name, "metadata that are no texts", "texts by name")
    tensors = {key: _entry(name, key, value, 8 + length) for key, value in values.items()}
    end = 8 + length
    for key, entry in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].stop)):
        if entry.start != end:
            raise _broken(name, f"'{key}' at byte {entry.start:,} where byte {end:,} is next", "no gap and no overlap")
        end = entry.stop
    if end != size:
        raise _broken(name, f"{size:,} bytes", f"{end:,}, where its last tensor ends")
    return Header(tensors=tensors, metadata=metadata, size=size)


def _entry(file: str, name: str, value: Any, data_start: int) -> TensorEntry:
    fields: dict[str, Any] = value if isinstance(value, dict) else {}
    dtype = fields.get("dtype")
    shape, offsets = _list(fields.get("shape")), _list(fields.get("data_offsets"))
    whole = len(offsets) == 2 and all(type(number) is int and number >= 0 for number in (*shape, *offsets))
    if not isinstance(dtype, str) or not whole:
        raise _broken(file, f"'{name[:80]}' as {str(value)[:120]}", "its dtype, shape and data_offsets")
    start, stop = offsets
    if dtype in SIZES and math.prod(shape) * SIZES[dtype] != stop - start:
        raise _broken(file, f"{stop - start:,} bytes for '{name[:80]}' ({dtype} {shape})", "as many as its shape says")
    return TensorEntry(dtype=dtype, shape=tuple(shape), start=data_start + start, stop=data_start + stop)


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else [None]


def _broken(name: str, got: str, expected: str) -> ValueError:
    return ValueError(f"got '{name}' with {got}; expected {expected}; save or download the file again")
