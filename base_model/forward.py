"""One pass of the model over a batch: logits where they are wanted, and the hidden states they are made from.

Two shortcuts, each tried out once on the network it is for, and left alone where the network does something else with
it: examples lie side by side in rows, and where the lower layers carry no factors, their states come from the model's
cache. The states of an example are always computed from that example alone: so they are the same bits whether they
were kept or are made now, and whatever else is in the batch. It does not know losses, training, or text.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from base_model.examples import Example
from base_model.frozen import decoder_layers, entering, first_adapted_layer, resuming
from base_model.language_model import LanguageModel
from base_model.packing import ROW_TOKENS, Packed, pack
from base_model.tokens import Batch

log = logging.getLogger(__name__)

SAMPLES = (
    Example(prompt="The quick brown fox jumps over the lazy dog.", completion="Then it runs away."),
    Example(prompt="One, two, three", completion="four, five"),
)
EXACT = 1e-3  # of the largest logit: the same sums in the same order
ROUNDED = {torch.float32: 1e-3, torch.bfloat16: 0.1}  # the same sums in another order


@dataclass(frozen=True)
class Pass:
    """What came out for the tokens of a batch, in their order, without each example's last, which predicts nothing."""

    logits: Tensor  # (chosen tokens, vocabulary)
    hidden: Tensor  # (tokens, hidden), after the last layer's norm
    packed: Packed  # how the tokens lay in the network


def forward(model: LanguageModel, batch: Batch, chosen: Tensor) -> Pass:
    """Run the model on a batch; logits are of the `chosen` tokens alone, a mask of shape (tokens,)."""
    row_tokens = ROW_TOKENS if _allowed(model, "packing", _packing_error) else 0
    packed = pack(batch.inputs, row_tokens, batch.padding, model.device)
    first = first_adapted_layer(model.adapted) if model.adapted and model.frozen.limit else 0
    if first == 0 or not _allowed(model, f"resuming at layer {first}", _resuming_error):
        return _run(model, packed, chosen)
    states = [_states(model, tokens, first) for tokens in batch.inputs]
    return _resume(model, packed, chosen, first, states)


def _run(model: LanguageModel, packed: Packed, chosen: Tensor) -> Pass:
    """The network as it stands; half the work of a small model is its vocabulary, so logits are made for few.

    Choosing happens before the output layer, inside the model, which keeps whatever it does to its logits afterwards.
    """
    places = packed.real.clone()
    places[packed.real] = chosen.to(places.device)
    with _choosing(model, places) as hidden:
        logits = model.network(input_ids=packed.ids, position_ids=packed.positions, use_cache=False).logits[0]
    return Pass(logits, hidden[0][packed.real], packed)


@contextmanager
def _choosing(model: LanguageModel, places: Tensor) -> Iterator[list[Tensor]]:
    seen: list[Tensor] = []

    def choose(_: torch.nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
        seen.append(inputs[0])
        return (inputs[0][places].unsqueeze(0),)

    hook = model.network.get_output_embeddings().register_forward_pre_hook(choose)
    try:
        yield seen
    finally:
        hook.remove()


def _resume(model: LanguageModel, packed: Packed, chosen: Tensor, first: int, states: list[Tensor]) -> Pass:
    with resuming(decoder_layers(model.network, model.adapted), first, packed.spread(torch.cat(states))):
        return _run(model, packed, chosen)


def _states(model: LanguageModel, tokens: list[int], first: int) -> Tensor:
    """Hidden states (tokens, hidden) of one example as they enter layer `first`."""
    key = (first, np.asarray(tokens, dtype=np.int32).tobytes())
    return model.frozen.get(key, lambda: _made_states(model, tokens, first))


def _made_states(model: LanguageModel, tokens: list[int], first: int) -> Tensor:
    # tensors of inference mode could never be part of a training step, and the cache serves both
    with torch.inference_mode(False), torch.no_grad():
        alone = pack([tokens], 0, model.padding, model.device)
        with entering(decoder_layers(model.network, model.adapted), first) as states:
            _run(model, alone, torch.zeros(len(tokens), dtype=torch.bool))
        return states[0][0].clone()


def _allowed(model: LanguageModel, shortcut: str, error: Callable[[LanguageModel], tuple[float, float]]) -> bool:
    """Whether this network comes to the same logits by a shortcut; found out at its first use."""
    if shortcut not in model.shortcuts:
        try:
            with torch.no_grad():
                found, most = error(model)
            reason = f"logits are off by {found:.1g} of the largest"
        except Exception as fault:  # an unknown architecture may fail in any way, and the plain pass is always right
            found, most, reason = 1.0, 0.0, f"{type(fault).__name__}: {fault}"
        model.shortcuts[shortcut] = found <= most
        if found > most:
            log.warning("this architecture does without %s, which makes it slower: %s", shortcut, reason)
    return model.shortcuts[shortcut]


def _packing_error(model: LanguageModel) -> tuple[float, float]:
    """How far logits in a shared row are from those of each example alone, and how far they may be."""
    inputs = [model.encode(sample).prompt for sample in SAMPLES]
    alone = torch.cat([_all_logits(model, [tokens], 0) for tokens in inputs])
    packed = _all_logits(model, inputs, sum(map(len, inputs)))
    return float((packed - alone).abs().max() / alone.abs().max()), ROUNDED[alone.dtype]


def _resuming_error(model: LanguageModel) -> tuple[float, float]:
    """How far logits from handed-on states are from the whole network's, and how far they may be.

    One example alone: then rounding is the same, and cannot blur the answer.
    """
    assert model.adapted is not None
    tokens, first = model.encode(SAMPLES[0]).prompt, first_adapted_layer(model.adapted)
    whole = _all_logits(model, [tokens], 0)
    alone = pack([tokens], 0, model.padding, model.device)
    every = torch.ones(len(tokens), dtype=torch.bool)
    resumed = _resume(model, alone, every, first, [_made_states(model, tokens, first)]).logits
    return float((resumed - whole).abs().max() / whole.abs().max()), EXACT


def _all_logits(model: LanguageModel, inputs: list[list[int]], row_tokens: int) -> Tensor:
    packed = pack(inputs, row_tokens, model.padding, model.device)
    return _run(model, packed, torch.ones(sum(map(len, inputs)), dtype=torch.bool)).logits
