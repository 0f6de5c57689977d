"""Checks of values from outside and the one way in which this project writes a file."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


def write_atomically(path: str | os.PathLike[str], data: str | bytes) -> None:
    """
    Write a file under a temporary name and rename it: readers see the old file or the new one, never half of it.

    Args:
        path (`str` or `os.PathLike`): Where the file shall stand. Its directory is created when missing.
        data (`str` or `bytes`): The whole content; text is encoded as UTF-8.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    payload = data.encode("utf-8") if isinstance(data, str) else data
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(8)}.tmp")
    # Made by `open` itself, so that the process's umask decides who may read it, as for any other file.
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(payload)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def parse_json(text: bytes, *, what: str) -> dict[str, Any]:
    """
    Read a JSON object from outside, strictly: UTF-8, each name once, not nested beyond reason.

    Args:
        text (`bytes`): The JSON.
        what (`str`): What it is, for messages.

    Raises:
        ValueError: When it is no such object.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, value in pairs:
            if name in found:
                raise ValueError(f"the name {name[:80]!r} stands there twice")
            found[name] = value
        return found

    try:
        values = json.loads(text.decode("utf-8"), object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        reason = str(error).splitlines()[0][:200]
        raise ValueError(f"got {what} that cannot be read ({reason}); expected a JSON object; save it again") from None
    if not isinstance(values, dict):
        raise ValueError(f"got {what} with {type(values).__name__}; expected a JSON object; save it again")
    return values


def check_indices(site: str, indices: Tensor, width: int) -> None:
    """
    Refuse neuron indices that are negative, too large or repeated.

    Args:
        site (`str`): Name used in the message.
        indices (`torch.Tensor`): Shape `(k,)`, integers.
        width (`int`): Number of neurons of the site; valid indices are `0 … width-1`.

    Raises:
        ValueError: Names the offending index.
    """
    import torch  # the command line checks its files without

    outside = indices[(indices < 0) | (indices >= width)]
    if outside.numel():
        raise ValueError(
            f"got neuron index {int(outside[0])} at '{site}'; expected 0 to {width - 1}; use neurons selected on this "
            "model"
        )
    unique, seen = torch.unique(indices, return_counts=True)
    if unique.numel() != indices.numel():
        raise ValueError(
            f"got neuron index {int(unique[seen > 1][0])} more than once at '{site}'; expected each neuron "
            "once and in one role only; drop the repetition"
        )


def check_ranks(role: str, ranks: Iterable[Tensor]) -> None:
    """
    Refuse ranks that are not a permutation of `0 … n-1` over all sites of a role.

    Raises:
        ValueError: Names the role.
    """
    import torch

    joined = torch.cat([*ranks, torch.empty(0, dtype=torch.long)]).long().sort().values
    if not torch.equal(joined, torch.arange(joined.numel(), device=joined.device)):
        raise ValueError(
            f"got ranks of role '{role}' that are not 0 to {joined.numel() - 1}, each once; expected one place per "
            "neuron; save the neurons again with Neurons.save"
        )


def check_format_version(version: object, newest: int, *, what: str) -> None:
    """
    Refuse a file of a newer format.

    Raises:
        ValueError: When `version` is not an integer from 1 to `newest`.
    """
    if not isinstance(version, int) or isinstance(version, bool) or not 1 <= version <= newest:
        raise ValueError(
            f"got format_version {version!r} in the {what}; expected 1 to {newest}; upgrade neurontune_peft to read it"
        )
