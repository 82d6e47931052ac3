"""A headless Chromium over its DevTools pipe, with the standard library only: what does a page show and ask for?"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from steerlab.plots import find_browser

_FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --disable-dev-shm-usage --remote-debugging-pipe"
)
_COUNT = """JSON.stringify({
  boxes: document.querySelectorAll('.plot').length,
  seen: Array.from(document.querySelectorAll('.plot')).filter(function (box) { return box.clientWidth; }).length,
  drawn: Array.from(document.querySelectorAll('.plot')).filter(function (box) {
    var svg = box.querySelector('svg.main-svg');
    var mark = svg && svg.querySelector('.trace, .heatmaplayer image, .barlayer path');
    return mark && box.clientWidth && svg.getBoundingClientRect().height > 100;
  }).length,
  wider: document.documentElement.scrollWidth - document.documentElement.clientWidth,
  overflowing: Array.from(document.querySelectorAll('.plot')).filter(function (box) {
    var svg = box.querySelector('svg.main-svg');
    return svg && svg.getBoundingClientRect().right > document.documentElement.clientWidth + 1;
  }).length,
  outside: Array.from(document.querySelectorAll('.page.shown *')).filter(function (one) {
    var box = one.getBoundingClientRect();
    return box.width && !one.closest('.scroll, svg, .modebar, .unseen, #hits') &&
      (box.left < -1 || box.right > document.documentElement.clientWidth + 1);
  }).map(function (one) { return one.tagName + '.' + one.getAttribute('class'); }),
  cut: Array.from(document.querySelectorAll('.page.shown .plot')).flatMap(function (box) {
    var all = box.getBoundingClientRect();
    return Array.from(box.querySelectorAll('svg.main-svg text')).filter(function (text) {
      var at = text.getBoundingClientRect();
      return at.width && !text.closest('.hoverlayer') &&
        (at.left < all.left - 1 || at.right > all.right + 1 || at.bottom > all.bottom + 1 || at.top < all.top - 1);
    }).map(function (text) { return box.id + ': ' + text.textContent; });
  }),
  covered: Array.from(document.querySelectorAll('.page.shown .plot')).flatMap(function (box) {
    var texts = Array.from(box.querySelectorAll('svg.main-svg text')).filter(function (text) {
      return text.textContent.trim() && !text.closest('.hoverlayer, .heatmap-label, .heatmaplayer');
    });
    return texts.flatMap(function (one, i) {
      var a = one.getBoundingClientRect();
      return texts.slice(i + 1).filter(function (other) {
        var b = other.getBoundingClientRect();
        return a.width && b.width && Math.min(a.right, b.right) - Math.max(a.left, b.left) > 3 &&
          Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 3;
      }).map(function (other) { return box.id + ': ' + one.textContent + ' / ' + other.textContent; });
    });
  }),
  text: document.body.innerText
})"""


@dataclass
class Seen:
    """What a page did: figure boxes, how many are seen and drawn, errors, requests beyond the file, its visible text.

    outside: elements that leave the window. cut: labels that leave their figure. covered: labels over one another.
    """

    boxes: int = 0
    seen: int = 0
    drawn: int = 0
    wider: int = 0
    overflowing: int = 0
    outside: list[str] = field(default_factory=list)
    cut: list[str] = field(default_factory=list)
    covered: list[str] = field(default_factory=list)
    text: str = ""
    errors: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)


class Page:
    """One tab, spoken to by DevTools commands; collects its console errors and network requests."""

    def __init__(self, send: int, receive: int) -> None:
        self._send, self._receive = send, receive
        self._buffer, self._number, self._session = b"", 0, ""
        self.errors: list[str] = []
        self.requests: list[str] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Run one command and return its result."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._send, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                result: dict[str, Any] = answer["result"]
                return result
            self._note(answer)

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression in the page."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        return answer["result"].get("value")

    def until(self, expression: str, seconds: float = 3600) -> None:
        """Wait until a JavaScript expression is true. Raises TimeoutError with the errors seen so far."""
        deadline = time.monotonic() + seconds
        while not self.evaluate(expression):
            if time.monotonic() > deadline:
                raise TimeoutError(f"not so after {seconds:.0f} s: {expression}; errors: {self.errors}")
            time.sleep(0.1)

    def look(self, url: str, ready: str, *, width: int = 1200, height: int = 900, dark: bool = False) -> Seen:
        """Open `url` in a window of that size, wait until `ready` is true, and say what is there."""
        self.errors, self.requests = [], []
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.call("Emulation.setDeviceMetricsOverride", **size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.call(
            "Page.navigate", url="about:blank"
        )  # another fragment of the same file would not load it again
        self.call("Page.navigate", url=url)
        self.until(ready)
        time.sleep(0.3)
        return self.seen()

    def seen(self) -> Seen:
        """What is there now."""
        return Seen(**json.loads(self.evaluate(_COUNT)), errors=self.errors, requests=self.requests)

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            if not select.select([self._receive], [], [], 3600)[0]:
                raise TimeoutError("the browser has been silent for an hour")
            read = os.read(self._receive, 2**20)
            if not read:
                raise RuntimeError("the browser has gone")
            self._buffer += read
        first, _, self._buffer = self._buffer.partition(b"\0")
        message: dict[str, Any] = json.loads(first)
        return message

    def _note(self, event: dict[str, Any]) -> None:
        method, params = event.get("method"), event.get("params", {})
        if method == "Network.requestWillBeSent" and not params["request"]["url"].startswith(
            ("file:", "data:", "blob:")
        ):
            self.requests.append(params["request"]["url"])
        elif method == "Runtime.exceptionThrown":
            self.errors.append(json.dumps(params["exceptionDetails"])[:500])
        elif method == "Runtime.consoleAPICalled" and params["type"] in ("error", "assert", "warning"):
            self.errors.append(json.dumps(params["args"])[:500])
        elif method == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
            self.errors.append(params["entry"]["text"])


@contextmanager
def chromium() -> Iterator[Page]:
    """A fresh browser with an empty profile, ended with its children on the way out."""
    browser = find_browser()
    assert browser is not None
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        to_browser, send = os.pipe()
        receive, from_browser = os.pipe()
        # the browser reads commands from descriptor 3 and answers on 4
        script = f'exec "$0" {_FLAGS} --user-data-dir="$1" 3<&{to_browser} 4>&{from_browser}'
        process = subprocess.Popen(
            ["bash", "-c", script, browser, profile],
            pass_fds=(to_browser, from_browser),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        os.close(to_browser)
        os.close(from_browser)
        try:
            yield Page(send, receive)
        finally:
            os.close(send)
            os.close(receive)
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def url_of(path: Path) -> str:
    """The file: address of a page on disk."""
    return path.resolve().as_uri()
