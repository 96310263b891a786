"""The page in a real browser, on a running coordinator: it tells the truth, and hostile text stays text."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from coordinator.publisher import publication
from schemas.messages import join_body, update_id
from schemas.topics import UpdateManifestOf
from tests.browser import DESK, PHONE, Browser

FEDERATION = "test"


def test_the_page_shows_the_figures_of_the_status_in_light_dark_and_on_a_phone(
    watched: Any, node: Any, says: Callable[..., None], address: str, browser: Browser
) -> None:
    node.until_version(0)
    for version in range(3):
        first = node.send("kitchen", version, node.head, 0.1)
        node.send("garage", version, node.head, 0.3)
        node.until_version(version + 1)
    says("kitchen", serving=0, outbox=2, loss=0.75)
    says("attic", serving=0, idle="few_new_examples", served_loss=2.5, served_loss_version=3, served_loss_examples=9)
    browser.open(address)
    browser.until("document.querySelector('tr[data-key=attic]') !== null && newest.nodes[2].outbox === 2")
    status = browser.see("fetch('/api/status').then((answer) => answer.json())")
    assert browser.text('[data-field="head"] span') == str(status["head"]) == "3"
    assert browser.text('[data-field="online"] span') == "2"
    for told in status["nodes"]:
        row = f'tr[data-key="{told["node"]}"]'
        assert browser.text(f'{row} [data-field="participation"]') == str(told["participation"])
        assert browser.text(f'{row} [data-field="weight_share"]') == f"{100 * told['weight_share']:.1f} %"
        assert browser.text(f'{row} [data-field="liveness"]') == told["liveness"]
    assert browser.text('tr[data-key=attic] [data-field="training"]') == "no: few new examples"
    assert browser.text('tr[data-key=attic] [data-field="held_out"]') == "2.500 v3"
    assert browser.text('[data-field="fairness"]') == "2.500 attic"
    assert "Share of the weight: " in str(
        browser.see("document.querySelector('#share svg').getAttribute('aria-label')")
    )
    browser.see(f"follow({json.dumps(first)})")
    browser.until("document.querySelectorAll('#trace-result li').length === 5")
    assert "went into version 3" in browser.text("#trace-result")
    for name, screen, scheme in (("light", DESK, "light"), ("dark", DESK, "dark"), ("phone", PHONE, "light")):
        browser.on(screen, scheme)
        browser.picture(name)
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
    browser.until("document.querySelector('tr[data-key=mallory]') !== null")
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
    browser.until("!$('operate').hidden && document.querySelector('tr[data-key=kitchen]') !== null")
    assert browser.see("getComputedStyle(document.querySelector('td.act')).display") == "none"
    browser.see("$('token').value = 'not the token'.replaceAll(' ', '-'); $('token-form').requestSubmit()")
    browser.until("$('order-result').innerText.includes('the token is wrong')")
    browser.faults.clear()  # the browser notes every 401
    browser.see(f"$('token').value = {json.dumps(token.read_text())}; $('token-form').requestSubmit()")
    browser.until("$('fleet').className === ''")
    assert browser.see("document.activeElement.id") == "rollback-version"
    # by keyboard alone: Enter opens the question, Escape is no, and the focus is back where it was
    shut_out = "document.querySelector('tr[data-key=kitchen] td.act button')"
    assert browser.see(f"{shut_out}.getAttribute('aria-label')") == "shut out kitchen"
    browser.see(f"{shut_out}.focus()")
    browser.press("Enter")
    browser.until("$('confirm').open")
    assert browser.text("#confirm-title") == "Shut out kitchen?"
    assert browser.see("document.activeElement.id") == "cancel"
    browser.picture("confirm")
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
    browser.on(PHONE)
    browser.picture("operate-phone")
    assert browser.see("document.documentElement.scrollWidth") <= PHONE["width"]
    assert browser.see("document.querySelectorAll('b').length") == 0
    assert [fault for fault in browser.faults if "409" not in fault] == []
