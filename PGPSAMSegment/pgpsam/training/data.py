"""Annotated CTs on disk -> training samples.

Three layouts: a folder with `images/` and `labels/` of the same stems, an nnU-Net raw data set (`imagesTr`,
`labelsTr`, case_0000), or labels as `.seg.nrrd` that carry their own names. There the names count, not the ids, for
Slicer numbers the segments of every file anew. A slice without a label is *unannotated*, unless a slice list names it
or the data set is said to be annotated in full.
"""

from __future__ import annotations

import csv
import hashlib
import json
import logging
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pgpsam.errors import UserError
from pgpsam.labels import LabelSet, canonical_name
from pgpsam.slices import Frame, Preparation, channel_slices, frame_volume, neighbours, scale_labels
from pgpsam.volume import Volume, read_labels, read_labels_on, read_volume

_log = logging.getLogger(__name__)

IGNORED = 255  # the class index where nobody knows: the loss does not look there
MOST_ORGANS = IGNORED - 1
EXTENSIONS = (".nii.gz", ".nii", ".seg.nrrd", ".nrrd", ".mha", ".mhd")


@dataclass(frozen=True)
class Case:
    """One patient's volume: a name and two files."""

    name: str
    image: Path
    label: Path


@dataclass(frozen=True)
class Dataset:
    """Annotated cases and what their label ids mean.

    Attributes:
        name: what to call the data in a model card.
        reported: ids of the organs that published tables average over; empty means all.
        validation: case names that the data set suggests to hold out.
        fully_annotated: the data set says that slices without labels show no organ.
    """

    name: str
    folder: Path
    cases: tuple[Case, ...]
    labels: LabelSet
    reported: tuple[int, ...] = ()
    validation: tuple[str, ...] = ()
    fully_annotated: bool = False

    def select(self, names: Iterable[str]) -> tuple[Case, ...]:
        """The cases with these names, in the data set's order.

        Raises:
            UserError: a name that no case has.
        """
        wanted = set(names)
        unknown = wanted - {case.name for case in self.cases}
        if unknown:
            hint = f"Its cases are {shortened([case.name for case in self.cases])}."
            raise UserError(f"{self.folder} has no case named {', '.join(sorted(unknown))}", hint)
        return tuple(case for case in self.cases if case.name in wanted)


def stem(path: Path) -> str:
    """The file's name without a known extension; '' for files of other kinds and for hidden ones, which macOS adds."""
    if path.name.startswith("."):
        return ""
    return next((path.name[: -len(e)] for e in EXTENSIONS if path.name.lower().endswith(e)), "")


def read_dataset(folder: str | Path) -> Dataset:
    """Find the cases of a data set.

    Raises:
        UserError: no such folder, no known layout, no image with labels, no names for the label ids, an organ in a
            label file that dataset.json lacks, reported ids that no organ has, or a field of another kind.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"no such data folder: {folder}")
    images, labels = folder / "images", folder / "labels"
    if (folder / "imagesTr").is_dir():
        images, labels = folder / "imagesTr", folder / "labelsTr"
    if not images.is_dir() or not labels.is_dir():
        raise UserError(
            f"{folder} holds neither images/ and labels/ nor imagesTr/ and labelsTr/",
            "Put volumes and their labels, with the same names, into these two folders.",
        )
    cases = find_cases(images, labels)
    description = read_description(folder)
    if names := description.get("labels"):
        try:
            label_set = LabelSet.from_names(names)
        except UserError as error:
            raise UserError(f"{folder / 'dataset.json'}: {error.message}", error.hint) from error
        for case in cases:
            class_indices(case.label, label_set)  # an organ that it lacks is told now, not after a training
    else:
        label_set = names_in_files(cases, folder)
    if len(label_set) > MOST_ORGANS:
        raise UserError(f"{folder} names {len(label_set)} organs, more than {MOST_ORGANS}", "Leave some out.")
    reported = description.get("reported_labels", [])
    ids = label_set.ids if names else ()
    if not isinstance(reported, list) or not all(identifier in ids for identifier in reported):
        raise UserError(
            f"{folder / 'dataset.json'}: reported_labels is {json.dumps(reported)}, not a list of its labels' ids",
            f"These are {', '.join(map(str, ids)) or 'missing'}.",
        )
    validation = description.get("validation", [])
    if not isinstance(validation, list) or not all(isinstance(name, str) for name in validation):
        raise UserError(
            f"{folder / 'dataset.json'}: validation is {json.dumps(validation)}, not a list of cases' names",
            'Write them as in "validation": ["case_07"].',
        )
    whole = description.get("fully_annotated", False)
    if not isinstance(whole, bool):
        raise UserError(f"{folder / 'dataset.json'}: fully_annotated is {json.dumps(whole)}, not true or false")
    name = str(description.get("name", folder.name))
    return Dataset(name, folder, cases, label_set, tuple(reported), tuple(validation), whole)


def find_cases(images: Path, labels: Path) -> tuple[Case, ...]:
    """The images that have labels, by the labels' names; a warning names what has no counterpart.

    nnU-Net writes _0000 after the names of its images and numbers further channels, which are not looked at; the
    Medical Segmentation Decathlon has the same folders without these numbers.

    Raises:
        UserError: there is none.
    """
    found, drawn = by_stem(images), by_stem(labels)
    channel, any_channel = ("_0000", r"_\d{4}$") if images.name == "imagesTr" else ("", "$")
    cases: list[Case] = []
    lone: dict[Path, list[str]] = {labels: [], images: []}
    for name, path in drawn.items():
        if image := found.get(name + channel) or found.get(name):
            cases.append(Case(name, image, path))
        else:
            lone[labels].append(path.name)
    for name, path in found.items():
        if not {name, re.sub(any_channel, "", name)} & drawn.keys():
            lone[images].append(path.name)
    for folder, other in ((labels, images), (images, labels)):
        if lone[folder]:
            _log.warning(
                "%s: left out, with no file of the same name in %s: %s", folder, other, shortened(lone[folder])
            )
    if not cases:
        raise UserError(f"no image in {images} has labels of the same name in {labels}")
    return tuple(cases)


def shortened(names: Sequence[str], most: int = 10) -> str:
    """Names for a message, which stays short."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def by_stem(folder: Path) -> dict[str, Path]:
    """The volumes of a folder by their names without the format.

    Raises:
        UserError: two of them differ in the format alone.
    """
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if (name := stem(path)) and found.setdefault(name, path) != path:
            raise UserError(f"{found[name]} and {path.name} have one name", "Move away the one that does not count.")
    return found


