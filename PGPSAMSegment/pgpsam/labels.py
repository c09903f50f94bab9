"""What an organ is called, its id and colour, and the SNOMED CT codes that Slicer and DICOM know it by.

Standard library only: Slicer's side may import this room. It knows nothing of arrays or files.
"""

from __future__ import annotations

import colorsys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from .errors import UserError

_GENERAL_ANATOMY = "Segmentation category and type - 3D Slicer General Anatomy list"
_DICOM_MASTER = "Segmentation category and type - DICOM master list"
_REGIONS = "Anatomic codes - DICOM master list"
_BACKGROUND = ("background", "clear label", "unlabeled", "unlabelled", "none")


@dataclass(frozen=True)
class Code:
    """A coded concept, as in DICOM: ``Code("10200004", "SCT", "Liver")``."""

    value: str
    scheme: str
    meaning: str


STRUCTURE = Code("123037004", "SCT", "Anatomical Structure")
_RIGHT = Code("24028007", "SCT", "Right")
_LEFT = Code("7771000", "SCT", "Left")
# Not in Slicer's general anatomy list, so Slicer is sent to its DICOM master list for them.
_INFERIOR_VENA_CAVA = Code("64131007", "SCT", "Inferior vena cava")
_PORTAL_VEIN = Code("32764006", "SCT", "Portal vein")


@dataclass(frozen=True)
class Label:
    """One organ of a model.

    Attributes:
        id: the voxel value that stands for it, 1..255.
        name: as the user reads it.
        color: red, green, blue in 0..255.
        category: SNOMED CT category, such as "Anatomical Structure".
        type: SNOMED CT type, such as "Kidney".
        modifier: the type's laterality, where it has one.
        single: the organ is anatomically one connected piece.
    """

    id: int
    name: str
    color: tuple[int, int, int]
    category: Code
    type: Code
    modifier: Code | None = None
    single: bool = False

    @property
    def terminology(self) -> str:
        """The entry as Slicer writes it in a segment's terminology tag."""
        master = self.type in (_INFERIOR_VENA_CAVA, _PORTAL_VEIN)
        codes = (self.category, self.type, self.modifier)
        texts = [f"{code.scheme}^{code.value}^{code.meaning}" if code else "^^" for code in codes]
        return "~".join([_DICOM_MASTER if master else _GENERAL_ANATOMY, *texts, _REGIONS, "^^", "^^"])


