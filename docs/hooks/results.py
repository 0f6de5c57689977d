"""The measurements stand in benchmarks/, beside the scripts that print them; the site shows them as a page."""

from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[2]
PAGE = "results.md"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add benchmarks/RESULTS.md."""
    text = (ROOT / "benchmarks" / "RESULTS.md").read_text(encoding="utf-8")
    files.append(File.generated(config, PAGE, content=text.replace("](../docs/", "](")))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links to the file, which work on a code host, lead to the page."""
    up = "../" * page.file.src_uri.count("/")
    return markdown.replace(f"](../{up}benchmarks/RESULTS.md", f"]({up}{PAGE}")
