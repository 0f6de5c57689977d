"""Scaling slices of tensors inside safetensors files, a few megabytes at a time; every other byte is copied."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from neurontune_peft.export.checkpoint import check_float
from neurontune_peft.tuner.merge import scale_slices

CHUNK = 16 * 2**20
# safetensors itself refuses longer headers.
MAX_HEADER = 100_000_000
_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@dataclass(frozen=True)
class Entry:
    """
    One tensor in a file.

    Args:
        dtype (`torch.dtype`): Its numbers.
        shape (`tuple[int, ...]`): Its shape.
        start (`int`): Where its bytes begin in the file.
    """

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int


@dataclass(frozen=True)
class Edit:
    """
    Slices of one matrix in a file that are scaled.

    Args:
        start (`int`): Where the matrix begins in the file, in bytes.
        rows (`int`): Its rows.
        columns (`int`): Its columns.
        dtype (`torch.dtype`): Its numbers.
        dim (`int`): 0 scales rows, 1 columns.
        index (`torch.Tensor`): Which, int64, shape `(k,)`.
        scale (`torch.Tensor`): Their factors, float32, shape `(k,)`.
    """

    start: int
    rows: int
    columns: int
    dtype: torch.dtype
    dim: int
    index: Tensor
    scale: Tensor

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return self.columns * self.dtype.itemsize

    @property
    def stop(self) -> int:
        """Where the matrix ends in the file."""
        return self.start + self.rows * self.row_bytes

    def scaled(self, data: bytearray, first: int) -> bytearray:
        """
        Scale some rows.

        Args:
            data (`bytearray`): Whole rows; changed in place.
            first (`int`): Number of the first of them.
        """
        block = torch.frombuffer(data, dtype=self.dtype).view(-1, self.columns)
        if self.dim == 1:
            block[:, self.index] = scale_slices(block[:, self.index].T, self.scale).T
        else:
            here = (self.index >= first) & (self.index < first + block.shape[0])
            places = self.index[here] - first
            block[places] = scale_slices(block[places], self.scale[here])
        return data


def read_entry(path: Path, key: str) -> Entry:
    """
    Find one tensor in a safetensors file.

    Raises:
        ValueError: When the file is damaged, or the tensor is quantised.
    """
    try:
        with safe_open(str(path), framework="pt") as file:  # checks the header and its offsets
            check_float(key, file.get_slice(key).get_dtype())
    except SafetensorError as error:
        raise ValueError(
            f"got '{path.name}', which cannot be read ({error}); expected whole safetensors files; download the model "
            "again"
        ) from error
    with path.open("rb") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
        if length > MAX_HEADER:
            raise ValueError(f"got '{path.name}' with a header of {length} bytes; expected at most {MAX_HEADER}")
        found = json.loads(stream.read(length))[key]
    return Entry(_DTYPES[found["dtype"]], tuple(found["shape"]), 8 + length + found["data_offsets"][0])


def edited(path: Path, edits: Sequence[Edit]) -> Iterator[bytes | bytearray]:
    """
    Yield a file's bytes from first to last with the edits made.

    Args:
        path (`Path`): The file.
        edits (`Sequence[Edit]`): Matrices that do not overlap.
    """
    with path.open("rb") as stream:
        for edit in sorted(edits, key=lambda e: e.start):
            yield from _raw(stream, edit.start - stream.tell())
            per_chunk = max(1, CHUNK // max(1, edit.row_bytes))
            for first in range(0, edit.rows, per_chunk):
                count = min(per_chunk, edit.rows - first)
                yield edit.scaled(bytearray(stream.read(count * edit.row_bytes)), first)
        yield from _raw(stream, None)


def write_edited(source: Path, target: Path, edits: Sequence[Edit]) -> None:
    """
    Write a file with edits under a temporary name, read it back, and only then give it its name.

    Args:
        source (`Path`): The file to copy.
        target (`Path`): Where to; its directory exists.
        edits (`Sequence[Edit]`): What to scale.

    Raises:
        ValueError: When other bytes are read back than were written.
    """
    temporary = target.with_name(f".{target.name}.tmp")
    with temporary.open("wb") as stream:
        for chunk in edited(source, edits):
            stream.write(chunk)
        stream.flush()
        os.fsync(stream.fileno())
    with temporary.open("rb") as stream:
        same = all(stream.read(len(chunk)) == bytes(chunk) for chunk in edited(source, edits)) and not stream.read(1)
    if not same:
        temporary.unlink()
        raise ValueError(f"got other bytes of '{target.name}' back; expected what was written; check the disk")
    os.replace(temporary, target)


def link_or_copy(source: Path, target: Path) -> None:
    """Hard-link a file, or copy it where the file system has no such links; links to files are followed."""
    source = source.resolve()
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:
        write_edited(source, target, ())


def _raw(stream: BinaryIO, size: int | None) -> Iterator[bytes]:
    """The next `size` bytes, or all that are left."""
    while size is None or size > 0:
        data = stream.read(CHUNK if size is None else min(CHUNK, size))
        if not data:
            return
        yield data
        size = None if size is None else size - len(data)
