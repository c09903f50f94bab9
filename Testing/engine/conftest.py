"""A small data set on disk and a model trained on it for a moment: real files, real weights, real training."""

from pathlib import Path

import pytest

from choosing import choose_samples
from pgpsam.training.choice import SliceChoice
from pgpsam.training.data import read_dataset
from pgpsam.training.settings import TrainingSettings
from pgpsam.volume import write_array
from phantoms import make_phantom

NAMES = '{"name": "phantoms", "labels": {"background": 0, "liver": 6, "spleen": 1}, "validation": ["case_2"]}'


@pytest.fixture(scope="session")
def phantoms(tmp_path_factory) -> Path:
    """A data set of three cases in the images/ and labels/ layout."""
    folder = tmp_path_factory.mktemp("phantoms")
    (folder / "dataset.json").write_text(NAMES)
    for part in ("images", "labels"):
        (folder / part).mkdir()
    for seed in range(3):
        volume, labels = make_phantom(seed)
        write_array(folder / "images" / f"case_{seed}.nii.gz", volume.array, volume, "confidence")
        write_array(folder / "labels" / f"case_{seed}.nii.gz", labels, volume, "labels")
    return folder


@pytest.fixture(scope="session")
def quick_settings() -> TrainingSettings:
    """A few steps on a small canvas."""
    return TrainingSettings(iterations=12, batch=2, warmup=2, canvas=(56, 112), settings={"alpha": 2, "nearest": 2})


@pytest.fixture(scope="session")
def quick_model(phantoms, quick_settings, tmp_path_factory) -> Path:
    """A model folder of `pgp`, trained for a moment on two of the three cases."""
    from pgpsam.training.finetune import finetune

    dataset = read_dataset(phantoms)
    training = dataset.select(["case_0", "case_1"])
    samples = choose_samples(dataset, training, SliceChoice(), quick_settings)
    out = tmp_path_factory.mktemp("models") / "quick"
    return finetune(samples, dataset.labels, quick_settings, out, name="quick", device="cpu")
