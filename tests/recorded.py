"""A recording of an event camera that tests share."""

from __future__ import annotations

import numpy as np


def events(count: int = 200, seed: int = 0) -> np.ndarray:
    """A structured array, as tonic's data sets give it; time does not begin at 0."""
    rng = np.random.default_rng(seed)
    found = np.zeros(count, dtype=[("x", np.int16), ("y", np.int16), ("t", np.int64), ("p", np.int8)])
    found["x"], found["y"], found["p"] = rng.integers(0, 8, count), rng.integers(0, 6, count), rng.integers(0, 2, count)
    found["t"] = 5000 + np.sort(rng.integers(0, 1000, count))
    return found
