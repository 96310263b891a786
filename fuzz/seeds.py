"""Seeds for the kept corpus, from real messages: a small federation's own, with keys, and what tools write of them.

    python -m fuzz.seeds      add to the corpus what a federation of today says

Its core, codecs, recorder, exporters and keys are the production ones; only the deltas are drawn instead of trained.
"""

import base64
import csv
import io
import json
import os
import struct
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from broker.bundle import Membership
from broker.events import MessageProperties
from broker.exchange import write_json_lines
from broker.key_files import make_signing_key
from broker.mcap_file import write_mcap
from broker.recording import Row, append, properties_to_json, read_rows, transaction
from coordinator.core import found, step
from coordinator.journal import ADAPTER, open_journal, record, record_founding, row_of_event
from coordinator.operations.orders import Forgive, Quarantine, RollBack
from coordinator.questions import Answer, MeasuredLosses, TrainedAnchor, answer_to_bytes
from coordinator.state import Answered, FederationConfig, KeysChanged, PublishVersion, Received, SendReceipt, Ticked
from coordinator.strategies import FedBuff
from fuzz import corpus
from fuzz.bodies import layout
from fuzz.files import PAYLOADS
from fuzz.messages import FEDERATION, HEAD_TOPIC, KEYS_TOPIC, UPDATE_TOPIC, key, ring
from fuzz.target import clear
from fuzz.targets import TARGETS
from schemas.adapter import Adapter
from schemas.chunks import describe, split
from schemas.codec import UPDATE_CODECS, encode
from schemas.frames import compress
from schemas.messages import (
    ChatTurn,
    CodecId,
    CoordinatorState,
    GlobalManifest,
    GlobalPointer,
    InferenceAnswer,
    InferenceError,
    InferenceRequest,
    KeyCertificate,
    Message,
    NodeFigures,
    NodeMetrics,
    NodeState,
    UpdateManifest,
    join_body,
    update_id,
)
from schemas.signing import sign
from schemas.topics import ADDRESSES, InferenceAnswerFor, UpdateChunk, UpdateManifestOf, route

BEGUN_NS = 1_700_000_000_000_000_000
SHA, ID = "0123456789abcdef" * 4, "0123456789abcdef" * 2
DEEP = 1100  # lists within lists: more than Python goes down
Seeds = dict[str, list[bytes]]


def delta(seed: int) -> Adapter:
    """A delta as training might make it."""
    return Adapter(layout(), np.random.default_rng(seed).normal(0, 0.01, layout().size).astype(np.float32))


def update(node: str, sequence: int, base: Adapter, codec: CodecId, chunk_size: int) -> tuple[bytes, bytes]:
    """A manifest and its body."""
    body = encode(delta(sequence), codec)
    manifest = UpdateManifest(
        node=node,
        boot_id=ID,
        sequence=sequence,
        base_version=0,
        base_digest=base.digest,
        base_model=SHA,
        layout=layout().digest,
        examples=8,
        steps=4,
        participation=sequence,
        loss=1.25,
        seconds=2.5,
        body=describe(body, codec, chunk_size, inline=chunk_size),
    )
    return manifest.to_bytes(), body


def journal(path: Path) -> list[Message]:
    """A federation's journal: signed updates inline and in chunks, refusals, versions, an order. What it answers."""
    config = FederationConfig(
        federation=FEDERATION,
        base_model=SHA,
        base_model_name="tiny",
        layout=layout(),
        strategy=FedBuff(buffer_size=2),
        root=key("root").public,
    )
    first = Adapter.zeros(layout())
    state, effects = found(config, first, BEGUN_NS)
    said = [effect.manifest for effect in effects if isinstance(effect, PublishVersion)]
    events: list[KeysChanged | Received | Ticked] = [
        KeysChanged(BEGUN_NS, ring()),
        *_updates(first),
        Ticked(BEGUN_NS + 10**10),
    ]
    answers: list[Message] = [*said]
    with closing(open_journal(path)) as connection:
        with transaction(connection):
            record_founding(connection, config, first, BEGUN_NS)
        for event in events:
            state, effects = step(state, event)
            row = Row(event.at_ns, event.topic, event.payload) if isinstance(event, Received) else row_of_event(event)
            with transaction(connection):
                record(connection, row, effects)
            for effect in effects:
                match effect:
                    case SendReceipt(receipt=receipt):
                        answers.append(receipt)
                    case PublishVersion(manifest=manifest):
                        answers.append(manifest)
    return answers


