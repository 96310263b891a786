"""Where a setting comes from, and what is said when it cannot be used."""

import pytest

from configuration import ConfigurationError, from_flags, load

SECTION = '[coordinator]\ndata_dir = "from-file"\n'


@pytest.fixture
def file(tmp_path):
    return tmp_path / "alignfed.toml"


def test_a_flag_wins_over_the_environment_the_file_and_the_default(alignfed, file):
    assert data_dir_of(alignfed("adapters", "list")) == "alignfed-data/coordinator"
    file.write_text(SECTION)
    assert data_dir_of(alignfed("adapters", "list")) == "from-file"
    variable = {"ALIGNFED_COORDINATOR__DATA_DIR": "from-variable"}
    assert data_dir_of(alignfed("adapters", "list", **variable)) == "from-variable"
    assert data_dir_of(alignfed("adapters", "list", "--data-dir", "from-flag", **variable)) == "from-flag"


def test_a_named_file_is_read_in_place_of_the_one_in_this_folder(alignfed, file, tmp_path):
    file.write_text(SECTION)
    (tmp_path / "other.toml").write_text(SECTION.replace("from-file", "from-other"))
    assert data_dir_of(alignfed("adapters", "list", "--config", "other.toml")) == "from-other"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("federation = [", "alignfed.toml is not valid TOML: "),
        ("federation = " + "[" * 1100, "alignfed.toml is not valid TOML: lists within lists, too deep to be settings"),
        ('fedration = "x"', "alignfed.toml: fedration is not a setting; did you mean federation?"),
        ("[broker]\nprot = 1", "alignfed.toml: broker.prot is not a setting; did you mean port? [broker] takes host,"),
        ("[broker]\nport = 70000", "alignfed.toml: broker.port = 70000: should be less than or equal to 65535"),
        ('[broker]\nport = "x"', "alignfed.toml: broker.port = 'x': should be a valid integer"),
        ("[coordinator.strategy]\nname = 'fedbuff'\nsize = 1", "coordinator.strategy.size is not a setting;"),
        ('[edge]\ndata = "x"', "edge.node is required: set it in the file or as ALIGNFED_EDGE__NODE"),
        ('[edge]\nnode = "a/b"\ndata = "x"', "edge.node = 'a/b': allowed are letters, digits,"),
        ('[broker]\nusername = "x"\ncert_file = "y"', "alignfed.toml: broker: cert_file and key_file belong together"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_with_the_place_and_what_is_allowed(text, said, file):
    file.write_text(text)
    with pytest.raises(ConfigurationError) as refusal:
        load(file, {})
    assert said in str(refusal.value)


def test_every_fault_of_a_file_is_said_in_a_line_of_its_own_and_nothing_starts(alignfed, file):
    file.write_text("federation = ''\n[broker]\nport = 0\nprot = 1")
    refused = alignfed("coordinator")
    assert refused.returncode == 2
    assert [line.startswith("alignfed: alignfed.toml: ") for line in refused.stderr.splitlines()] == [True] * 3


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("ALIGNFED_BROKER__PORT", "x", "environment: ALIGNFED_BROKER__PORT = 'x': should be a valid integer"),
        ("ALIGNFED_BROKER__PROT", "1", "environment: ALIGNFED_BROKER__PROT is not a setting; did you mean port?"),
        ("ALIGNFED_BROKR__PORT", "1", "environment: ALIGNFED_BROKR__PORT: there is no section brokr"),
        ("ALIGNFED_COORDINATOR__LORA__TARGET_MODULES", "q_proj", "lists and tables are written as JSON"),
    ],
)
def test_a_variable_that_cannot_be_used_is_refused_by_its_name(name, value, said, monkeypatch):
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigurationError) as refusal:
        load(None, {})
    assert said in str(refusal.value)


def test_a_named_file_that_is_not_there_is_an_error(alignfed):
    refused = alignfed("coordinator", "--config", "nowhere.toml")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "cannot read nowhere.toml: No such file or directory" in refused.stderr


def test_an_edge_without_a_name_and_data_is_told_what_to_set(alignfed):
    refused = alignfed("edge")
    assert refused.returncode == 2
    assert "pass --node and --data" in refused.stderr


@pytest.mark.parametrize(
    ("address", "host", "port"),
    [
        ("gateway:1884", "gateway", 1884),
        ("gateway", "gateway", 1883),
        ("[::1]:1884", "::1", 1884),
        ("[::1]", "::1", 1883),
    ],
)
def test_a_broker_is_named_with_or_without_a_port(address, host, port):
    broker = load(None, from_flags(None, address)).broker
    assert (broker.host, broker.port) == (host, port)


@pytest.mark.parametrize("tls", ["broker = {ca_file = 'ca.crt', port = 1}", "security.keys = 'keys'\nbroker.port = 1"])
def test_without_a_port_it_is_that_of_tls_where_tls_is_on_and_never_that_of_another_broker(tls, tmp_path):
    (tmp_path / "settings.toml").write_text(tls)
    assert load(tmp_path / "settings.toml", from_flags(None, "gateway")).broker.port == 8883
    assert load(tmp_path / "settings.toml", from_flags(None, "gateway:1884")).broker.port == 1884
    assert load(tmp_path / "settings.toml", {}).broker.port == 1


@pytest.mark.parametrize(
    "address", ["", "gateway:", ":1883", "gateway:x", "gateway:65536", "::1:1883", "mqtt://gateway"]
)
def test_an_address_that_is_none_is_refused_by_the_option_that_gave_it(address, alignfed):
    said = "give HOST or HOST:PORT, for instance gateway.local"
    refused = alignfed("record", "--out", "out.rec", "--broker", address)
    assert (refused.returncode, f"--broker {address}: {said}" in refused.stderr) == (2, True)
    refused = alignfed("replay", "incident.rec", "--through", address)
    assert (refused.returncode, f"--through {address}: {said}" in refused.stderr) == (2, True)
    assert "--broker" not in refused.stderr


def data_dir_of(ran):
    """The folder that `alignfed adapters list` has looked into, in vain."""
    assert ran.returncode == 1
    return ran.stderr.split("no adapters: ")[1].split("/adapters does not exist")[0]
