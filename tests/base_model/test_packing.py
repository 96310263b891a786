"""Examples side by side: order, positions, padding, and no example sees another."""

import logging

import pytest
import torch

from base_model.evaluation import example_losses
from base_model.examples import Example
from base_model.frozen import decoder_layers
from base_model.language_model import LanguageModel
from base_model.packing import ROW_TOKENS, pack
from schemas.adapter import LoraConfig

CPU = torch.device("cpu")
MANY = tuple(Example(prompt="lamp " * (1 + 7 * n % 30), completion='{"area":"den"}') for n in range(12))


def test_examples_share_a_row_while_it_has_room() -> None:
    packed = pack([[1, 2, 3], [4, 5], [6], [7, 8]], row_tokens=5, padding=9, device=CPU)
    assert packed.ids.tolist() == [[1, 2, 3, 4, 5], [6, 7, 8, 9, 9]]
    assert packed.positions.tolist() == [[0, 1, 2, 0, 1], [0, 0, 1, 2, 3]]
    assert packed.ids[packed.real].tolist() == [1, 2, 3, 4, 5, 6, 7, 8]


def test_an_example_longer_than_a_row_has_one_to_itself() -> None:
    packed = pack([[1], [2, 3, 4], [5]], row_tokens=2, padding=0, device=CPU)
    assert packed.ids.tolist() == [[1, 0, 0], [2, 3, 4], [5, 0, 0]]


def test_values_of_tokens_go_to_their_places() -> None:
    packed = pack([[1, 2], [3]], row_tokens=0, padding=0, device=CPU)
    spread = packed.spread(torch.tensor([[1.0], [2.0], [3.0]]))
    assert spread.tolist() == [[[1], [2]], [[3], [0]]]


def test_losses_do_not_depend_on_what_shares_the_row(model: LanguageModel, lora: LoraConfig) -> None:
    adapter = model.initial_adapter(lora, seed=1)
    together = example_losses(model, adapter, MANY)
    assert sum(len(model.encode(example).prompt) for example in MANY) > ROW_TOKENS
    alone = [example_losses(model, adapter, [example])[0] for example in MANY]
    assert together == pytest.approx(alone, rel=1e-5)


def test_a_network_that_mixes_all_of_a_row_gets_one_example_to_a_row(
    model: LanguageModel, lora: LoraConfig, caplog: pytest.LogCaptureFixture
) -> None:
    adapter = model.initial_adapter(lora, seed=1)
    model.apply(adapter)
    # causal, but without regard to where an example begins
    layer = decoder_layers(model.network, model.adapted)[1]
    layer.register_forward_pre_hook(lambda _, inputs: (inputs[0] + inputs[0].cumsum(dim=1),))
    with caplog.at_level(logging.WARNING):
        together = example_losses(model, adapter, MANY)
    alone = [example_losses(model, adapter, [example])[0] for example in MANY]
    assert together == pytest.approx(alone, rel=1e-5)
    assert [record.message[:43] for record in caplog.records] == ["this architecture does without packing, whi"]