def _updates(base: Adapter) -> Iterator[Received]:
    for sequence, codec in enumerate(UPDATE_CODECS):
        node, inline = ("kitchen", "garage")[sequence % 2], sequence % 2 == 0
        manifest, body = update(node, sequence, base, codec, 4096 if inline else 64)
        id_ = update_id(manifest)
        topic = route(FEDERATION, UpdateManifestOf(node, id_)).topic
        whole = join_body(manifest, body) if inline else manifest
        yield Received(BEGUN_NS + sequence, topic, sign(key(node), topic, whole))
        for index, chunk in enumerate(() if inline else split(body, 64)):
            yield Received(BEGUN_NS + sequence, route(FEDERATION, UpdateChunk(node, id_, index)).topic, chunk)


def of_messages(answers: list[Message]) -> Seeds:
    """Each message by its type, as the federation says it, and as its other members do."""
    manifests = [answer for answer in answers if isinstance(answer, GlobalManifest)]
    pointer = GlobalPointer(epoch=1, version=2, digest=SHA, parent=SHA, size=3, chunks=1, variant="average", judged=3)
    certificate = KeyCertificate(
        federation=FEDERATION, number=1, key=key("coordinator").public, issued_at_ns=1, expires_at_ns=2**60
    )
    terms = CoordinatorState(
        online=True,
        boot_id=ID,
        epoch=1,
        base_model=SHA,
        base_model_name="tiny",
        lora=layout().lora,
        layout=layout().digest,
        strategy="fedbuff",
        one_update_per_version=False,
        codecs=UPDATE_CODECS,
        max_staleness=20,
    )
    manifest, body = update("kitchen", 1, Adapter.zeros(layout()), "int8", 4096)
    others: list[Message] = [
        pointer,
        certificate,
        terms,
        UpdateManifest.from_bytes(manifest),
        NodeState(
            online=True, boot_id=ID, base_model=SHA, version=1, serving=1, rank=4, codecs=("int8",), limits="70 °C"
        ),
        NodeMetrics(boot_id=ID, base_version=1, step=1, steps=2, loss=0.5, idle="resting"),
        NodeFigures(
            node="kitchen",
            version=1,
            behind=0,
            loss=0.5,
            participation=3,
            contribution=0.5,
            staleness=0.5,
            refused=1,
            outbox=0,
            problem="look at it",
            adapter={"installed_version": "1", "latest_version": "2"},
        ),
        InferenceRequest(messages=(ChatTurn(role="user", content="on"),), stream=True, max_tokens=8, stop=("}",)),
        InferenceAnswer(
            index=1,
            last=True,
            text="on",
            base_model=SHA,
            version=2,
            digest=SHA,
            finish="stop",
            tokens=4,
            error=InferenceError(code="timeout", reason="took too long"),
        ),
    ]
    seeds: Seeds = {}
    for message in [*manifests, *answers, *others]:
        seeds.setdefault(f"message-{type(message).__name__}", []).append(message.to_bytes())
    signed = sign(key("kitchen"), UPDATE_TOPIC, join_body(manifest, body))
    head = sign(key("coordinator"), HEAD_TOPIC, pointer.to_bytes())
    return seeds | {
        "signed-update": [signed, sign(key("cellar"), UPDATE_TOPIC, manifest), manifest],
        "signed-pointer": [head, sign(key("root"), KEYS_TOPIC, certificate.to_bytes())],
        "key-ring": [ring().to_bytes()],
        "reading": [f"{UPDATE_TOPIC}\n".encode() + signed, f"{HEAD_TOPIC}\n".encode() + head],
    }


