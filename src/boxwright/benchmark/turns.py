"""Whose turn it is: files interleaved in small blocks, so that drift hits all of them alike. Pure.

A round gives each file one block of calls. The order is a seeded permutation that is rotated by one
from round to round, and drawn again when every file has had every place.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

__all__ = ["block_sizes", "turn_orders"]

_BLOCK = 5  # calls; small, so that a slow second of the machine falls on several files
_ROUNDS = 5  # at least, for the bootstrap


def turn_orders(count: int, seed: int) -> Iterator[tuple[int, ...]]:
    """Yield the order of the files in every round, without end.

    >>> orders = turn_orders(3, 0)
    >>> sorted(zip(*(next(orders) for _ in range(3)))) == sorted({(0, 1, 2), (1, 2, 0), (2, 0, 1)})
    True
    """
    rng = np.random.default_rng(seed)
    while True:
        first = [int(i) for i in rng.permutation(count)]
        for shift in range(count):
            yield (*first[shift:], *first[:shift])


def block_sizes(iterations: int) -> list[int]:
    """Return how many calls each round has: blocks of 5, or smaller ones for at least 5 rounds.

    >>> block_sizes(50), block_sizes(12), block_sizes(3)
    ([5, 5, 5, 5, 5, 5, 5, 5, 5, 5], [2, 2, 2, 2, 2, 2], [1, 1, 1])
    """
    block = max(1, min(_BLOCK, iterations // _ROUNDS))
    sizes = [block] * (iterations // block)
    if iterations % block:
        sizes.append(iterations % block)
    return sizes
