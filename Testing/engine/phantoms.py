"""Synthetic CTs for tests that need a volume but no anatomy."""

import numpy as np

from pgpsam.volume import Volume


def make_phantom(seed: int, depth: int = 6) -> tuple[Volume, np.ndarray]:
    """A body of 180 x 130 mm at 3 mm with a large organ on its right and a small one on its left."""
    random = np.random.default_rng(seed)
    y, x = (np.mgrid[:56, :72] - np.array([27.5, 35.5])[:, None, None]) * 3.0
    y, x = y + random.uniform(-6, 6), x + random.uniform(-6, 6)
    array = np.full((depth, 56, 72), -1000.0, np.float32)
    labels = np.zeros((depth, 56, 72), np.uint8)
    body = (x / 90) ** 2 + (y / 65) ** 2 < 1
    array[:, body] = 20.0
    for z in range(1, depth - 1):
        for identifier, value, (cy, cx), radius in ((6, 120.0, (0, -40), 26), (1, 190.0, (10, 50), 15)):
            organ = (x - cx) ** 2 + (y - cy) ** 2 < radius**2
            array[z, organ], labels[z, organ] = value, identifier
    array += random.normal(0, 8, array.shape).astype(np.float32)
    return Volume.from_kji(array, np.diag([-3.0, -3.0, 5.0, 1.0]), f"case_{seed}"), labels
