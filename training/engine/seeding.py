"""Randomness as a function of where the run is, never of what happened before.

Every draw is seeded by (recipe seed, what it is for, epoch, micro-batch). A resumed run therefore
continues bit for bit, and neither workers nor the number of processes change anything.
"""

import random
from enum import IntEnum

import numpy as np
import torch


class Stream(IntEnum):
    """What a draw is for; keeps equal numbers in different roles apart."""

    WEIGHTS = 0
    ORDER = 1
    IMAGE = 2
    STEP = 3
    MIX = 4


def generator(seed: int, stream: Stream, *where: int) -> np.random.Generator:
    """A NumPy generator of its own."""
    return np.random.default_rng([seed, stream, *where])


def seed_global(seed: int, stream: Stream, *where: int) -> None:
    """Seed `random`, NumPy's and torch's global generators, which timm and torch draw from."""
    words = np.random.SeedSequence([seed, stream, *where]).generate_state(3)
    random.seed(int(words[0]))
    np.random.seed(int(words[1]))
    torch.manual_seed(int(words[2]))
