"""The page of the main reports in a browser: Chromium without a window, told what to do by options alone."""

from __future__ import annotations

import http.server
import json
import os
import re
import shutil
import subprocess
import threading
from contextlib import contextmanager
from html import unescape
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from cli_run import run_cli
from sqlalchemy import make_url
from support_reports import make_history

from solti_store.rules.reports import PAGE

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.deployment("chromium")

WIDTHS = (400, 1280)

# Frames of the widths around the page, each measured when everything in it has been loaded or has failed to.
FRAMES = """<!doctype html><title>frames</title>
{frames}
<pre id="found"></pre>
<script>
addEventListener("load", () => {{
  const found = [...document.querySelectorAll("iframe")].map(frame => {{
    const inside = frame.contentDocument, root = inside.documentElement;
    return {{
      width: root.clientWidth,
      overflow: root.scrollWidth - root.clientWidth,
      drawings: [...inside.querySelectorAll("svg")].filter(one => one.getBoundingClientRect().height > 20).length,
      bars: [...inside.querySelectorAll("rect")].filter(one => one.getBoundingClientRect().width > 0).length,
      loaded: frame.contentWindow.performance.getEntriesByType("resource").map(entry => entry.name),
    }};
  }});
  document.getElementById("found").textContent = JSON.stringify(found);
}});
</script>
"""


@pytest.fixture
def chromium() -> str:
    found = shutil.which("chromium")
    if found is None:
        pytest.fail("chromium is not installed: apt-get install chromium", pytrace=False)
    return found


@contextmanager
def served(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """A folder at a URL, and what is asked of it."""
    asked: list[str] = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *given: Any) -> None:
            super().__init__(*given, directory=str(folder))

        def log_message(self, *given: Any) -> None:
            asked.append(self.path)

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", asked
        finally:
            server.shutdown()
            thread.join()


def look(chromium: str, page: str, folder: Path) -> tuple[list[dict[str, Any]], list[str], list[str]]:
    """What a browser makes of a page: what is measured at each width, what it says on its console, what it asks for."""
    (folder / "page.html").write_text(page, encoding="utf-8")
    frames = "\n".join(
        f'<iframe src="page.html" style="width: {width}px; height: 800px; border: 0"></iframe>' for width in WIDTHS
    )
    (folder / "frames.html").write_text(FRAMES.format(frames=frames), encoding="utf-8")
    with served(folder) as (url, asked):
        done = subprocess.run(
            [
                chromium,
                "--headless=new",
                "--disable-gpu",
                "--disable-dev-shm-usage",
                *(["--no-sandbox"] if os.geteuid() == 0 else []),
                f"--user-data-dir={folder / 'profile'}",
                # Whatever is not here is nowhere.
                "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
                "--enable-logging=stderr",
                "--hide-scrollbars",
                "--window-size=1400,2000",
                "--dump-dom",
                f"{url}/frames.html",
            ],
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    said = [line for line in done.stderr.splitlines() if ":CONSOLE" in line]
    found = re.search('<pre id="found">(.+?)</pre>', done.stdout)
    assert found is not None, done.stdout + done.stderr
    return json.loads(unescape(found[1])), said, [path for path in asked if path != "/favicon.ico"]


@pytest.fixture
def page(database_url: str, tmp_path: Path) -> str:
    """As the command makes it, of a history with long names."""
    plain = make_url(database_url).set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(plain) as connection:
        make_history(connection)
        connection.execute("UPDATE solti.task_runs SET error = repeat('no room on the device ', 40) WHERE error <> ''")
    done = run_cli("report", "--html", str(tmp_path / "made.html"), "--since", "2024-01-01", url=database_url)
    assert done.returncode == 0, done.stderr
    return (tmp_path / "made.html").read_text(encoding="utf-8")


def test_a_browser_shows_the_page_and_asks_for_nothing_else(chromium: str, page: str, tmp_path: Path) -> None:
    found, said, asked = look(chromium, page, tmp_path)
    assert [one["width"] for one in found] == list(WIDTHS)
    for one in found:
        assert one["drawings"] == len(PAGE) == 7
        assert one["bars"] >= len(PAGE) - 1
        assert one["overflow"] == 0
        assert one["loaded"] == []
    assert said == []
    # Two frames of one address may be one request.
    assert set(asked) == {"/frames.html", "/page.html"}


def test_a_page_that_does_otherwise_is_found_out(chromium: str, page: str, tmp_path: Path) -> None:
    bad = (
        '<img src="picture.png"><img src="https://example.org/x.png">'
        '<div style="width: 700px">wide</div><script>console.log("hello")</script></body>'
    )
    found, said, asked = look(chromium, page.replace("</body>", bad), tmp_path)
    assert [one["overflow"] > 0 for one in found] == [True, False]
    assert all({name.rpartition("/")[2] for name in one["loaded"]} == {"picture.png", "x.png"} for one in found)
    assert any("hello" in line for line in said)
    assert "/picture.png" in asked
