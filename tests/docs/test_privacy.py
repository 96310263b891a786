"""docs/privacy.md names every topic on which a node says something, and every field of it."""

import re

import pytest

from schemas.messages import NodeMetrics, NodeState, UpdateManifest


def rows(docs, topic):
    """What the first table says of a topic, `the same` being that of the row before."""
    text = (docs / "privacy.md").read_text(encoding="utf-8").split("## What leaves")[1].split("\n## ")[0]
    lines = [line.split("|") for line in text.splitlines() if line.startswith("|")]
    where = ""
    for _, _, place, says, _ in lines:
        where = where if place.strip() == "the same" else place
        if topic in where:
            yield says


@pytest.mark.parametrize(
    ("message", "topic"), [(UpdateManifest, "update/"), (NodeState, "/state"), (NodeMetrics, "/metrics")]
)
def test_every_field_that_a_node_says_is_in_the_document(docs, message, topic):
    named = set(re.findall(r"`(\w+)`", " ".join(rows(docs, topic))))
    assert set(message.model_fields) - named == set()


def test_every_topic_of_nodes_and_of_who_asks_them_is_in_the_document(docs):
    text = (docs / "privacy.md").read_text(encoding="utf-8")
    table = (docs / "protocol.md").read_text(encoding="utf-8").split("<!-- generated: topics -->")[1]
    said = re.findall(r"^\| `([^`]+)` \| (?:node|device) \|", table, re.MULTILINE)
    heads = {"/".join(topic.split("/")[: 3 if topic.startswith("node/") else 2]) for topic in said}
    assert len(heads) == 5 and [head for head in sorted(heads) if head not in text] == []
