"""DICOM files as uint8 pixels, by the rules of `images`."""

import contextlib
import importlib
import io
import re
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from PIL import Image
from pydicom.filereader import _read_file_meta_info, read_preamble
from pydicom.uid import DeflatedExplicitVRLittleEndian

from label_efficient.data.images import MOST_HEADER, check_shape, quiet, refusal, to_uint8, too_large
from label_efficient.files import open_file

_NEEDED = ("TransferSyntaxUID", "Rows", "Columns", "BitsAllocated", "SamplesPerPixel", "PhotometricInterpretation")


def read_dicom(path: Path, max_pixels: int) -> np.ndarray:
    """Pixels of a DICOM, uint8 H x W or H x W x 3; see `images.read_image`."""
    old = pydicom.__version__.startswith("2.")
    tools = importlib.import_module("pydicom.pixel_data_handlers.util" if old else "pydicom.pixels")
    with quiet():
        check_deflated(path, max_pixels)
        with open_file(path) as file:
            dataset = pydicom.dcmread(file)
        if not any(key in dataset for key in ("PixelData", "FloatPixelData", "DoubleFloatPixelData")):
            raise refusal(path, "DICOM without pixel data, or cut off", "leave it out or export it again")
        missing = [n for n in _NEEDED if (dataset.file_meta if n[0] == "T" else dataset).get(n) in (None, "")]
        if missing:
            found = f"DICOM without {', '.join(missing)}, by which its pixels are read"
            raise refusal(path, found, "export it again, with these elements")
        check_shape(path, max_pixels, *(dataset.get(key) for key in ("Rows", "Columns", "NumberOfFrames")))
        syntax = dataset.file_meta.TransferSyntaxUID
        if syntax.is_compressed:
            _check_stream(path, dataset)
        try:
            pixels = dataset.pixel_array
        except Exception as error:  # no decoder, or whatever the decoder raises
            found = f"transfer syntax {getattr(syntax, 'name', '')} ({syntax}) does not decode: {error}"
            advice = "it is damaged: copy or export it again"
            if syntax.is_compressed:
                advice = "pip install pylibjpeg pylibjpeg-libjpeg pylibjpeg-openjpeg, or export it uncompressed"
            raise refusal(path, found, advice) from error
        colour = str(dataset.get("PhotometricInterpretation"))
        if colour in ("MONOCHROME1", "MONOCHROME2"):
            return _scale_dicom(path, dataset, pixels, tools)
        if colour == "PALETTE COLOR":
            pixels = tools.apply_color_lut(pixels, dataset)
            return (pixels >> 8 if pixels.max() > 255 else pixels).astype(np.uint8)  # of 16 or 8 bits
        if colour not in ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_RCT", "YBR_ICT"):
            raise refusal(path, f"photometric interpretation {colour}", "export it as grey or RGB")
        if old and colour.startswith("YBR_FULL"):
            pixels = tools.convert_color_space(pixels, colour, "RGB")
        return to_uint8(path, pixels)


def check_deflated(path: Path, max_pixels: int) -> None:
    """Refuse a deflated DICOM that grows beyond any picture: pydicom would inflate it whole."""
    with open_file(path) as file:
        read_preamble(file, False)
        if _read_file_meta_info(file).get("TransferSyntaxUID") == DeflatedExplicitVRLittleEndian:
            most = 8 * max_pixels + MOST_HEADER
            if len(zlib.decompressobj(-zlib.MAX_WBITS).decompress(file.read(), most + 1)) > most:
                raise refusal(path, f"a deflated DICOM of more than {most} bytes", *too_large(max_pixels))


def _check_stream(path: Path, dataset: Any) -> None:
    """Refuse a compressed picture of another size than the DICOM around it says: decoders go by the former."""
    start = re.search(rb"\xff\xd8\xff|\xff\x4f\xff\x51", data := dataset.PixelData)
    with contextlib.suppress(Image.UnidentifiedImageError):  # of other kinds
        if start is not None:
            picture = Image.open(io.BytesIO(data[start.start() :]), formats=("JPEG", "JPEG2000"))
            if picture.size != (dataset.Columns, dataset.Rows):
                found = f"its pixels are {picture.height} x {picture.width}, its header says {dataset.Rows} x "
                raise refusal(path, f"{found}{dataset.Columns}", "export it again")


def _scale_dicom(path: Path, dataset: Any, stored: np.ndarray, tools: Any) -> np.ndarray:
    """Bring grey values (H, W), as stored, to uint8."""
    first, padding = dataset.get("PixelPaddingValue"), np.zeros(stored.shape, bool)
    if first is not None and stored.dtype.kind in "iu":
        ends = np.array([first, dataset.get("PixelPaddingRangeLimit", first)]).astype(stored.dtype)
        padding = (stored >= ends.min()) & (stored <= ends.max())  # the cast reads 63536 as -2000
    values = tools.apply_modality_lut(stored, dataset)
    if dataset.get("VOILUTSequence"):
        values = tools.apply_voi_lut(np.rint(values).astype(np.int64), dataset)  # tables want whole numbers
        low, high = 0.0, 2.0 ** dataset.VOILUTSequence[0].LUTDescriptor[2] - 1
    elif None not in (dataset.get("WindowCenter"), dataset.get("WindowWidth")):
        low, high = tools.apply_voi_lut(np.array([-1e300, 1e300]), dataset)  # the ends of its output
        values = tools.apply_voi_lut(values, dataset)
    else:
        kept = values if padding.all() else values[~padding]
        low, high = kept.min(), kept.max()
    if dataset.PhotometricInterpretation == "MONOCHROME1":
        values, low, high = -values.astype(np.float64), -float(high), -float(low)
    return to_uint8(path, values, low, high) * ~padding
