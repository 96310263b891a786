"""Settings: what belongs together, and where a password may come from."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from broker.settings import PASSWORD_VARIABLE, BrokerSettings


def test_half_of_a_pair_is_refused() -> None:
    with pytest.raises(ValidationError, match="both or neither"):
        BrokerSettings(ca_file=Path("ca"), cert_file=Path("c"))
    with pytest.raises(ValidationError, match="needs TLS"):
        BrokerSettings(cert_file=Path("c"), key_file=Path("k"))
    with pytest.raises(ValidationError, match="username is not"):
        BrokerSettings(password_file=Path("p"))


def test_a_password_is_the_first_line_of_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PASSWORD_VARIABLE, "from the environment")
    (tmp_path / "password").write_bytes(b"from the file\r\nnot this\n")
    assert BrokerSettings(username="u", password_file=tmp_path / "password").read_password() == "from the file"
    assert BrokerSettings(username="u").read_password() == "from the environment"
    monkeypatch.delenv(PASSWORD_VARIABLE)
    assert BrokerSettings(username="u").read_password() is None


def test_tls_files_that_do_not_load_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="missing"):
        BrokerSettings(ca_file=tmp_path / "missing.pem").tls_context()
    (tmp_path / "garbage.pem").write_text("garbage")
    with pytest.raises(ValueError, match="garbage"):
        BrokerSettings(ca_file=tmp_path / "garbage.pem").tls_context()
