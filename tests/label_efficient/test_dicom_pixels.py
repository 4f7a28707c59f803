"""DICOM files as pixels: values, windows, colour, compression, and a refusal for every unusable one."""

import importlib
import struct

import numpy as np
import pydicom
import pytest
from picture_files import GREY, RGB, jpeg_bytes, refused, stretched, write_dicom
from PIL import Image
from pydicom.encaps import encapsulate
from pydicom.uid import (
    MPEG2MPML,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
)

from label_efficient.data.image_files import list_images
from label_efficient.data.images import read_image

DEEP = GREY.astype(np.uint16) * 16 + 100  # 100..3620


def test_dicom_without_window_fills_the_range(tmp_path):
    path = write_dicom(tmp_path / "a.dcm", DEEP, BitsStored=12)
    np.testing.assert_array_equal(read_image(path), np.stack([stretched(DEEP)] * 3, axis=-1))
    constant = write_dicom(tmp_path / "b.dcm", np.full((3, 4), 9, np.uint16))
    np.testing.assert_array_equal(read_image(constant, 1), np.zeros((3, 4, 1)))
    wide = np.array([[-32000, 0, 32000]], np.int16)
    np.testing.assert_array_equal(read_image(write_dicom(tmp_path / "c.dcm", wide), 1).ravel(), [0, 128, 255])


def test_dicom_monochrome1_is_turned(tmp_path):
    path = write_dicom(tmp_path / "a.dcm", DEEP, BitsStored=12, PhotometricInterpretation="MONOCHROME1")
    np.testing.assert_array_equal(read_image(path, 1)[..., 0], stretched(-DEEP.astype(int)))
    constant = np.full((3, 4), 9, np.uint16)
    path = write_dicom(tmp_path / "b.dcm", constant, PhotometricInterpretation="MONOCHROME1")
    np.testing.assert_array_equal(read_image(path, 1), np.zeros((3, 4, 1)))