def of_topics() -> Seeds:
    """One topic of each kind, and the fields that make it."""
    values: dict[str, Any] = {"node": "kitchen", "device": "tablet", "update_id": ID, "version": 12, "index": 3}
    topics, made = list[bytes](), list[bytes]()
    for number, kind in enumerate(ADDRESSES):
        given = {name: values[name] for name in (field.name for field in fields(kind))}
        topics.append(route(FEDERATION, kind(**given)).topic.encode())
        made.append(bytes([number]) + "\n".join([*map(str, given.values()), FEDERATION]).encode())
    topics += [b"$SYS/x", b"tablet/answers", route(FEDERATION, InferenceAnswerFor("garage", "x")).topic.encode()]
    return {"topic": topics, "route": made, "discovery-topic": [b"homeassistant\nalignfed_kitchen"]}


def of_bodies() -> Seeds:
    """A delta in every codec, an adapter file, frames, symbols and the model's answers."""
    seeds: Seeds = {f"codec-{codec}": [encode(delta(n), codec) for n in range(2)] for codec in UPDATE_CODECS}
    adapter = delta(3).to_safetensors()
    seeds["codec-kltp"].append(encode(Adapter.zeros(layout()), "kltp"))
    answers: list[Answer] = [MeasuredLosses((1.5, 2.5), 0.5), TrainedAnchor(delta(4), 2.5, 1.5, 0.5)]
    return seeds | {
        "codec-safetensors": [adapter],
        "adapter-file": [adapter],
        "frame": [bytes([32]) + compress(bytes(32), 3), bytes([7]) + compress(b"alignfed"[:7], 3)],
        "symbols": [bytes([0, 0, 9, 4, 4]), bytes([255, 1, 3, 1, 2, 3, 0, 0, 0])],
        "model-answer": [answer_to_bytes(answer) for answer in answers],
        "chunks": [bytes([0, 0, *(value for index in range(8) for value in (index, 1))]), bytes([3, 1, 0, 0, 3, 200])],
    }


def of_requests() -> Seeds:
    """What people and programs of the site send."""
    example = b'{"prompt":"turn on the lamp","completion":"on"}'
    chat = {"model": "alignfed", "messages": [{"role": "user", "content": "on"}], "max_tokens": 8, "temperature": 0.5,
            "stop": ["}"], "stream": True, "stream_options": {"include_usage": True}, "n": 1}  # fmt: skip
    parts = {"messages": [{"role": "developer", "content": [{"type": "text", "text": "on"}]}], "seed": 7}
    orders: list[Message] = [
        Quarantine(node="kitchen", reason="stolen"),
        Forgive(node="kitchen"),
        RollBack(version=3, scope="head"),
    ]
    toml = (
        b'federation = "home"\n[broker]\nhost = "127.0.0.1"\nport = 1883\n[coordinator]\nnode_ranks = [4]\n'
        b'[coordinator.strategy]\nname = "alignfed"\npreset = "patient"\nrelease = { choose = "gated" }\n'
        b'[edge]\nnode = "kitchen"\n[edge.training]\nsteps = 4\n'
    )
    return {
        "chat": [json.dumps(body).encode() for body in (chat, parts)],
        "example-request": [example, b"[" + example + b"," + example + b"]"],
        "example-line": [example],
        "example-file": [example + b"\n" + example.replace(b"lamp", b"fan") + b"\n", example + b"\n"],
        "order": [order.to_bytes() for order in orders],
        "settings": [
            toml,
            b'[coordinator.strategy]\nname = "fedbuff"\nbuffer_size = 0\n',
            b"federation = 2020-01-01\n",
            b"federation = " + b"[" * DEEP,
        ],
    }


