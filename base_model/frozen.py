"""What the layers below the first adapted one make of an example: computed once, kept, and handed on later.

Those layers carry no factors, so the hidden states that leave them depend on the tokens alone. This module knows a
stack of layers and memory. It does not know adapters, training, or how a batch is made.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from base_model.layout import LAYER_NUMBER
from schemas.adapter import Layout

Key = tuple[int, bytes]
"""The first adapted layer, and the token ids of one example."""


class StateCache:
    """Hidden states by key, at most `limit` bytes of them; the ones unused for longest make room."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0
        self._states: OrderedDict[Key, Tensor] = OrderedDict()

    def __len__(self) -> int:
        return len(self._states)

    def get(self, key: Key, compute: Callable[[], Tensor]) -> Tensor:
        """The states kept under this key; otherwise `compute` makes them, and they are kept if they fit at all."""
        if (states := self._states.get(key)) is not None:
            self._states.move_to_end(key)
            return states
        states = compute()
        if states.nbytes <= self.limit:
            self._states[key] = states
            self.used += states.nbytes
        while self.used > self.limit:
            _, oldest = self._states.popitem(last=False)
            self.used -= oldest.nbytes
        return states


def first_adapted_layer(layout: Layout) -> int:
    """The lowest layer that carries factors; 0 where some factor belongs to no numbered layer."""
    numbers = [LAYER_NUMBER.search(name) for name, _ in layout.tensors]
    return min(int(match[1]) if match else 0 for match in numbers)


def decoder_layers(network: nn.Module, layout: Layout | None) -> list[Any]:
    """The layers that the factors' names lead to in a network that PEFT has wrapped."""
    assert layout is not None
    stacks = {name[: match.start()] for name, _ in layout.tensors if (match := LAYER_NUMBER.search(name))}
    if len(stacks) != 1 or not isinstance(layers := network.get_submodule(stacks.pop()), nn.ModuleList):
        raise ValueError("the adapted modules are not all in one stack of layers")
    return list(layers)


@contextmanager
def entering(layers: list[Any], first: int) -> Iterator[list[Tensor]]:
    """Run the layers below `first` alone; the list that is given out then holds the states that enter `first`."""
    seen: list[Tensor] = []

    def note(hidden_states: Tensor, *_: Any, **__: Any) -> Tensor:
        seen.append(hidden_states)
        return hidden_states

    with _replaced_forwards({layers[first]: note} | dict.fromkeys(layers[first + 1 :], _pass_on)):
        yield seen


@contextmanager
def resuming(layers: list[Any], first: int, states: Tensor) -> Iterator[None]:
    """Skip the layers below `first`; whatever the network embeds, `states` are what enters layer `first`.

    The layers stay where they are, so that a network that asks its list or its configuration for the n-th layer still
    gets that one, and the embedding's scaling is of no account.
    """
    lower = layers[:first]
    with _replaced_forwards(dict.fromkeys(lower, _pass_on) | {lower[-1]: lambda *_, **__: states}):
        yield


def _pass_on(hidden_states: Tensor, *_: Any, **__: Any) -> Tensor:
    return hidden_states


@contextmanager
def _replaced_forwards(forwards: dict[Any, Callable[..., Tensor]]) -> Iterator[None]:
    for layer, forward in forwards.items():
        layer.forward = forward  # an attribute of the instance hides the method of its class
    try:
        yield
    finally:
        for layer in forwards:
            del layer.forward
