"""Orders over HTTP: who is listened to, and that what passes is journalled as the command's orders are."""

import http.client
import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from coordinator.journal import read_nodes
from coordinator.replay.inside import replay_journal
from coordinator.watch.ordering import WITHIN_S, WRONG_TOKENS, Guard, Unwelcome
from coordinator.watch.token_file import read_or_make_token
from tests.ports import free_port

TOKEN = "t" * 43
HERE = {"host": "127.0.0.1:9100", "authorization": f"Bearer {TOKEN}"}
FORGIVE = {"kind": "forgive", "node": "kitchen"}


def refusal(guard: Guard, **headers: str) -> int | None:
    """The HTTP status by which a guard refuses these headers, or None."""
    try:
        guard.check({**HERE, **headers})
    except Unwelcome as fault:
        return fault.status
    return None


@pytest.mark.parametrize("host", ["127.0.0.1:9100", "[::1]:9100", "localhost", "LOCALHOST:9100", "plant.example:9100"])
def test_who_has_the_token_is_listened_to_under_every_name_of_the_page(host: str) -> None:
    guard = Guard(TOKEN, ["plant.example"])
    assert refusal(guard, host=host) is None
    assert refusal(guard, host=host, origin=f"http://{host}") is None
    assert refusal(guard, host=host, origin=f"https://{host}".lower()) is None  # behind a proxy with TLS


@pytest.mark.parametrize("host", ["", "evil.example", "evil.example:9100", "127.0.0.1.evil.example", "[::1", "[", "@"])
def test_a_foreign_name_that_points_here_gives_no_orders(host: str) -> None:
    assert refusal(Guard(TOKEN, []), host=host, origin=f"http://{host}") == 403


@pytest.mark.parametrize(
    "origin", ["null", "", "http://evil.example", "http://127.0.0.1", "http://127.0.0.1:9100.evil.example", "http://["]
)
def test_another_site_gives_no_orders_even_with_the_token(origin: str) -> None:
    assert refusal(Guard(TOKEN, []), origin=origin) == 403


@pytest.mark.parametrize(
    "given", ["", TOKEN, "Bearer", "Bearer ", f"Basic {TOKEN}", "Bearer wrong", f"Bearer {TOKEN}x", "Bearer ü"]
)
def test_without_the_token_nobody_is_listened_to(given: str) -> None:
    assert refusal(Guard(TOKEN, []), authorization=given) == 401


def test_without_a_token_file_the_page_only_shows() -> None:
    assert refusal(Guard(None, [])) == 403


def test_after_many_wrong_tokens_nobody_is_listened_to_for_a_while() -> None:
    now = [0.0]
    guard = Guard(TOKEN, [], lambda: now[0])
    assert [refusal(guard, authorization="Bearer no") for _ in range(WRONG_TOKENS + 1)] == [401] * WRONG_TOKENS + [429]
    assert refusal(guard) == 429
    now[0] = WITHIN_S
    assert refusal(guard) is None


def test_a_token_is_made_once_for_its_owner_alone(tmp_path: Path) -> None:
    made = read_or_make_token(tmp_path / "token")
    assert len(made) >= 40 and read_or_make_token(tmp_path / "token") == made
    assert stat.S_IMODE((tmp_path / "token").stat().st_mode) == 0o600
    assert read_or_make_token(tmp_path / "other") != made


@pytest.mark.parametrize("content", ["", "short", "two words that are long enough", "ü" * 20])
def test_a_token_that_would_not_do_is_refused_in_words(tmp_path: Path, content: str) -> None:
    path = tmp_path / "token"
    path.write_text(content)
    path.chmod(0o600)
    with pytest.raises(OSError, match="remove it"):
        read_or_make_token(path)
    path.chmod(0o644)
    with pytest.raises(OSError, match="chmod 600"):
        read_or_make_token(path)


@pytest.fixture
def address() -> str:
    return f"127.0.0.1:{free_port()}"


