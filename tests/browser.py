"""A headless Chromium over a pair of pipes, with the standard library alone.

The DevTools protocol: JSON messages, each ended by a zero byte, on the browser's file descriptors 3
and 4 (`--remote-debugging-pipe`).
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import json
import os
import select
import shutil
import signal
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any

_PATIENCE_S = 60.0


def chromium() -> str | None:
    """Return the browser's program, or None where there is none."""
    named = os.environ.get("BOXWRIGHT_CHROMIUM")
    names = [named] if named else ["chromium", "google-chrome", "chromium-browser"]
    return next((found for name in names if (found := shutil.which(name))), None)


class BrowserError(Exception):
    """The browser did not do what it was told."""


class Browser:
    """One browser with one page.

    Attributes:
        complaints: What the page logged as error or warning, and exceptions that nobody caught.
        requests: Addresses that the page asked for, without data: ones.
    """

    def __init__(self, program: str) -> None:
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self._folder = tempfile.TemporaryDirectory(prefix="browser-", ignore_cleanup_errors=True)
        self._number = 0
        self._buffer = b""
        self._events: list[dict[str, Any]] = []
        self._session = ""
        there, self._out = (_high(fd) for fd in os.pipe())
        self._in, back = (_high(fd) for fd in os.pipe())
        log = _high(os.open(Path(self._folder.name) / "log", os.O_WRONLY | os.O_CREAT))
        words = [
            program, "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run",
            "--disable-dev-shm-usage", "--hide-scrollbars", "--remote-debugging-pipe",
            f"--user-data-dir={self._folder.name}/profile", "about:blank",
        ]  # fmt: skip
        actions = [
            (os.POSIX_SPAWN_DUP2, there, 3), (os.POSIX_SPAWN_DUP2, back, 4),
            (os.POSIX_SPAWN_DUP2, log, 1), (os.POSIX_SPAWN_DUP2, log, 2),
        ]  # fmt: skip
        self._pid = os.posix_spawn(
            program, words, dict(os.environ), file_actions=actions, setpgroup=0
        )
        for fd in (there, back, log):
            os.close(fd)

    def __enter__(self) -> Browser:
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        attached = self.send("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)
        os.close(self._in)
        os.close(self._out)
        self._folder.cleanup()

    def send(self, method: str, **params: Any) -> dict[str, Any]:
        """Send a command and return its result.

        Raises:
            BrowserError: The browser refuses it, ends, or keeps silent.
        """
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self._out, data) :]
        until = time.monotonic() + _PATIENCE_S
        while True:
            answer = self._receive(until)
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise BrowserError(f"{method}: {answer['error']}")
                result: dict[str, Any] = answer["result"]
                return result

    def _receive(self, until: float) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._in], [], [], max(0.0, until - time.monotonic()))
            chunk = os.read(self._in, 1 << 20) if ready else b""
            if not chunk:
                raise BrowserError("the browser is silent" if not ready else "the browser ended")
            self._buffer += chunk
        line, self._buffer = self._buffer.split(b"\0", 1)
        message: dict[str, Any] = json.loads(line)
        self._note(message)
        return message

    def _note(self, message: dict[str, Any]) -> None:
        method, params = message.get("method", ""), message.get("params", {})
        if method == "Runtime.exceptionThrown":
            details = params["exceptionDetails"]
            text = details.get("exception", {}).get("description", details["text"])
            self.complaints.append(text)
        elif method == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning"):
            values = [str(a.get("value", a.get("description"))) for a in params["args"]]
            self.complaints.append(f"console.{params['type']}: {' '.join(values)}")
        elif method == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
            self.complaints.append(params["entry"]["text"])
        elif method == "Network.requestWillBeSent":
            address = params["request"]["url"]
            if not address.startswith("data:"):
                self.requests.append(address)
        elif method == "Page.loadEventFired":
            self._events.append(message)

    def open(self, page: Path) -> None:
        """Load a page and wait until it has loaded; forget what was noted before."""
        self.complaints.clear()
        self.requests.clear()
        self._events.clear()
        self.send("Page.navigate", url=page.absolute().as_uri())
        until = time.monotonic() + _PATIENCE_S
        while not self._events:
            self._receive(until)

    def run(self, script: str) -> Any:
        """Return the value of an expression in the page, a promise's when it is done.

        Raises:
            BrowserError: It throws.
        """
        result = self.send(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True
        )
        if "exceptionDetails" in result:
            raise BrowserError(str(result["exceptionDetails"]))
        return result["result"].get("value")

    def size(self, width: int, height: int, *, mobile: bool = False) -> None:
        """Make the window so large, in CSS pixels."""
        self.send(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=1, mobile=mobile,
        )  # fmt: skip
        self.settle()

    def prefer(self, scheme: str) -> None:
        """Say what the system prefers: `light` or `dark`."""
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.send("Emulation.setEmulatedMedia", features=features)
        self.settle()

    def settle(self) -> None:
        """Wait until the page was painted, and what follows from size and colours is done."""
        self.run(
            "new Promise((d) => requestAnimationFrame(() => requestAnimationFrame(() => d())))"
        )

    def click(self, selector: str) -> None:
        """Click an element in its middle, as a mouse would, after scrolling to it.

        Raises:
            BrowserError: Something else lies over it.
        """
        at = self.run(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)});"
            "e.scrollIntoView({block: 'center', behavior: 'instant'});"
            "const r = e.getBoundingClientRect();"
            "const at = {x: r.x + r.width / 2, y: r.y + r.height / 2};"
            "const top = document.elementFromPoint(at.x, at.y);"
            "return top && (e.contains(top) || top.contains(e)) ? at : null; })()"
        )
        if at is None:
            raise BrowserError(f"{selector} is covered or out of sight")
        for kind in ("mousePressed", "mouseReleased"):
            self.send("Input.dispatchMouseEvent", type=kind, button="left", clickCount=1, **at)

    def key(self, name: str) -> None:
        """Press and release a key by its name: Tab, Enter, ArrowRight."""
        codes = {"Tab": 9, "Enter": 13, "ArrowRight": 39, "ArrowDown": 40}
        text = {"text": "\r"} if name == "Enter" else {}
        for kind in ("keyDown", "keyUp"):
            self.send(
                "Input.dispatchKeyEvent", type=kind, key=name, code=name,
                windowsVirtualKeyCode=codes[name], **(text if kind == "keyDown" else {}),
            )  # fmt: skip

    def screenshot(self, file: Path, *, full: bool = True) -> None:
        """Save the page as PNG."""
        data = self.send("Page.captureScreenshot", captureBeyondViewport=full)["data"]
        file.write_bytes(base64.b64decode(data))


def _high(fd: int) -> int:
    """Return a copy of a descriptor that no program meets by chance, closed in children."""
    copy = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 50)
    os.close(fd)
    return copy
