"""`alignfed coordinator` and `alignfed edge` make versions; `alignfed adapters` and `alignfed replay` look at them."""

import hashlib
import json
import shutil
import sqlite3
from contextlib import closing

import pytest
from peft import PeftModel
from transformers import AutoModelForCausalLM

from coordinator.journal import read_versions


@pytest.fixture
def journal(federated, tmp_path):
    """A copy of the federation's journal, to do harm to."""
    return shutil.copy(federated.data_dir / "journal.db", tmp_path / "journal.db")


def test_coordinator_and_edge_end_cleanly_on_sigterm(federated):
    assert federated.exit_codes == (0, 0)
    assert "Traceback" not in federated.log


def test_list_shows_every_version_with_its_digest(federated, alignfed):
    shown = alignfed("adapters", "list", "--data-dir", federated.data_dir, "--json")
    listed = [(version["version"], version["digest"]) for version in json.loads(shown.stdout)]
    assert listed == [(m.version, m.digest) for m in read_versions(federated.data_dir / "journal.db")]
    table = alignfed("adapters", "list", "--data-dir", federated.data_dir).stdout
    assert all(digest[:16] in table for _, digest in listed)


def test_show_names_parent_and_inputs(federated, alignfed):
    first, second = read_versions(federated.data_dir / "journal.db")[:2]
    shown = alignfed("adapters", "show", 1, "--data-dir", federated.data_dir).stdout
    assert first.digest in shown
    assert "kitchen" in shown
    assert second.inputs[0].update_id in shown


def test_a_version_that_is_not_there_is_an_error_in_words(federated, alignfed):
    refused = alignfed("adapters", "show", 99, "--data-dir", federated.data_dir)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert refused.stderr.startswith("alignfed: there is no version 99")


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # between peft and transformers
def test_an_exported_version_loads_into_peft_and_is_the_one_of_the_manifest(
    federated, alignfed, tiny_model_dir, tmp_path
):
    assert alignfed("adapters", "export", 2, "exported", "--data-dir", federated.data_dir).returncode == 0
    body = (tmp_path / "exported" / "adapter_model.safetensors").read_bytes()
    assert hashlib.sha256(body).hexdigest() == read_versions(federated.data_dir / "journal.db")[2].digest
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_model_dir), tmp_path / "exported")
    assert any("lora_A" in name for name, _ in model.named_parameters())


def test_replay_of_an_honest_journal_agrees_on_every_version(federated, alignfed):
    replayed = alignfed("replay", federated.data_dir / "journal.db")
    lines = replayed.stdout.splitlines()
    assert replayed.returncode == 0
    assert len(lines) == len(read_versions(federated.data_dir / "journal.db"))
    assert all(line.startswith(f"version {number}  ") and line.endswith("  ok") for number, line in enumerate(lines))


def test_replay_finds_a_version_that_was_not_made_of_its_inputs(journal, alignfed):
    with closing(sqlite3.connect(journal)) as connection, connection:
        [(manifest,)] = connection.execute("SELECT manifest FROM versions WHERE version = 1").fetchall()
        digest = json.loads(manifest)["body"]["sha256"].encode()
        forged = manifest.replace(digest, b"f" * 64)
        connection.execute("UPDATE versions SET manifest = ? WHERE version = 1", (forged,))
    replayed = alignfed("replay", journal, "--json")
    assert replayed.returncode == 1
    assert [version["agrees"] for version in json.loads(replayed.stdout)] == [True, False, True]
    assert "1 of 3 versions differ" in replayed.stderr


def test_replay_of_a_truncated_file_is_an_error_in_words(journal, alignfed):
    content = journal.read_bytes()
    journal.write_bytes(content[: len(content) // 2])
    refused = alignfed("replay", journal)
    assert refused.returncode == 1
    assert refused.stderr.startswith("alignfed: ")
    assert "Traceback" not in refused.stderr


@pytest.mark.parametrize("content", [None, b"", b"not a journal at all"])
def test_replay_of_something_else_is_an_error_in_words(content, tmp_path, alignfed):
    if content is not None:
        (tmp_path / "journal.db").write_bytes(content)
    refused = alignfed("replay", "journal.db")
    assert refused.returncode == 1
    assert refused.stderr.startswith("alignfed: journal.db")


def test_debug_shows_where_an_error_happened(alignfed):
    assert "Traceback" in alignfed("--debug", "replay", "journal.db").stderr
    assert "Traceback" in alignfed("replay", "journal.db", ALIGNFED_DEBUG="1").stderr
