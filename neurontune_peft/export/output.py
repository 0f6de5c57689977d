"""Where exports are written: all of one appears or nothing does, and one at a time."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from safetensors import SafetensorError

from neurontune_peft.checks import write_atomically

# Stands in every export; `force` replaces only directories that hold it.
RECORD = "neurontune_export.json"


@contextmanager
def exclusive(output: Path, *, force: bool = False, keep: bool = False) -> Iterator[Path]:
    """
    Collect an export in a hidden directory beside `output`, which takes its name at the end.

    A process that is killed leaves the hidden directory behind and no `output`; the next export clears it, or goes on
    with it.

    Args:
        output (`Path`): Where the export shall stand.
        force (`bool`, *optional*, defaults to `False`): Replace an older export.
        keep (`bool`, *optional*, defaults to `False`): Go on with what an interrupted export left, and leave it when
            this one fails too.

    Returns:
        `Iterator[Path]`: The hidden directory.

    Raises:
        ValueError: When `output` exists, another process writes it, or the disk is full or read-only.
    """
    output = Path(os.path.abspath(output))
    staging = output.with_name(f".{output.name}.partial")
    try:
        check_free(output, force=force)
        output.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(output.with_name(f".{output.name}.lock"), timeout=0):
            check_free(output, force=force)
            if not keep:
                shutil.rmtree(staging, ignore_errors=True)
            staging.mkdir(exist_ok=True)
            try:
                yield staging
                publish(staging, output)
            except BaseException:
                if not keep:
                    shutil.rmtree(staging, ignore_errors=True)
                raise
            finally:
                with suppress(OSError):  # Windows keeps files that are open
                    output.with_name(f".{output.name}.lock").unlink()
    except Timeout:
        raise ValueError(
            f"got output '{output}', which another export is writing; expected one at a time; wait for it or choose "
            "another directory"
        ) from None
    except (OSError, SafetensorError) as error:
        kept = f"'{staging.name}' holds what is done, and the same command goes on with it" if keep else "nothing"
        raise ValueError(
            f"got output '{output}', which cannot be written ({error}); expected a writable directory with room for "
            f"the export; left behind: {kept}; free some space or choose another directory"
        ) from error


def check_free(output: Path, *, force: bool) -> None:
    """
    Refuse to touch what stands at the output already.

    Raises:
        ValueError: When something does, unless it is an older export and `force` is given.
    """
    if not os.path.lexists(output):
        return
    if not force:
        raise ValueError(f"got output '{output}', which exists; expected a new directory; choose another, or --force")
    if output.is_symlink() or not (output / RECORD).is_file():
        raise ValueError(
            f"got output '{output}', which is no export of this program; expected one, as --force deletes it; delete "
            "it yourself or choose another"
        )


def publish(staging: Path, output: Path) -> None:
    """Give the finished directory its name, in the place of an older export."""
    sync(staging)
    old = output.with_name(f".{output.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if output.exists():
        os.replace(output, old)
    os.replace(staging, output)
    sync(output.parent)
    shutil.rmtree(old, ignore_errors=True)


def sync(directory: Path) -> None:
    """Have the disk hold the names in a directory before anything says that they are there."""
    if os.name == "nt":  # Windows opens no directories
        return
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_record(directory: Path, record: dict[str, Any]) -> None:
    """Write what an export is and how it was checked; the last file of each export."""
    write_atomically(directory / RECORD, json.dumps(record, indent=1, sort_keys=True) + "\n")