def read_description(folder: Path) -> dict:
    """dataset.json, or {} where there is none.

    Raises:
        UserError: the file is not a JSON object.
    """
    path = folder / "dataset.json"
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not readable JSON: {error}", "Save it as JSON in UTF-8.") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} is not a JSON object")
    return content


def names_in_file(path: Path) -> dict[int, str]:
    """The names that a label file carries itself, by id (`.seg.nrrd`); {} where it has none, as NIfTI never has."""
    names = read_labels(path)[2] if path.name.lower().endswith((".nrrd", ".nhdr")) else {}
    return {identifier: name for identifier, name in names.items() if identifier}


def names_in_files(cases: Sequence[Case], folder: Path) -> LabelSet:
    """The organs that the label files name themselves, in any of them and in whatever spelling.

    Their ids are those of the files where all files agree, otherwise new ones in alphabetical order.

    Raises:
        UserError: none, or files without names beside some that do not agree.
    """
    named = {case.label: names_in_file(case.label) for case in cases}
    pairs = [pair for names in named.values() for pair in names.items()]
    spelled = {canonical_name(name): name for _, name in reversed(pairs)}
    meanings = {(identifier, canonical_name(name)) for identifier, name in pairs}
    ids = {identifier for identifier, _ in pairs}
    agree = len(ids) == len(spelled) == len(meanings) and max(ids, default=0) <= 255
    nameless = [path for path, names in named.items() if not names]
    if not pairs or (nameless and not agree):
        raise UserError(
            f"{nameless[0] if pairs else folder} does not say what its label ids mean",
            'Add dataset.json with {"labels": {"background": 0, "liver": 1, ...}}.',
        )
    chosen = meanings if agree else enumerate(sorted(spelled), start=1)
    return LabelSet.from_names({spelled[organ]: identifier for identifier, organ in chosen})


def class_of(name: str, label_set: LabelSet) -> int:
    """The class index, 1..N, of an organ: of that very name, or in a spelling that `canonical_name` knows; else 0."""
    known = label_set.names
    if name not in known:
        name, known = canonical_name(name), tuple(map(canonical_name, known))
    return 1 + known.index(name) if name in known else 0


def class_indices(path: Path, label_set: LabelSet) -> dict[int, int]:
    """A label file's ids -> class indices: by the file's own names, where it carries any, or as the label set says.

    Segments that name one organ become one.

    Raises:
        UserError: an unreadable file, or an organ in it that the label set lacks.
    """
    names = names_in_file(path)
    if not names:
        return {identifier: index for index, identifier in enumerate(label_set.ids, start=1)}
    indices = {identifier: class_of(name, label_set) for identifier, name in names.items()}
    if unknown := [repr(names[identifier]) for identifier, index in indices.items() if not index]:
        raise UserError(
            f"{path}: the data set has no organ named {', '.join(unknown)}",
            f"Add it to dataset.json, or remove or rename it in Slicer. Known are: {', '.join(label_set.names)}",
        )
    return indices


def read_slice_list(path: str | Path) -> dict[str, list[int]]:
    """A CSV with the columns case, slice (index along the file's third axis, from 0) -> slices by case.

    Raises:
        UserError: no such file, another encoding than UTF-8, other columns, or a slice that is not a number.
    """
    path = Path(path)
    chosen: dict[str, list[int]] = {}
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:  # Excel begins it with a byte order mark
            head = file.readline()
            file.seek(0)
            rows = csv.DictReader(file, delimiter=max(",;\t", key=head.count))  # Excel's is the country's
            if not {"case", "slice"} <= set(rows.fieldnames or ()):
                hint = "Name two columns case and slice in its first line."
                raise UserError(f"{path} has the columns {', '.join(rows.fieldnames or ['none'])}", hint)
            for row in rows:
                try:
                    chosen.setdefault(row["case"], []).append(int(row["slice"]))
                except (TypeError, ValueError):
                    raise UserError(
                        f"{path}, line {rows.line_num}: '{row['slice'] or ''}' is not a slice number"
                    ) from None
    except UnicodeDecodeError as error:
        raise UserError(f"the slice list {path} is not UTF-8 text", "Save it as CSV UTF-8.") from error
    except OSError as error:
        raise UserError(f"cannot read the slice list {path}: {error.strerror}") from error
    return chosen


