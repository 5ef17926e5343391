"""A headless Chromium for tests, driven by the DevTools protocol over a pipe: JSON messages that end in a zero byte, on descriptors 3 and 4.

No port is opened and no library is needed. A page's errors (exceptions, what its policy blocked, what it could not load) are
collected in `errors`, so that a test can say that there were none.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")
SECONDS = 30.0
FIRST = 10
"""Lowest number of our ends of the pipes, so that none of them is in the way of 3 and 4."""
LAUNCH = "import os, sys; os.dup2(int(sys.argv[1]), 3); os.dup2(int(sys.argv[2]), 4); os.execv(sys.argv[3], sys.argv[3:])"
KEYS = {
    " ": ("Space", 32),
    "Backspace": ("Backspace", 8),
    "Enter": ("Enter", 13),
    "Tab": ("Tab", 9),
    "Escape": ("Escape", 27),
    "ArrowLeft": ("ArrowLeft", 37),
    "ArrowRight": ("ArrowRight", 39),
}
TYPED = {" ": " ", "Enter": "\r"}


def executable() -> str:
    """The browser of this machine; the test is skipped where there is none."""
    found = next((path for name in NAMES if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip(f"there is no browser: none of {', '.join(NAMES)} (Debian, Ubuntu: apt install chromium)")
    return found


class Browser:
    """One browser with one page."""

    def __init__(self, process: subprocess.Popen[bytes], writes: int, reads: int) -> None:
        self._process, self._writes, self._reads = process, writes, reads
        self._buffer, self._number = b"", 0
        self._session: str | None = None
        self._events: list[str] = []
        self.errors: list[str] = []
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self._call(f"{domain}.enable")

    # ------------------------------------------------------------------------------------------- what a test does

    def open(self, address: str) -> None:
        """Go to an address and wait until it has loaded."""
        self._events.clear()
        told = self._call("Page.navigate", url=address)
        assert "errorText" not in told, f"{address}: {told['errorText']}"
        if "loaderId" in told:  # else another place on the same page, which does not load again
            self._loaded(address)

    def reload(self) -> None:
        """Load the page again."""
        self._events.clear()
        self._call("Page.reload")
        self._loaded("the page again")

    def evaluate(self, script: str) -> Any:
        """The value of an expression in the page; a promise is waited for."""
        told = self._call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in told, told["exceptionDetails"]
        return told["result"].get("value")

    def wait_for(self, script: str, seconds: float = SECONDS) -> Any:
        """The value of an expression as soon as it is true."""
        end = time.monotonic() + seconds
        while not (value := self.evaluate(script)):
            assert time.monotonic() < end, (
                f"waited {seconds:g} s for {script}; errors of the page: {self.errors}"
            )
            time.sleep(0.01)
        return value

    def press(self, key: str) -> None:
        """Press and release a key, named as in KeyboardEvent.key."""
        code, number = KEYS.get(
            key, (f"Digit{key}" if key.isdigit() else f"Key{key.upper()}", ord(key.upper()[0]))
        )
        text = TYPED.get(key, key if len(key) == 1 else None)
        event = {"key": key, "code": code, "windowsVirtualKeyCode": number}
        typed = {"text": text} if text else {}
        self._call("Input.dispatchKeyEvent", type="keyDown" if text else "rawKeyDown", **event, **typed)
        self._call("Input.dispatchKeyEvent", type="keyUp", **event)

    def type(self, text: str) -> None:
        """Type into what has the focus."""
        self._call("Input.insertText", text=text)

    def click(self, selector: str) -> None:
        """A click of the mouse in the middle of the first element of a CSS selector."""
        x, y = self._middle(selector)
        for kind in ("mousePressed", "mouseReleased"):
            self._call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def tap(self, selector: str) -> None:
        """A touch in the middle of the first element of a CSS selector; the viewport must be a phone's."""
        x, y = self._middle(selector)
        self._call("Input.dispatchTouchEvent", type="touchStart", touchPoints=[{"x": x, "y": y}])
        self._call("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])

    def viewport(self, width: int, height: int, phone: bool = False) -> None:
        """Size in CSS pixels; a phone has a finger and no mouse."""
        self._call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=2 if phone else 1,
            mobile=phone,
        )
        self._call("Emulation.setTouchEmulationEnabled", enabled=phone)

    def dark(self, on: bool) -> None:
        """What the system prefers."""
        feature = {"name": "prefers-color-scheme", "value": "dark" if on else "light"}
        self._call("Emulation.setEmulatedMedia", features=[feature])

    def screenshot(self, path: Path, whole: bool = False) -> None:
        """What is seen, or the whole page, as a PNG."""
        told = self._call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(told["data"]))

    # ----------------------------------------------------------------------------------------------- the protocol

    def _middle(self, selector: str) -> tuple[float, float]:
        script = """(() => {
            const e = document.querySelector(%s);
            if (!e) return null;
            e.scrollIntoView({ block: "nearest", behavior: "instant" });
            const r = e.getBoundingClientRect();
            return [r.x + r.width / 2, r.y + r.height / 2, r.width];
        })()"""
        found = self.evaluate(script % json.dumps(selector))
        assert found and found[2] > 0, f"{selector} is not to be seen"
        return found[0], found[1]

    def _call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        number = self._number
        message: dict[str, Any] = {"id": number, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        content = json.dumps(message).encode() + b"\0"
        while content:
            content = content[os.write(self._writes, content) :]
        end = time.monotonic() + SECONDS
        while (told := self._read(end, method)).get("id") != number:
            self._note(told)
        assert "error" not in told, f"{method}: {told['error']}"
        result: dict[str, Any] = told["result"]
        return result

    def _loaded(self, what: str) -> None:
        end = time.monotonic() + SECONDS
        while "Page.loadEventFired" not in self._events:
            self._note(self._read(end, f"{what} to load"))

    def _read(self, end: float, what: str) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._reads], [], [], max(0.0, end - time.monotonic()))
            assert ready, f"the browser did not answer within {SECONDS:g} s: {what}"
            content = os.read(self._reads, 1 << 20)
            assert content, f"the browser has ended: {what}"
            self._buffer += content
        first, _, self._buffer = self._buffer.partition(b"\0")
        told: dict[str, Any] = json.loads(first)
        return told

    def _note(self, event: dict[str, Any]) -> None:
        method, given = event.get("method", ""), event.get("params", {})
        self._events.append(method)
        if method == "Runtime.exceptionThrown":
            details = given["exceptionDetails"]
            self.errors.append(details.get("exception", {}).get("description") or details["text"])
        elif method == "Log.entryAdded" and given["entry"]["level"] in ("error", "warning"):
            self.errors.append(f"{given['entry']['text']} {given['entry'].get('url', '')}".strip())


