"""`alignfed coordinator` and `alignfed edge` make versions; `alignfed adapters` and `alignfed replay` look at them."""

import json
import shutil
import sqlite3
from contextlib import closing

import pytest
from peft import PeftModel
from transformers import AutoModelForCausalLM

from coordinator.journal import fold, read_versions
from coordinator.operations import order_file
from coordinator.registry import Registry
from schemas.messages import GroupReport, ReleaseReport

TAKEN = ReleaseReport(version=1, variant="average", judged=1, candidate=2.0, before=3.0, seconds=1.5)
TURNED_DOWN = ReleaseReport(version=1, variant="average", judged=2, candidate=None, before=2.0, seconds=0.5)


@pytest.fixture
def registry(federated, tmp_path):
    """The federation's folder with versions 1 and 2 made anew: an average that is served, and one turned down."""
    shutil.copytree(federated.data_dir, tmp_path / "coordinator")
    registry = Registry(tmp_path / "coordinator" / "adapters")
    layout = next(fold(tmp_path / "coordinator" / "journal.db"))[0].config.layout
    _, one, two = registry.versions()
    head = registry.adapter(1, layout)
    average = (registry.adapter(0, layout) + head) * 0.5
    group = GroupReport(base_version=0, updates=3, cosine=0.25, residual_before=0.5, residual_after=0.125, seconds=0.5)
    body = one.body.model_copy(update={"sha256": average.digest})
    registry.add(one.model_copy(update={"average": body, "groups": (group,)}), head)
    registry.add(two, registry.adapter(2, layout))
    registry.set_release(TAKEN, average)
    registry.set_release(TURNED_DOWN, average)
    return registry


def shown(alignfed, version, data_dir):
    """The lines of `alignfed adapters show`, their columns closed up."""
    return [
        " ".join(line.split())
        for line in alignfed("adapters", "show", version, "--data-dir", data_dir).stdout.splitlines()
    ]


def exported(alignfed, tmp_path, registry, version, *options):
    """The bytes of what `alignfed adapters export` writes."""
    folder = f"exported-{version}{len(options)}"
    ran = alignfed("adapters", "export", version, folder, "--data-dir", registry.folder.parent, *options)
    assert ran.returncode == 0, ran.stderr
    return (tmp_path / folder / "adapter_model.safetensors").read_bytes()


@pytest.fixture
def passed_over(registry):
    """The same folder, but nothing was decided on version 1."""
    (registry.folder / "decisions" / "1.json").unlink()
    return registry


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
    assert all(digest[:12] in table for _, digest in listed)


def test_list_marks_what_nodes_train_from_and_what_they_serve(registry, alignfed):
    """`registry` holds three versions, and the gate has kept version 1's average."""
    listed = json.loads(alignfed("adapters", "list", "--data-dir", registry.folder.parent, "--json").stdout)
    assert [version["use"] for version in listed] == [[], ["average"], ["head"]]
    table = alignfed("adapters", "list", "--data-dir", registry.folder.parent).stdout
    assert [line.split()[-2] for line in table.splitlines() if "kitchen" in line] == ["average", "head"]


def test_show_names_parent_and_inputs(federated, alignfed):
    first, second = read_versions(federated.data_dir / "journal.db")[:2]
    shown = alignfed("adapters", "show", 1, "--data-dir", federated.data_dir).stdout
    assert first.digest in shown
    assert "kitchen" in shown
    assert second.inputs[0].update_id in shown


def test_show_tells_how_a_version_was_made(federated, alignfed):
    """`federated` has trained an anchor before its node came."""
    version = read_versions(federated.data_dir / "journal.db")[1]
    [group], anchor = version.groups, version.anchor
    lines = shown(alignfed, 1, federated.data_dir)
    assert "group 1 from version 0" in lines
    assert (group.updates, group.base_version, anchor.base_version) == (1, 0, 0)
    losses = f"loss {anchor.loss_before:.3f} -> {anchor.loss_after:.3f}"
    assert f"anchor from version 0, weight {anchor.weight:.4g}, {losses}, {anchor.seconds:.1f} s" in lines


