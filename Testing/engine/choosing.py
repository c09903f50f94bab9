"""Slices of a data set as training samples, in one call."""

from collections.abc import Sequence

from pgpsam.training.choice import SliceChoice, choose_slices
from pgpsam.training.data import Case, Dataset, Sample
from pgpsam.training.run import prepare_samples
from pgpsam.training.settings import TrainingSettings


def choose_samples(
    dataset: Dataset, cases: Sequence[Case], choice: SliceChoice, settings: TrainingSettings
) -> list[Sample]:
    return prepare_samples(choose_slices(dataset, cases, choice, settings.seed), dataset.labels, settings)
