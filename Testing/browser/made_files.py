"""Small files to open: a volume, and CT series in all the states that series are in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
from pydicom.dataset import FileDataset, FileMetaDataset

CT_IMAGE = "1.2.840.10008.5.1.4.1.1.2"
BROKEN = pydicom.uid.JPEG2000Lossless  # with this TransferSyntaxUID, the pixels are none


def write_nifti(path: Path, affine: Any = None) -> Path:
    values = np.random.default_rng(len(path.name)).integers(-900, 900, (12, 14, 9)).astype(np.int16)
    nibabel.save(nibabel.Nifti1Image(values, np.diag([3.0, 3, 5, 1]) if affine is None else affine), path)
    return path


def write_series(folder: Path, count: int = 8, **tags: Any) -> list[Path]:
    """A small CT series.

    Args:
        tags: of every slice, by keyword; a function gives it by the slice's number.
    """
    folder.mkdir(exist_ok=True)
    written, series = [], tags.pop("SeriesInstanceUID", pydicom.uid.generate_uid())
    for n in range(count):
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = CT_IMAGE, pydicom.uid.generate_uid()
        meta.TransferSyntaxUID = tags.get("TransferSyntaxUID", pydicom.uid.ExplicitVRLittleEndian)
        image = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
        image.SOPClassUID, image.SOPInstanceUID = CT_IMAGE, meta.MediaStorageSOPInstanceUID
        image.StudyInstanceUID, image.SeriesInstanceUID, image.FrameOfReferenceUID = "1.2.3", series, "1.2.4"
        image.Modality, image.SeriesDescription, image.InstanceNumber = "CT", "Abdomen", n + 1
        image.ImageOrientationPatient = [1, 0, 0, 0, 0.96, 0.28]
        image.ImagePositionPatient = [10.0, 20.0 - 0.7 * n, 30 + 2.4 * n]  # along the slices' normal
        image.PixelSpacing, image.SliceThickness = [1.5, 1.25], 2.5
        image.Rows, image.Columns, image.SamplesPerPixel, image.PhotometricInterpretation = 10, 12, 1, "MONOCHROME2"
        image.BitsAllocated, image.BitsStored, image.HighBit, image.PixelRepresentation = 16, 16, 15, 0
        image.RescaleIntercept, image.RescaleSlope = -1024, 1
        pixels = np.random.default_rng(n).integers(0, 2000, (10, 12)).astype(np.uint16)
        image.PixelData = pixels.tobytes()
        for name, value in tags.items():
            if name != "TransferSyntaxUID":
                setattr(image, name, value(n) if callable(value) else value)
        if meta.TransferSyntaxUID == BROKEN:
            image.PixelData = pydicom.encaps.encapsulate([b"no JPEG 2000"])
            image["PixelData"].is_undefined_length = True
        written.append(folder / f"{series[-4:]} {n:03}.dcm")
        image.save_as(written[-1])
    return written