def test_show_tells_what_was_decided_on_a_version(federated, alignfed):
    release = Registry(federated.data_dir / "adapters").release()
    lines = shown(alignfed, "latest", federated.data_dir)
    assert (release.judged, release.candidate is None) == (2, False)
    assert f"served the {release.variant} of version {release.version}" in lines
    assert f"gate loss {release.candidate:.3f}, before {release.before:.3f}, {release.seconds:.1f} s" in lines


def test_show_tells_agreement_residuals_and_cost_of_a_group(registry, alignfed):
    lines = shown(alignfed, 1, registry.folder.parent)
    residuals = "residual 0.5 before alignment, 0.125 after"
    assert f"group 3 from version 0, cosine to their mean 0.25, {residuals}, 0.5 s" in lines


def test_show_tells_that_a_version_was_turned_down_and_that_a_loss_was_infinite(registry, alignfed):
    taken, turned_down = (shown(alignfed, version, registry.folder.parent) for version in (1, 2))
    assert "gate loss 2.000, before 3.000, 1.5 s" in taken
    for lines in taken, turned_down:
        assert "served the average of version 1" in lines
    assert "gate loss infinite, before 2.000, 0.5 s" in turned_down


def test_show_tells_that_a_version_was_passed_over(passed_over, alignfed):
    lines = shown(alignfed, 1, passed_over.folder.parent)
    assert "served passed over: a newer version was judged in its place" in lines
    assert not [line for line in lines if line.startswith("gate ")]


def test_a_version_that_is_not_there_is_an_error_in_words(federated, alignfed):
    refused = alignfed("adapters", "show", 99, "--data-dir", federated.data_dir)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert refused.stderr.startswith("alignfed: there is no version 99")


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # between peft and transformers
def test_an_export_loads_into_peft_and_is_what_nodes_serve(federated, alignfed, tiny_model_dir, tmp_path):
    assert alignfed("adapters", "export", "latest", "exported", "--data-dir", federated.data_dir).returncode == 0
    registry = Registry(federated.data_dir / "adapters")
    served = registry.body(registry.release().version, registry.release().variant)
    assert (tmp_path / "exported" / "adapter_model.safetensors").read_bytes() == served
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_model_dir), tmp_path / "exported")
    assert any("lora_A" in name for name, _ in model.named_parameters())


def test_an_older_version_exports_what_nodes_served_then(registry, alignfed, tmp_path):
    assert exported(alignfed, tmp_path, registry, 0) == registry.body(0)
    assert exported(alignfed, tmp_path, registry, 1) == registry.body(1, "average")
    assert exported(alignfed, tmp_path, registry, 2) == registry.body(1, "average")


def test_a_version_that_was_passed_over_exports_what_nodes_served_before(passed_over, alignfed, tmp_path):
    assert exported(alignfed, tmp_path, passed_over, 1) == passed_over.body(0)
    assert exported(alignfed, tmp_path, passed_over, "latest") == passed_over.body(1, "average")


def test_the_version_itself_is_exported_on_request(registry, alignfed, tmp_path):
    assert exported(alignfed, tmp_path, registry, 1, "--head") == registry.body(1)
    assert exported(alignfed, tmp_path, registry, "latest", "--head") == registry.body(2)


def test_a_word_that_is_no_version_is_wrong_usage(federated, alignfed):
    refused = alignfed("adapters", "export", "newest", "exported", "--data-dir", federated.data_dir)
    assert refused.returncode == 2
    assert "give a number, or `latest`" in refused.stderr


def test_a_rollback_that_nobody_answers_says_so_to_people_and_to_programs_and_waits(registry, alignfed):
    data_dir = registry.folder.parent
    ran = alignfed("adapters", "rollback", 1, "--data-dir", data_dir, "--wait", 0, "--json")
    assert ran.returncode == 3
    said = json.loads(ran.stdout)
    [given] = order_file.waiting(data_dir, 0)
    assert said["order"] == given.number and said["answered"] is False
    assert said["release"] is said["epoch"] is None
    assert "does it as soon as it runs" in ran.stderr and "Traceback" not in ran.stderr


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
