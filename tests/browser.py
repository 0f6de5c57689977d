"""A headless Chromium for tests of pages; they are skipped, with a reason, where there is none."""

import shutil
import subprocess
from pathlib import Path

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
FOUND = next((path for path in map(shutil.which, NAMES) if path), None)
needs_browser = pytest.mark.skipif(FOUND is None, reason=f"no browser: none of {', '.join(NAMES)} is installed")
SECONDS = 180  # a browser takes one or two; this is for machines with many other things to do


def browse(page: Path, profile: Path, *options: str) -> str:
    """Open a page from disk; returns what the options ask for on standard output."""
    command = [str(FOUND), "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
    command += ["--no-first-run", "--hide-scrollbars", f"--user-data-dir={profile}", *options]
    command += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
    done = subprocess.run([*command, page.as_uri()], capture_output=True, text=True, timeout=SECONDS, check=True)
    return done.stdout


def dom_after_scripts(page: Path, profile: Path) -> str:
    """The page's document after its scripts have run and its pictures and frames are there, or failed."""
    return browse(page, profile, "--dump-dom")
