"""SNOMED CT codes of an organ -> the terminology entry that Slicer keeps in a segment's tag."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import slicer

GENERAL_ANATOMY = "Segmentation category and type - 3D Slicer General Anatomy list"
DICOM_MASTER = "Segmentation category and type - DICOM master list"
_REGIONS = "Anatomic codes - DICOM master list"
_TISSUE = ["SCT", "85756007", "Tissue"]  # what Slicer gives to a segment of no known kind


def entry_for(snomed: dict[str, Any] | None) -> str:
    """A segment's terminology entry, serialized as Slicer does it.

    Slicer's general anatomy list is named if it knows the codes, else the DICOM master list if that does; the
    texts are then the list's own. Codes that neither knows are written as they are: Slicer shows and exports
    them too.

    Args:
        snomed: {"category": [scheme, code, meaning], "type": [...], "modifier": [...] or None}; None for an organ
            of the user's own without codes, which is "Tissue".
    """
    snomed = snomed or {"category": _TISSUE, "type": _TISSUE}
    wanted = [snomed["category"], snomed["type"], snomed.get("modifier")]
    for context in (GENERAL_ANATOMY, DICOM_MASTER):
        known = _look_up(context, wanted)
        if known:
            return _serialize(context, known)
    return _serialize(GENERAL_ANATOMY, wanted)


def codes_of(entry: str) -> dict[str, Any] | None:
    """The codes in a serialized entry, as `entry_for` takes them; None for a text that has none."""
    parts = [part.split("^") for part in entry.split("~")[1:4]]
    if len(parts) != 3 or any(len(part) != 3 for part in parts) or not parts[0][1] or not parts[1][1]:
        return None
    return {"category": parts[0], "type": parts[1], "modifier": parts[2] if parts[2][1] else None}


def _serialize(context: str, codes: Sequence[Sequence[str] | None]) -> str:
    texts = ["^".join(code) if code else "^^" for code in codes]
    return "~".join([context, *texts, _REGIONS, "^^", "^^"])


def _look_up(context: str, wanted: Sequence[Sequence[str] | None]) -> list[Sequence[str] | None] | None:
    """The codes as the terminology has them, or None if it lacks one."""
    logic = slicer.modules.terminologies.logic()
    category = slicer.vtkSlicerTerminologyCategory()
    kind = slicer.vtkSlicerTerminologyType()
    modifier = slicer.vtkSlicerTerminologyType()
    if not _find(
        wanted[0],
        logic.GetNumberOfCategoriesInTerminology(context),
        category,
        lambda n: logic.GetNthCategoryInTerminology(context, n, category),
    ):
        return None
    if not _find(
        wanted[1],
        logic.GetNumberOfTypesInTerminologyCategory(context, category),
        kind,
        lambda n: logic.GetNthTypeInTerminologyCategory(context, category, n, kind),
    ):
        return None
    if wanted[2] is None:
        return [_code(category), _code(kind), None]
    count = logic.GetNumberOfTypeModifiersInTerminologyType(context, category, kind)
    if not _find(
        wanted[2],
        count,
        modifier,
        lambda n: logic.GetNthTypeModifierInTerminologyType(context, category, kind, n, modifier),
    ):
        return None
    return [_code(category), _code(kind), _code(modifier)]


def _find(wanted: Sequence[str] | None, count: int, holder: Any, load: Any) -> bool:
    """Loads one entry after the other into `holder`, and stops at the one that has the wanted code."""
    return wanted is not None and any(load(n) and _code(holder)[:2] == list(wanted[:2]) for n in range(count))


def _code(entry: Any) -> list[str]:
    return [entry.GetCodingSchemeDesignator(), entry.GetCodeValue(), entry.GetCodeMeaning()]
