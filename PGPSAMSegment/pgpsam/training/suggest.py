"""Which slices of a volume are most worth annotating by hand: few that together look like all the others.

A slice is described by the encoder's mean feature over the body; the slices are chosen one by one, each the farthest
from those before it (k-centre), the first the most usual one. No labels are needed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from pgpsam.device import autocast
from pgpsam.errors import UserError
from pgpsam.segmenter import BODY_SHARE, Segmenter
from pgpsam.slices import body_mask, frame_volume, network_input, place
from pgpsam.volume import Volume

CANDIDATES = 128  # neighbours look alike: of a longer stack, every n-th slice tells as much in a fraction of the time


def suggest_slices(
    segmenter: Segmenter,
    volume: Volume,
    count: int,
    progress: Callable[[int, int], None] | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> list[int]:
    """The slices to annotate, the most useful first.

    Args:
        segmenter: whose encoder looks at the slices.
        count: how many slices; a short volume gives fewer.
        progress: called after every batch with (slices done, slices in all).
        cancelled: asked before every batch.

    Returns:
        Canonical z indices.

    Raises:
        UserError: no slice shows a body, the slices are too large, or not enough memory for a single one.
        Cancelled: `cancelled` said so.
    """
    body = body_mask(volume.array)
    shown = np.flatnonzero(body.mean((1, 2)) >= BODY_SHARE)
    if not len(shown):
        raise UserError(f"{volume.name}: no slice shows a body", "Choose a CT volume in Hounsfield units.")
    slices = shown[np.linspace(0, len(shown) - 1, min(CANDIDATES, len(shown))).round().astype(int)].tolist()
    features = body_features(segmenter, volume, body, slices, progress, cancelled)
    return [slices[i] for i in k_centre(features, count)]


@torch.inference_mode()
def body_features(
    segmenter: Segmenter,
    volume: Volume,
    body: NDArray[np.bool_],
    slices: list[int],
    progress: Callable[[int, int], None] | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> NDArray[np.float32]:
    """The encoder's mean neck feature over each slice's body, float32 [n, C]; `body` is a mask [z, y, x]."""
    frame = frame_volume(volume, segmenter.preparation)
    y0, y1, x0, x1 = frame.box

    def means(some: Sequence[int]) -> torch.Tensor:  # [n, C]
        image = network_input(volume, frame, segmenter.preparation, some).to(segmenter.device)
        with autocast(segmenter.device):
            neck = segmenter.network.encoder(image).neck.float()  # [n, C, h, w]
        mask = torch.from_numpy(body[some, None, y0:y1, x0:x1].astype(np.float32))
        canvas = place(F.interpolate(mask, frame.size, mode="area"), frame)
        weight = F.adaptive_avg_pool2d(canvas, neck.shape[-2:]).to(neck.device)  # [n, 1, h, w]
        return ((neck * weight).sum((2, 3)) / weight.sum((2, 3)).clamp_min(1e-6)).cpu()

    found: list[torch.Tensor] = []
    done = 0
    for some, features in segmenter.in_batches(slices, means, cancelled):
        found.append(features)
        done += len(some)
        if progress:
            progress(done, len(slices))
    return torch.cat(found).numpy()


def k_centre(features: NDArray[np.float32], count: int) -> list[int]:
    """Farthest-point choice of rows.

    Args:
        features: [n, C].

    Returns:
        At most `count` rows: the nearest to the mean, then always the one farthest from those chosen; equal rows
        are chosen once.
    """
    chosen = [int(np.linalg.norm(features - features.mean(0), axis=1).argmin())]
    nearest = np.linalg.norm(features - features[chosen[0]], axis=1)
    while len(chosen) < count and nearest.max() > 0:
        chosen.append(int(nearest.argmax()))
        nearest = np.minimum(nearest, np.linalg.norm(features - features[chosen[-1]], axis=1))
    return chosen
