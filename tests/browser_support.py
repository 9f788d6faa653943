"""A real Chromium for tests of pages, from the package index alone.

The PyQt6-WebEngine wheels carry Chromium. It draws into memory, so it needs no screen, and is
driven over Chromium's own DevTools protocol. The wheels count on some libraries of every desktop
(X11, GL, NSS, ALSA); where one is missing, the error names it.
"""

import asyncio
import base64
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import uvicorn
from httpx_ws import WebSocketSession, connect_ws
from starlette.types import ASGIApp

# Versions that fit each other.
PACKAGES = (
    "PyQt6==6.11.0",
    "PyQt6-Qt6==6.11.2",
    "PyQt6-WebEngine==6.11.0",
    "PyQt6-WebEngine-Qt6==6.11.2",
    "PyQt6-sip==13.13.0",
)
HOST = """
import sys
from PyQt6.QtCore import QUrl
from PyQt6.QtWebEngineCore import QWebEnginePage, QWebEngineProfile
from PyQt6.QtWebEngineWidgets import QWebEngineView
from PyQt6.QtWidgets import QApplication

application = QApplication(sys.argv)
profile = QWebEngineProfile()  # without a name it keeps nothing on disk
view = QWebEngineView()
view.setPage(QWebEnginePage(profile, view))
view.resize(1280, 900)
view.setUrl(QUrl("about:blank"))
view.show()
application.exec()
"""
# No name but this machine's address is ever looked up.
FLAGS = ("--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1", "--disable-gpu")
# The sandbox refuses to run as root, as in a container. Only our own pages are shown.
VARIABLES = {
    "QT_QPA_PLATFORM": "offscreen",
    "QTWEBENGINE_DISABLE_SANDBOX": "1",
    "LANG": "C.UTF-8",
}
# Where a text is hard to read against what is behind it (WCAG 2 contrast, level AA).
PALE = """(() => {
  const parse = (text) => {
    const [r, g, b, a = 1] = text.match(/[0-9.]+/g).map(Number);
    return { rgb: [r, g, b], a };
  };
  const light = ({ rgb }) => {
    const linear = (c) => (c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
    const [r, g, b] = rgb.map((c) => linear(c / 255));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ground = (element) => {
    for (; element; element = element.parentElement) {
      const colour = parse(getComputedStyle(element).backgroundColor);
      if (colour.a === 1) return colour;
    }
    return parse("rgb(255, 255, 255)");
  };
  return [...document.querySelectorAll("body *")]
    .filter((e) => e.checkVisibility() && e.tagName !== "OPTION")
    .filter((e) => [...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim()))
    .map((e) => {
      const style = getComputedStyle(e);
      const [low, high] = [light(parse(style.color)), light(ground(e))].sort((a, b) => a - b);
      const large = parseFloat(style.fontSize) >= 24;
      return { text: e.innerText, ratio: (high + 0.05) / (low + 0.05), least: large ? 3 : 4.5 };
    })
    .filter(({ ratio, least }) => ratio < least);
})()"""
# Everything that can be used has a name that is read aloud.
NAMELESS = """[...document.querySelectorAll("a, button, input, select")]
  .filter((e) => e.checkVisibility())
  .filter((e) => !(e.ariaLabel || e.innerText || [...(e.labels ?? [])].some((l) => l.innerText)))
  .map((e) => e.outerHTML)"""
PATIENCE_S = 30
MAX_MESSAGE_BYTES = 2**26  # a screenshot is one message


