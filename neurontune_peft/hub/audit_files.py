"""Which files does an adapter bring? Nothing is opened here."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path, PurePosixPath

from huggingface_hub import HfApi
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME

from neurontune_peft.hub.findings import Finding

# Formats that run code when they are loaded, and code.
PICKLES = {".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib", ".dill", ".npy", ".npz", ".h5", ".keras"}
CODE = {".py", ".pyc", ".pyd", ".so", ".dll", ".dylib", ".exe", ".sh", ".bash", ".bat", ".ps1", ".js", ".ipynb"}
ARCHIVES = {".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".7z", ".whl"}
OWN = {CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME}
# What `neurontune tune`, `push` and the Hub put beside an adapter.
USUAL = {"README.md", ".gitattributes", ".gitignore", "LICENSE", "LICENSE.md", "frontier.png"}
MOST = 2000


def files_on_hub(repo_id: str, revision: str | None) -> list[str] | None:
    """Names of a repository's files; `None` where the Hub gives no list."""
    try:
        return list(islice(HfApi().list_repo_files(repo_id, revision=revision), MOST + 1))
    except Exception:  # offline, or a server without listings: the files of the cache are looked at then
        return None


def check_names(names: Iterable[str]) -> Iterator[Finding]:
    """
    Judge files by their names alone.

    Args:
        names (`Iterable[str]`): Paths within a repository or directory.
    """
    names = list(islice(names, MOST + 1))
    if len(names) > MOST:
        yield Finding("danger", "files", f"more than {MOST:,} files; an adapter has two, and a card")
    quiet = True
    for name in names:
        path, suffixes = PurePosixPath(name), {part.lower() for part in PurePosixPath(name).suffixes}
        if path.is_absolute() or ".." in path.parts or "\\" in name or ":" in name:
            yield Finding("danger", "files", f"'{name}' leads out of its directory")
        elif suffixes & PICKLES:
            yield Finding("danger", "files", f"'{name}' is of a format that can run code when it is loaded")
        elif suffixes & CODE:
            yield Finding("danger", "files", f"'{name}' is code; scales need none")
        elif suffixes & ARCHIVES:
            yield Finding("warning", "files", f"'{name}' is an archive; scales need none")
        elif path.suffix == ".safetensors" and name not in OWN:
            yield Finding("warning", "files", f"'{name}' holds tensors beside those of the adapter")
        else:
            continue
        quiet = False
    if quiet and len(names) <= MOST:
        others = [name for name in names if name not in OWN | USUAL and not name.endswith((".json", ".md", ".png"))]
        tail = f"; others: {', '.join(others[:5])}" if others else ""
        yield Finding("ok", "files", f"{len(names)} files, no pickle, no code{tail}")


def names_in(directory: Path) -> Iterator[str]:
    """Paths of the files in a directory, links not followed."""
    for folder, folders, files in os.walk(directory, followlinks=False):
        folders[:] = [name for name in folders if name not in (".cache", ".git")]
        yield from (Path(folder, name).relative_to(directory).as_posix() for name in files)


def check_links(directory: Path) -> Iterator[Finding]:
    """
    Refuse links that lead out of a directory, and what is no file where one is expected.

    Args:
        directory (`Path`): The adapter's directory; a snapshot in huggingface_hub's cache links to its own blobs.
    """
    root = directory.resolve()
    allowed = (root, root.parent.parent / "blobs") if root.parent.name == "snapshots" else (root,)
    for name in islice(names_in(directory), MOST):
        path = directory / name
        if path.is_symlink() and not any(path.resolve().is_relative_to(place) for place in allowed):
            level = "danger" if name in OWN else "warning"
            yield Finding(level, "files", f"'{name}' is a link that leads out of the directory")  # type: ignore[arg-type]
    for name in sorted(OWN):
        try:
            mode = (directory / name).stat().st_mode
        except OSError:
            yield Finding("danger", "files", f"there is no {name}")
            continue
        if not stat.S_ISREG(mode):
            yield Finding("danger", "files", f"{name} is no ordinary file")
