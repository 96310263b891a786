"""docs/asyncapi.yaml is schemas/ in AsyncAPI's words, and a valid document of its version 3.0.

asyncapi-3.0.0.json is AsyncAPI's own JSON schema (Apache-2.0), without descriptions and other protocols' bindings.
"""

import inspect
import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from pydantic.json_schema import models_json_schema

from schemas import messages
from schemas.messages import Message
from schemas.topics import ADDRESSES, ROOT, Address

SCHEMA = Path(__file__).with_name("asyncapi-3.0.0.json")
DOCUMENT = "asyncapi.yaml"
BYTES = {"contentType": "application/octet-stream", "payload": {"type": "string", "format": "binary"}}
MODELS = {
    name: model
    for name, model in inspect.getmembers(messages, inspect.isclass)
    if issubclass(model, Message) and model is not Message
}
FEDERATION = {"federation": {"description": "who trains together: 1 to 64 letters, digits, '_', '.' and '-'"}}
HEAD = """\
# Made from schemas/ by `make golden`; do not change it by hand. docs/protocol.md says the same in words.
"""


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "alignfed",
            "version": ROOT.rpartition("/")[2],
            "description": "Federated LoRA fine-tuning over MQTT 5, as the coordinator sees it.",
            "license": {"name": "Apache-2.0"},
        },
        "defaultContentType": "application/json",
        "channels": {kind.__name__: _channel(kind) for kind in ADDRESSES},
        "operations": {f"{_action(kind)}{kind.__name__}": _operation(kind) for kind in ADDRESSES},
        "components": {"messages": {kind.__name__: _message(kind) for kind in ADDRESSES}, "schemas": _schemas()},
    }


def test_the_document_is_the_code(document: dict[str, Any], docs: Path, rewrite: bool) -> None:
    expected = HEAD + yaml.safe_dump(json.loads(json.dumps(document)), sort_keys=False, width=110, allow_unicode=True)
    if rewrite:
        (docs / DOCUMENT).write_text(expected, encoding="utf-8")
    assert (docs / DOCUMENT).read_text(encoding="utf-8") == expected, "docs/asyncapi.yaml is out of date: `make golden`"


def test_the_document_is_valid_asyncapi(docs: Path) -> None:
    validator = jsonschema.Draft7Validator(json.loads(SCHEMA.read_text(encoding="utf-8")))
    written = yaml.safe_load((docs / DOCUMENT).read_text(encoding="utf-8"))
    assert [error.message[:300] for error in validator.iter_errors(written)] == []
    del written["channels"]["GlobalHead"]["address"]
    written["channels"]["GlobalHead"]["adress"] = "a slip"
    assert list(validator.iter_errors(written)) != []


def test_every_reference_leads_somewhere(docs: Path) -> None:
    written = yaml.safe_load((docs / DOCUMENT).read_text(encoding="utf-8"))
    for reference in _references(written):
        target = written
        for key in reference.removeprefix("#/").split("/"):
            target = target[key]


def test_a_message_of_ours_satisfies_its_schema(docs: Path) -> None:
    written = yaml.safe_load((docs / DOCUMENT).read_text(encoding="utf-8"))
    state = messages.NodeState(online=True, boot_id="0" * 32, base_model="1" * 64, version=3)
    schema = {"$ref": "#/components/schemas/NodeState", "components": written["components"]}
    jsonschema.validate(json.loads(state.to_bytes()), schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"online": "perhaps"}, schema)


def _channel(kind: type[Address]) -> dict[str, Any]:
    names = [field.name for field in fields(kind)]
    return {
        "address": f"{ROOT}/{{federation}}/{kind.spec.pattern}",
        "description": inspect.getdoc(kind),
        "parameters": FEDERATION | {name: {} for name in names},
        "messages": {kind.__name__: {"$ref": f"#/components/messages/{kind.__name__}"}},
    }


def _action(kind: type[Address]) -> str:
    return "send" if kind.spec.sender == "coordinator" else "receive"


def _operation(kind: type[Address]) -> dict[str, Any]:
    mqtt: dict[str, Any] = {"qos": kind.spec.qos, "retain": kind.spec.retain}
    if kind.spec.expiry_s is not None:
        mqtt["messageExpiryInterval"] = kind.spec.expiry_s
    return {
        "action": _action(kind),
        "channel": {"$ref": f"#/channels/{kind.__name__}"},
        "bindings": {"mqtt": {**mqtt, "bindingVersion": "0.2.0"}},
    }


def _message(kind: type[Address]) -> dict[str, Any]:
    """JSON where there is a model for it; the raw bytes that may follow it are the description's knowledge."""
    known = {"summary": inspect.getdoc(kind)}
    if kind.spec.content not in MODELS:
        return known | BYTES
    return known | {"payload": {"$ref": f"#/components/schemas/{kind.spec.content}"}}


def _schemas() -> dict[str, Any]:
    _, schema = models_json_schema(
        [(model, "validation") for model in MODELS.values()], ref_template="#/components/schemas/{model}"
    )
    return dict(sorted(schema["$defs"].items()))


def _references(node: Any) -> list[str]:
    if isinstance(node, dict):
        own = [node["$ref"]] if isinstance(node.get("$ref"), str) else []
        return own + [reference for value in node.values() for reference in _references(value)]
    return [reference for value in node for reference in _references(value)] if isinstance(node, list) else []