class Tab:
    """A page in Chromium, what it asked the network for, and what it complained of.

    Attributes:
        requests: every URL asked for since the last `open`.
        complaints: errors and warnings of the console, uncaught exceptions, refused resources.
    """

    def __init__(self, session: WebSocketSession) -> None:
        self._session = session
        self._number = 0
        self.requests: list[str] = []
        self.complaints: list[str] = []
        for domain in ("Page", "Runtime", "Network", "Log", "DOM"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """The result of a command of the DevTools protocol."""
        self._number += 1
        self._session.send_json({"id": self._number, "method": method, "params": parameters})
        while True:
            message = self._session.receive_json(timeout=PATIENCE_S)
            if message.get("id") == self._number:
                assert "error" not in message, f"{method}: {message['error']}"
                return dict(message["result"])
            self._note(message.get("method", ""), message.get("params", {}))

    def open(self, url: str) -> None:
        """Go to an address and wait until all of it is there."""
        self.js("window.left = true")
        self.requests.clear()
        self.complaints.clear()
        assert "errorText" not in (answer := self.call("Page.navigate", url=url)), answer
        self.until("!window.left && document.readyState === 'complete'")

    def js(self, expression: str) -> Any:
        """The value of an expression, awaited if it is a promise."""
        answer = self.call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in answer, f"{expression}: {answer['exceptionDetails']}"
        return answer["result"].get("value")

    def until(self, expression: str) -> None:
        """Wait until an expression is true."""
        end = time.monotonic() + PATIENCE_S
        while not self.js(f"Boolean({expression})"):
            if time.monotonic() > end:
                text = self.text("body")
                raise TimeoutError(f"never true: {expression}\n{self.complaints}\n{text}")
            time.sleep(0.02)

    def text(self, selector: str) -> str:
        """What a person reads in the first element that a selector finds."""
        return str(self.js(f"document.querySelector({json.dumps(selector)}).innerText"))

    def texts(self, selector: str) -> list[str]:
        """The same for all elements that it finds."""
        found = f"[...document.querySelectorAll({json.dumps(selector)})]"
        return list(self.js(f"{found}.map((element) => element.innerText)"))

    def pick(self, selector: str, files: Sequence[Path]) -> None:
        """Choose files in a file field, as the file dialogue would."""
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        node = self.call("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.call("DOM.setFileInputFiles", nodeId=node, files=[str(file) for file in files])

    def drop(self, files: Sequence[Path], x: float, y: float) -> None:
        """Drag files from the desktop to a place on the page and let go."""
        data = {"items": [], "files": [str(file) for file in files], "dragOperationsMask": 1}
        for kind in ("dragEnter", "dragOver", "drop"):
            self.call("Input.dispatchDragEvent", type=kind, x=x, y=y, data=data)

    def press(self, key: str, code: int) -> None:
        """Press and release a key that types nothing, such as Tab."""
        for kind in ("rawKeyDown", "keyUp"):
            self.call(
                "Input.dispatchKeyEvent",
                type=kind,
                key=key,
                code=key,
                windowsVirtualKeyCode=code,
            )

    def resize(self, width: int, height: int, mobile: bool = False) -> None:
        """Show the page in a window of this size."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=mobile,
        )

    def prefer(self, **features: str) -> None:
        """Set media features, as `prefers_color_scheme="dark"`."""
        pairs = [{"name": name.replace("_", "-"), "value": features[name]} for name in features]
        self.call("Emulation.setEmulatedMedia", features=pairs)

    def screenshot(self, path: Path) -> None:
        """Write a picture of the whole page, PNG."""
        size = self.call("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
        answer = self.call("Page.captureScreenshot", clip=clip, captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(answer["data"]))

    def hard_to_use(self) -> list[Any]:
        """Texts too pale to read (WCAG 2, level AA), and controls without a name to read aloud."""
        return [*self.js(PALE), *self.js(NAMELESS)]

    def _note(self, method: str, event: dict[str, Any]) -> None:
        if method == "Network.requestWillBeSent":
            self.requests.append(event["request"]["url"])
        elif method == "Runtime.exceptionThrown":
            self.complaints.append(json.dumps(event["exceptionDetails"]))
        elif method == "Runtime.consoleAPICalled" and event["type"] in ("error", "warning"):
            self.complaints.append(json.dumps(event["args"]))
        elif method == "Log.entryAdded" and event["entry"]["level"] in ("error", "warning"):
            self.complaints.append(event["entry"]["text"])


@contextmanager
def serve_app(app: ASGIApp, **settings: Any) -> Iterator[str]:
    """An application over real HTTP, in a thread; gives its address."""
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="off", **settings))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=lambda: asyncio.run(server.serve([listener])))
        thread.start()
        try:
            end = time.monotonic() + PATIENCE_S
            while not server.started:
                assert thread.is_alive()
                assert time.monotonic() < end
                time.sleep(0.01)
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(PATIENCE_S)


def install_browser(folder: Path) -> Path:
    """The Python of a new virtual environment with Chromium in it; this asks the package index."""
    variables = {name: text for name, text in os.environ.items() if not name.startswith("PYTHON")}
    python = folder / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--no-compile"]
    for command in (
        [sys.executable, "-m", "venv", "--without-pip", str(folder)],
        [*pip, "--no-deps", *PACKAGES],
    ):
        result = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=300)
        assert result.returncode == 0, result.stderr
    return python


@contextmanager
def browse(python: Path, folder: Path) -> Iterator[Tab]:
    """One page in a running Chromium.

    Args:
        python: of the environment that `install_browser` made.
        folder: an empty one for its log and whatever it writes.
    """
    log = folder / "browser.log"
    with socket.create_server(("127.0.0.1", 0)) as probe:
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    variables = {name: text for name, text in os.environ.items() if not name.startswith("PYTHON")}
    variables |= {**VARIABLES, "QTWEBENGINE_REMOTE_DEBUGGING": address}
    with log.open("wb") as output:
        process = subprocess.Popen(
            [python, "-c", HOST, "--webEngineArgs", *FLAGS],
            env={**variables, "HOME": str(folder), "TMPDIR": str(folder)},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        with connect_ws(
            _page_socket(process, address, log),
            max_message_size_bytes=MAX_MESSAGE_BYTES,
            queue_size=100_000,
            keepalive_ping_interval_seconds=None,
            session_class=WebSocketSession,
        ) as session:
            yield Tab(session)
    finally:
        process.terminate()
        try:
            process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _page_socket(process: subprocess.Popen[bytes], address: str, log: Path) -> str:
    end = time.monotonic() + PATIENCE_S
    while True:
        with suppress(httpx.TransportError):
            pages = httpx.get(f"http://{address}/json", timeout=PATIENCE_S).json()
            if pages:
                return str(pages[0]["webSocketDebuggerUrl"])
        if process.poll() is not None or time.monotonic() > end:
            text = log.read_text(errors="replace")[-4000:]
            raise RuntimeError(f"Chromium did not start:\n{text}")
        time.sleep(0.05)  # nothing tells that a port will be opened
