"""What the document tests share: the parts of a document between markers, and how a model's fields read in a table."""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

DOCS = Path(__file__).parents[2] / "docs"
END = "<!-- end -->"


@pytest.fixture
def docs() -> Path:
    """The folder of the documents."""
    return DOCS


@pytest.fixture
def generated(rewrite: bool) -> Callable[[str, str, str], None]:
    """generated(document, name, text): that part of the document must be `text`; with --rewrite it is made so."""

    def check(document: str, name: str, text: str) -> None:
        path, begin = DOCS / document, f"<!-- generated: {name} -->"
        before, found, rest = path.read_text(encoding="utf-8").partition(begin)
        assert found, f"docs/{document} has no part '{begin}'"
        written, _, after = rest.partition(END)
        expected = f"\n\n{text.strip()}\n\n"
        if rewrite:
            path.write_text(before + begin + expected + END + after, encoding="utf-8")
        else:
            assert written == expected, f"docs/{document}, part {name}, is out of date: run `make golden`"

    return check


@pytest.fixture
def field_rows() -> Callable[[type[BaseModel]], Iterator[list[str]]]:
    """field_rows(model): one row per field: its name, its type with bounds, its default, its description."""
    return _field_rows


@pytest.fixture
def table() -> Callable[..., str]:
    """table(header, rows): a Markdown table."""

    def render(header: list[str], rows: Iterator[list[str]]) -> str:
        lines = [header, ["---"] * len(header), *rows]
        return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)

    return render


def _field_rows(model: type[BaseModel]) -> Iterator[list[str]]:
    schema = model.model_json_schema(mode="validation")
    for name, field in schema["properties"].items():
        default = "required" if name in schema.get("required", ()) else _default(field.get("default"))
        meaning = field.get("description") or _meaning_of_model(field, schema)
        yield [f"`{name}`", _type(field, schema.get("$defs", {})), default, meaning]


def _meaning_of_model(field: dict[str, Any], schema: dict[str, Any]) -> str:
    """The first sentence about the model that the field holds, or nothing."""
    name = field.get("$ref", "").rsplit("/", 1)[-1]
    description: str = schema.get("$defs", {}).get(name, {}).get("description", "")
    return description.split("\n\n")[0].replace("\n", " ")


def _default(value: Any) -> str:
    if value is None or value == "":
        return "none"
    return "see below" if isinstance(value, dict) and value else f"`{json.dumps(value)}`"


def _type(field: dict[str, Any], models: dict[str, Any]) -> str:
    match field:
        case {"$ref": reference}:
            target = models[reference.rsplit("/", 1)[-1]]
            return f"`{target['title']}`" if "properties" in target else _type(target, models)
        case {"anyOf": kinds} | {"oneOf": kinds}:
            return " or ".join(_type(kind, models) for kind in kinds)
        case {"enum": values}:
            return ", ".join(f"`{value}`" for value in values)
        case {"const": value}:
            return f"`{value}`"
        case {"type": "array", "prefixItems": items}:
            return "[" + ", ".join(_type(item, models) for item in items) + "]"
        case {"type": "array", "items": item}:
            most = f", at most {field['maxItems']}" if "maxItems" in field else ""
            return f"list of {_type(item, models)}{most}"
        case {"type": "object", "additionalProperties": values}:
            names = field.get("propertyNames", {}).get("enum", ())
            return f"object of {_type(values, models)}" + (f" by {', '.join(f'`{n}`' for n in names)}" if names else "")
        case {"type": "string", "format": "path" | "file-path" | "directory-path"}:
            return "path"
        case {"type": "string", "pattern": pattern}:
            return _pattern(pattern)
        case {"type": "string", "maxLength": most}:
            return f"string, at most {most} characters"
        case {"type": "integer" | "number" as kind}:
            return kind + _bounds(field)
        case {"type": kind}:
            return str(kind)
    raise ValueError(f"no words for the schema {field}")


def _pattern(pattern: str) -> str:
    if hexadecimal := re.fullmatch(r"\^\[0-9a-f\]\{(\d+)\}\$", pattern):
        return f"{hexadecimal[1]} hexadecimal digits"
    return f"string `{pattern}`"


def _bounds(field: dict[str, Any]) -> str:
    least, above = field.get("minimum"), field.get("exclusiveMinimum")
    most, below = field.get("maximum"), field.get("exclusiveMaximum")
    if least is not None and (most is not None or (below is not None and field["type"] == "integer")):
        return f", {least} to {most if most is not None else below - 1}"
    words = [("at least", least), ("above", above), ("at most", most), ("below", below)]
    return "".join(f", {word} {value}" for word, value in words if value is not None)
