"""A real browser without a window, driven in its own debugging protocol. It knows nothing of what it is shown."""

import base64
import json
import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

from tests.patience import PATIENCE_S

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
PHONE = {"width": 390, "height": 844, "deviceScaleFactor": 2, "mobile": True}
DESK = {"width": 1280, "height": 900, "deviceScaleFactor": 1, "mobile": False}
KEYS = {"Enter": 13, "Escape": 27, "Tab": 9}


class Browser:
    """A headless browser with one page; `faults` is what went wrong in it."""

    def __init__(self, folder: Path) -> None:
        (theirs_in, self._out), (self._in, theirs_out) = os.pipe(), os.pipe()
        flags = "--headless=new --no-sandbox --disable-gpu --disable-dev-shm-usage --remote-debugging-pipe"
        # the protocol wants file descriptors 3 and 4
        command = f'exec "$0" {flags} --user-data-dir="$1" about:blank 3<&{theirs_in} 4>&{theirs_out}'
        self._process = subprocess.Popen(
            ["/bin/bash", "-c", command, str(CHROMIUM), str(folder)],
            pass_fds=(theirs_in, theirs_out),
            stderr=subprocess.DEVNULL,
        )
        os.close(theirs_in)
        os.close(theirs_out)
        self._rest, self._last_id, self._session, self._context = b"", 0, "", ""
        self.faults: list[str] = []

    def begin_anew(self) -> None:
        """Forget the page, its storage and its faults, and have an empty one."""
        self._session, forgotten = "", self._context
        self._context = self.ask("Target.createBrowserContext")["browserContextId"]
        target = self.ask("Target.createTarget", url="about:blank", browserContextId=self._context)["targetId"]
        if forgotten:
            self.ask("Target.disposeBrowserContext", browserContextId=forgotten)
        self._session = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.ask(f"{domain}.enable")
        self.faults.clear()

    def ask(self, method: str, **params: Any) -> dict[str, Any]:
        """Send one command and wait for its answer; what the console says meanwhile is noted."""
        self._last_id += 1
        command = {"id": self._last_id, "method": method, "params": params}
        command |= {"sessionId": self._session} if self._session else {}
        os.write(self._out, json.dumps(command).encode() + b"\0")
        while True:
            message = self._next()
            if message.get("id") == self._last_id:
                assert "error" not in message, message
                return dict(message["result"])
            if message.get("sessionId") == self._session:
                self._note(message)

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            more = os.read(self._in, 1 << 20)
            assert more, "the browser has ended"
            self._rest += more
        line, _, self._rest = self._rest.partition(b"\0")
        return dict(json.loads(line))

    def _note(self, message: dict[str, Any]) -> None:
        method = message.get("method")
        if method == "Runtime.exceptionThrown" or (
            method == "Log.entryAdded" and message["params"]["entry"]["level"] == "error"
        ):
            self.faults.append(json.dumps(message["params"]))
        if method == "Runtime.consoleAPICalled" and message["params"]["type"] == "error":
            self.faults.append(json.dumps(message["params"]))

    def open(self, address: str) -> None:
        """Go to the coordinator's page there and wait for its first figures."""
        self.ask("Page.navigate", url=f"http://{address}/")
        self.until("typeof newest === 'object' && newest !== null")

    def see(self, expression: str) -> Any:
        """The value of an expression in the page."""
        answer = self.ask("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def until(self, expression: str) -> None:
        """Wait until an expression is true in the page."""
        deadline = time.monotonic() + PATIENCE_S
        while not self.see(expression):
            assert time.monotonic() < deadline, f"{expression}; {self.faults}; {self.see('document.body.innerText')}"
            time.sleep(0.1)

    def text(self, selector: str) -> str:
        """What an element says, as it is rendered."""
        return str(self.see(f"document.querySelector({json.dumps(selector)})?.innerText"))

    def press(self, key: str) -> None:
        """Press a key and let it go, as a person would."""
        words = {"key": key, "code": key, "windowsVirtualKeyCode": KEYS[key]}
        self.ask("Input.dispatchKeyEvent", type="keyDown", **words, **({"text": "\r"} if key == "Enter" else {}))
        self.ask("Input.dispatchKeyEvent", type="keyUp", **words)

    def on(self, screen: dict[str, Any], scheme: str = "light") -> None:
        """Be a screen of this size, in a light or a dark room."""
        self.ask("Emulation.setDeviceMetricsOverride", **screen)
        self.ask("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def picture(self, name: str) -> None:
        """Keep the whole page for a person to look at, if somebody wants that: in the folder ALIGNFED_TEST_PICTURES."""
        if folder := os.environ.get("ALIGNFED_TEST_PICTURES"):
            shot = self.ask("Page.captureScreenshot", captureBeyondViewport=True)
            Path(folder, f"{name}.png").write_bytes(base64.b64decode(shot["data"]))

    def end(self) -> None:
        """End the browser."""
        self._process.kill()
        self._process.wait()
        os.close(self._in)
        os.close(self._out)
