"""For tests of the page: boards of cells in memory, and a headless Chromium, without which the tests that ask for it are skipped."""

import base64
import contextlib
import fcntl
import json
import os
import select
import shutil
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from plo.leaderboards.build import build
from plo.leaderboards.protocol import Protocol
from plo.metric import Metric
from plo.tracking import Finding, RecordedCell

PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "chrome")
WAIT = 90.0  # seconds for one answer, on a slow and busy machine
FLAGS = (
    "--headless=new", "--no-sandbox", "--remote-debugging-pipe", "--disable-gpu", "--no-first-run", "--disable-extensions",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars",
)  # fmt: skip


METRICS = [
    Metric("reward", "reward", "share of kind words", 3, "↑", bounds=(0.0, 1.0)),
    Metric("kl", "KL", "nats", 2),
    Metric("gold_win_rate", "win rate", "share won", 3, "↑"),
]
SHARED = {"plo.data": "data", "plo.model": "model", "plo.evaluation": "evaluation"}


@dataclass
class Memory:
    """Stands for the tracker of recorded cells."""

    files: dict = field(default_factory=dict)
    histories: dict = field(default_factory=dict)

    def table(self, run, name):
        return self.files[run, name]

    def _read(self, run, name):
        return self.files[run, name]

    @property
    def _reader(self):
        return SimpleNamespace(history=lambda run, metric: list(self.histories.get((run, metric), {}).items()))


@pytest.fixture(scope="session")
def make_board():
    return fabricate


def fabricate(
    losses, *, seeds=(0, 1, 2), prompts=6, samples=2, texts=("Fine.",), asked="Opening {}", level=None, name="plain", tuned=False,
    credit=False, margin=0.05,
):  # fmt: skip
    """Return the board of finished cells: the reference, then the baseline, then other losses; `level`: their mean rewards."""
    memory, cells = Memory(), []
    for place, loss in enumerate(losses):
        for seed in seeds:
            run, number = f"run-{place}-{seed}", np.arange(prompts * samples)
            mean = (level or {}).get(loss, 0.3 + 0.05 * place)
            reward = np.clip(mean + 0.05 * np.sin(number + seed + place), 0, 1)
            memory.files[run, "samples.json"] = pd.DataFrame({
                "prompt_id": number // samples, "sample": number % samples,
                "prompt": [asked.format(one) for one in number // samples],
                "text": [texts[(i + place) % len(texts)] for i in number], "reward": reward, "kl": float(place),
            })  # fmt: skip
            final = {"reward": float(reward.mean()), "kl": float(place), "gold_win_rate": 0.5 + mean / 4}
            for metric, value in final.items():
                memory.histories[run, metric] = {10: value / 2, 20: value} if place else {0: value}
            logged = (
                {"accuracy": {0: 0.5, 10: 0.6, 20: 0.7 + seed / 50}, "margin": {0: 0.0, 10: 1.0, 20: 2.0}}
                if place
                else {}
            )
            memory.histories |= {(run, metric): values for metric, values in logged.items()}
            tuning = {"digest": "0123456789ab", "trials": 4, "metric": "reward", "space": {"beta": [0.1, 1.0]}, "point": {"beta": 0.5},
                      "edges": [], "score": mean, "default": mean / 2, "first": [0.1, 0.2, mean, 0.3], "seconds": 1.0}  # fmt: skip
            tags = SHARED | {
                "plo.loss": loss,
                "plo.variant": loss,
                "plo.seed": str(seed),
                "plo.seconds": f"{place + 1}.5",
            }
            tags |= {"plo.tuning": json.dumps(tuning)} if tuned and place else {}
            tags |= {f"plo.metric.{one.name}": json.dumps(one.to_dict()) for one in METRICS}
            tags["mlflow.loggedArtifacts"] = json.dumps([{"path": "samples.json", "type": "table"}])
            findings = (_credit(memory, run, place),) if credit else ()
            metrics = final | {metric: values[20] for metric, values in logged.items()}
            cells.append(
                RecordedCell(run, f"{loss} {seed}", name, "key", "FINISHED", tags, {}, metrics, memory, findings)
            )
    protocol = Protocol("reward", margin, losses[1], seeds=tuple(map(str, seeds)))
    return build(cells, protocol=protocol)


def _credit(memory, run, place):
    prompts = np.arange(5)
    memory.files[f"{run}-credit", "credit.json"] = pd.DataFrame(
        {"prompt_id": prompts, "r_A": 0.1 * place + 0.01 * prompts}
    )
    memory.files[f"{run}-credit", "about.json"] = {
        "notes": ["5 prompts"],
        "judges": [],
        "lengths": {},
        "but_judge": "x",
    }
    memory.files[f"{run}-credit", "credit_tokens.json"] = pd.DataFrame({
        "response": [0, 0, 1, 1], "word": ["a", "b", "<b>", "$x$"], "log_ratio": [0.1, -0.1, 0.5, -0.5],
        "advantage": [0.1, -0.1, 1.0, -1.0],
    })  # fmt: skip
    return Finding(f"{run}-credit", "credit", "settings", {}, {"r_A": 0.1 * place + 0.02}, memory)


class Browser:
    """One tab of Chromium. `events` are the messages that it sent unasked, such as requests and errors."""

    def __init__(self, program, folder):
        (down, self._send), (self._receive, up) = os.pipe(), os.pipe()

        def pipes():  # Chromium reads commands from 3 and writes answers to 4
            first, second = (fcntl.fcntl(one, fcntl.F_DUPFD, 10) for one in (down, up))
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

    def wait(self, expression):
        """Return the value of a JavaScript expression as soon as it is true, for what the page does after it is loaded."""
        deadline = time.monotonic() + WAIT
        while not (found := self.evaluate(expression)) and time.monotonic() < deadline:
            time.sleep(0.05)
        return found

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


@pytest.fixture(scope="session")
def axe():
    """The script of axe-core, from where npm installed it."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("no node here (Debian: apt-get install npm)")
    folder = subprocess.run(["npm", "root", "--global"], capture_output=True, text=True).stdout.strip()
    found = subprocess.run(
        ["node", "--print", "require.resolve('axe-core/axe.min.js')"],
        capture_output=True,
        text=True,
        env=os.environ | {"NODE_PATH": os.pathsep.join(filter(None, [os.environ.get("NODE_PATH"), folder]))},
    )
    if found.returncode:
        pytest.skip("no axe-core here (npm install --global axe-core)")
    return Path(found.stdout.strip()).read_text(encoding="utf-8")
