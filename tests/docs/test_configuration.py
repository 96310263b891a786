"""docs/configuration.md lists every setting with its type, default and meaning, as the models have them."""

import inspect
import json
import tomllib
from typing import get_args

import pytest
from pydantic import BaseModel

from base_model.settings import BaseModelSettings, TrainingConfig
from broker.security import SecuritySettings
from broker.settings import BrokerSettings
from configuration import Configuration, load, variable
from coordinator.fall_back import FallBack
from coordinator.privacy.terms import PrivacyTerms
from coordinator.settings import CalibrationSettings, CoordinatorSettings, HomeAssistantSettings
from coordinator.stages import AnchorStage, ReleaseStage
from coordinator.state import Limits
from coordinator.strategies import Strategy
from coordinator.trust.robust import HeadGuard, TrustStage
from edge_node.data.settings import LocalBrokerSettings, LocalDataSettings
from edge_node.policy import TrainingPolicy
from edge_node.settings import EdgeSettings, ProbeSettings, ServingSettings
from schemas.adapter import LoraConfig

HEADER = ["key", "type", "default", "meaning"]
STRATEGIES = get_args(get_args(Strategy)[0])
SECTIONS = {
    "Configuration": Configuration,
    "base_model": BaseModelSettings,
    "broker": BrokerSettings,
    "security": SecuritySettings,
    "coordinator": CoordinatorSettings,
    "coordinator.lora": LoraConfig,
    "coordinator.strategy.anchor": AnchorStage,
    "coordinator.strategy.trust": TrustStage,
    "coordinator.strategy.release": ReleaseStage,
    "coordinator.strategy.release.guard": HeadGuard,
    "coordinator.strategy.release.fall_back": FallBack,
    "coordinator.calibration": CalibrationSettings,
    "coordinator.home_assistant": HomeAssistantSettings,
    "coordinator.privacy": PrivacyTerms,
    "coordinator.limits": Limits,
    "edge": EdgeSettings,
    "edge.training": TrainingConfig,
    "edge.serving": ServingSettings,
    "edge.serving.probe": ProbeSettings,
    "edge.policy": TrainingPolicy,
    "edge.local_data": LocalDataSettings,
    "edge.local_broker": LocalBrokerSettings,
}


@pytest.mark.parametrize("section", SECTIONS)
def test_the_settings_of_every_section_are_the_code(section, generated, table, field_rows):
    generated("configuration.md", section, table(HEADER, _rows(SECTIONS[section], field_rows)))


def test_every_strategy_is_listed_with_its_settings(generated, table, field_rows):
    parts = [
        f"#### {strategy.model_fields['name'].default}\n\n{inspect.getmodule(strategy).__doc__.splitlines()[0]}\n\n"
        f"{inspect.getdoc(strategy)}\n\n{table(HEADER, _name_first(_rows(strategy, field_rows)))}"
        for strategy in STRATEGIES
    ]
    generated("configuration.md", "coordinator.strategy", "\n\n".join(parts))


def test_no_section_is_missing_from_the_document():
    reachable, found = [Configuration], set()
    while reachable:
        found.add(model := reachable.pop())
        reachable += [m for field in model.model_fields.values() for m in _models(field.annotation) if m not in found]
    assert found == {*SECTIONS.values(), *STRATEGIES}


@pytest.mark.parametrize("model", [*SECTIONS.values(), *STRATEGIES], ids=lambda model: model.__name__)
def test_every_setting_says_what_it_means(model, field_rows):
    assert [row[0] for row in field_rows(model) if not row[3] and row[0] != "`name`"] == []


def test_the_complete_file_of_the_document_is_a_valid_one(docs, tmp_path):
    example = (docs / "configuration.md").read_text(encoding="utf-8").split("```toml\n")[1].split("```")[0]
    file = tmp_path / "alignfed.toml"
    file.write_text(example, encoding="utf-8")
    assert load(file, {}).broker.port == tomllib.loads(example)["broker"]["port"]


def test_the_environment_variables_of_the_document_are_right(docs):
    text = (docs / "configuration.md").read_text(encoding="utf-8")
    assert f"`{variable('broker', 'port')}=8883`" in text
    assert f"`{variable('edge', 'training', 'steps')}=20`" in text


def _rows(model, field_rows):
    """The settings of a model; one that is a model itself is a table of its own in the file."""
    for (key, kind, default, meaning), field in zip(field_rows(model), model.model_fields.values(), strict=True):
        if any(_models(field.annotation)):
            kind, default = "table", _default_table(field)
        yield [key, kind, default, meaning]


def _name_first(rows):
    """What chooses the strategy, before what is inherited."""
    return sorted(rows, key=lambda row: row[0] != "`name`")


def _default_table(field):
    """Where a table's defaults are, or those that differ from there; none if the table may be absent."""
    if not isinstance(field.default, BaseModel):
        return "none" if field.default is None else "see below"
    changed = field.default.model_dump(mode="json", exclude_defaults=True)
    return f"`{json.dumps(changed)}`" if changed and not _is_choice(field.annotation) else "see below"


def _is_choice(annotation):
    """Whether it is one of several models, each of which is shown with its own defaults."""
    return len(list(_models(annotation))) > 1


def _models(annotation):
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _models(argument)
