"""The whole loop on real processes, and what it keeps through kills."""

import signal
from collections import Counter
from typing import Any

from coordinator.journal import read_updates, read_versions
from coordinator.replay.inside import replay

NODES = ("node-0", "node-1", "node-2")


def test_a_fleet_learns_together_through_kills_with_nothing_lost_and_nothing_twice(fleet: Any) -> None:
    fleet.start("coordinator")
    for name in NODES[:2]:
        fleet.start(name)
    fleet.until(lambda: fleet.version >= 1)
    fleet.kill("coordinator")
    fleet.start("coordinator")
    fleet.start(NODES[2])  # a late joiner: the newest version is there when it subscribes
    fleet.until(lambda: fleet.version >= 3)
    fleet.kill(NODES[0])
    fleet.broker.kill()
    fleet.broker.restart()
    fleet.start(NODES[0])
    fleet.until(lambda: fleet.version == 6 and all(fleet.held.get(name) == 6 for name in NODES))

    manifests = read_versions(fleet.journal)
    assert [manifest.version for manifest in manifests] == list(range(7))
    assert [manifest.parent for manifest in manifests[1:]] == [manifest.digest for manifest in manifests[:-1]]

    used = Counter(update.update_id for manifest in manifests for update in manifest.inputs)
    assert set(used.values()) == {1}
    receipted = {r.update_id for _, r in fleet.receipts if r.status in ("accepted", "aggregated", "duplicate")}
    ledger = {row.update_id: row.status for row in read_updates(fleet.journal)}
    assert receipted <= ledger.keys()
    assert used.keys() == {id_ for id_, status in ledger.items() if status == "aggregated"}

    epochs = [(pointer.epoch, pointer.version) for pointer in fleet.pointers]
    assert max(epochs)[0] == 2

    for name, process in fleet.processes.items():
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0, name
    assert all(version.agrees for version in replay(fleet.journal))


def test_a_node_with_another_base_model_is_told_so_and_stops(fleet: Any) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    config = fleet.folder / f"{NODES[0]}.toml"
    [name] = [line for line in config.read_text().splitlines() if line.startswith("base_model.name")]
    model_dir = name.split(" = ")[1].strip('"')
    model = AutoModelForCausalLM.from_pretrained(model_dir)
    with torch.no_grad():
        model.model.norm.weight.mul_(2)
    model.save_pretrained(fleet.folder / "other")
    AutoTokenizer.from_pretrained(model_dir).save_pretrained(fleet.folder / "other")
    config.write_text(config.read_text().replace(name, f'base_model.name = "{fleet.folder / "other"}"'))

    fleet.start("coordinator")
    fleet.start(NODES[0])
    assert fleet.processes[NODES[0]].wait(60) == 3
