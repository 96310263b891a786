"""The page in a real browser, on a running coordinator: it tells the truth, and hostile text stays text."""

import base64
import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from coordinator.publisher import publication
from schemas.messages import NodeMetrics, NodeState, join_body, update_id
from schemas.topics import NodeMetricsOf, NodeStateOf, UpdateManifestOf

FEDERATION, BOOT = "test", "b" * 32
PATIENCE_S = 60.0
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
PHONE = {"width": 390, "height": 844, "deviceScaleFactor": 2, "mobile": True}
DESK = {"width": 1280, "height": 900, "deviceScaleFactor": 1, "mobile": False}

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs chromium (apt install chromium)")


class Browser:
    """A headless browser with one page, driven over a pipe in its own debugging protocol."""

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
        self._rest, self._last_id, self._session = b"", 0, ""
        self.faults: list[str] = []
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.ask(f"{domain}.enable")

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
        """Go to the page and wait for its first figures."""
        self.ask("Page.navigate", url=f"http://{address}/")
        self.until("Boolean(document.body?.dataset.at)")

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
        return str(self.see(f"document.querySelector({json.dumps(selector)})?.innerText"))

    def press(self, key: str) -> None:
        """Press a key and let it go, as a person would."""
        codes = {"Enter": 13, "Escape": 27}
        words = {"key": key, "code": key, "windowsVirtualKeyCode": codes[key]}
        self.ask("Input.dispatchKeyEvent", type="keyDown", **words, **({"text": "\r"} if key == "Enter" else {}))
        self.ask("Input.dispatchKeyEvent", type="keyUp", **words)

    def look(self, path: Path, screen: dict[str, Any], scheme: str) -> None:
        """Take a picture of the whole page."""
        self.ask("Emulation.setDeviceMetricsOverride", **screen)
        self.ask("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        shot = self.ask("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(shot["data"]))

    def end(self) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._in)
        os.close(self._out)


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    running = Browser(tmp_path / "browser")
    yield running
    running.end()


@pytest.fixture
def address() -> str:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return f"127.0.0.1:{taken.getsockname()[1]}"


@pytest.fixture
def watched(start_coordinator: Callable[..., Any], base_model: Path, address: str) -> Any:
    """A coordinator that makes a version of every two updates, and shows it."""
    return start_coordinator(base_model, f'strategy = {{name = "fedbuff", buffer_size = 2}}\nhttp = "{address}"')


def pictures() -> Path | None:
    """Where to keep pictures for a person to look at, if somebody wants them."""
    folder = os.environ.get("ALIGNFED_TEST_PICTURES")
    return Path(folder) if folder else None


def is_there(node: Any, name: str, **metrics: Any) -> None:
    state = NodeState(online=True, boot_id=BOOT, base_model=node.base_model, version=0, serving=0)
    node.client.publish(publication(FEDERATION, NodeStateOf(name), state.to_bytes()))
    node.client.publish(publication(FEDERATION, NodeMetricsOf(name), NodeMetrics(boot_id=BOOT, **metrics).to_bytes()))


def test_the_page_shows_the_figures_of_the_status_in_light_dark_and_on_a_phone(
    watched: Any, node: Any, address: str, browser: Browser
) -> None:
    node.until_version(0)
    for version in range(3):
        first = node.send("kitchen", version, node.head, 0.1)
        node.send("garage", version, node.head, 0.3)
        node.until_version(version + 1)
    is_there(node, "kitchen", outbox=2, loss=0.75)
    is_there(node, "attic", idle="few_new_examples", served_loss=2.5, served_loss_version=3, served_loss_examples=9)
    browser.open(address)
    browser.until("document.querySelector('tr[data-node=attic]') !== null && newest.nodes[2].outbox === 2")
    status = browser.see("fetch('/api/status').then((answer) => answer.json())")
    assert browser.text('[data-field="head"] span') == str(status["head"]) == "3"
    assert browser.text('[data-field="online"] span') == "2"
    for told in status["nodes"]:
        row = f'tr[data-node="{told["node"]}"]'
        assert browser.text(f'{row} [data-field="participation"]') == str(told["participation"])
        assert browser.text(f'{row} [data-field="weight_share"]') == f"{100 * told['weight_share']:.1f} %"
        assert browser.text(f'{row} [data-field="liveness"]') == told["liveness"]
    assert browser.text('tr[data-node=attic] [data-field="training"]') == "no: few new examples"
    assert browser.text('tr[data-node=attic] [data-field="held_out"]') == "2.500 v3"
    assert browser.text('[data-field="fairness"]') == "2.500 attic"
    assert "Share of the weight: " in str(
        browser.see("document.querySelector('#share svg').getAttribute('aria-label')")
    )
    browser.see(f"follow({json.dumps(first)})")
    browser.until("document.querySelectorAll('#trace-result li').length === 5")
    assert "went into version 3" in browser.text("#trace-result")
    if (folder := pictures()) is not None:
        for name, screen, scheme in (("light", DESK, "light"), ("dark", DESK, "dark"), ("phone", PHONE, "light")):
            browser.look(folder / f"{name}.png", screen, scheme)
    browser.ask("Emulation.setDeviceMetricsOverride", **PHONE)
    assert browser.see("document.documentElement.scrollWidth <= window.innerWidth")
    assert browser.faults == []


