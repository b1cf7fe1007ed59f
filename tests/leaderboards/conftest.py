"""A headless Chromium for tests of the page, driven through a pipe; tests that ask for it skip where there is none."""

import base64
import contextlib
import json
import os
import select
import shutil
import subprocess
import time

import pytest

PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "chrome")
WAIT = 90.0  # seconds for one answer, on a slow and busy machine
FLAGS = (
    "--headless=new", "--no-sandbox", "--remote-debugging-pipe", "--disable-gpu", "--no-first-run", "--disable-extensions",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars",
)  # fmt: skip


class Browser:
    """One tab of Chromium. `events` are the messages that it sent unasked, such as requests and errors."""

    def __init__(self, program, folder):
        (down, self._send), (self._receive, up) = os.pipe(), os.pipe()

        def pipes():  # Chromium reads commands from 3 and writes answers to 4
            first, second = os.dup(down), os.dup(up)
            os.dup2(first, 3), os.dup2(second, 4)

        self.process = subprocess.Popen(
            [program, *FLAGS, f"--user-data-dir={folder}", "about:blank"], preexec_fn=pipes, close_fds=False,
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        os.close(down), os.close(up)
        self.events, self._buffer, self._number, self._session = [], b"", 0, None
        target = self.call("Target.getTargets")["targetInfos"]
        page = next(one["targetId"] for one in target if one["type"] == "page")
        self._session = self.call("Target.attachToTarget", targetId=page, flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Runtime", "Log", "Security"):
            self.call(f"{domain}.enable")

    def call(self, method, **parameters):
        """Send a command and return its result."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        message |= {"sessionId": self._session} if self._session else {}
        os.write(self._send, json.dumps(message).encode() + b"\0")
        while True:
            found = self._next()
            if found.get("id") == self._number:
                assert "error" not in found, f"{method}: {found['error']}"
                return found["result"]
            self.events.append(found)

    def open(self, path, width=1200, height=900, scheme="light"):
        """Load a file from file:// and wait until it is loaded; earlier events are forgotten."""
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.call("Page.navigate", url="about:blank")
        self.events.clear()
        self.call("Page.navigate", url=path.absolute().as_uri())
        while self.evaluate("document.readyState + location.href.slice(0, 5)") != "completefile:":
            time.sleep(0.05)

    def evaluate(self, expression):
        """Return the value of a JavaScript expression, of a promise what it resolves to."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def picture(self, path, *, whole=True):
        """Save a screenshot."""
        clip = {}
        if whole:
            size = self.call("Page.getLayoutMetrics")["cssContentSize"]
            clip = {"clip": {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}}
        path.write_bytes(
            base64.b64decode(self.call("Page.captureScreenshot", captureBeyondViewport=whole, **clip)["data"])
        )

    def complaints(self):
        """Return errors, warnings and dialogues of the page, and everything that it requested but itself."""
        found = []
        for event in self.events:
            method, about = event["method"], event["params"]
            if method in (
                "Runtime.exceptionThrown",
                "Runtime.consoleAPICalled",
                "Page.javascriptDialogOpening",
                "Log.entryAdded",
            ):
                found.append(about)
            elif method == "Network.requestWillBeSent":
                found.append(about["request"]["url"])
        opened = [url for url in found if isinstance(url, str) and url.startswith("file:")]
        return [one for one in found if one not in opened[:1]]

    def close(self):
        with contextlib.suppress(OSError, AssertionError):
            os.write(self._send, json.dumps({"id": 0, "method": "Browser.close"}).encode() + b"\0")
            self.process.wait(10)
        self.process.kill()
        self.process.wait()
        os.close(self._send), os.close(self._receive)

    def _next(self):
        deadline = time.monotonic() + WAIT
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._receive], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, "Chromium does not answer"
            read = os.read(self._receive, 1 << 20)
            assert read, "Chromium has ended"
            self._buffer += read
        message, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(message)


@pytest.fixture(scope="session")
def browser(tmp_path_factory):
    program = next(filter(None, map(shutil.which, PROGRAMS)), None)
    if program is None:
        pytest.skip("no Chromium here (Debian: apt-get install chromium)")
    found = Browser(program, tmp_path_factory.mktemp("chromium"))
    yield found
    found.close()
