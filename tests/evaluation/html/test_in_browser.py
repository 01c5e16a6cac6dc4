"""The pages in a browser: without fault, readable, filtered and sorted, and whole without scripts."""

import json
import re
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from posefoundry.evaluation.html import write_evaluation_page


class Browser:
    """A headless Chromium, driven by its DevTools protocol."""

    def __init__(self, program: str, profile: Path) -> None:
        from websockets.sync.client import connect

        command = [
            program, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--remote-debugging-port=0",
            f"--user-data-dir={profile}", "about:blank",
        ]  # fmt: skip
        self.process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        port_file, deadline = profile / "DevToolsActivePort", time.monotonic() + 60
        while not (port_file.is_file() and port_file.read_text()) and time.monotonic() < deadline:
            time.sleep(0.05)
        port = port_file.read_text().split()[0]
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/json") as reply:
            (target,) = (entry for entry in json.load(reply) if entry["type"] == "page")
        self._socket = connect(target["webSocketDebuggerUrl"], max_size=None)
        self._number = 0
        self.events: list[dict[str, Any]] = []
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> Any:
        self._number += 1
        self._socket.send(json.dumps({"id": self._number, "method": method, "params": params}))
        while True:
            message = json.loads(self._socket.recv(timeout=60))
            if message.get("id") == self._number:
                assert "error" not in message, message
                return message["result"]
            self.events.append(message)

    def run(self, expression: str) -> Any:
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def open(self, page: Path, *, width: int, scheme: str = "light") -> None:
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=850, deviceScaleFactor=1, mobile=width < 600
        )
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.events.clear()
        self.call("Page.navigate", url=page.as_uri())
        deadline = time.monotonic() + 60
        while not self.run(f"document.readyState === 'complete' && location.href === {json.dumps(page.as_uri())}"):
            assert time.monotonic() < deadline, "the page does not load"
            time.sleep(0.02)

    def close(self) -> None:
        self._socket.close()
        self.process.terminate()
        self.process.wait(timeout=30)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if program is None:
        pytest.skip("neither chromium nor google-chrome is installed")
    started = Browser(program, tmp_path_factory.mktemp("profile"))
    yield started
    started.close()


VISIBLE = "[...document.querySelectorAll({selector!r})].filter((e) => e.checkVisibility()).length"
CONTRAST = r"""(() => {
  const channel = (v) => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  const parse = (colour) => colour.match(/[\d.]+/g).map(Number);
  const light = (colour) => {
    const [r, g, b] = parse(colour).map(channel);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (element) => {
    for (; element; element = element.parentElement) {
      const colour = getComputedStyle(element).backgroundColor;
      if (colour.startsWith("rgb(")) return colour;
      if (parse(colour).at(-1) > 0) return null;  // translucent: no single colour
    }
  };
  const faint = [];
  for (const e of document.querySelectorAll("h1, h2, h3, p, a, b, small, th, td, dt, dd, summary, label, span")) {
    const background = e.checkVisibility() && e.textContent.trim() && !e.matches(".skip") && behind(e);
    if (!background) continue;
    const [a, b] = [light(getComputedStyle(e).color), light(background)].sort((x, y) => y - x);
    if ((a + 0.05) / (b + 0.05) < 4.5) faint.push(`${e.tagName} ${e.className} ${e.textContent.trim()}`);
  }
  return faint;
})()"""
UNNAMED = """[...document.querySelectorAll("svg[role=img], button, select, input")].filter(
  (e) => !(e.ariaLabel || e.textContent.trim() || e.closest("label"))
).length"""
CHOOSE = """(() => {{
  const field = document.querySelector({selector!r});
  {change};
  field.dispatchEvent(new Event({event!r}));
}})()"""
SLICES = """[...document.querySelectorAll("#slice-table tbody tr:not([hidden]) td:nth-child(3)")].map(
  (cell) => cell.dataset.value
)"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("which", ["evaluation", "decision"])
def test_a_browser_shows_the_page_without_fault(browser, evaluation, data, decision_page, which, width, scheme):
    path = write_evaluation_page(evaluation, **data) if which == "evaluation" else decision_page()
    browser.open(path, width=width, scheme=scheme)
    assert browser.run("document.documentElement.scrollWidth") == width, "nothing sticks out sideways"
    assert browser.run(CONTRAST) == []
    assert browser.run(UNNAMED) == 0, "whoever cannot see it is told what it is"
    background = browser.run("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", background))) < 200) == (scheme == "dark")
    requests = [e["params"]["request"]["url"] for e in browser.events if e["method"] == "Network.requestWillBeSent"]
    assert [url for url in requests if not url.startswith("data:")] == [path.as_uri()]
    faults = ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded")
    assert [event for event in browser.events if event["method"] in faults] == []


def test_the_evaluation_page_filters_sorts_and_enlarges(browser, evaluation, data):
    browser.open(write_evaluation_page(evaluation, **data), width=1280)
    cards = VISIBLE.format(selector="#gallery .card")
    assert browser.run(cards) == 6
    browser.run(CHOOSE.format(selector="[data-facet]", change="field.value = 'persons=4+'", event="change"))
    assert browser.run(cards) == 1
    assert browser.run("document.querySelector('#gallery-count').textContent") == "1 of 6 images"
    browser.run("document.querySelector('#clear-facets').click()")
    last = ".facets label:last-of-type [data-facet]"
    browser.run(CHOOSE.format(selector=last, change="field.selectedIndex = 1", event="change"))
    assert browser.run(cards) == 3, "a tag of any letters can be chosen"
    browser.run("document.querySelector('#clear-facets').click(); document.querySelector('[data-tab=best]').click()")
    assert browser.run(VISIBLE.format(selector=".gallery-group")) == 1
    assert browser.run("document.querySelector('.gallery-group:not([hidden]) .file').textContent") == "006.png"
    assert browser.run(VISIBLE.format(selector="#gallery .panel.second")) == 0
    browser.run("document.querySelector('#see-aside').click()")
    assert browser.run(VISIBLE.format(selector="#gallery .panel.second")) == 6
    browser.run("document.querySelectorAll('#slice-table thead button')[2].click()")
    assert browser.run(SLICES) == ["0.9", "0.5", "0.3", ""], "large first, and what has no value last"
    browser.run("document.querySelectorAll('#slice-table thead button')[2].click()")
    assert browser.run(SLICES) == ["0.3", "0.5", "0.9", ""]
    browser.run(CHOOSE.format(selector="#slice-find", change="field.value = 'wrist'", event="input"))
    assert browser.run(SLICES) == ["0.3", ""]
    browser.run("document.querySelector('.gallery-group:not([hidden]) .enlarge').click()")
    assert browser.run("document.querySelector('#enlarged').open") is True
    assert browser.run("document.querySelector('#enlarged .stage use').getBoundingClientRect().width") > 300
    assert browser.run("new Set([...document.querySelectorAll('[id]')].map((e) => e.id)).size") == browser.run(
        "document.querySelectorAll('[id]').length"
    )


def test_without_scripts_everything_is_there_to_read(browser, evaluation, data):
    path = write_evaluation_page(evaluation, **data)
    browser.call("Emulation.setScriptExecutionDisabled", value=True)
    try:
        browser.open(path, width=390)
        assert browser.run(VISIBLE.format(selector="#gallery .card")) == 18
        assert browser.run(VISIBLE.format(selector="#slice-table tbody tr")) == 4
        assert browser.run(VISIBLE.format(selector=".js-only")) == 0, "nothing is offered that would do nothing"
    finally:
        browser.call("Emulation.setScriptExecutionDisabled", value=False)
