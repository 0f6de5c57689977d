"""Publishing an adapter: its two files and a card, in one commit of huggingface_hub's own client."""

from __future__ import annotations

import io
import logging
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import validate_repo_id
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME
from transformers.utils import logging as transformers_logging

from neurontune_peft.hub.card import PICTURE, model_card
from neurontune_peft.hub.evidence import Evidence
from neurontune_peft.hub.picture import frontier_picture
from neurontune_peft.hub.private import check_publishable, published_base, shared_command
from neurontune_peft.tuner.config import config_text
from neurontune_peft.tuner.files import AdapterFile
from neurontune_peft.tuner.remote import explained
from neurontune_peft.tuner.saved import CARD

logger = transformers_logging.get_logger(__name__)
Result = TypeVar("Result")

# Times that a request is made which the Hub turns away as one too many, and the longest wait that it may ask for.
TRIES, LONGEST_WAIT = 3, 60


def published_files(
    directory: str | os.PathLike[str], repo_id: str, *, license: str | None = None, base_model: str | None = None
) -> dict[str, bytes]:
    """
    What will be published of an adapter's directory: its configuration, its tensors, a card, a picture; nothing else.

    Args:
        directory (`str` or `os.PathLike`): The adapter.
        repo_id (`str`): Name on the Hub, `user/name`.
        license (`str`, *optional*): The Hub's identifier of the licence, such as `"apache-2.0"`.
        base_model (`str`, *optional*): The base model's name on the Hub, in place of what the configuration says.

    Returns:
        `dict[str, bytes]`: Name to content.

    Raises:
        ValueError: When the directory holds no whole adapter, or something private would be published.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise ValueError(f"got '{directory}', which is no directory; expected a saved adapter; correct the path")
    if license is not None and not re.fullmatch(r"[a-z0-9][a-z0-9.\-]*", license):
        raise ValueError(f"got license {license[:80]!r}; expected the Hub's name of one; write for example apache-2.0")
    file = AdapterFile.load(directory)
    base = published_base(file.config.base_model_name_or_path, base_model)
    evidence = Evidence.of(directory, file.config)
    if evidence.command:
        evidence = replace(evidence, command=shared_command(evidence.command, base_model=base))
    changes: dict[str, Any] = {"base_model_name_or_path": base, "revision": None}
    if evidence.presets:
        changes["provenance"] = {**(file.config.provenance or {}), "presets": evidence.presets}
    file = replace(file, config=replace(file.config, **changes))
    picture = frontier_picture(directory, PICTURE, evidence.frontier)
    card = model_card(file, repo_id, evidence, license=license, picture=picture is not None)
    config = file.config.to_dict() | {"inference_mode": True}
    texts = {
        CARD: str(card).encode(),
        CONFIG_NAME: config_text(config).encode(),
    }
    check_publishable(texts)
    tensors = (directory / SAFETENSORS_WEIGHTS_NAME).read_bytes()
    return texts | {SAFETENSORS_WEIGHTS_NAME: tensors} | ({} if picture is None else {PICTURE: picture})


def push(
    directory: str | os.PathLike[str],
    repo_id: str,
    *,
    private: bool = False,
    revision: str | None = None,
    commit_message: str = "Upload NeuronTune adapter",
    license: str | None = None,
    base_model: str | None = None,
) -> str:
    """
    Publish an adapter with a card, in one commit: all of it appears, or nothing.

    The token comes from where huggingface_hub looks for it (`HF_TOKEN`, `hf auth login`). The repository is made when
    it does not exist; if the upload then fails, it stays there, empty.

    Args:
        directory (`str` or `os.PathLike`): The adapter, as `save_pretrained` or `neurontune tune` wrote it.
        repo_id (`str`): Name on the Hub, `user/name`.
        private (`bool`, *optional*, defaults to `False`): Make a private repository.
        revision (`str`, *optional*): Branch; made when it does not exist.
        commit_message (`str`, *optional*): Title of the commit.
        license (`str`, *optional*): The Hub's identifier of the licence.
        base_model (`str`, *optional*): The base model's name on the Hub.

    Returns:
        `str`: Address of the commit.

    Raises:
        ValueError: Before anything is sent, when something is wrong with the adapter; afterwards, why the Hub refused.
    """
    _check_name(repo_id)
    files = published_files(directory, repo_id, license=license, base_model=base_model)
    api = HfApi(library_name="neurontune_peft")
    try:
        _make_repository(api, repo_id, private=private)
        if revision is not None:
            _patiently(lambda: api.create_branch(repo_id, branch=revision, exist_ok=True))
        operations = _operations(files)
        with _quiet_about_buffers():
            commit = _patiently(
                lambda: api.create_commit(repo_id, operations, commit_message=commit_message, revision=revision)
            )
    except ValueError:
        raise
    except Exception as error:  # whatever the HTTP library of this huggingface_hub raises
        raise ValueError(
            f"{explained(error, repo_id)}. The files go up in one commit: the repository holds all of this version or "
            "nothing of it"
        ) from error
    return str(commit.commit_url)


def _operations(files: Mapping[str, bytes]) -> list[CommitOperationAdd]:
    # Buffers go up by plain HTTP, which every server of the Hub's protocol speaks; Xet storage, which paths and bytes
    # would take, saves nothing for files of kilobytes.
    return [CommitOperationAdd(path_in_repo=n, path_or_fileobj=io.BytesIO(content)) for n, content in files.items()]


def _make_repository(api: HfApi, repo_id: str, *, private: bool) -> None:
    try:
        _patiently(lambda: api.create_repo(repo_id, private=private or None))
        return
    except HfHubHTTPError as error:
        if error.response.status_code not in (401, 402, 403, 409):
            raise
        # It exists, or the token may not make repositories; the client finds out which.
        api.create_repo(repo_id, private=private or None, exist_ok=True)
    # An existing repository keeps its visibility, so what was to be private would be public.
    if private and _patiently(lambda: api.model_info(repo_id)).private is False:
        raise ValueError(
            f"got '{repo_id}', a public repository; expected a private one; make it private in its settings, or "
            "choose another name"
        )


def _patiently(call: Callable[[], Result]) -> Result:
    """Call again after the time that the Hub asks for, when it turns a request away as one too many."""
    for left in reversed(range(TRIES)):
        try:
            return call()
        except HfHubHTTPError as error:
            after = error.response.headers.get("Retry-After", "")
            wait = int(after) if after.isdigit() else 1
            if error.response.status_code != 429 or not left or wait > LONGEST_WAIT:
                raise
            logger.warning("The Hub asks to wait %d s before the next request.", wait)
            time.sleep(wait)
    raise AssertionError("unreachable")


@contextmanager
def _quiet_about_buffers() -> Iterator[None]:
    """Leave out the client's remark that buffers do not go through Xet storage: that is meant."""

    def other(record: logging.LogRecord) -> bool:
        return "binary IO buffer" not in record.getMessage()

    client = logging.getLogger("huggingface_hub._commit_api")
    client.addFilter(other)
    try:
        yield
    finally:
        client.removeFilter(other)


def _check_name(repo_id: str) -> None:
    try:
        validate_repo_id(repo_id)
        named = repo_id.count("/") == 1
    except ValueError:
        named = False
    if not named:
        raise ValueError(f"got '{repo_id[:200]}'; expected a name on the Hub, USER/NAME; correct it")
