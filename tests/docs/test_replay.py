"""The table of speeds in docs/replay.md is what the benchmark writes there."""

import importlib.util
from pathlib import Path

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "replay.py"
FOUND = {"parameters": 16_384, "messages_per_second": {"read": 9000.0, "replay": 900.0}}


def test_the_table_goes_between_its_marks_and_says_whether_the_aim_was_met(docs):
    spec = importlib.util.spec_from_file_location("replay_speed", BENCHMARK)
    benchmark = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    table = benchmark.table({"small": FOUND | {"ratio_to_read": {"read": 1.0, "replay": 10.0}}})
    assert "| `replay` | 900, 10.0 |" in table
    assert "The aim is 1,000: small adapters are 10% under it." in table

    before = (docs / "replay.md").read_text(encoding="utf-8")
    after = benchmark.written_into(before, table)
    assert table in after
    assert [text.partition(benchmark.BEGIN)[0] for text in (before, after)] == [
        before.partition(benchmark.BEGIN)[0]
    ] * 2
    assert after.partition(benchmark.END)[2] == before.partition(benchmark.END)[2]
