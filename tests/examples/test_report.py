"""The report: figures derived by hand-checked rules, and a page that needs nothing from outside."""

import json
import re
from datetime import datetime
from pathlib import Path

import pytest

from base_model.settings import BaseModelSettings
from broker.settings import BrokerSettings
from configuration import Configuration, load
from coordinator.journal import UpdateRow
from coordinator.settings import CoordinatorSettings
from coordinator.strategies import AlignFed, FedAsync, FedAvg, FedBuff
from examples.smart_home.outcome import Report, accepted_by_node, update_outcomes, version_outcomes, wire_of
from examples.smart_home.report import render, write_page
from examples.smart_home.wording import verdict
from examples.smart_home.workplace import make_workplace, write_config
from schemas.messages import ReleaseReport


def row(node: str, status: str, update_id: str = "a" * 32, received_at_ns: int = 0) -> UpdateRow:
    return UpdateRow(
        node=node, update_id=update_id, status=status, reason=None, base_version=0, version=1, examples=8, steps=8,
        loss=1.0, body_size=1000, manifest_size=24, received_at_ns=received_at_ns,
    )  # fmt: skip


def text(report: Report) -> str:
    """What a reader of the page reads."""
    return re.sub(r"\s+", " ", re.sub("<[^>]+>", " ", render(report)))


ROWS = [row("home-1", "aggregated"), row("home-1", "accepted"), row("home-2", "stale"), row("home-2", "rejected")]


def test_accepted_updates_are_those_that_were_taken_and_those_that_were_used():
    assert accepted_by_node(ROWS) == {"home-1": 2}


def test_bytes_on_the_wire_are_manifest_and_body_of_accepted_updates():
    wire = wire_of(ROWS, parameters=1000)
    assert (wire.bytes, wire.bytes_fp32, wire.updates) == (2 * 1024, 2 * 4000, 2)


def test_a_training_lies_before_its_receipt_on_the_clock_of_the_run(report):
    start = datetime.fromtimestamp(100).astimezone()
    [update] = update_outcomes([row("home-1", "aggregated", received_at_ns=130 * 10**9)], {"a" * 32: 12.0}, start)
    assert (update.started, update.received) == (18, 30)


def test_staleness_counts_versions_between_base_and_use(report):
    # version 2 was made on version 1: home-1 had started from it, home-2 from version 0
    assert report.staleness == {0: 3, 1: 1}
    assert [node.mean_staleness for node in report.nodes] == [0, 1]


def test_shares_of_updates_and_of_weight_each_sum_to_one(report):
    assert [node.update_share for node in report.nodes] == [0.75, 0.25]
    assert [node.weight_share for node in report.nodes] == pytest.approx([1.5 / 1.75, 0.25 / 1.75])


def test_what_freshness_alone_would_have_given_is_a_share_of_what_the_anchor_leaves_of_the_step(report):
    # AlignFed steps by 2, of which the anchor had 1; home-2 was one version behind
    assert [entry.fresh_weight for entry in report.versions[1].inputs] == [0.5, 0.5]
    assert [entry.fresh_weight for entry in report.versions[2].inputs] == pytest.approx([0.5, 0.5 * 2**-0.35])
    assert report.nodes[1].fresh_share == pytest.approx(0.5 * 2**-0.35 / (1.5 + 0.5 * 2**-0.35))


def test_a_strategy_that_knows_no_freshness_is_not_compared_with_it(manifest):
    version = version_outcomes([manifest(1, ("home-1", 0, 1.0))], {}, FedAvg())[0]
    assert version.inputs[0].fresh_weight is None


def test_after_a_version_nodes_serve_its_head_its_average_or_what_was_before(report):
    assert [version.served for version in report.versions] == ["head", "average", "before"]
    assert report.choices == {"average": 1, "before": 1}


def test_a_version_that_was_passed_over_left_what_was_served_before(report, manifest):
    release = ReleaseReport(version=2, variant="average", judged=2, candidate=2.0, before=3.0)
    outcomes = version_outcomes([manifest(1), manifest(2)], {2: release}, AlignFed())
    assert [(version.decision, version.served) for version in outcomes] == [(None, "before"), (release, "average")]
    passed = [*report.versions[:2], report.versions[2].model_copy(update={"decision": None, "served": "before"})]
    assert "2.00 → - passed over" in text(report.model_copy(update={"versions": passed}))


def test_a_version_whose_loss_was_infinite_was_judged_too(report):
    decision = report.versions[2].decision.model_copy(update={"candidate": None})
    infinite = report.versions[2].model_copy(update={"decision": decision})
    told = report.model_copy(update={"versions": (*report.versions[:2], infinite)})
    assert [version.version for version in told.judged] == [1, 2]
    assert "- 2.10 still 1" in text(told)


def test_the_base_models_time_is_told_by_stage_where_it_was_spent(report):
    spent = [version.model_seconds for version in report.versions]
    assert spent == [{}, {"anchor": 4, "gate": 3}, {"align": 1.5, "anchor": 5, "gate": 2}]
    assert report.stages == ("align", "anchor", "gate")


def test_the_page_shows_how_each_version_was_made(report):
    page = text(report)
    for expected in (
        "@0 home-1 0.50 home-1 0.50 cosine 0.75 1.00 3.00 → 2.00 2.10 3.10 average",
        "@1 home-1 0.50 @0 home-2 0.25 &times;0.64 residual 0.5 → 0.25 1.00 2.00 → - 2.50 2.10 still 1",
    ):
        assert expected in page