@contextlib.contextmanager
def started() -> Iterator[Browser]:
    """A browser of its own, with a profile of its own, that ends with the block."""
    program = executable()
    with (
        tempfile.TemporaryDirectory(prefix="browser-", ignore_cleanup_errors=True) as profile,
        _pipes() as pipes,
    ):
        its_read, our_write, our_read, its_write = pipes
        options = [
            "--headless=new",
            "--remote-debugging-pipe",
            "--no-sandbox",  # a test may run as root, in a container; it opens pages of ours only
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--no-first-run",
            "--no-default-browser-check",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--mute-audio",
            "--hide-scrollbars",
            f"--user-data-dir={profile}",
            "about:blank",
        ]
        launch = [sys.executable, "-c", LAUNCH, str(its_read), str(its_write), program, *options]
        process = subprocess.Popen(
            launch, pass_fds=(its_read, its_write), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        for end in (its_read, its_write):
            os.close(end)
        try:
            yield Browser(process, our_write, our_read)
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@contextlib.contextmanager
def _pipes() -> Iterator[tuple[int, int, int, int]]:
    """Read and write end of the pipe to the browser, read and write end of the one from it; ours are closed at the end."""
    ends = []
    for one in (*os.pipe(), *os.pipe()):
        ends.append(fcntl.fcntl(one, fcntl.F_DUPFD_CLOEXEC, FIRST))
        os.close(one)
    its_read, our_write, our_read, its_write = ends
    try:
        yield its_read, our_write, our_read, its_write
    finally:
        os.close(our_write)
        os.close(our_read)
