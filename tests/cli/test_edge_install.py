"""`alignfed edge install` writes a unit for a node that is configured, and nothing else."""

import pytest

from edge_node.unit import NAME


@pytest.fixture
def config(tmp_path):
    file = tmp_path / "node.toml"
    file.write_text('[edge]\nnode = "kitchen"\ndata = "/var/lib/alignfed/kitchen.jsonl"\n')
    return file


def test_a_unit_is_written_and_the_next_step_is_said(alignfed, config, tmp_path):
    done = alignfed("edge", "install", "--config", config, "--to", tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"-m alignfed edge --config {config}\n" in (tmp_path / NAME).read_text()
    assert f"systemctl enable --now {NAME}" in done.stdout


def test_a_dry_run_prints_the_same_and_writes_nothing(alignfed, config, tmp_path):
    shown = alignfed("edge", "install", "--config", config, "--to", tmp_path, "--dry-run")
    assert shown.returncode == 0
    assert not (tmp_path / NAME).exists()
    alignfed("edge", "install", "--config", config, "--to", tmp_path)
    assert shown.stdout == (tmp_path / NAME).read_text()


def test_the_unit_has_the_keys_of_the_settings(alignfed, config, tmp_path):
    config.write_text(config.read_text() + '[security]\nkeys = "/etc/alignfed/kitchen"\n')
    assert alignfed("edge", "install", "--config", config, "--to", tmp_path).returncode == 0
    assert "LoadCredential=signing.key:/etc/alignfed/kitchen/signing.key\n" in (tmp_path / NAME).read_text()


def test_settings_without_a_node_are_refused(alignfed, tmp_path):
    (tmp_path / "empty.toml").write_text('federation = "home"\n')
    refused = alignfed("edge", "install", "--config", "empty.toml", "--to", tmp_path)
    assert refused.returncode == 2
    assert "configures no node" in refused.stderr
    assert not (tmp_path / NAME).exists()


def test_settings_that_the_service_could_not_see_are_said(alignfed, config, tmp_path):
    said = alignfed("edge", "install", "--dry-run", "--config", config).stderr
    assert f"will not see {config}: move it out of /tmp" in said