@pytest.mark.parametrize("polarity", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("slope", [1, -2, 0.5])
def test_dicom_first_window_after_rescale(tmp_path, polarity, slope):
    stored = (DEEP.astype(int) - 2000).astype(np.int16)
    center, width = [40.0, 300.0], [4400.0, 10.0]
    elements = {"RescaleSlope": slope, "RescaleIntercept": -24, "WindowCenter": center, "WindowWidth": width}
    path = write_dicom(tmp_path / "a.dcm", stored, PhotometricInterpretation=polarity, **elements)
    values = stored * float(slope) - 24
    share = np.clip((values - 39.5) / 4399 + 0.5, 0, 1)  # DICOM PS3.3 C.11.2.1.2.1
    expected = 255 * (1 - share if polarity == "MONOCHROME1" else share)
    assert 0 < expected.min() + expected.max() < 510  # the window is wider than the data on one side at least
    assert np.abs(read_image(path, 1)[..., 0] - expected).max() <= 0.51


def test_dicom_window_functions(tmp_path):
    window = {"WindowCenter": 1500, "WindowWidth": 2000, "BitsStored": 12}
    path = write_dicom(tmp_path / "exact.dcm", DEEP, VOILUTFunction="LINEAR_EXACT", **window)
    expected = np.clip((DEEP - 1500.0) / 2000 + 0.5, 0, 1) * 255
    assert np.abs(read_image(path, 1)[..., 0] - expected).max() <= 0.51
    path = write_dicom(tmp_path / "sigmoid.dcm", DEEP, VOILUTFunction="SIGMOID", **window)
    expected = 255 / (1 + np.exp(-4 * (DEEP - 1500.0) / 2000))
    assert np.abs(read_image(path, 1)[..., 0] - expected).max() <= 0.51
    refused(write_dicom(tmp_path / "bad.dcm", DEEP, WindowCenter=1, WindowWidth=0), "Window Width")


def test_dicom_modality_and_voi_tables(tmp_path):
    stored = np.array([[0, 1, 2], [3, 4, 5]], np.uint8)
    modality, voi = pydicom.Dataset(), pydicom.Dataset()
    modality.LUTDescriptor, modality.LUTData = [6, 0, 16], [50, 10, 20, 40, 30, 0]
    modality["LUTDescriptor"].VR = modality["LUTData"].VR = "US"
    voi.LUTDescriptor, voi.LUTData = [51, 0, 12], [min(80 * n, 4095) for n in range(51)]
    voi["LUTDescriptor"].VR = voi["LUTData"].VR = "US"
    sequences = {"ModalityLUTSequence": [modality], "VOILUTSequence": [voi]}
    path = write_dicom(tmp_path / "a.dcm", stored, **sequences)
    expected = np.rint(np.array([[4000, 800, 1600], [3200, 2400, 0]]) / 4095 * 255)
    np.testing.assert_array_equal(read_image(path, 1)[..., 0], expected)
    rescaled = {"RescaleSlope": 9.9, "RescaleIntercept": 0, "VOILUTSequence": [voi]}
    path = write_dicom(tmp_path / "b.dcm", stored, **rescaled)  # rescaled values are real numbers: 9.9 is entry 10
    expected = np.rint(stored * 800.0 / 4095 * 255)
    np.testing.assert_array_equal(read_image(path, 1)[..., 0], expected)


@pytest.mark.parametrize("polarity", ["MONOCHROME1", "MONOCHROME2"])
def test_dicom_padding_is_black_and_does_not_stretch(tmp_path, polarity):
    stored = (DEEP.astype(int) - 500).astype(np.int16)
    stored[0] = -2000
    stored[2, 3] = -1990
    path = tmp_path / "a.dcm"
    write_dicom(path, stored, PhotometricInterpretation=polarity, RescaleSlope=1, RescaleIntercept=-1024)
    dataset = pydicom.dcmread(path)
    dataset.add_new("PixelPaddingValue", "SS", -2000)
    dataset.add_new("PixelPaddingRangeLimit", "SS", -1980)
    dataset.save_as(path)
    kept = (stored != -2000) & (stored != -1990)
    values = (-stored if polarity == "MONOCHROME1" else stored)[kept]
    expected = np.zeros(stored.shape)
    expected[kept] = stretched(values)
    np.testing.assert_array_equal(read_image(path, 1)[..., 0], expected)


def test_dicom_padding_written_unsigned(tmp_path):
    stored = (DEEP.astype(int) - 500).astype(np.int16)
    stored[0] = -2000
    path = write_dicom(tmp_path / "a.dcm", stored)
    raw = path.read_bytes()
    at = raw.index(struct.pack("<HH", 0x7FE0, 0x10))
    element = struct.pack("<HH2sHH", 0x28, 0x120, b"US", 2, 63536)
    path.write_bytes(raw[:at] + element + raw[at:])
    assert pydicom.dcmread(path).PixelPaddingValue == 63536
    expected = np.vstack([np.zeros((1, 4)), stretched(stored[1:])])
    np.testing.assert_array_equal(read_image(path, 1)[..., 0], expected)


def test_dicom_colour(tmp_path):
    rgb = write_dicom(tmp_path / "rgb.dcm", RGB, PhotometricInterpretation="RGB")
    np.testing.assert_array_equal(read_image(rgb), RGB)
    planes = np.ascontiguousarray(RGB.transpose(2, 0, 1)).tobytes()
    options = {"PhotometricInterpretation": "RGB", "SamplesPerPixel": 3, "PlanarConfiguration": 1}
    np.testing.assert_array_equal(read_image(write_dicom(tmp_path / "planes.dcm", planes, **options)), RGB)
    ybr = np.asarray(Image.fromarray(RGB).convert("YCbCr"))
    full = read_image(write_dicom(tmp_path / "ybr.dcm", ybr, PhotometricInterpretation="YBR_FULL"))
    assert np.abs(full.astype(int) - RGB).max() <= 3
    unknown = write_dicom(tmp_path / "cmyk.dcm", RGB, PhotometricInterpretation="HSV")
    refused(unknown, "HSV")


@pytest.mark.parametrize(("bits", "factor"), [(8, 1), (16, 256), (16, 1)])
def test_dicom_palette(tmp_path, bits, factor):
    indices = np.array([[0, 1, 2], [2, 2, 1]], np.uint8)
    palette = np.array([[200, 10, 20], [3, 250, 5], [30, 40, 240]], np.uint8)
    elements = {"PhotometricInterpretation": "PALETTE COLOR"}
    path = write_dicom(tmp_path / "a.dcm", indices, **elements)
    dataset = pydicom.dcmread(path)
    for column, name in enumerate(("Red", "Green", "Blue")):
        entries = (np.append(palette[:, column], 0).astype(int) * factor).astype(f"<u{bits // 8}")
        dataset.add_new(f"{name}PaletteColorLookupTableDescriptor", "US", [4, 0, bits])
        dataset.add_new(f"{name}PaletteColorLookupTableData", "OW", entries.tobytes())
    dataset.save_as(path)
    np.testing.assert_array_equal(read_image(path), palette[indices])


def test_dicom_compressed(tmp_path):
    smooth = np.add.outer(np.arange(64), 3 * np.arange(48)).astype(np.uint8)
    colour = np.stack([smooth, 255 - smooth, smooth // 2], axis=-1)
    size = {"Rows": 64, "Columns": 48}
    grey = write_dicom(tmp_path / "a.dcm", jpeg_bytes(smooth, "JPEG", quality=98), JPEGBaseline8Bit, **size)
    assert np.abs(read_image(grey, 1)[..., 0] - stretched(smooth)).max() < 8
    size |= {"SamplesPerPixel": 3, "PhotometricInterpretation": "YBR_FULL_422"}
    data = jpeg_bytes(colour, "JPEG", quality=98, subsampling=1)
    rgb = read_image(write_dicom(tmp_path / "b.dcm", data, JPEGBaseline8Bit, **size))
    assert np.abs(rgb.astype(int) - colour).max() < 12
    size["PhotometricInterpretation"] = "YBR_RCT"
    data = jpeg_bytes(colour, "JPEG2000", irreversible=False, mct=1, no_jp2=True)
    np.testing.assert_array_equal(read_image(write_dicom(tmp_path / "c.dcm", data, JPEG2000Lossless, **size)), colour)


def test_truncated_compressed_dicom_is_refused(tmp_path):
    smooth = np.add.outer(np.arange(64), 3 * np.arange(48)).astype(np.uint8)
    data = jpeg_bytes(smooth, "JPEG", quality=98)
    path = write_dicom(tmp_path / "a.dcm", data, JPEGBaseline8Bit, Rows=64, Columns=48)
    whole = path.read_bytes()
    for part in (0.6, 0.95):
        path.write_bytes(whole[: int(len(whole) * part)])
        refused(path, "cut off")


def test_dicom_that_cannot_be_decoded(tmp_path):
    path = write_dicom(tmp_path / "a.dcm", encapsulate([bytes(64)]), MPEG2MPML)
    message = refused(path, "1.2.840.10008.1.2.4.100")
    assert "MPEG2" in message and "pip install" in message


def test_dicom_without_a_decoder(tmp_path, monkeypatch):
    if pydicom.__version__.startswith("2."):
        pytest.skip("pydicom 2 keeps its decoders elsewhere")
    decoders = importlib.import_module("pydicom.pixels.decoders")
    data = jpeg_bytes(GREY, "JPEG2000", no_jp2=True)
    path = write_dicom(tmp_path / "a.dcm", data, JPEG2000Lossless)
    np.testing.assert_array_equal(read_image(path, 1)[..., 0], stretched(GREY))
    monkeypatch.setattr(decoders.JPEG2000LosslessDecoder, "_available", {})
    message = refused(path, r"JPEG 2000 .*1\.2\.840\.10008\.1\.2\.4\.90")
    assert "pip install pylibjpeg" in message


def test_dicom_frames_and_missing_pixels(tmp_path):
    path = write_dicom(tmp_path / "frames.dcm", np.vstack([GREY] * 5), NumberOfFrames=5, Rows=3)
    refused(path, "5 pages or frames; expected 1")
    one = write_dicom(tmp_path / "one.dcm", GREY, NumberOfFrames=1)
    np.testing.assert_array_equal(read_image(one, 1)[..., 0], stretched(GREY))
    path = write_dicom(tmp_path / "report.dcm", GREY)
    dataset = pydicom.dcmread(path)
    del dataset.PixelData
    dataset.save_as(path)
    refused(path, "without pixel data")


@pytest.mark.parametrize("name", ["IM0001", "1.2.840.113619.2.5.17", "a.DCM"])
def test_dicom_is_known_by_name_or_mark(tmp_path, name):
    path = write_dicom(tmp_path / name, GREY)
    np.testing.assert_array_equal(read_image(path, 1)[..., 0], stretched(GREY))
    assert list_images(tmp_path) == [path]


@pytest.mark.parametrize("element", ["PhotometricInterpretation", "Rows", "BitsAllocated", "SamplesPerPixel"])
def test_dicom_says_what_it_lacks(tmp_path, element):
    path = write_dicom(tmp_path / "a.dcm", GREY)
    dataset = pydicom.dcmread(path)
    delattr(dataset, element)
    dataset.save_as(path)
    message = refused(path, f"DICOM without {element}")
    assert "pip install" not in message


def test_uncompressed_dicom_that_is_cut_needs_no_decoder(tmp_path):
    assert "pip install" not in refused(write_dicom(tmp_path / "a.dcm", bytes(4)), "does not decode")