def test_hostile_reasons_and_names_stay_text(watched: Any, node: Any, address: str, browser: Browser) -> None:
    node.until_version(0)
    false = json.loads(node.manifest("mallory", 0, node.head, 1.0).to_bytes())
    for number in range(3):
        false["<img src=x onerror=document.title='owned'>"] = number
        payload = json.dumps(false).encode()
        node.client.publish(
            publication(FEDERATION, UpdateManifestOf("mallory", update_id(payload)), join_body(payload, b""))
        )
    node.until(lambda: len(node.receipts) == 3)
    browser.open(address)
    browser.until("document.querySelector('tr[data-node=mallory]') !== null")
    browser.see("$('trace-id').value = '<b>bold</b>'; $('trace-form').requestSubmit()")
    browser.until("$('trace-result').innerText.includes('no update id')")
    assert browser.see("document.querySelectorAll('img, b').length") == 0
    assert "node_refused" in str(browser.see("document.querySelector('#alarm-list li').dataset.kind"))
    assert browser.faults == []


def test_a_lost_coordinator_is_said_and_a_new_one_is_taken_up(
    watched: Any, node: Any, address: str, browser: Browser
) -> None:
    node.until_version(0)
    browser.open(address)
    browser.until("$('connection').textContent === 'live'")
    watched.kill()
    browser.until("$('connection').textContent.startsWith('connection lost')")
    watched.start()
    browser.until("$('connection').textContent === 'live' && newest.epoch === 2")


def test_two_hundred_nodes_are_shown_without_lag(watched: Any, node: Any, address: str, browser: Browser) -> None:
    node.until_version(0)
    for number in range(200):
        is_there(node, f"home-{number}", loss=number / 7, base_version=0, step=3, steps=8)
    browser.open(address)
    browser.until("document.querySelectorAll('#fleet-body tr').length === 200")
    # how often a picture is due while a whole status is shown again and again
    frames = browser.see(
        """new Promise((done) => {
            let frames = 0; const begun = performance.now();
            const next = () => { frames += 1; show({ ...newest, at_ns: newest.at_ns + frames * 1e9 });
                frames < 20 ? requestAnimationFrame(next) : done((performance.now() - begun) / frames); };
            requestAnimationFrame(next);
        })"""
    )
    print(f"{frames:.1f} ms for each status of 200 nodes")
    browser.see("$('filter').value = 'home-19'; showFleet(newest)")
    assert browser.see("document.querySelectorAll('#fleet-body tr').length") == 11
    if (folder := pictures()) is not None:
        browser.see("$('filter').value = ''; showFleet(newest)")
        browser.look(folder / "two-hundred.png", DESK, "light")
    assert browser.faults == []


def test_nodes_are_shut_out_and_versions_gone_back_to_with_the_token_and_a_confirmation(
    start_coordinator: Callable[..., Any], base_model: Path, node: Any, address: str, browser: Browser, tmp_path: Path
) -> None:
    token = tmp_path / "token"
    start_coordinator(
        base_model, f'strategy = {{name = "fedbuff", buffer_size = 1}}\nhttp = "{address}"\nhttp_token = "{token}"'
    )
    node.until_version(0)
    node.send("kitchen", 0, node.head, 0.1)
    node.until_version(1)
    browser.open(address)
    browser.until("!$('operate').hidden && document.querySelector('tr[data-node=kitchen]') !== null")
    assert browser.see("getComputedStyle(document.querySelector('td.act')).display") == "none"
    browser.see("$('token').value = 'not the token'.replaceAll(' ', '-'); $('token-form').requestSubmit()")
    browser.until("$('order-result').innerText.includes('the token is wrong')")
    browser.faults.clear()  # the browser notes every 401
    browser.see(f"$('token').value = {json.dumps(token.read_text())}; $('token-form').requestSubmit()")
    browser.until("$('fleet').className === ''")
    assert browser.see("document.activeElement.id") == "rollback-version"
    # by keyboard alone: Enter opens the question, Escape is no, and the focus is back where it was
    shut_out = "document.querySelector('tr[data-node=kitchen] td.act button')"
    assert browser.see(f"{shut_out}.getAttribute('aria-label')") == "shut out kitchen"
    browser.see(f"{shut_out}.focus()")
    browser.press("Enter")
    browser.until("$('confirm').open")
    assert browser.text("#confirm-title") == "Shut out kitchen?"
    assert browser.see("document.activeElement.id") == "cancel"
    if (folder := pictures()) is not None:
        browser.look(folder / "confirm.png", DESK, "dark")
    browser.press("Escape")
    browser.until("!$('confirm').open")
    assert browser.see(f"document.activeElement === {shut_out}")
    assert browser.see("newest.nodes[0].quarantine") is None
    browser.press("Enter")
    browser.until("$('confirm').open")
    browser.see("$('reason').value = '<b>stolen</b>'; $('confirm-form').requestSubmit()")
    browser.until("$('order-result').innerText === 'Order 1 is obeyed: quarantine kitchen.'")
    browser.until(f"newest.nodes[0].quarantine === '<b>stolen</b>' && {shut_out}.innerText === 'forgive …'")
    browser.see("$('rollback-version').value = '0'; $('rollback-form').requestSubmit(); $('go').click()")
    browser.until("$('order-result').innerText.startsWith('Order 2 is obeyed: nodes serve version 0')")
    node.until(lambda: node.release is not None and node.release.version == 0)
    browser.see("$('rollback-version').value = '7'; $('rollback-form').requestSubmit(); $('go').click()")
    browser.until("$('order-result').innerText.includes('there is no version 7')")
    browser.ask("Emulation.setDeviceMetricsOverride", **PHONE)
    if folder is not None:
        browser.look(folder / "operate-phone.png", PHONE, "light")
    assert browser.see("document.documentElement.scrollWidth") <= PHONE["width"]
    assert browser.see("document.querySelectorAll('b').length") == 0
    assert [fault for fault in browser.faults if "409" not in fault] == []
