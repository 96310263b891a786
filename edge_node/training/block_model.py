"""A Llama-like decoder whose weights stay blocks of a GGUF file, while LoRA factors on it learn.

Layers are run without gradients first; going back each is run once more, from what entered it, and differentiated
before the next. So one layer's numbers and activations are in memory, whatever the depth. Logits are made for answer
tokens alone, some at a time. It does not know steps, optimisers or text.
"""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import Parameter

from base_model.architecture import read_architecture
from base_model.gguf_blocks import GgufWeights
from base_model.gguf_file import open_gguf
from base_model.layout import LAYER_NUMBER, PEFT_PREFIX
from base_model.loss import cross_entropies
from base_model.tokens import Batch, pooled
from edge_node.training.block_layer import (
    MODULES,
    LayerBlocks,
    Rotation,
    dense_layer,
    layer_blocks,
    normed,
    passed,
    rotation,
)
from edge_node.training.blocks import BlockWeight, BlockWeights
from schemas.adapter import A_SUFFIX, B_SUFFIX, Adapter, Layout

LOGIT_ROWS = 64  # answer tokens whose logits are in memory at once: 12 MB, and as much for their gradient
VOCABULARY_ROWS = 512  # of the output layer, dequantised at once: they stay in the processor's cache


class BlockModel:
    """The frozen blocks, and the factors that are on them now."""

    def __init__(self, gguf: Path, folder: Path, dtype: torch.dtype) -> None:
        """Map the file; `folder` is the converted model's, for its configuration. BaseModelError says what is wrong."""
        self._architecture, self._dtype = read_architecture(folder), dtype
        weights = BlockWeights(GgufWeights(open_gguf(gguf), self._architecture))
        self._embedding = weights.weight("model.embed_tokens.weight")
        self._output: BlockWeight = self._embedding if self._architecture.tied else weights.weight("lm_head.weight")
        self._last_norm = weights.vector("model.norm.weight")
        self._layers: list[LayerBlocks] = [layer_blocks(weights, n) for n in range(self._architecture.layers)]
        self._layout: Layout | None = None
        self.factors: dict[str, Parameter] = {}

    def apply(self, adapter: Adapter) -> None:
        """Put a copy of this adapter on the model. Raises ValueError for factors of modules that it does not have."""
        ours = {f"{PEFT_PREFIX}model.layers.{layer}.{m}" for layer in range(len(self._layers)) for m in MODULES}
        if odd := {name.removesuffix(A_SUFFIX).removesuffix(B_SUFFIX) for name, _ in adapter.layout.tensors} - ours:
            raise ValueError(f"{min(odd)} is no linear module of a layer")
        self.factors = {name: Parameter(torch.tensor(values)) for name, values in adapter.tensors().items()}
        self._layout = adapter.layout

    def read(self) -> Adapter:
        """The adapter that is on the model now, as a value of its own."""
        if self._layout is None:
            raise ValueError("no adapter was applied yet")
        return Adapter.from_tensors(self._layout, {name: f.detach().numpy() for name, f in self.factors.items()})

    def losses(self, batch: Batch) -> Tensor:
        """Loss in nats of every answer token of the batch, (answer tokens,)."""
        with torch.no_grad():
            chosen = self.hidden(batch)[batch.predicting]
            pairs = zip(torch.split(chosen, LOGIT_ROWS), torch.split(batch.targets, LOGIT_ROWS), strict=True)
            return torch.cat([cross_entropies(self._logits(rows), targets) for rows, targets in pairs])

    def features(self, batch: Batch) -> Tensor:
        """Features (examples, hidden) of the prompts: the mean over their tokens of the last hidden states."""
        return pooled(self.hidden(batch), batch)

    def hidden(self, batch: Batch) -> Tensor:
        """Hidden states (tokens, hidden) after the last norm, without gradients."""
        with torch.no_grad():
            states, rotate = self._embedded(batch), self._rotation(batch)
            for layer in range(len(self._layers)):
                states = self._passed(states, layer, rotate)
            return normed(states, self._last_norm, self._architecture)

    def leave_gradients(
        self, batch: Batch, answer_tokens: int, features: Tensor | None = None, penalty: float = 0.0
    ) -> float:
        """Add the gradient of this batch's share of a step's loss to the factors'; that share in nats per answer token.

        The share is the sum over the batch's answer tokens by `answer_tokens`, the whole step's. Where `features`
        (examples, hidden) are given, each prompt's squared distance from them is added `penalty` times.
        """
        rotate, first = self._rotation(batch), self._first_adapted()
        with torch.no_grad():
            entering, states = list[Tensor](), self._embedded(batch)
            for layer in range(len(self._layers)):
                if layer >= first:
                    entering.append(states)
                states = self._passed(states, layer, rotate)
        states.requires_grad_()
        hidden = normed(states, self._last_norm, self._architecture)
        gradient, loss = self._loss_gradient(hidden.detach(), batch, answer_tokens)
        if features is not None:
            gradient += _penalty_gradient(hidden.detach(), batch, features, penalty)
        hidden.backward(gradient)  # type: ignore[no-untyped-call]
        for layer in reversed(range(first, len(self._layers))):
            assert states.grad is not None
            gradient, states = states.grad, entering.pop().requires_grad_(layer > first)
            self._passed(states, layer, rotate).backward(gradient)  # type: ignore[no-untyped-call]
        return loss

    def _first_adapted(self) -> int:
        return min(int(match[1]) for name in self.factors if (match := LAYER_NUMBER.search(name)))

    def _embedded(self, batch: Batch) -> Tensor:
        tokens = np.array([token for example in batch.inputs for token in example])
        return self._embedding.dense_rows(tokens, torch.float32)

    def _rotation(self, batch: Batch) -> Rotation:
        return rotation(batch.lengths, self._architecture, self._dtype)

    def _passed(self, states: Tensor, layer: int, rotate: Rotation) -> Tensor:
        """One layer, dequantised for this once."""
        blocks, lora = self._layers[layer], self._layout.lora if self._layout is not None else None
        linear = dense_layer(blocks, layer, self.factors, lora, self._dtype)
        return passed(states, blocks, linear, rotate, self._architecture, self._dtype)

    def _loss_gradient(self, hidden: Tensor, batch: Batch, answer_tokens: int) -> tuple[Tensor, float]:
        """The gradient by the hidden states, (tokens, hidden), and the loss."""
        gradients, loss = list[Tensor](), 0.0
        chosen = hidden[batch.predicting]
        for rows, targets in zip(torch.split(chosen, LOGIT_ROWS), torch.split(batch.targets, LOGIT_ROWS), strict=True):
            logits = self._logits(rows).requires_grad_()
            share = cross_entropies(logits, targets).sum() / answer_tokens
            share.backward()  # type: ignore[no-untyped-call]
            assert logits.grad is not None
            gradients.append(self._back_from_logits(logits.grad))
            loss += share.item()
        gradient = torch.zeros_like(hidden)
        gradient[batch.predicting] = torch.cat(gradients)
        return gradient, loss

    def _logits(self, hidden: Tensor) -> Tensor:
        rows = hidden.to(self._dtype)
        logits = rows.new_empty(len(rows), len(self._output.rows))
        for piece in self._output.pieces(VOCABULARY_ROWS):
            logits[:, piece] = rows @ self._output.dense_rows(piece, self._dtype).T
        return logits

    def _back_from_logits(self, gradient: Tensor) -> Tensor:
        total = torch.zeros(len(gradient), self._architecture.hidden)
        for piece in self._output.pieces(VOCABULARY_ROWS):
            total += gradient[:, piece] @ self._output.dense_rows(piece, self._dtype)
        return total


def _penalty_gradient(hidden: Tensor, batch: Batch, features: Tensor, penalty: float) -> Tensor:
    hidden.requires_grad_()
    distances = (pooled(hidden, batch) - features).square().sum()
    (penalty * distances).backward()  # type: ignore[no-untyped-call]
    assert hidden.grad is not None
    return hidden.grad
