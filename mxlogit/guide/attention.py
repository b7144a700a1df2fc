"""Self-attention over a person's choice situations, in segments that act on each situation by itself.

Given keys and values of all situations, what a query row becomes depends on that row alone. So an encoder with
attention is a chain of token-wise segments: the first ends with the keys and values of the first attention, each
further one reads queries, attends, and ends with the keys and values of the next. Backward passes through some
situations (`mxlogit.guide.subsampling`) mask each segment for itself.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class AttentionBlock(nn.Module):
    """LayerNorm and multi-head attention, then LayerNorm and two linear maps, each added to its input.

    After Lee et al. (2019, ICML, arXiv 1810.00825): indifferent to the order of situations.

    Parameters
    ----------
    width : int
    heads : int
        A divisor of the width.
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
        """What rows (n, m, w) become, given keys and values (n, t, 2 w) of the situations that are seen (n, t)."""
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
    """Tokens beside the keys and values that the next block asks for, (..., 3 w); tokens alone where none does."""
    return tokens if block is None else torch.cat([tokens, block.keys(tokens)], -1)