def of_files(folder: Path, path: Path) -> Seeds:
    """A journal as all that it can be written as, keys, a model's file, and what a node holds."""
    rows = list(read_rows(path))
    told = Row(BEGUN_NS, "a/b", b"a", 1, True, True, MessageProperties((("k", "v"),), "json", "x/y", b"\1", 5))
    small = [told, Row(BEGUN_NS + 1, "a/b", b"", 0)]
    lines, mcap = folder / "lines", folder / "rows.mcap"
    write_json_lines(small, lines)
    write_mcap([*small, rows[2]], mcap)
    certificate = KeyCertificate(
        federation=FEDERATION, number=1, key=key("coordinator").public, issued_at_ns=1, expires_at_ns=2**60
    )
    member = Membership(federation=FEDERATION, name="coordinator", root=key("root").public)
    make_signing_key(folder / "signing.key")
    pointer = GlobalPointer(epoch=1, version=2, digest=SHA, parent=SHA, size=3, chunks=1)
    tables = [row for row in rows if row.topic != ADAPTER]
    return {
        "recording": [_recording(folder / "small.db", small)],
        "properties": [properties_to_json(told.properties).encode(), b"{}", b"[" * (DEEP // 2)],
        "journal-row": [row.topic.encode() + b"\n" + row.payload for row in tables if len(row.payload) < 2500]
        + [_event(Answered(BEGUN_NS, (3, 1), answer_to_bytes(MeasuredLosses((1.5,), 0.5))))]
        + [b"$journal/order/3\n" + b"[" * DEEP, b"$journal/order/3\n" + Forgive(node="kitchen").to_bytes()]
        + [b"$journal/rollback/4/3/head/release\n", b"$journal/noise\n" + bytes(32)]
        + [b"$journal/poison/alignfed/v1/home/update/kitchen/" + b"0" * 32 + b"/manifest\nanything"]
        + [b"$journal/start\n", b"$journal/tick\n"],
        "import-json-lines": [lines.read_bytes(), b"[" * DEEP],
        "import-csv-base64": [_csv(small, lambda payload: base64.b64encode(payload).decode())],
        "import-csv-text": [_csv(small, bytes.decode)],
        "import-mosquitto-sub": [b"1700000000.000000001 a/b c 1 0 6f6e\n1700000000.000000002 a/b 0 1 \n"],
        "import-mcap": [mcap.read_bytes()],
        "signing-key": [(folder / "signing.key").read_bytes()],
        "bundle": [member.model_dump_json().encode(), ring().to_bytes(),
                   sign(key("root"), KEYS_TOPIC, certificate.to_bytes())],
        "gguf": [gguf()],
        "held-version": [pointer.to_bytes(), pointer.to_bytes() + b"\n" + pointer.to_bytes()],
    }  # fmt: skip


def _event(event: Answered) -> bytes:
    row = row_of_event(event)
    return row.topic.encode() + b"\n" + row.payload


def _recording(path: Path, rows: list[Row]) -> bytes:
    from broker.recording import open_recording

    with closing(open_recording(path)) as connection, transaction(connection):
        for row in rows:
            append(connection, row)
    return path.read_bytes()


def _csv(rows: list[Row], text: Callable[[bytes], str]) -> bytes:
    out = io.StringIO()
    csv.writer(out).writerows(
        [row.topic, text(row.payload), row.qos, row.retain, row.received_at_ns / 1e9, 0.5] for row in rows
    )
    return out.getvalue().encode()


def gguf() -> bytes:
    """A model file of one tensor of 2 rows of 32 weights, with a string, an array and a list of strings beside it."""

    def text(word: bytes) -> bytes:
        return struct.pack("<Q", len(word)) + word

    keys = [
        text(b"general.architecture") + struct.pack("<I", 8) + text(b"llama"),
        text(b"general.alignment") + struct.pack("<II", 4, 32),
        text(b"sizes") + struct.pack("<IIQ", 9, 4, 2) + bytes(8),
        text(b"words") + struct.pack("<IIQ", 9, 8, 2) + text(b"a") + text(b"b"),
    ]
    tensor = text(b"up") + struct.pack("<IQQIQ", 2, 32, 2, 3, 0)
    head = b"GGUF" + struct.pack("<IQQ", 3, 1, len(keys)) + b"".join(keys) + tensor
    return head.ljust(-(-len(head) // 32) * 32, b"\0") + bytes(40)


def main() -> None:
    """Fold the seeds into the corpus, and say how many inputs there are for each target."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        answers = journal(folder / "journal.db")
        seeds = of_messages(answers) | of_topics() | of_bodies() | of_requests()
        seeds |= of_files(folder, folder / "journal.db")
    assert set(PAYLOADS.values()) == {b"", b"a"}  # which the lines above name
    for target in TARGETS:
        print(f"{target.name}: {corpus.fold(target, seeds.pop(target.name, []))} inputs kept")
    assert not seeds, f"seeds of no target: {', '.join(seeds)}"
    clear(os.getpid())


if __name__ == "__main__":
    main()