@dataclass(frozen=True)
class LabelSet:
    """A model's organs, in the model's order.

    Raises:
        UserError: no labels, an id outside 1..255, an id or name that occurs twice, a colour out of range.
    """

    labels: tuple[Label, ...]

    def __post_init__(self) -> None:
        if not self.labels:
            raise UserError("labels: there are none", "Name at least one organ")
        for index, label in enumerate(self.labels):
            _check_label(label, f"labels[{index}]")
        for field, values in (("id", self.ids), ("name", [_key(name) for name in self.names])):
            twice = [value for index, value in enumerate(values) if value in values[:index]]
            if twice:
                raise UserError(f"labels: {field} {twice[0]!r} occurs twice", f"Give every organ its own {field}")

    def __len__(self) -> int:
        return len(self.labels)

    def __iter__(self) -> Iterator[Label]:
        return iter(self.labels)

    @property
    def ids(self) -> tuple[int, ...]:
        """Voxel values, in model order."""
        return tuple(label.id for label in self.labels)

    @property
    def names(self) -> tuple[str, ...]:
        """Organ names, in model order."""
        return tuple(label.name for label in self.labels)

    def by_name(self, name: str) -> Label:
        """The organ of that name; upper case and underscores don't matter.

        Raises:
            UserError: no such organ; the hint lists the known ones.
        """
        for label in self.labels:
            if _key(label.name) == _key(name):
                return label
        raise UserError(f"{name!r} is not among the organs of this model", f"Known are: {', '.join(self.names)}")

    def by_id(self, label_id: int) -> Label:
        """The organ of that voxel value.

        Raises:
            UserError: no such id; the hint lists the known ones.
        """
        for label in self.labels:
            if label.id == label_id:
                return label
        raise UserError(
            f"id {label_id} is not among the organs of this model",
            f"Known are: {', '.join(map(str, self.ids))}",
        )

    def select(self, names: Sequence[str] | None) -> LabelSet:
        """The organs of these names, in model order; all of them for None.

        Raises:
            UserError: a name that is not known, or an empty choice.
        """
        if names is None:
            return self
        chosen = {self.by_name(name).id for name in names}
        if not chosen:
            raise UserError("no organ was chosen", f"Choose from: {', '.join(self.names)}")
        return LabelSet(tuple(label for label in self.labels if label.id in chosen))

    def to_json(self) -> list[dict[str, Any]]:
        """Plain lists and dicts, as `from_json` reads them."""
        return [
            {
                "id": label.id,
                "name": label.name,
                "color": list(label.color),
                "category": _code_to_json(label.category),
                "type": _code_to_json(label.type),
                "modifier": _code_to_json(label.modifier) if label.modifier else None,
                "single": label.single,
            }
            for label in self.labels
        ]

    @classmethod
    def from_json(cls, items: Any) -> LabelSet:
        """Reads what `to_json` gives; ``modifier`` and ``single`` may be left out.

        Raises:
            UserError: naming the field at fault, such as ``labels[3].color``.
        """
        if not isinstance(items, list):
            raise UserError(f"labels: must be a list, not {_kind(items)}")
        return cls(tuple(_label_from_json(item, f"labels[{index}]") for index, item in enumerate(items)))

    @classmethod
    def from_names(cls, mapping: Mapping[str, Any]) -> LabelSet:
        """Reads the ``labels`` of a dataset.json, nnU-Net's of either age, ordered by id.

        Organs known to `ABDOMEN` get its colours and codes; others a general code and a colour of their own.

        Args:
            mapping: ``{"background": 0, "spleen": 1}`` or ``{"0": "background", "1": "spleen"}``.

        Raises:
            UserError: regions (an organ of several ids), an ignore label, or ids and names that `LabelSet`
                refuses.
        """
        if not isinstance(mapping, Mapping):
            raise UserError(f"labels: must map organ names to ids, but is {_kind(mapping)}")
        pairs = sorted((_id_and_name(key, value) for key, value in mapping.items()), key=lambda pair: pair[0])
        labels: list[Label] = []
        for label_id, name in pairs:
            if label_id == 0 and _key(name) not in _BACKGROUND:
                raise UserError(f"labels: {name!r} has the id 0, which is the background", "Number organs from 1")
            if label_id != 0:
                labels.append(_label_from_name(label_id, name, [label.color for label in labels]))
        return cls(tuple(labels))


def canonical_name(name: str) -> str:
    """How `ABDOMEN` writes an organ that it knows ("kidney_right", "Oesophagus"); others in lower case."""
    key = _key(name)
    organ, _, side = key.rpartition(" ")
    if side in ("right", "left"):  # "kidney_right", as some data sets write it
        key = f"{side} {organ}"
    return _SYNONYMS.get(key, key)


def _key(name: str) -> str:
    return " ".join(name.replace("_", " ").casefold().split())


def _kind(value: object) -> str:
    return "null" if value is None else type(value).__name__


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _check_label(label: Label, where: str) -> None:
    if not _is_int(label.id) or not 1 <= label.id <= 255:
        raise UserError(f"{where}.id: {label.id!r} is not a whole number in 1 to 255", "0 is the background")
    if not isinstance(label.name, str) or not label.name.strip() or not label.name.isprintable():
        raise UserError(f"{where}.name: {label.name!r} is not a name")
    if len(label.color) != 3 or not all(_is_int(channel) and 0 <= channel <= 255 for channel in label.color):
        raise UserError(f"{where}.color: {list(label.color)!r} is not three whole numbers in 0 to 255")


def _code_to_json(code: Code) -> dict[str, str]:
    return {"value": code.value, "scheme": code.scheme, "meaning": code.meaning}


def _field(item: Any, key: str, kind: type | tuple[type, ...], where: str) -> Any:
    if not isinstance(item, Mapping):
        raise UserError(f"{where}: must be an object, not {_kind(item)}")
    if key not in item:
        raise UserError(f"{where}.{key}: is missing")
    if not isinstance(item[key], kind):
        raise UserError(f"{where}.{key}: {item[key]!r} is of the wrong kind ({_kind(item[key])})")
    return item[key]


def _label_from_json(item: Any, where: str) -> Label:
    modifier = item.get("modifier") if isinstance(item, Mapping) else None
    return Label(
        id=_field(item, "id", int, where),
        name=_field(item, "name", str, where),
        color=tuple(_field(item, "color", (list, tuple), where)),
        category=_code_from_json(_field(item, "category", Mapping, where), f"{where}.category"),
        type=_code_from_json(_field(item, "type", Mapping, where), f"{where}.type"),
        modifier=None if modifier is None else _code_from_json(modifier, f"{where}.modifier"),
        single=_field({"single": False, **item}, "single", bool, where),
    )


