"""A node answers OpenAI's client and a plain MQTT device while it trains and takes up one version after the other.

Every answer is compared afterwards with what the adapter that it names says, byte for byte.
"""

import json
import queue
import threading
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import openai
import paho.mqtt.client as paho
import pytest
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from base_model.chat_tokens import ChatTokens
from base_model.layout import layout_of
from base_model.reference import resolve
from coordinator.registry import Registry
from edge_node.serving.export import export
from edge_node.serving.generation import Sampling, generate
from edge_node.serving.inference import AdapterSlot, Inference, ServedVersion
from edge_node.serving.session import Session
from schemas.adapter import LoraConfig
from tests.patience import PATIENCE_S
from tests.ports import free_port

PROMPTS = ("turn on the desk lamp", "set the volume to 20 percent", "turn off the lights in the office")
LEARNING_RATE = 0.02  # each version answers otherwise
TOKENS = 16
REST_S = 0.02  # between two questions; without it they leave no core to the training


class Answer(NamedTuple):
    """What came of one question: which adapters its parts say made it, by digest, and the text."""

    prompt: str
    digests: frozenset[str]
    text: str


class Asker:
    """Asks one question after the other, on a thread of its own, until it is told to end."""

    def __init__(self, ask: Callable[[str], Answer]) -> None:
        self.asked, self.answers, self.faults = 0, list[Answer](), list[Exception]()
        self._ask, self._ended = ask, threading.Event()
        self._thread = threading.Thread(target=self._work)
        self._thread.start()

    def end(self) -> None:
        self._ended.set()
        self._thread.join()

    def _work(self) -> None:
        while not self._ended.is_set():
            prompt = PROMPTS[self.asked % len(PROMPTS)]
            self.asked += 1
            try:
                self.answers.append(self._ask(prompt))
            except Exception as fault:  # whatever it is, the test fails with it
                self.faults.append(fault)
            self._ended.wait(REST_S)


def ask_as_openais_client(port: int) -> Callable[[str], Answer]:
    client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0)

    def ask(prompt: str) -> Answer:
        chunks = list(
            client.chat.completions.create(
                model="alignfed",
                messages=[{"role": "user", "content": prompt}],
                max_tokens=TOKENS,
                stream=True,
            )
        )
        assert chunks[-1].choices[0].finish_reason in ("stop", "length")
        # v{version}-{the digest's beginning}
        made_by = frozenset((chunk.system_fingerprint or "").partition("-")[2] for chunk in chunks)
        return Answer(prompt, made_by, "".join(chunk.choices[0].delta.content or "" for chunk in chunks))

    return ask


def ask_as_a_device(port: int, name: str) -> Callable[[str], Answer]:
    """A plain paho client that knows docs/serving.md."""
    answers = f"alignfed/v1/home/answer/node-0/{name}"
    heard: queue.SimpleQueue[Any] = queue.SimpleQueue()
    subscribed = threading.Event()
    client = paho.Client(paho.CallbackAPIVersion.VERSION2, protocol=paho.MQTTv5)  # type: ignore[attr-defined]
    client.on_message = lambda _client, _data, message: heard.put(message)
    client.on_subscribe = lambda *_: subscribed.set()
    client.connect("127.0.0.1", port)
    client.loop_start()
    client.subscribe(answers, qos=1)
    assert subscribed.wait(PATIENCE_S)
    count = 0

    def ask(prompt: str) -> Answer:
        nonlocal count
        count += 1
        properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
        properties.ResponseTopic = answers
        properties.CorrelationData = b"%d" % count
        question = {"messages": [{"role": "user", "content": prompt}], "max_tokens": TOKENS, "stream": True}
        client.publish("alignfed/v1/home/infer/node-0", json.dumps(question), 1, properties=properties)
        parts: list[dict[str, Any]] = []
        while not parts or not parts[-1]["last"]:
            message = heard.get(timeout=PATIENCE_S)
            assert message.properties.CorrelationData == b"%d" % count
            parts.append(json.loads(message.payload))
        assert parts[-1]["error"] is None, parts[-1]
        assert [part["index"] for part in parts] == list(range(len(parts)))
        made_by = frozenset(part["digest"][:12] for part in parts)
        return Answer(prompt, made_by, "".join(part["text"] for part in parts))

    return ask


def add(path: Path, **settings: Any) -> None:
    with path.open("a") as config:
        config.writelines(f"{key} = {json.dumps(value)}\n" for key, value in settings.items())


def served_version(port: int) -> int:
    """The version that the node answers with; -1 before it answers, and before it has any."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=5) as response:
            adapter = json.load(response)["adapter"]
    except OSError:
        return -1
    return -1 if adapter is None else adapter["version"]


def expected_answers(folder: Path, model_dir: Path) -> dict[tuple[str, str], str]:
    """What each version answers to each prompt, by the beginning of its digest, from the coordinator's own files."""
    resolved = resolve(str(model_dir), folder / "cache")
    inference = Inference(Session(export(resolved, folder / "cache", "fp32")))
    chat, registry = ChatTokens(resolved.path), Registry(folder / "coordinator" / "adapters")
    layout = layout_of(resolved, LoraConfig())
    expected = {}
    for manifest in registry.versions():
        adapter = registry.adapter(manifest.version, layout)
        slot = inference.prepare(adapter, ServedVersion(1, manifest.version), adapter.digest)
        for prompt in PROMPTS:
            expected[adapter.digest[:12], prompt] = _text(inference.session, slot, chat, prompt)
    return expected


def _text(session: Session, slot: AdapterSlot, chat: ChatTokens, prompt: str) -> str:
    tokens = chat.prompt([{"role": "user", "content": prompt}])
    return "".join(chat.text(generate(session, slot, tokens, Sampling(TOKENS), chat.stops, lambda: False)))


@pytest.mark.mosquitto
@pytest.mark.parametrize("fleet", ["mosquitto"], indirect=True)
def test_openais_client_and_a_device_are_answered_while_the_node_trains_and_swaps(
    fleet: Any, tiny_model_dir: Path
) -> None:
    port = free_port()
    for name in ("node-0", "node-1"):
        add(fleet.folder / f"{name}.toml", **{"edge.training.learning_rate": LEARNING_RATE})
    add(fleet.folder / "node-0.toml", **{"edge.serving.http": f"127.0.0.1:{port}"})
    fleet.start("coordinator")
    fleet.start("node-0")
    fleet.until(lambda: served_version(port) >= 0)
    askers = [
        Asker(ask_as_openais_client(port)),
        Asker(ask_as_openais_client(port)),
        Asker(ask_as_a_device(fleet.broker.settings.port, "lamp")),
        Asker(ask_as_a_device(fleet.broker.settings.port, "switch")),
    ]
    try:
        fleet.start("node-1")
        fleet.until(lambda: served_version(port) >= 3)
    finally:
        for asker in askers:
            asker.end()

    assert [asker.faults for asker in askers] == [[], [], [], []]
    assert [len(asker.answers) for asker in askers] == [asker.asked for asker in askers]  # none was dropped
    assert "node-0" in {node for node, receipt in fleet.receipts if receipt.status == "accepted"}  # it has trained

    expected = expected_answers(fleet.folder, tiny_model_dir)
    assert len(set(expected.values())) > len(PROMPTS)  # else a mixed answer would not show
    for asker in askers:
        for prompt, digests, text in asker.answers:
            [digest] = digests
            assert text == expected[digest, prompt]
        assert len({digests for _, digests, _ in asker.answers}) >= 3