@pytest.fixture
def token(tmp_path: Path) -> Path:
    return tmp_path / "token"


@pytest.fixture
def operated(start_coordinator: Callable[..., Any], base_model: Path, address: str, token: Path) -> Any:
    """A coordinator whose page takes orders."""
    strategy = 'strategy = {name = "fedbuff", buffer_size = 1}'
    return start_coordinator(base_model, f'{strategy}\nhttp = "{address}"\nhttp_token = "{token}"')


def post(address: str, order: Any, **headers: str) -> tuple[int, Any]:
    """Give an order as a program would: a status and what is said."""
    connection = http.client.HTTPConnection(address, timeout=30)
    payload = order if isinstance(order, bytes) else json.dumps(order).encode()
    connection.request("POST", "/api/orders", payload, {"content-type": "application/json", **headers})
    answer = connection.getresponse()
    said = json.loads(answer.read())
    connection.close()
    return answer.status, said


def test_orders_over_http_are_obeyed_answered_and_journalled_as_the_commands_are(
    operated: Any, node: Any, address: str, token: Path
) -> None:
    node.until_version(0)
    node.send("kitchen", 0, node.head, 0.1)
    node.until_version(1)
    allowed = {"authorization": f"Bearer {token.read_text().strip()}"}
    status, said = post(address, {"kind": "quarantine", "node": "kitchen", "reason": "it was stolen"}, **allowed)
    assert (status, said["order"], said["answer"]["refused"]) == (200, 1, None)
    assert [report.quarantine for report in read_nodes(operated.data_dir / "journal.db")] == ["it was stolen"]
    sent = node.send("kitchen", 1, node.head, 0.1)
    node.until(lambda: node.statuses(sent) == ["rejected"])
    assert post(address, FORGIVE, **allowed)[1]["answer"]["refused"] is None
    status, said = post(address, {"kind": "rollback", "version": 0, "scope": "head"}, **allowed)
    assert (status, said["answer"]["release"], said["answer"]["head"]) == (200, 2, 2)
    node.until_version(2)
    status, said = post(address, {"kind": "rollback", "version": 9, "scope": "release"}, **allowed)
    assert (status, said["order"]) == (409, 4) and "no version 9" in said["error"]
    for refused, headers in ((401, {}), (401, {"authorization": "Bearer no"}), (403, {**allowed, "origin": "null"})):
        status, said = post(address, FORGIVE, **headers)
        assert status == refused and len(said["error"]) > 20
    assert post(address, FORGIVE, **allowed, host="evil.example")[0] == 403
    assert post(address, b" " * 5000, **allowed)[0] == 413
    assert post(address, {"kind": "dance"}, **allowed)[0] == 400
    assert post(address, FORGIVE, **allowed, **{"content-type": "text/plain"})[0] == 415
    operated.kill()
    replayed = replay_journal(operated.data_dir / "journal.db")
    assert replayed.agrees and replayed.state is not None
    assert replayed.state.orders == 3  # the one that could not be obeyed left no event


def test_a_coordinator_without_a_token_refuses_orders_in_words(
    start_coordinator: Callable[..., Any], base_model: Path, node: Any, address: str
) -> None:
    running = start_coordinator(base_model, f'http = "{address}"')
    node.until_version(0)
    status, said = post(address, FORGIVE, authorization="Bearer whatever")
    assert status == 403 and "coordinator.http_token" in said["error"]
    assert [report.node for report in read_nodes(running.data_dir / "journal.db")] == []


def test_a_token_that_others_can_read_ends_the_coordinator_with_what_to_do(
    start_coordinator: Callable[..., Any], base_model: Path, address: str, token: Path
) -> None:
    token.write_text("t" * 43)
    os.chmod(token, 0o644)
    code, said = start_coordinator(base_model, f'http = "{address}"\nhttp_token = "{token}"').ends()
    assert code == 1 and f"chmod 600 {token}" in said
