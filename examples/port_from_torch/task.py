"""What both sides share: the data, the order of the batches, the numbers."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
from sklearn.datasets import load_digits

SHAPES = {"channels": (8, 16), "flattened": (16, 4, 4)}


@dataclasses.dataclass(frozen=True)
class Settings:
    """RMSprop's, and the length of the run."""

    lr: float = 2e-3
    falls_by: float = 0.995  # the rate, at each step
    alpha: float = 0.99
    eps: float = 1e-6
    momentum: float = 0.9
    weight_decay: float = 1e-4
    centered: bool = True
    steps: int = 150  # before the run is carried over, and again after it
    batch: int = 64

    def rate(self, count: Any) -> Any:
        """The learning rate at a step."""
        return self.lr * self.falls_by**count


def digits() -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Images [n, 8, 8] and labels of scikit-learn's handwritten digits."""
    data = load_digits()
    return (data.images / 16.0).astype(np.float32), data.target.astype(np.int32)


def batches(settings: Settings, start: int) -> Iterator[tuple[Any, Any]]:
    """Images and labels of the steps from `start` on, the same in both frameworks."""
    images, labels = digits()
    for step in range(start, start + settings.steps):
        rows = np.random.default_rng(step).choice(len(labels), settings.batch, replace=False)
        yield images[rows], labels[rows]
