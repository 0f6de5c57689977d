"""Servers that speak the Hub's protocol, but not word for word as the Hub does."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest
import torch
from adapters import tuned_model
from architectures import tiny_model, tokens
from hub_client import Client
from hub_server import HubServer, running_hub
from test_hub import LOAD

Answer = tuple[int, Any, dict[str, str]]
Change = Callable[[str, int, Any, dict[str, str]], Answer]
OWN = {"README.md", "adapter_config.json", "adapter_model.safetensors"}
ELSEWHERE = "https://hub.example"


@pytest.fixture(scope="module")
def hub() -> Iterator[HubServer]:
    with running_hub() as server:
        yield server


@pytest.fixture(scope="module")
def client(hub: HubServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    found = Client(hub.url, tmp_path_factory.mktemp("home"))
    yield found
    found.close()


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("adapter")
    tuned_model().save_pretrained(directory)
    return directory


@pytest.fixture(autouse=True)
def forget(hub: HubServer) -> None:
    hub.faults.clear()
    hub.log.clear()
    hub.change = None


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    """A repository of its own for each test."""
    return f"alice/{zlib.crc32(request.node.name.encode()):x}"


def push(client: Client, adapter: Path, name: str, *more: str):
    return client.cli("push", str(adapter), name, "--base-model", "alice/base", *more)


def at(part: str, answer: Callable[[int, Any, dict[str, str]], Answer]) -> Change:
    """Another answer to the requests that hold `part`."""

    def change(request: str, status: int, content: Any, headers: dict[str, str]) -> Answer:
        return answer(status, content, headers) if part in request else (status, content, headers)

    return change


def files(change: Callable[[dict[str, Any]], dict[str, Any]]) -> Change:
    """Another answer about each file before it goes up."""
    return at(
        "/preupload/",
        lambda status, content, headers: (status, {"files": [one | change(one) for one in content["files"]]}, headers),
    )


ACCEPTED = {
    "no validator": at("validate-yaml", lambda *_: (404, {"error": "Not Found"}, {})),
    "no validator, a page": at("validate-yaml", lambda *_: (404, b"<html>Not Found</html>", {})),
    "a validator that says nothing": at("validate-yaml", lambda *_: (200, b"", {})),
    "a validator with a list": at("validate-yaml", lambda *_: (200, [], {})),
    "made at another address": at("repos/create", lambda s, c, h: (s, {"url": f"{ELSEWHERE}/models/a/b/c"}, h)),
    "made without an address": at("repos/create", lambda s, c, h: (s, {"id": "x"}, h)),
    "all files regular": files(lambda one: {"uploadMode": "regular"}),
    "all files large": files(lambda one: {"uploadMode": "lfs"}),
    "files without oid": files(lambda one: {"oid": None}),
    "no check of uploads": at(
        "objects/batch",
        lambda s, c, h: (
            s,
            {
                "objects": [
                    o | ({"actions": {"upload": o["actions"]["upload"]}} if "actions" in o else {})
                    for o in c["objects"]
                ]
            },
            h,
        ),
    ),
    "a commit without an address": at("/commit/", lambda s, c, h: (s, {"success": True, "commitOid": "0" * 40}, h)),
    "a commit at another address": at("/commit/", lambda s, c, h: (s, c | {"commitUrl": f"{ELSEWHERE}/x"}, h)),
}


@pytest.mark.parametrize("change", ACCEPTED.values(), ids=ACCEPTED)
def test_an_adapter_is_published_whole_in_one_commit(hub, client, adapter, name, change):
    hub.change = change
    done = push(client, adapter, name)
    assert done.code == 0, done.err
    assert done.out.startswith(f"Published: {hub.url}/{name}") or ELSEWHERE in done.out
    assert set(hub.repositories[name].files()) == OWN | {".gitattributes"}
    assert len(hub.repositories[name].commits) == 2
    assert "hf_right" not in done.out + done.err
    assert not [request for request in hub.log if "whoami" in request]


def test_metadata_that_a_validator_refuses_are_not_published(hub, client, adapter, name):
    hub.change = at("validate-yaml", lambda *_: (400, {"errors": [{"message": "bad licence"}], "warnings": []}, {}))
    done = push(client, adapter, name)
    assert done.code == 2
    assert "bad licence" in done.err
    assert len(hub.repositories[name].commits) == 1


def test_files_that_the_repository_would_leave_out_are_an_error_and_nothing_is_published(hub, client, adapter, name):
    hub.change = files(lambda one: {"shouldIgnore": one["path"].endswith(".safetensors")})
    done = push(client, adapter, name)
    assert done.code == 2
    assert "whose .gitignore leaves out ['adapter_model.safetensors']" in done.err
    assert len(hub.repositories[name].commits) == 1


def test_bytes_that_the_storage_holds_already_are_not_sent_again(hub, client, adapter, name):
    assert push(client, adapter, f"{name}-1").code == 0
    hub.log.clear()
    assert push(client, adapter, f"{name}-2").code == 0
    assert not [request for request in hub.log if request.startswith("PUT")]
    assert set(hub.repositories[f"{name}-2"].files()) >= OWN


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize("request_", ["repos/create", "/commit/", "/preupload/"])
def test_a_server_that_is_busy_is_asked_again(hub, client, adapter, name, request_, status):
    soon = format_datetime(datetime.now(UTC) + timedelta(seconds=-5), usegmt=True)
    hub.fail(f"POST .*{request_}", status, Retry_After=soon)
    done = push(client, adapter, name)
    assert done.code == 0, done.err
    assert len(hub.repositories[name].commits) == 2


def test_a_wait_beyond_reason_that_is_told_as_a_date_is_not_waited_for(hub, client, adapter, name):
    hub.fail("repos/create", 429, Retry_After=format_datetime(datetime.now(UTC) + timedelta(hours=2), usegmt=True))
    done = push(client, adapter, name)
    assert done.code == 2
    assert "too many requests" in done.err


def test_a_repository_that_exists_is_taken_whatever_the_server_says_about_it(hub, client, adapter, name):
    assert push(client, adapter, name).code == 0
    hub.change = at("repos/create", lambda status, content, headers: (409, {"message": "exists"}, {}))
    done = push(client, adapter, name)
    assert done.code == 0, done.err


def with_headers(**headers: str | None) -> Change:
    """Other headers of files, on the way to them; `None` leaves one out."""
    named = {key.replace("_", "-").lower(): value for key, value in headers.items()}

    def answer(status: int, content: Any, held: dict[str, str]) -> Answer:
        kept = {key: value for key, value in held.items() if key.replace("_", "-").lower() not in named}
        known = {key.replace("_", "-").lower(): value for key, value in held.items()}
        new = {key: value.format(old=known.get(key, "")) for key, value in named.items() if value}
        return status, content, kept | {key: value for key, value in new.items() if key in known}

    return at("/resolve/", answer)


READ = {
    "weak ETags": with_headers(ETag="W/{old}", X_Linked_ETag="W/{old}"),
    "no size of linked files": with_headers(X_Linked_Size=None),
    "no ETag of linked files": at(
        "/resolve/",
        lambda s, c, h: (
            s,
            c,
            {k: v for k, v in h.items() if k != "X_Linked_ETag"} | ({"ETag": h["X_Linked_ETag"]} if s == 302 else {}),
        ),
    ),
}


@pytest.mark.parametrize("change", READ.values(), ids=READ)
def test_an_adapter_is_read_from_it(hub, client, adapter, name, change, tmp_path):
    push(client, adapter, name)
    hub.change = change
    done = client.cli("inspect", name)
    assert done.code == 0, done.err
    assert "base model   alice/base" in done.out


def test_files_that_were_moved_to_another_address_of_the_server_are_found(hub, client, adapter, name, tmp_path):
    push(client, adapter, name)
    other = f"alice/moved-{name.partition('/')[2]}"
    hub.repositories[other] = hub.repositories[name]

    def moved(request: str, status: int, content: Any, headers: dict[str, str]) -> Answer:
        if f"/{name}/resolve/" not in request:
            return status, content, headers
        return 307, b"", {"Location": request.partition(" ")[2].replace(name, other)}

    hub.change = moved
    base = tmp_path / "base"
    tiny_model().save_pretrained(base)
    done = client.run(LOAD, name, str(base), str(tokens().tolist()), str(tmp_path / "logits.pt"), "")
    assert done.code == 0, done.err
    assert torch.equal(torch.load(tmp_path / "logits.pt"), tuned_model().eval()(tokens()).logits)


def test_a_download_that_fails_for_a_moment_is_tried_again(hub, client, adapter, name):
    push(client, adapter, name)
    hub.fail("HEAD .*/resolve/", 503, Retry_After="0")
    done = client.cli("inspect", name)
    assert done.code == 0, done.err


def test_a_server_that_names_no_commit_is_told_from_a_missing_adapter(hub, client, adapter, name):
    push(client, adapter, name)
    hub.change = with_headers(X_Repo_Commit=None)
    done = client.cli("inspect", name)
    assert done.code == 2
    assert "X-Repo-Commit" in done.err
    assert "Traceback" not in done.err


@pytest.mark.parametrize("status", [401, 404])
def test_what_is_not_shown_is_no_adapter_also_without_an_error_code(hub, client, name, status):
    hub.change = at("/resolve/", lambda *_: (status, {"error": "Repository not found"}, {}))
    done = client.cli("inspect", name)
    assert done.code == 2
    assert "Traceback" not in done.err
    assert name in done.err
    assert "hf_right" not in done.err
