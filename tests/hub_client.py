"""Processes with a Hub of their own: a parent that has imported everything, and a fresh fork of it for each call."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

PARENT = r"""
import json, os, sys, tempfile, traceback
import torch, transformers, peft, huggingface_hub
import neurontune_peft
from neurontune_peft.cli import main
import neurontune_peft.hub.audit, neurontune_peft.hub.push, neurontune_peft.report  # what the calls need
torch.set_num_threads(1)
print("ready", flush=True)
for line in sys.stdin:
    job = json.loads(line)
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        child = os.fork()
        if child == 0:
            os.dup2(out.fileno(), 1); os.dup2(err.fileno(), 2)
            os.environ.update(job["env"])
            code = 0
            try:
                exec(job["code"], {"main": main, "args": job["args"]})
            except SystemExit as stop:
                code = stop.code if isinstance(stop.code, int) else 1
            except BaseException:
                traceback.print_exc()
                code = 70
            sys.stdout.flush(); sys.stderr.flush()
            os._exit(code)
        _, status = os.waitpid(child, 0)
        texts = []
        for stream in (out, err):
            stream.seek(0)
            texts.append(stream.read().decode())
    print(json.dumps({"code": os.waitstatus_to_exitcode(status), "out": texts[0], "err": texts[1]}), flush=True)
"""


@dataclass(frozen=True)
class Done:
    """How a call ended: exit code, standard output, standard error."""

    code: int
    out: str
    err: str


def environment(url: str, home: Path, **settings: str) -> dict[str, str]:
    """Environment of a process whose Hub is at `url` and whose files of huggingface_hub are under `home`."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING_FACE"))}
    kept.pop("TRANSFORMERS_OFFLINE", None)
    own = {"HF_ENDPOINT": url, "HF_HOME": str(home), "NO_PROXY": "127.0.0.1,localhost", "OMP_NUM_THREADS": "1"}
    return kept | own | {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "PYTHONWARNINGS": "ignore"} | settings


class Client:
    """Calls code in forks of a process that has imported everything but asked the Hub nothing."""

    def __init__(self, url: str, home: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", PARENT],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment(url, home),
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "ready\n"

    def run(self, code: str, *args: str, token: str | None = "hf_right") -> Done:
        job = {"code": code, "args": args, "env": {} if token is None else {"HF_TOKEN": token}}
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        return Done(**json.loads(self.process.stdout.readline()))

    def cli(self, *args: str, token: str | None = "hf_right") -> Done:
        return self.run("raise SystemExit(main(args))", *args, token=token)

    def close(self) -> None:
        self.process.communicate(timeout=60)  # closes its input, which ends it as a user would
