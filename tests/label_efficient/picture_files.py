"""Small pictures, and files of them in formats that the usual libraries do not write so."""

import io
import struct
import zlib
from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid

from label_efficient.data.images import ImageError, read_image

GREY = np.arange(12, dtype=np.uint8).reshape(3, 4) * 20  # asymmetrical: every flip and turn shows
RGB = np.stack([GREY, 255 - GREY, GREY // 2], axis=-1)


def save(path: Path, values: np.ndarray, mode: str | None = None, **kwargs) -> Path:
    picture = Image.fromarray(values)
    (picture.convert(mode) if mode else picture).save(path, **kwargs)
    return path


def write_png(path: Path, width: int, height: int, depth: int, colour: int, rows: bytes) -> Path:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    )
    return path


def write_tiff(path: Path, values: np.ndarray, photometric: int = 1, orientation: int = 1) -> Path:
    """An uncompressed little-endian grey TIFF, of types that Pillow does not write."""
    kind = {"u": 1, "i": 2, "f": 3}[values.dtype.kind]
    height, width = values.shape
    tags = [(256, width), (257, height), (258, values.itemsize * 8), (259, 1), (262, photometric)]
    tags += [(273, 8 + 2 + 12 * 11 + 4), (274, orientation), (277, 1), (278, height)]
    tags += [(279, values.nbytes), (339, kind)]
    entries = b"".join(struct.pack("<HHIHH", tag, 3, 1, value, 0) for tag, value in tags)
    body = values.astype(values.dtype.newbyteorder("<")).tobytes()
    path.write_bytes(b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4) + body)
    return path


def write_dicom(path: Path, pixels: np.ndarray | bytes, syntax=ExplicitVRLittleEndian, **elements) -> Path:
    meta = FileMetaDataset()
    meta.TransferSyntaxUID, meta.MediaStorageSOPClassUID = syntax, SecondaryCaptureImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    dataset = FileDataset(str(path), {}, file_meta=meta, preamble=bytes(128))
    dataset.SOPClassUID, dataset.SOPInstanceUID = SecondaryCaptureImageStorage, generate_uid()
    dataset.PhotometricInterpretation, dataset.SamplesPerPixel = "MONOCHROME2", 1
    dataset.Rows, dataset.Columns = GREY.shape
    dataset.BitsAllocated, dataset.PixelRepresentation = 8, 0
    if isinstance(pixels, np.ndarray):
        dataset.Rows, dataset.Columns = pixels.shape[:2]
        dataset.BitsAllocated = pixels.itemsize * 8
        dataset.PixelRepresentation = int(pixels.dtype.kind == "i")
        dataset.SamplesPerPixel = 3 if pixels.ndim == 3 else 1
        pixels = pixels.tobytes()
    if dataset.SamplesPerPixel == 3 or elements.get("SamplesPerPixel") == 3:
        dataset.PlanarConfiguration = 0
    dataset.BitsStored = elements.get("BitsStored", dataset.BitsAllocated)
    dataset.HighBit = dataset.BitsStored - 1
    dataset.PixelData = pixels + bytes(len(pixels) % 2)
    dataset["PixelData"].VR = "OB" if dataset.BitsAllocated == 8 else "OW"
    for name, value in elements.items():
        setattr(dataset, name, value)
    dataset.save_as(path)
    return path


def write_nifti(path: Path, values: np.ndarray, diagonal=(-1, -1, 1), affine=None) -> Path:
    affine = np.diag([*diagonal, 1]) if affine is None else affine
    nibabel.Nifti1Image(values, affine).to_filename(path)
    return path


def jpeg_bytes(values: np.ndarray, kind: str, **kwargs) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, kind, **kwargs)
    return encapsulate([buffer.getvalue() + bytes(buffer.tell() % 2)])


def stretched(values):
    """The rule for data deeper than 8 bits, written out."""
    values = np.asarray(values, np.float64)
    return np.rint((values - values.min()) / (values.max() - values.min()) * 255)


def refused(path: Path, match: str = ".") -> str:
    with pytest.raises(ImageError, match=match) as caught:
        read_image(path)
    message = str(caught.value)
    assert str(path) in message and "expected" in message and "What to do" in message
    return message
