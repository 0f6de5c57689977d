"""Files of a repository on the Hub, fetched by huggingface_hub with limits and with errors that say what to do."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, TypeVar

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from transformers.utils import logging

logger = logging.get_logger(__name__)
Result = TypeVar("Result")

# An adapter has 12 or 16 bytes per neuron; a dense one of a 70B model has 37 MB.
MAX_BYTES = 1_000_000_000
# Times that a request is made which the server turns away for a while, and the longest wait that it may ask for.
TRIES, LONGEST_WAIT = 3, 60
# Too many requests; for a while no answer from what stands behind the server.
LATER = (429, 502, 503, 504)


def fetch(repo_id: str, filename: str, *, limit: int = MAX_BYTES, **hub_options: Any) -> Path:
    """
    Download a file, or find it in the cache.

    Args:
        repo_id (`str`): Name of the repository.
        filename (`str`): Name of the file in it.
        limit (`int`, *optional*, defaults to `1_000_000_000`): Most bytes; the size is asked for first.
        hub_options: Options of [`~huggingface_hub.hf_hub_download`], such as `revision`.

    Raises:
        ValueError: Says why there is no such file, or that it is too large.
    """
    try:
        size = patiently(lambda: hf_hub_download(repo_id, filename, dry_run=True, **hub_options)).file_size
        if size is not None and size > limit:
            raise ValueError(
                f"got '{filename}' of {size:,} bytes in '{repo_id}'; expected at most {limit:,}; it was not downloaded"
            )
        return Path(patiently(lambda: hf_hub_download(repo_id, filename, **hub_options)))
    except HFValidationError as error:
        raise ValueError(_no_name(repo_id)) from error
    except ValueError:
        raise
    except Exception as error:  # whatever the HTTP library of this huggingface_hub raises
        raise ValueError(explained(error, repo_id, filename=filename)) from error


def patiently(call: Callable[[], Result], *, statuses: Sequence[int] = LATER) -> Result:
    """
    Call again after the time that the server asks for, when it turns a request away for a while.

    Args:
        call (`Callable`): Makes the request.
        statuses (`Sequence[int]`, *optional*): Answers after which it is made again.
    """
    for left in reversed(range(TRIES)):
        try:
            return call()
        except (HfHubHTTPError, LocalEntryNotFoundError) as error:
            # Without a cached copy, the library reports why the Hub gave none as the cause.
            cause = error if isinstance(error, HfHubHTTPError) else error.__cause__
            if not isinstance(cause, HfHubHTTPError) or cause.response.status_code not in statuses or not left:
                raise
            if (wait := wait_of(cause)) > LONGEST_WAIT:
                raise
            logger.warning("The Hub asks to wait %d s before the next request.", wait)
            time.sleep(wait)
    raise AssertionError("unreachable")


def wait_of(error: HfHubHTTPError) -> int:
    """Seconds until the next try, from `Retry-After`, which holds seconds or a date; 1 where it is not there."""
    text = error.response.headers.get("Retry-After", "")
    if text.isdigit():
        return int(text)
    try:
        return max(0, round((parsedate_to_datetime(text) - datetime.now(UTC)).total_seconds()))
    except (TypeError, ValueError):
        return 1


def explained(error: BaseException, repo_id: str, *, filename: str = "") -> str:
    """
    What an error of huggingface_hub means, in one line. It holds no token: the library's messages hold none either.

    Args:
        error (`BaseException`): The error.
        repo_id (`str`): Name of the repository.
        filename (`str`, *optional*): The file that was asked for.
    """
    # Without a cached copy, the library reports why the Hub gave none as the cause.
    if isinstance(error, LocalEntryNotFoundError) and error.__cause__ is not None:
        return explained(error.__cause__, repo_id, filename=filename)
    if isinstance(error, (OfflineModeIsEnabled, LocalEntryNotFoundError)):
        return (
            f"got '{repo_id}', which is no directory here and not in the cache; expected either, as no connection to "
            "the Hub is allowed (HF_HUB_OFFLINE or local_files_only); unset it or correct the name"
        )
    if isinstance(error, HFValidationError):
        return _no_name(repo_id)
    if isinstance(error, RevisionNotFoundError):
        return f"got a revision that '{repo_id}' does not have; expected a branch, tag or commit; correct the revision"
    if isinstance(error, EntryNotFoundError):
        return f"got '{repo_id}' without {filename or 'the file'}; expected an adapter; correct the name or revision"
    if isinstance(error, GatedRepoError):
        return f"got '{repo_id}', which is gated; expected access to it; ask for it on its page, then log in"
    if isinstance(error, RuntimeError) and isinstance(error.__cause__, HfHubHTTPError):  # an upload to storage
        return explained(error.__cause__, repo_id, filename=filename)
    if isinstance(error, HfHubHTTPError):
        return _http(error, repo_id)
    return f"got no answer from the Hub about '{repo_id}' ({type(error).__name__}: {_first_line(error)}); try again"


def _http(error: HfHubHTTPError, repo_id: str) -> str:
    status = error.response.status_code
    bad_token = (
        "invalid" in f"{error.server_message or ''} {error.response.headers.get('X-Error-Message', '')}".lower()
    )
    if status == 401 and (bad_token or not isinstance(error, RepositoryNotFoundError)):
        return (
            f"got a token for '{repo_id}' that the Hub does not accept (401); expected a valid one; log in with "
            "'hf auth login' or set HF_TOKEN"
        )
    if isinstance(error, RepositoryNotFoundError):
        return (
            f"got '{repo_id}', which is no directory here, and which the Hub does not show ({status}): it does not "
            "exist, or it is private; correct the name, or log in with 'hf auth login' or HF_TOKEN"
        )
    if status == 403:
        return (
            f"got a token without the right for this on '{repo_id}' (403); expected one that may; make a token with "
            "that permission"
        )
    if status == 429:
        after = error.response.headers.get("Retry-After")
        return f"got too many requests for the Hub (429, '{repo_id}'); try again in {after or 'some'} seconds"
    if status >= 500:
        return f"got a server error of the Hub about '{repo_id}' ({status}); the cause is not here; try again later"
    return f"got status {status} from the Hub about '{repo_id}' ({_first_line(error)}); correct the call or the name"


def _no_name(repo_id: str) -> str:
    return f"got '{repo_id[:200]}', which is no directory here and no name on the Hub; expected either; correct it"


def _first_line(error: BaseException) -> str:
    return next((line for line in re.split(r"\s*\n\s*", str(error)) if line), "no message")[:300]
