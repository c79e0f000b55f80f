"""A DICOM series as a scanner writes it, for tests: files and numbers do not follow the positions of the slices."""

from __future__ import annotations

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, CTImageStorage, ExplicitVRLittleEndian

UID_ROOT = "1.2.826.0.1.999"


def rotated(degrees=(0, 0, 0)):
    """Row, column and normal (columns of a matrix, LPS), rotated about x, y and z."""
    matrix = np.eye(3)
    for axis, angle in enumerate(np.radians(degrees)):
        turn, (i, j) = np.eye(3), [other for other in range(3) if other != axis]
        turn[[i, i, j, j], [i, j, i, j]] = np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle)
        matrix = turn @ matrix
    return matrix


def write_series(folder, stored, degrees=(0, 0, 0), spacing=(0.8, 0.5, 2.5), number=7, reverse=False, prefix="IM", **tags):
    """Write `stored` (slices, rows, columns) and return the affine (column, row, slice) → RAS+ mm.

    Args:
        folder: Where to.
        stored: Values that an int16 holds.
        degrees: Rotation of the slices.
        spacing: Between rows, columns and slices in mm.
        number: The number of the series, of which also its identifier is made.
        reverse: Whether the numbers of the slices run against their positions, instead of at random.
        prefix: What the names of the files begin with.
        **tags: Entries to overwrite; None takes one away.
    """
    matrix, origin = rotated(degrees), np.array([-20.0, 11.0, 42.5])
    count = len(stored)
    names = np.arange(count)[::-1] if reverse else np.random.default_rng(7).permutation(count)
    folder.mkdir(parents=True, exist_ok=True)
    series = f"{UID_ROOT}.{number}"
    for k, plane in enumerate(stored):
        data = Dataset()
        data.file_meta = FileMetaDataset()
        data.file_meta.MediaStorageSOPClassUID = CTImageStorage
        data.file_meta.MediaStorageSOPInstanceUID = UID(f"{series}.{k + 1}")
        data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        entries = {
            "SOPClassUID": CTImageStorage,
            "SOPInstanceUID": f"{series}.{k + 1}",
            "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"],
            "Modality": "CT",
            "Manufacturer": "ACME",
            "PatientName": "Mustermann^Erika",
            "PatientID": "PID-4711-0815",
            "PatientBirthDate": "19640812",
            "PatientSex": "F",
            "StudyInstanceUID": UID_ROOT,
            "StudyID": "1",
            "StudyDate": "20190305",
            "StudyTime": "101112",
            "AccessionNumber": "ACC99",
            "SeriesInstanceUID": series,
            "SeriesNumber": number,
            "FrameOfReferenceUID": f"{UID_ROOT}.0.1",
            "InstanceNumber": int(names[k]) + 1,
            "ImagePositionPatient": [f"{value:.6f}" for value in origin + matrix[:, 2] * spacing[2] * k],
            "ImageOrientationPatient": [f"{value:.6f}" for value in matrix[:, :2].T.ravel()],
            "SamplesPerPixel": 1,
            "PhotometricInterpretation": "MONOCHROME2",
            "Rows": plane.shape[0],
            "Columns": plane.shape[1],
            "PixelSpacing": list(spacing[:2]),
            "SliceThickness": spacing[2],
            "BitsAllocated": 16,
            "BitsStored": 16,
            "HighBit": 15,
            "PixelRepresentation": 1,
            **tags,
        }
        for name, value in entries.items():
            if value is not None:
                setattr(data, name, value)
        data.PixelData = plane.astype("<i2").tobytes()
        data.save_as(folder / f"{prefix}{names[k]:03d}", enforce_file_format=True)
    affine = np.eye(4)
    affine[:3, :3] = np.diag([-1, -1, 1]) @ matrix * [spacing[1], spacing[0], spacing[2]]
    affine[:3, 3] = np.diag([-1, -1, 1]) @ origin
    return affine
