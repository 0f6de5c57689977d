"""The report page in a real browser: nothing foreign runs, nothing is fetched, the filters work, all media render."""

import re
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from browser import browse, dom_after_scripts, needs_browser
from reports import BASE, TUNED, full_document

from neurontune_peft.report import report_html

pytestmark = needs_browser


@pytest.fixture
def listener():
    """A server on this machine that writes down what is asked of it."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_response(204)
            self.end_headers()

        def log_message(self, *args):
            pass

    # One thread for each connection: browsers open some that they do not use yet.
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()
    server.server_close()
    thread.join()


def hostile(address: str) -> str:
    return (
        f"</p></script></style><script>document.title='owned'; fetch('{address}/script')</script>"
        f"<img src='{address}/image' onerror=\"document.title='owned'\"><iframe src='{address}/frame'></iframe>"
        f"<style>@import '{address}/style'; body {{ background: url({address}/background) }}</style>"
    )


def test_a_hostile_answer_runs_no_script_and_nothing_is_fetched(tmp_path, listener):
    address, asked = listener
    text = hostile(address)
    examples = [tuple(replace(e, answer=text, prompt=text) for e in report.examples[-3:]) for report in (BASE, TUNED)]
    document = replace(
        full_document(),
        before=replace(BASE, examples=examples[0]),
        after=replace(TUNED, examples=examples[1], judge_limits=text),
        details={text: text},
        command=text,
        certificate={"statement": text},
    )
    page = tmp_path / "page.html"
    page.write_text(report_html(document), encoding="utf-8")
    shown = dom_after_scripts(page, tmp_path / "profile")
    assert "<title>Safety report: user/model</title>" in shown
    assert "3 of 3 examples shown" in shown  # the page's own script ran
    assert asked == []


def test_that_test_would_notice_what_runs_and_what_is_fetched(tmp_path, listener):
    address, asked = listener
    page = tmp_path / "page.html"
    page.write_text(f"<title>x</title><p>{hostile(address)}", encoding="utf-8")
    assert "<title>owned</title>" in dom_after_scripts(page, tmp_path / "profile")
    assert "/image" in asked


def test_the_policy_alone_stops_what_would_slip_through_the_escaping(tmp_path, listener):
    address, asked = listener
    page = tmp_path / "page.html"
    text = report_html(full_document()).replace("<main id", f"{hostile(address)}<main id")
    page.write_text(text, encoding="utf-8")
    assert "owned" not in re.sub(r"'owned'", "", dom_after_scripts(page, tmp_path / "profile"))
    assert asked == []


def acted(page_text: str, script: str) -> str:
    """The page with a script of the test's own, which its policy would not let run."""
    free = re.sub(r"<meta http-equiv[^>]*>", "", page_text)
    return free.replace("</body>", f"<script>{script}</script></body>")


def test_filters_search_and_the_button_for_more_work(tmp_path):
    script = """
    const set = (id, value) => {
      const field = document.getElementById(id);
      field.value = value;
      field.dispatchEvent(new Event("input", {bubbles: true}));
    };
    const shown = () => Array.from(document.querySelectorAll(".example")).filter((item) => !item.hidden);
    const said = [];
    const note = (name) => said.push(name + "=" + shown().length + "/" +
      document.getElementById("filter-status").textContent);
    note("start");
    document.getElementById("show-more").click();
    note("more");
    set("filter-group", "attack");
    note("group");
    set("filter-family", "role");
    note("family");
    set("filter-change", "newly refused");
    note("change");
    set("filter-text", "REQUEST 4");
    note("text");
    set("filter-text", "no such words");
    note("none");
    document.title = said.join("; ");
    """
    page = tmp_path / "page.html"
    page.write_text(acted(report_html(full_document()), script), encoding="utf-8")
    title = re.search(r"<title>(start[^<]*)", dom_after_scripts(page, tmp_path / "profile"))
    assert title is not None
    assert title[1].split("; ") == [
        "start=20/20 of 50 examples shown",
        "more=40/40 of 50 examples shown",
        "group=20/20 of 20 examples shown",
        "family=10/10 of 10 examples shown",
        "change=5/5 of 5 examples shown",
        "text=1/1 of 1 examples shown",
        "none=0/No example fits these filters",
    ]


def test_without_scripts_every_example_is_there(tmp_path):
    page = tmp_path / "page.html"
    page.write_text(re.sub(r"<script>.*?</script>", "", report_html(full_document()), flags=re.DOTALL), "utf-8")
    shown = dom_after_scripts(page, tmp_path / "profile")
    assert len(re.findall(r'class="example"(?! hidden)', shown)) == 50
    assert re.search(r'<form id="filters"[^>]*hidden', shown)


def test_dark_and_light_are_followed_and_both_have_enough_contrast(tmp_path):
    script = """
    const style = getComputedStyle(document.querySelector("section"));
    document.title = "colours " + style.color + " on " + style.backgroundColor;
    """
    page = tmp_path / "page.html"
    page.write_text(acted(report_html(full_document()), script), encoding="utf-8")
    seen = []
    for scheme in ("0", "1"):  # Chromium's names for dark and light
        options = (f"--blink-settings=preferredColorScheme={scheme}", "--dump-dom")
        title = re.search(r"<title>colours rgb\((.*?)\) on rgb\((.*?)\)", browse(page, tmp_path / "profile", *options))
        assert title is not None
        seen.append([luminance(colour) for colour in title.groups()])
    (dark_text, dark_page), (light_text, light_page) = seen
    assert dark_text > dark_page
    assert light_text < light_page
    for text, background in seen:
        low, high = sorted((text, background))
        assert (high + 0.05) / (low + 0.05) > 7  # WCAG 2.2, level AAA


def luminance(colour: str) -> float:
    """Relative luminance of `r, g, b` (WCAG 2.2)."""
    parts = [int(part) / 255 for part in colour.split(",")]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_the_page_prints(tmp_path):
    page = tmp_path / "page.html"
    page.write_text(report_html(full_document()), encoding="utf-8")
    browse(page, tmp_path / "profile", f"--print-to-pdf={tmp_path / 'page.pdf'}", "--no-pdf-header-footer")
    printed = (tmp_path / "page.pdf").read_bytes()
    assert printed.startswith(b"%PDF")
    assert 2 <= len(re.findall(rb"/Type\s*/Page\b", printed)) <= 20
