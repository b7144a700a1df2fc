"""Independent random streams, keyed by tuples of integers."""

from __future__ import annotations

import torch
from torch import Tensor


def seed_of(*words: int) -> int:
    """Mix integers into one 63-bit seed (the finaliser of SplitMix64, Steele et al. 2014)."""
    state = 0x9E3779B97F4A7C15
    for word in words:
        # Converted, since numpy's integers would overflow.
        state = (state ^ (int(word) & 0xFFFFFFFFFFFFFFFF)) & 0xFFFFFFFFFFFFFFFF
        state = (state + 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
        state ^= state >> 31
    return state & 0x7FFFFFFFFFFFFFFF


def mixed_bits(words: tuple[int, ...], places: Tensor) -> Tensor:
    """Random 63-bit integers (n,), int64, one for each of ``places`` (n,), independent of the other places.

    The finaliser of SplitMix64 (Steele et al. 2014) is applied to the place xor a seed mixed from the words.
    """
    state = places.to(torch.int64) ^ _signed(seed_of(*words))
    for factor, shift in ((0xBF58476D1CE4E5B9, 30), (0x94D049BB133111EB, 27), (1, 31)):
        # The right shift of a negative number fills with ones, which the mask clears.
        state = (state ^ (state.bitwise_right_shift(shift) & ((1 << (64 - shift)) - 1))) * _signed(factor)
    return state & 0x7FFFFFFFFFFFFFFF


def _signed(word: int) -> int:
    """Signed 64-bit integer with the same bits as an unsigned one."""
    return word - (1 << 64) if word >> 63 else word


def make_generator(*words: int, device: torch.device | str = "cpu") -> torch.Generator:
    """Return a generator seeded by a tuple of integers; different tuples give independent streams."""
    generator = torch.Generator(device=device)
    generator.manual_seed(seed_of(*words))
    return generator
