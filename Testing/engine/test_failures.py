"""Pictures of a model's worst errors: the right slice of each organ, and a PNG that holds them."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pgpsam.training.calibration import organ_slices
from pgpsam.training.failures import Failure, failures, worst_of_each_organ, write_failures
from pgpsam.volume import Volume

ORGANS = ("spleen", "liver")
SPLEEN, LIVER = 1, 2


def case(name: str, miss: int) -> list[Failure]:
    """Ten slices of 100 x 120 voxels of 2 x 2 x 5 mm: slice 3 misses `miss` rows of the liver, slice 6 one."""
    image = np.broadcast_to(np.linspace(-100, 100, 120, dtype=np.float32), (10, 100, 120))
    volume = Volume.from_kji(image, np.diag([-2.0, -2.0, 5.0, 1.0]), name)
    drawn: NDArray[np.uint8] = np.zeros(volume.shape, np.uint8)
    drawn[2:8, 20:50, 10:40] = LIVER
    drawn[2:4, 60:70, 80:90] = SPLEEN
    found = drawn.copy()
    found[3, 20 : 20 + miss, 10:40] = 0
    found[6, 20, 10:40] = 0
    confidence = np.full(volume.shape, 0.75, np.float32)
    return failures(volume, found, drawn, organ_slices(found, drawn, confidence, ORGANS, name), ORGANS)


def test_an_organs_worst_slice_has_the_largest_wrong_area() -> None:
    (liver,) = case("one", 12)  # the spleen is right everywhere
    assert (liver.slice.organ, liver.slice.z, liver.place) == ("liver", 3, "S 15.0 mm")
    assert liver.wrong_mm2 == 12 * 30 * 4  # voxels of 2 x 2 mm
    assert liver.pixel_mm == (2.0, 2.0)
    assert liver.image.shape == liver.found.shape == liver.drawn.shape
    assert int((liver.drawn & ~liver.found).sum()) == 12 * 30


def test_over_cases_only_the_worst_of_an_organ_is_kept() -> None:
    worst = worst_of_each_organ([*case("one", 4), *case("two", 12), *case("three", 8)])
    assert [(f.slice.case, f.slice.organ) for f in worst] == [("two", "liver")]


def test_the_picture_shows_what_was_drawn_and_what_was_found(tmp_path: Path) -> None:
    path = tmp_path / "failures.png"
    write_failures(case("one", 12), path, "a model")
    pixels = np.asarray(Image.open(BytesIO(path.read_bytes())).convert("RGB")).astype(int)
    for colour in ((61, 220, 132), (255, 127, 42)):
        assert (abs(pixels - colour).sum(-1) < 30).sum() > 50
    before = path.read_bytes()
    write_failures([], path, "a model without errors")
    assert path.read_bytes() != before