def _code_from_json(item: Any, where: str) -> Code:
    value, scheme, meaning = (_field(item, key, str, where) for key in ("value", "scheme", "meaning"))
    return Code(value, scheme, meaning)


def _id_and_name(key: object, value: object) -> tuple[int, str]:
    """One entry of a dataset.json's ``labels``, whichever way round it is written."""
    if isinstance(key, str) and key.strip().isdecimal() and isinstance(value, str):
        label_id, name = int(key), value
    elif isinstance(value, (list, tuple)):
        raise UserError(
            f"labels: {key!r} is a region of several ids {list(value)}, which is not supported",
            "Give each organ one id of its own",
        )
    elif isinstance(key, str) and isinstance(value, int) and not isinstance(value, bool):
        label_id, name = value, key
    else:
        raise UserError(f"labels: {key!r}: {value!r} does not name an id and an organ", 'Write {"spleen": 1}')
    if _key(name) == "ignore":
        raise UserError("labels: an ignore label is not supported", "Leave partly drawn slices out instead")
    if _key(name) == "background" and label_id != 0:
        raise UserError(f"labels: the background has the id {label_id}", "The background must be 0")
    return label_id, name


def _label_from_name(label_id: int, name: str, used: Sequence[tuple[int, int, int]]) -> Label:
    label = {_key(label.name): label for label in ABDOMEN}.get(canonical_name(name))
    if label is not None:
        return replace(label, id=label_id, name=name)
    taken = {label.color for label in ABDOMEN} | set(used)
    return Label(label_id, name, _new_color(label_id, taken), STRUCTURE, STRUCTURE)


def _new_color(number: int, taken: set[tuple[int, int, int]]) -> tuple[int, int, int]:
    """A saturated colour that is not taken; neighbouring numbers get hues far apart (the golden ratio)."""
    while True:
        red, green, blue = colorsys.hsv_to_rgb(number * 0.618034 % 1.0, 0.65, 0.95)
        color = (round(red * 255), round(green * 255), round(blue * 255))
        if color not in taken:
            return color
        number += 1


def _organ(
    label_id: int,
    name: str,
    color: tuple[int, int, int],
    kind: Code,
    modifier: Code | None = None,
    single: bool = True,
) -> Label:
    return Label(label_id, name, color, STRUCTURE, kind, modifier, single)


_KIDNEY = Code("64033007", "SCT", "Kidney")
_ADRENAL = Code("23451007", "SCT", "Adrenal gland")
_SYNONYMS = {
    "oesophagus": "esophagus",
    "gall bladder": "gallbladder",
    "ivc": "inferior vena cava",
    "postcava": "inferior vena cava",
    "portal vein and splenic vein": "portal and splenic vein",
    "right adrenal": "right adrenal gland",
    "left adrenal": "left adrenal gland",
}

# Codes and colours are Slicer's, but for the two veins: its general anatomy list has neither. The vena cava
# has the colour that the list gives to veins, the portal and splenic vein a darker one to tell the two apart.
ABDOMEN = LabelSet(
    (
        _organ(1, "spleen", (157, 108, 162), Code("78961009", "SCT", "Spleen")),
        _organ(2, "right kidney", (185, 102, 83), _KIDNEY, _RIGHT),
        _organ(3, "left kidney", (185, 102, 83), _KIDNEY, _LEFT),
        _organ(4, "gallbladder", (139, 150, 98), Code("28231008", "SCT", "Gallbladder")),
        _organ(5, "esophagus", (211, 171, 143), Code("32849002", "SCT", "Esophagus")),
        _organ(6, "liver", (221, 130, 101), Code("10200004", "SCT", "Liver")),
        _organ(7, "stomach", (216, 132, 105), Code("69695003", "SCT", "Stomach")),
        _organ(8, "aorta", (224, 97, 76), Code("15825003", "SCT", "Aorta")),
        _organ(9, "inferior vena cava", (0, 151, 206), _INFERIOR_VENA_CAVA),
        _organ(10, "portal and splenic vein", (0, 92, 168), _PORTAL_VEIN, single=False),
        _organ(11, "pancreas", (249, 180, 111), Code("15776009", "SCT", "Pancreas")),
        _organ(12, "right adrenal gland", (249, 186, 150), _ADRENAL, _RIGHT),
        _organ(13, "left adrenal gland", (249, 186, 150), _ADRENAL, _LEFT),
    )
)
