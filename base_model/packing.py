"""Examples side by side in few rows, so that hardly anything is computed on padding.

Positions start again with each example; transformers then lets no token see another example's. It does not know what
the tokens mean.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

ROW_TOKENS = 192  # attention costs the square of a row: beyond this, longer rows save less than they add


@dataclass(frozen=True)
class Packed:
    """Rows of tokens: ids, positions and which are real, each (rows, width); read row by row, examples keep order."""

    ids: Tensor
    positions: Tensor
    real: Tensor  # bool

    def spread(self, values: Tensor) -> Tensor:
        """Values of the real tokens, (tokens, size), in their places: (rows, width, size), zero elsewhere."""
        places = values.new_zeros(*self.real.shape, values.shape[-1])
        places[self.real] = values
        return places


def pack(examples: Sequence[Sequence[int]], row_tokens: int, padding: int, device: torch.device) -> Packed:
    """Lay examples out in order, each beside the one before while the row has no more than `row_tokens` tokens."""
    rows: list[list[Sequence[int]]] = []
    for example in examples:
        if not rows or sum(map(len, rows[-1])) + len(example) > row_tokens:
            rows.append([])
        rows[-1].append(example)
    width = max(sum(map(len, row)) for row in rows)
    ids = torch.full((len(rows), width), padding)
    positions, real = torch.zeros_like(ids), torch.zeros_like(ids, dtype=torch.bool)
    for number, row in enumerate(rows):
        length = sum(map(len, row))
        ids[number, :length] = torch.tensor([token for example in row for token in example])
        real[number, :length] = True
        # padding goes on counting from the last example: it comes after all of them, so none sees it
        counts = [*row[:-1], range(len(row[-1]) + width - length)]
        positions[number] = torch.cat([torch.arange(len(example)) for example in counts])
    return Packed(ids.to(device), positions.to(device), real.to(device))
