"""Self-attention over a person's choice situations, split into token-wise segments.

Given the keys and values of all situations, the output of a query row depends on that row alone. An encoder with
attention is therefore a chain of token-wise segments: the first ends with the keys and values of the first attention,
each later one attends and ends with the keys and values of the next. Backward passes through a subset of situations
(`mxlogit.guide.subsampling`) use a separate mask for each segment.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class AttentionBlock(nn.Module):
    """LayerNorm and multi-head attention, then LayerNorm and two linear maps, each added to its input.

    Equivariant to permutations of situations; after Lee et al. (2019, ICML, arXiv 1810.00825).

    Parameters
    ----------
    width : int
        Width w of tokens.
    heads : int
        Number of attention heads, a divisor of the width.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.width, self.heads = width, heads
        self.norm = nn.LayerNorm(width)
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)
        self.layers = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.GELU(), nn.Linear(width, width))

    def keys(self, tokens: Tensor) -> Tensor:
        """Keys and values (..., 2 w) of tokens (..., w)."""
        result: Tensor = self.key_value(self.norm(tokens))
        return result

    def forward(self, rows: Tensor, keys: Tensor, seen: Tensor) -> Tensor:
        """Outputs of rows (n, m, w), given keys and values (n, t, 2 w) and a mask of observed situations (n, t)."""
        key, value = keys.chunk(2, -1)
        query = self.query(self.norm(rows))
        mixed = nn.functional.scaled_dot_product_attention(
            self._split(query), self._split(key), self._split(value), attn_mask=seen[:, None, None, :]
        )
        rows = rows + self.out(mixed.transpose(1, 2).flatten(2))
        result: Tensor = rows + self.layers(rows)
        return result

    def _split(self, rows: Tensor) -> Tensor:
        return rows.unflatten(-1, (self.heads, -1)).transpose(1, 2)


def with_keys(tokens: Tensor, block: AttentionBlock | None) -> Tensor:
    """Tokens concatenated with keys and values for the next block, (..., 3 w); tokens alone after the last block."""
    return tokens if block is None else torch.cat([tokens, block.keys(tokens)], -1)
