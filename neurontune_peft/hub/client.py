"""huggingface_hub's client, where servers that speak its protocol differ from the Hub itself."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.errors import HfHubHTTPError, HfUriError
from transformers.utils import logging as transformers_logging

from neurontune_peft.tuner.remote import patiently

logger = transformers_logging.get_logger(__name__)

# What a server answers for an address that it does not know.
UNKNOWN = (404, 405, 501)


class Client(HfApi):
    """The client, without the demand that a server checks the metadata of cards: not every one does."""

    def _validate_yaml(self, content: str, **options: Any) -> None:
        try:
            super()._validate_yaml(content, **options)
        except (json.JSONDecodeError, AttributeError, TypeError):  # no answer of a validator
            logger.info("the server does not check the metadata of cards")
        except HfHubHTTPError as error:
            if error.response.status_code not in UNKNOWN:
                raise
            logger.info("the server does not check the metadata of cards")


def make_repository(api: HfApi, repo_id: str, *, private: bool) -> None:
    """
    Make a repository, or find that it is there.

    Raises:
        ValueError: When it is public and shall be private.
    """
    try:
        with _named_otherwise():
            patiently(lambda: api.create_repo(repo_id, private=private or None))
        return
    except HfHubHTTPError as error:
        if error.response.status_code not in (401, 402, 403, 409):
            raise
    with _named_otherwise():  # it exists, or the token may not make repositories; the client finds out which
        api.create_repo(repo_id, private=private or None, exist_ok=True)
    # An existing repository keeps its visibility, so what was to be private would be public.
    if private and patiently(lambda: api.model_info(repo_id)).private is False:
        raise ValueError(
            f"got '{repo_id}', a public repository; expected a private one; make it private in its settings, or "
            "choose another name"
        )


def commit(
    api: HfApi, repo_id: str, operations: Sequence[CommitOperationAdd], *, message: str, revision: str | None
) -> str:
    """
    Publish files in one commit: all of them appear, or nothing.

    Args:
        api (`HfApi`): The client.
        repo_id (`str`): Name of the repository.
        operations (`Sequence[CommitOperationAdd]`): The files.
        message (`str`): Title of the commit.
        revision (`str`, *optional*): Branch.

    Returns:
        `str`: Address of the commit, or of the repository where the server does not tell it.

    Raises:
        ValueError: When the repository would leave some of the files out.
    """
    with _quiet_about_buffers():
        patiently(lambda: api.preupload_lfs_files(repo_id, additions=operations, revision=revision, free_memory=False))
        if ignored := [operation.path_in_repo for operation in operations if operation._should_ignore]:
            raise ValueError(
                f"got '{repo_id}', whose .gitignore leaves out {ignored}; expected one that takes all files of an "
                "adapter; take the lines out of it, or choose another repository; nothing was published"
            )
        try:
            # Once a commit may have been taken, only an answer that says it was not is followed by another.
            made = patiently(
                lambda: api.create_commit(repo_id, operations, commit_message=message, revision=revision),
                statuses=(429, 503),
            )
        except (HfUriError, KeyError) as error:
            if isinstance(error, KeyError) and error.args[0] not in ("commitUrl", "commitOid"):
                raise
            # It was taken; its address is not there, or is one of another host.
            return f"{api.endpoint}/{repo_id}"
    return str(made.commit_url)


@contextmanager
def _named_otherwise() -> Iterator[None]:
    """Go on when a server names a repository by an address of another host: it is there all the same."""
    try:
        yield
    except (HfUriError, KeyError) as error:
        logger.info("the server names the repository in a way of its own (%s)", error)


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
