"""Of two hundred nodes the page touches only what a new status says otherwise, however often one comes."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from coordinator.state import Limits
from coordinator.strategies import FedBuff
from schemas.messages import MAX_INPUTS
from tests.browser import Browser

NODES = 200
SECOND = 1_000_000_000

# What is changed in the document by showing a status: where, once for each change.
CHANGES = """(status) => {
    const observer = new MutationObserver(() => {});
    observer.observe(document, {subtree: true, childList: true, attributes: true, characterData: true});
    show(status);
    const place = (at) => [at.closest('tr')?.dataset.key, at.closest('[data-field]')?.dataset.field ?? at.id];
    return observer.takeRecords().map((record) => place(record.target).filter(Boolean).join(' '));
}"""


@pytest.fixture
def crowd(federation: Any, show: Callable[..., None], address: str, browser: Browser) -> Browser:
    """The page of two hundred nodes, each with a share, a staleness and words of its own."""
    limits = Limits(nodes=NODES, updates_per_version=MAX_INPUTS)
    here = federation(FedBuff(buffer_size=40, staleness_exponent=1), limits=limits)
    for number in range(2 * NODES):
        here.hears(f"home-{number % NODES}", base_version=max(0, here.state.head.version - number % 3))
    for number in range(NODES):
        here.says(f"home-{number}", loss=1 + number / 7, base_version=0, step=3, steps=8)
    show(here.facts())
    browser.open(address)
    assert browser.see("document.querySelectorAll('#fleet-body tr').length") == NODES
    assert browser.see("newest.nodes.every((node) => node.weight_share > 0 && node.staleness !== null)")
    browser.see("stream.close()")
    return browser


def changes(browser: Browser, status: str) -> list[str]:
    return list(browser.see(f"({CHANGES})({status})"))


def with_node(name: str, **figures: Any) -> str:
    """The newest status, with other figures of one node."""
    other = f"nodes: newest.nodes.map((n) => n.node === '{name}' ? {{...n, ...{json.dumps(figures)}}} : n)"
    return f"{{...newest, {other}}}"


def test_a_status_that_says_nothing_new_changes_nothing(crowd: Browser) -> None:
    assert changes(crowd, "structuredClone(newest)") == []


def test_a_second_later_only_ages_change_and_each_once(crowd: Browser) -> None:
    crowd.see("show({...newest, at_ns: newest.head_at_ns + 10e9})")
    changed = changes(crowd, "{...newest, at_ns: newest.at_ns + 1e9}")
    assert {place.split()[-1] for place in changed} == {"head", "age", "last_update"}
    assert len(changed) == len(set(changed))


def test_what_one_node_says_changes_its_row_alone(crowd: Browser) -> None:
    assert changes(crowd, with_node("home-7", loss=0.5, step=4)) == ["home-7 training", "home-7 loss"]
    assert changes(crowd, with_node("home-7", liveness="offline")) == ["online", "home-7 liveness", "home-7 liveness"]
    assert changes(crowd, with_node("home-8", weight_share=0.25)) == ["share", "home-8 weight_share"]


@pytest.mark.parametrize("loss", [0.0, 999.0])
def test_a_row_that_goes_elsewhere_in_the_order_moves_alone_and_keeps_the_focus(crowd: Browser, loss: float) -> None:
    crowd.see("sortBy(COLUMNS.find((column) => column.field === 'loss'))")
    button = "document.querySelector('tr[data-key=home-100] button.id')"
    crowd.see(f"{button}.focus()")
    changed = changes(crowd, with_node("home-100", loss=loss))
    assert changed == ["fleet-body", "fleet-body", "home-100 loss"]
    place = 0 if loss > 1 else NODES - 1
    assert crowd.see(f"document.querySelector('#fleet-body').children[{place}].dataset.key") == "home-100"
    assert crowd.see(f"document.activeElement === {button}")


def test_nodes_are_found_by_a_part_of_their_name(crowd: Browser) -> None:
    crowd.see("$('filter').value = 'home-19'; $('filter').dispatchEvent(new Event('input'))")
    assert crowd.see("document.querySelectorAll('#fleet-body tr').length") == 11
    assert crowd.text("#fleet-caption").startswith(f"11 of {NODES} nodes.")
    crowd.picture("eleven-nodes")
    crowd.see("$('filter').value = ''; $('filter').dispatchEvent(new Event('input'))")
    assert crowd.see("[...document.querySelectorAll('#fleet-body tr')].map((row) => row.dataset.key)") == [
        f"home-{number}" for number in range(NODES)
    ]
    crowd.picture("two-hundred-nodes")
    assert crowd.faults == []
