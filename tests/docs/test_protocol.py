"""docs/protocol.md says what the code does: its tables and its example are made from schemas/."""

import inspect
import json
import re
from pathlib import Path

import numpy as np
import pytest

from schemas import messages
from schemas.adapter import Adapter, Layout, LoraConfig
from schemas.chunks import describe
from schemas.codec import CODECS, encode
from schemas.messages import Message, UpdateManifest, join_body, update_id
from schemas.topics import ADDRESSES, ROOT, UpdateManifestOf, route

PROTOCOL = Path(__file__).parents[2] / "docs" / "protocol.md"
MESSAGES = [
    model
    for _, model in inspect.getmembers(messages, inspect.isclass)
    if issubclass(model, Message) and model is not Message
]


def test_the_topic_table_is_the_code(generated, table):
    header = ["topic below the root", "from", "QoS", "retained", "expiry", "content", "signed by", "meaning"]
    generated("protocol.md", "topics", table(header, map(_topic_row, ADDRESSES)))


@pytest.mark.parametrize("model", [*MESSAGES, LoraConfig, Layout], ids=lambda model: model.__name__)
def test_the_fields_of_every_message_are_the_code(model, generated, table, field_rows):
    header = ["field", "type", "default", "meaning"]
    generated("protocol.md", model.__name__, f"{inspect.getdoc(model)}\n\n{table(header, field_rows(model))}")


def test_the_limits_are_the_code(generated, table):
    rows = [
        ["chunk", f"{messages.MAX_CHUNK_SIZE} bytes"],
        ["inline body", f"{messages.MAX_CHUNK_SIZE} bytes"],
        ["JSON of one message", f"{messages.MAX_MESSAGE_SIZE} bytes"],
        ["chunks of one body", str(messages.MAX_CHUNKS)],
        ["body", f"{messages.MAX_BODY_SIZE} bytes, and never more than the layout can need in the stated codec"],
    ]
    generated("protocol.md", "limits", table(["what", "at most"], iter(rows)))


def test_every_codec_is_described():
    document = PROTOCOL.read_text(encoding="utf-8")
    assert [codec for codec in CODECS if f"| `{codec}` |" not in document] == []


def test_every_message_has_a_part_of_its_own():
    document = PROTOCOL.read_text(encoding="utf-8")
    assert [model.__name__ for model in MESSAGES if f"### {model.__name__}\n" not in document] == []


def test_a_part_about_a_message_is_about_one_that_there_is():
    parts = re.findall(r"<!-- generated: (\w+) -->", PROTOCOL.read_text(encoding="utf-8"))
    assert set(parts) == {model.__name__ for model in (*MESSAGES, LoraConfig, Layout)} | {"topics", "limits", "example"}


def test_the_worked_example_is_made_by_the_code(generated):
    generated("protocol.md", "example", _example())


def _topic_row(kind) -> list[str]:
    spec = kind.spec
    expiry = "never" if spec.expiry_s is None else f"{spec.expiry_s} s"
    content = f"[`{spec.content}`](#{spec.content.lower()})" if hasattr(messages, spec.content) else spec.content
    retained = "yes" if spec.retain else "no"
    return [
        f"`{spec.pattern}`",
        spec.sender,
        str(spec.qos),
        retained,
        expiry,
        content,
        spec.signer or "",
        inspect.getdoc(kind),
    ]


def _example() -> str:
    """An update of an adapter with four parameters, byte by byte."""
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_{}.weight"
    lora = LoraConfig(rank=1, alpha=2, target_modules=("q_proj",))
    layout = Layout(lora=lora, tensors=((name.format("A"), (1, 2)), (name.format("B"), (2, 1))))
    body = encode(Adapter(layout, np.array([1, -2, 0.5, 0], dtype=np.float32)), "fp32")
    manifest = UpdateManifest(
        node="kitchen",
        boot_id="0" * 32,
        sequence=1,
        base_version=0,
        base_digest="1" * 64,
        base_model="2" * 64,
        layout=layout.digest,
        examples=40,
        steps=8,
        participation=0,
        loss=2.5,
        seconds=12.0,
        body=describe(body, "fp32"),
    )
    topic = route("home", UpdateManifestOf("kitchen", update_id(manifest.to_bytes()))).topic
    payload = join_body(manifest.to_bytes(), body)
    return "\n".join(
        [
            f"The layout's canonical JSON, whose SHA-256 is `{layout.digest}`:",
            "",
            f"```json\n{layout.model_dump_json()}\n```",
            "",
            "The adapter A = [[1, -2]], B = [[0.5], [0]] in the codec `fp32`, in hexadecimal:",
            "",
            f"```text\n{body.hex(' ', 4)}\n```",
            "",
            f"The payload is {len(payload)} bytes: this line, the byte 0x0a, and those {len(body)} bytes:",
            "",
            f"```json\n{manifest.to_bytes().decode()}\n```",
            "",
            "The first 32 hexadecimal digits of that line's SHA-256 are the update's id, and so the topic is:",
            "",
            f"```text\n{topic}\n```",
        ]
    )


def test_the_example_is_below_the_documented_root():
    assert ROOT in _example() and json.loads(_example().split("```json\n")[1].split("\n```")[0])
