"""The report in a real Chromium: nothing fetched, nothing on the console, no sideways scrolling, no text over text, and the picture answers."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from lissome.report.html import write_report
from tests.report import manifests

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")]

# The report stands in a frame of the tested width; the page around it, of the same origin, looks inside and writes down what it finds.
PROBE = """<!doctype html><link rel="icon" href="data:,"><body>
<iframe src="report.html" style="border:0;width:WIDTHpx;height:4000px"></iframe><pre></pre><script>
document.querySelector("iframe").addEventListener("load", async (event) => {
  const view = event.target.contentWindow, page = view.document, found = {overlaps: [], sideways: [], texts: 0};
  found.charts = [...page.querySelectorAll(".front > input")].map((input) => input.id);
  for (const id of found.charts) {
    page.getElementById(id).click();
    if (page.documentElement.scrollWidth > WIDTH) found.sideways.push(id);
    const texts = [...page.querySelectorAll(".picture text, .bar text")].filter((text) => text.getBoundingClientRect().width > 0);
    found.texts += texts.length;
    const groups = texts.map((text) => [text.getBoundingClientRect(), text]);
    for (const [i, [a, x]] of groups.entries()) for (const [b, y] of groups.slice(i + 1)) {
      if (x.parentNode === y.parentNode && x.closest(".labels")) continue;
      const across = Math.min(a.right, b.right) - Math.max(a.left, b.left), down = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
      if (across > 1 && down > 3) found.overlaps.push([id, x.textContent, y.textContent, across, down]);
    }
  }
  found.pictures = [...page.querySelectorAll(".picture")].filter((svg) => svg.getBoundingClientRect().width > 0).length;
  found.outside = [...page.querySelectorAll("main *")].filter((e) => e.getBoundingClientRect().right > WIDTH + 1 && !e.closest(".scroll, pre"))
    .map((e) => e.tagName + "." + (e.getAttribute("class") || ""));
  const open = () => [...page.querySelectorAll(".details article:not([hidden]) h3")].map((h) => h.textContent.trim());
  const points = [...page.querySelectorAll(".point[data-option]")].filter((p) => p.getBoundingClientRect().width > 0);
  found.before = open();
  const other = points.find((p) => !p.classList.contains("on"));
  other.dispatchEvent(new view.PointerEvent("pointerenter"));
  found.hovered = open();
  found.label = other.getAttribute("aria-label");
  other.dispatchEvent(new view.KeyboardEvent("keydown", {key: "ArrowRight"}));
  found.arrowed = open();
  const order = () => [...page.querySelectorAll("tr.dominated")].map((row) => Number(row.querySelector("[data-memory]").dataset.memory));
  const button = page.querySelector('th[data-sort="memory"] button');
  button.click(); found.ascending = order();
  button.click(); found.descending = order();
  found.copies = [...page.querySelectorAll(".copy")].map((b) => b.hidden);
  document.querySelector("pre").textContent = JSON.stringify(found);
});
</script>"""


@pytest.fixture
def site(tmp_path: Path) -> Iterator[tuple[Path, str, list[str]]]:
    """A folder, its address on this machine, and the paths that were asked for."""
    asked: list[str] = []

    class Handler(SimpleHTTPRequestHandler):
        def log_request(self, code: object = "-", size: object = "-") -> None:
            asked.append(self.path)

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(tmp_path)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield tmp_path, f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()
    server.server_close()


def chromium(profile: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a headless Chromium that asks nobody anything by itself."""
    assert CHROMIUM is not None
    quiet = ["--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"]
    return subprocess.run(
        [CHROMIUM, "--headless", "--no-sandbox", *quiet, f"--user-data-dir={profile}", "--enable-logging=stderr", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("name", sorted(manifests.ALL))
def test_the_page_behaves(name: str, width: int, site: tuple[Path, str, list[str]], tmp_path_factory: pytest.TempPathFactory) -> None:
    folder, address, asked = site
    write_report(manifests.ALL[name](), folder / "report.html")
    (folder / "probe.html").write_text(PROBE.replace("WIDTH", str(width)))
    done = chromium(tmp_path_factory.mktemp("profile"), "--dump-dom", "--window-size=1400,1000", "--virtual-time-budget=4000", f"{address}/probe.html")
    inside = re.search(r"<pre>(\{.*?\})</pre>", done.stdout, re.S)
    assert inside is not None, done.stderr[-2000:]
    found = json.loads(inside.group(1).replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&"))
    assert sorted(set(asked)) == ["/probe.html", "/report.html"]
    assert "CONSOLE" not in done.stderr
    assert found["charts"] == ["axis-0", "axis-1", "axis-2", "axis-3"]
    assert found["pictures"] == 1
    assert found["texts"] > 20
    assert found["overlaps"] == []
    assert found["sideways"] == []
    assert found["outside"] == []
    assert len(found["before"]) == len(found["hovered"]) == len(found["arrowed"]) == 1
    assert found["hovered"] != found["before"]
    assert found["label"].startswith(found["hovered"][0] + ":")
    assert found["arrowed"] != found["hovered"]
    if name != "digits":
        assert found["ascending"] == sorted(found["ascending"])
        assert found["descending"] == sorted(found["descending"], reverse=True)
    assert not any(found["copies"])


def test_it_works_from_a_file_without_complaint(tmp_path: Path) -> None:
    path = write_report(manifests.met(), tmp_path / "report.html")
    done = chromium(tmp_path / "profile", "--dump-dom", "--virtual-time-budget=2000", path.as_uri())
    assert "CONSOLE" not in done.stderr
    assert '<button type="button" class="copy">Copy</button>' in done.stdout