def test_a_run_without_groups_anchor_or_gate_has_no_section_on_them(report, manifest):
    served = {version: ReleaseReport(version=version, variant="head", judged=version) for version in (0, 1)}
    plain = version_outcomes([manifest(0), manifest(1, ("home-1", 0, 1.0))], served, FedAvg())
    page = render(report.model_copy(update={"versions": plain}))
    assert "How each version was made" in render(report)
    assert "How each version was made" not in page
    assert "calibration" not in page


def test_a_run_is_complete_only_with_the_last_version_and_a_part_for_every_node(report):
    assert report.missing == ()
    short = report.model_copy(update={"versions": report.versions[:2]})
    assert short.missing == ("version 2 was not reached; the last one is 1",)


def test_the_json_has_the_keys_that_others_read(report):
    values = json.loads(report.model_dump_json())
    made = {"groups", "anchor", "decision", "served", "model_seconds"}
    score = {"loss", "intent_accuracy", "exact_match", "examples"}
    assert values["held_out"]["before"].keys() == values["held_out"]["after"].keys() == score
    assert values["nodes"][0].keys() >= {"node", "updates_sent", "updates_accepted", "mean_staleness", "examples"}
    assert values["versions"][0].keys() >= {"version", "digest", "inputs", "published_at"} | made
    assert values["wire"].keys() >= {"bytes", "bytes_fp32"}
    assert values.keys() >= {"seconds", "peak_rss_mb", "broker", "strategy", "seed", "journal", "release"}


def test_the_page_refers_to_nothing_outside_itself(report):
    page = render(report)
    assert not re.search(r"https?:|//|@import|<script|<link|<img|\bsrc=", page)
    assert all(target.startswith("#") for target in re.findall(r'href="([^"]*)"', page))
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", page))


def test_the_page_shows_the_figures_and_escapes_what_models_say(report):
    page = render(report)
    for expected in (
        "12 %",
        "88 %",
        "3.25",
        "0.75",
        "4.1 MB",
        "16.4 MB",
        "2,346 MB",
        "2 min 05 s",
        "home-2",
        "--seed 7",
    ):
        assert expected in page
    assert "&lt;b&gt;Done&lt;/b&gt;" in page
    assert "<b>Done" not in page


def test_the_figures_take_their_colours_and_fonts_from_the_page(report):
    figures = re.findall(r"<svg.*?</svg>", render(report), flags=re.DOTALL)
    assert len(figures) == 7
    for figure in figures:
        assert "var(--accent)" in figure
        assert not re.search("DejaVu|#0[1-5]0[1-5]", figure)


def test_the_page_claims_that_nobody_waited_only_when_that_is_so(report):
    rounds = report.recipe.model_copy(update={"strategy": FedAvg(nodes_per_round=2)})
    assert "nobody waited" in render(report)
    assert "nobody waited" not in render(report.model_copy(update={"recipe": rounds}))


def test_equal_reports_give_equal_pages(report, tmp_path):
    write_page(report, tmp_path / "page.html")
    assert (tmp_path / "page.html").read_text() == render(report)


@pytest.mark.parametrize("nodes", [1, 30])
def test_the_page_can_be_drawn_for_few_and_for_many_nodes(report, nodes):
    many = tuple(report.nodes[0].model_copy(update={"node": f"home-{n}"}) for n in range(1, nodes + 1))
    updates = tuple(update for update in report.updates if update.node in {node.node for node in many})
    assert render(report.model_copy(update={"nodes": many, "updates": updates}))


def test_an_answer_is_exact_or_right_or_wrong_or_no_command():
    expected = '{"intent":"TurnOn","name":"lamp"}'
    assert verdict(expected, expected) == "exact"
    assert verdict('{"intent":"TurnOn","name":"fan"}', expected) == "right intent"
    assert verdict('{"intent":"TurnOff"}', expected) == "wrong intent"
    assert verdict("Sure, I can help!", expected) == "no command"


def test_a_configuration_file_says_what_the_settings_said(tmp_path):
    coordinator = CoordinatorSettings(data_dir=Path('a "quoted" folder'), final_version=3, strategy=FedAsync())
    sections = {"base_model": BaseModelSettings(), "broker": BrokerSettings(port=1884), "coordinator": coordinator}
    write_config(tmp_path / "a.toml", "home", sections)
    assert load(tmp_path / "a.toml", {}).model_dump(exclude={"edge"}) == Configuration(**sections).model_dump(
        exclude={"edge"}
    )


def test_a_setting_that_a_file_cannot_say_is_refused(tmp_path):
    coordinator = CoordinatorSettings(strategy=FedBuff(timeout_s=None))
    with pytest.raises(ValueError, match=r"\[coordinator\] cannot be written"):
        write_config(tmp_path / "a.toml", "home", {"coordinator": coordinator})


def test_two_runs_of_the_same_second_get_folders_of_their_own(tmp_path):
    now = datetime(2026, 11, 22, 14, 3, 5)
    one, two = make_workplace(tmp_path, now), make_workplace(tmp_path, now)
    assert (one.root.name, two.root.name) == ("2026-11-22T14-03-05", "2026-11-22T14-03-05-2")
    assert (tmp_path / "latest").resolve() == two.root.resolve()
