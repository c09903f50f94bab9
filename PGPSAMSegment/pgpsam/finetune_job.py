"""The job "finetune": a new model folder from a data set, or from cases that Slicer's user has annotated.

It turns a request into samples and settings; training itself is the room `training`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pgpsam import exchange
from pgpsam.errors import UserError
from pgpsam.hello import score_line
from pgpsam.jobs import Job, Warm, checked
from pgpsam.labels import LabelSet
from pgpsam.models.lookup import find_model
from pgpsam.models.spec import check_model_name
from pgpsam.models.store import load_model, load_spec, save_model

if TYPE_CHECKING:  # the worker must not wait for torch before it is needed
    from pgpsam.training.data import LoadedCase, Sample
    from pgpsam.training.settings import TrainingSettings


def finetune(job: Job, warm: Warm) -> dict[str, Any]:
    """ "finetune": a new model folder from a data set's folder, or from the cases that the request brings."""
    from pgpsam.network.methods import make_settings
    from pgpsam.training.card import copy_pictures, model_card, pictures_of, shows_earlier_scores
    from pgpsam.training.choice import SliceChoice
    from pgpsam.training.course import Progress
    from pgpsam.training.data import read_dataset
    from pgpsam.training.finetune import finetune as train
    from pgpsam.training.run import split_cases, train_on_dataset
    from pgpsam.training.scoring import check_scorable

    def step(news: Progress) -> None:
        job.progress("training", news.iteration, news.iterations, news.eta_seconds, f"loss {news.loss:.3f}")

    def scoring(case: str, news: Any) -> None:
        job.check()
        job.progress("scoring", news.done, news.total, news.eta_seconds, case)

    out = Path(job.need("out", str))
    name = job.get("name", str, out.resolve().name)
    check_model_name(name)
    if method := job.get("method", str, ""):
        make_settings(method, {})  # an unknown one is refused before the data is read
    dataset = read_dataset(job.need("data", str)) if job.request.get("data") is not None else None
    label_set = dataset.labels if dataset else exchange.organs_from_json(job.need("labels", list))
    settings = training_settings(job, label_set.names)
    device = warm.device(job.get("device", str, "auto"))
    common: dict[str, Any] = {"name": name, "device": device, "progress": step, "cancelled": job.stop.is_set}
    summary: dict[str, Any] | None = None
    warm.clear()
    if dataset:
        job.progress("prepare", 0, 1)
        check_scorable(dataset, split_cases(dataset, None)[1], "Export them again, or list others as validation.")
        choice = SliceChoice(fully_annotated=dataset.fully_annotated)
        summary = train_on_dataset(dataset, out, settings, choice, scoring=scoring, **common)
    else:
        samples = case_samples(job, label_set, settings)
        job.progress("training", 0, settings.iterations)  # the first step takes long: it encodes many slices
        told = {"data": "annotated in 3D Slicer", "choice": "the slices that were annotated", "held_out": []}
        train(samples, label_set, settings, out, provenance=told, **common)
        spec, tensors = load_model(out)
        if settings.start_from and shows_earlier_scores(spec):
            copy_pictures(find_model(settings.start_from), out)
        save_model(out, spec, tensors, model_card(spec, pictures_of(out)))
    spec = load_spec(out)
    return {"folder": str(out.resolve()), "model": spec.name, "score": score_line(spec), "scores": summary}


def training_settings(job: Job, organs: Sequence[str]) -> TrainingSettings:
    """The method's recipe, or that of the model to start from, with the request's settings over it.

    Args:
        organs: the names of what is to be learned, which decide the method where none is asked for.

    Raises:
        UserError: an unknown method, setting or model.
    """
    from pgpsam.network.methods import default_method
    from pgpsam.slices import Preparation
    from pgpsam.training.overrides import apply
    from pgpsam.training.recipes import ONWARDS, ONWARDS_NEW, fitted, going_on, recipe

    start = job.get("start_from", str, "")
    iterations = None if job.request.get("iterations") is None else job.need("iterations", int)
    if start:
        spec = load_spec(find_model(start))
        usual = recipe(job.get("method", str, spec.method), iterations or ONWARDS_NEW)
        settings = going_on(usual, spec.labels.names, organs)
        if iterations is None and settings.start_share:  # it knows all organs
            settings = replace(settings, iterations=ONWARDS)
        settings = replace(
            settings,
            backbone=spec.backbone,
            settings=spec.settings,
            preparation=Preparation.from_json(spec.preparation),
            start_from=start,
        )
    else:
        settings = recipe(job.get("method", str, "") or default_method(organs), iterations)
    return fitted(apply(settings, job.get("settings", dict, {})))


def case_samples(job: Job, label_set: LabelSet, settings: TrainingSettings) -> list[Sample]:
    """The annotated slices of the request's cases, prepared.

    Raises:
        UserError: unreadable cases, labels on another grid, or no slice with an organ.
    """
    from pgpsam.training.data import make_samples

    samples: list[Sample] = []
    cases = job.need("cases", list)
    for number, item in enumerate(cases):
        job.check()
        job.progress("prepare", number, len(cases))
        case, slices = read_case(item, label_set, f"{job.do}: case {number}")
        samples += make_samples(case, slices, settings.preparation)
    if not any(bool(sample.labels.any()) for sample in samples):
        raise UserError("none of the annotated slices shows an organ", "Draw the organs in a few slices first.")
    return samples


def read_case(item: Any, label_set: LabelSet, where: str) -> tuple[LoadedCase, list[int]]:
    """A case that came as two arrays, and the canonical z of its annotated slices.

    Args:
        item: name, volume, affine, labels (ids, [k, j, i]) and, if given, slices: the annotated ones, counted along
            the input's axial axis.

    Raises:
        UserError, ProtocolError: as `case_samples`.
    """
    from pgpsam.training.data import LoadedCase

    name = checked(item, "name", str, where)
    affine = checked(item, "affine", list, where)
    volume = exchange.read_volume_array(checked(item, "volume", str, where), affine, name)
    ids = exchange.read_array(checked(item, "labels", str, where))
    if ids.shape != volume.grid.shape:
        raise UserError(f"{name}: its labels have the shape {ids.shape}, but its volume has {volume.grid.shape}")
    indices = exchange.class_indices(ids, label_set, name)
    case = LoadedCase(name, volume, np.ascontiguousarray(volume.grid.to_canonical(indices)))
    listed = None if item.get("slices") is None else checked(item, "slices", list, where)
    return case, annotated(case, listed)


def annotated(case: LoadedCase, listed: list[Any] | None) -> list[int]:
    """Canonical z of the slices whose labels may be trusted.

    Those that are listed; without a list, those without an unannotated voxel, if any voxel is marked so at all;
    otherwise those that show an organ.

    Raises:
        UserError: a listed slice does not exist or has unannotated voxels.
    """
    open_slices = (case.labels == exchange.UNANNOTATED).any((1, 2))
    if listed is None:
        return np.flatnonzero(~open_slices if open_slices.any() else case.labels.any((1, 2))).tolist()
    depth = len(case.labels)
    for number in listed:
        if not isinstance(number, int) or not 0 <= number < depth:
            raise UserError(f"{case.name} has no slice {number!r}: it has 0 to {depth - 1}")
        if open_slices[case.volume.grid.axial_index(number)]:
            raise UserError(f"{case.name}: slice {number} is listed, but not all of it is annotated")
    return sorted({case.volume.grid.axial_index(number) for number in listed})