def slice_list_sha256(path: Path) -> str:
    """What tells slice lists of one name apart.

    Raises:
        UserError: no such file.
    """
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise UserError(f"cannot read the slice list {path}: {error.strerror}") from error


@dataclass(frozen=True)
class LoadedCase:
    """A case in memory.

    Attributes:
        volume: the canonical CT.
        labels: class *indices* (0 background, 1..N in the label set's order), uint8 [z, y, x].
    """

    name: str
    volume: Volume
    labels: NDArray[np.uint8]


def load_case(case: Case, label_set: LabelSet) -> LoadedCase:
    """Read a case; ids become class indices, by name where the label file carries names.

    Raises:
        UserError: unreadable files, grids that differ, or an organ or id that the label set lacks.
    """
    volume = read_volume(case.image)
    ids = read_labels_on(volume, case.label)
    lookup = np.full(int(ids.max()) + 1 if ids.size else 1, 255, np.uint8)
    lookup[0] = 0
    for identifier, index in class_indices(case.label, label_set).items():
        if identifier < len(lookup):
            lookup[identifier] = index
    labels = lookup[ids]
    if (labels == 255).any():
        unknown = sorted(set(np.unique(ids[labels == 255]).tolist()))
        hint = "Name them in dataset.json, or draw these voxels anew."
        raise UserError(f"{case.label} holds the ids {unknown}, which have no name", hint)
    return LoadedCase(case.name, volume, labels)


def canonical_index(volume: Volume, source_slice: int) -> int:
    """A slice's number along the file's third axis -> its canonical z.

    Raises:
        UserError: no such slice, or the file's third axis is not the axial one.
    """
    depth = volume.grid.shape[0]
    if not 0 <= source_slice < depth:
        raise UserError(
            f"{volume.name} has no slice {source_slice}: it has 0 to {depth - 1}", "Correct the slice list."
        )
    if volume.grid.axial_axis != 0:
        hint = "Save it and its labels as axial slices, or choose slices without a list."
        raise UserError(f"{volume.name}: slice lists need files whose third axis is the axial one", hint)
    return volume.grid.axial_index(source_slice)


def annotated_slices(case: LoadedCase, listed: Sequence[int] | None, fully_annotated: bool) -> list[int]:
    """Canonical z of the slices whose labels may be trusted.

    Args:
        listed: slices along the file's third axis that were annotated (an empty one is then true background), or
            None for every slice that shows an organ. A warning says if none of them shows one: they may be counted
            from 1, or from the other end, and labels without a list may have been exported empty.
        fully_annotated: without a list, slices without organs are background too.
    """
    if listed is not None:
        chosen = sorted({canonical_index(case.volume, i) for i in listed})
        if chosen and not case.labels[chosen].any():
            _log.warning("%s: none of its listed slices shows an organ; the first slice is number 0", case.name)
        return chosen
    if fully_annotated:
        return list(range(len(case.labels)))
    shown: list[int] = np.flatnonzero(case.labels.any((1, 2))).tolist()
    if not shown:
        _log.warning("%s: its labels show no organ, so nothing is learned from it", case.name)
    return shown


@dataclass(frozen=True)
class Sample:
    """An annotated slice at the network's scale, the body box only.

    Attributes:
        image: float16 [3, h, w], 0..1, or [1, h, w] where the three channels are the same.
        labels: uint8 class indices [h, w]; `IGNORED` where the truth is not known.
        guessed: labelled by a model, not by a person.
    """

    case: str
    index: int
    image: Tensor
    labels: Tensor
    guessed: bool = False

    @property
    def filled(self) -> bool:
        """Whether an organ is known to be in the slice."""
        return bool(((self.labels > 0) & (self.labels != IGNORED)).any())


def make_samples(
    case: LoadedCase, indices: Sequence[int], preparation: Preparation, guessed: bool = False
) -> list[Sample]:
    """Slices of a case with their labels, prepared."""
    if not indices:
        return []
    frame: Frame = frame_volume(case.volume, preparation)
    count, dz = case.volume.shape[0], case.volume.spacing[2]
    wanted = [neighbours(i, count, dz, preparation) for i in indices]
    if len(set(preparation.offsets_mm)) == 1:
        wanted = [channels[:1] for channels in wanted]
    images = channel_slices(case.volume, frame, preparation, wanted)
    labels = scale_labels(case.labels, frame, indices)
    return [
        Sample(case.name, index, image.to(torch.float16), own, guessed)
        for index, image, own in zip(indices, images, labels, strict=True)
    ]
