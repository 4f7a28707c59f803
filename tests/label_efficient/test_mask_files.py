"""Lung masks: stored values kept exactly, every file kind, joining, and what is refused."""

import struct
import zlib
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.uid import JPEG2000, ExplicitVRLittleEndian, JPEG2000Lossless, JPEGBaseline8Bit, JPEGLSNearLossless

from label_efficient.data.images import read_image
from label_efficient.data.mask_files import MaskError, read_mask, read_stored

H, W = 6, 9
LUNGS = np.zeros((H, W), np.uint8)
LUNGS[1:4, 1:3] = 150  # the left one is higher than the right one, so that a turned mask is another
LUNGS[2:6, 5:8] = 200
LUNGS[5, 0] = 250
BINARY = np.isin(LUNGS, (150, 200))


def save(path: Path, pixels: np.ndarray, **options: Any) -> Path:
    Image.fromarray(pixels).save(path, **options)
    return path


def save_dicom(path: Path, pixels: np.ndarray, syntax: str = ExplicitVRLittleEndian, **tags: Any) -> Path:
    dataset = pydicom.Dataset()
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.SOPClassUID, dataset.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.7", "1.2.3"
    dataset.Rows, dataset.Columns = pixels.shape
    dataset.SamplesPerPixel, dataset.PixelRepresentation = 1, 0
    dataset.BitsAllocated = dataset.BitsStored = 8 * pixels.itemsize
    dataset.HighBit = dataset.BitsStored - 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.PixelData = pixels.tobytes()
    for key, value in tags.items():
        setattr(dataset, key, value)
    dataset.save_as(path, enforce_file_format=True)
    return path


@pytest.mark.parametrize("suffix", [".png", ".tif", ".bmp", ".gif"])
def test_pictures_keep_their_values(tmp_path: Path, suffix: str) -> None:
    path = save(tmp_path / f"m{suffix}", LUNGS)
    assert np.array_equal(read_stored(path), LUNGS)
    mask = read_mask([path], [150, 200], (H, W))
    assert mask.dtype == bool and mask.flags.c_contiguous and np.array_equal(mask, BINARY)
    assert np.array_equal(read_mask([path], [250]), LUNGS == 250)


@pytest.mark.parametrize("value", [1, 2, 255])
def test_binary_masks_need_no_values(tmp_path: Path, value: int) -> None:
    assert np.array_equal(read_mask([save(tmp_path / "m.png", BINARY * np.uint8(value))]), BINARY)
    assert np.array_equal(read_mask([save(tmp_path / "one_bit.png", BINARY)]), BINARY)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_sixteen_bits_are_not_rescaled(tmp_path: Path, suffix: str) -> None:
    path = save(tmp_path / f"m{suffix}", LUNGS.astype(np.uint16) * 7)
    assert np.array_equal(read_stored(path), LUNGS.astype(int) * 7)
    assert np.array_equal(read_mask([path], [150 * 7, 200 * 7]), BINARY)


def test_palette_is_read_by_index(tmp_path: Path) -> None:
    indices = np.where(LUNGS == 150, 1, np.where(LUNGS == 200, 2, 0)).astype(np.uint8)
    picture = Image.fromarray(indices)
    picture.putpalette([0, 0, 0, 200, 0, 0, 10, 10, 10])  # colours of a drawing program
    picture.save(tmp_path / "m.png")
    assert np.array_equal(read_mask([tmp_path / "m.png"], [1, 2]), BINARY)
    picture = Image.fromarray(BINARY.astype(np.uint8))
    picture.putpalette([255, 255, 255, 0, 0, 0])
    picture.save(tmp_path / "swapped.png")
    picture.save(tmp_path / "swapped.gif")
    assert np.array_equal(read_stored(tmp_path / "swapped.gif") > 0, ~BINARY)
    picture.putpalette([0, 90, 0, 200, 0, 0])  # of a GIF with colours, too, the indices count
    picture.save(tmp_path / "coloured.gif")
    indices = np.asarray(Image.open(tmp_path / "coloured.gif"))
    assert np.array_equal(read_stored(tmp_path / "coloured.gif"), indices)
    with pytest.raises(MaskError, match=r"swapped.png: its palette shows the value 0 brighter than the value 1"):
        read_mask([tmp_path / "swapped.png"])


def test_colour_is_accepted_where_it_is_grey(tmp_path: Path) -> None:
    rgb = np.repeat(LUNGS[..., None], 3, axis=2)
    assert np.array_equal(read_mask([save(tmp_path / "rgb.png", rgb)], [150, 200]), BINARY)
    drawn = np.dstack([np.full((H, W, 3), 255, np.uint8), BINARY * np.uint8(255)])  # white on nothing
    assert np.array_equal(read_mask([save(tmp_path / "rgba.png", drawn)]), BINARY)
    drawn[0, 0, 3] = 128
    with pytest.raises(MaskError, match="partly transparent"):
        read_mask([save(tmp_path / "soft.png", drawn)])
    rgb[0, 0] = 255, 0, 0
    with pytest.raises(MaskError, match=r"red.png: it is coloured"):
        read_mask([save(tmp_path / "red.png", rgb)])


def test_sixteen_bit_colour_would_lose_its_values(tmp_path: Path) -> None:
    rows = b"".join(b"\0" + np.repeat(row, 3).astype(">u2").tobytes() for row in LUNGS)

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", W, H, 16, 2, 0, 0, 0)
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    (tmp_path / "m.png").write_bytes(b"\x89PNG\r\n\x1a\n" + chunks)
    with pytest.raises(MaskError, match="16-bit colour, of which the lower 8 bits would be lost"):
        read_mask([tmp_path / "m.png"], [150, 200])


def test_turned_as_the_picture_is(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    path = save(tmp_path / "m.png", BINARY * np.uint8(255), exif=exif)
    assert np.array_equal(read_mask([path]), read_image(path, 1)[..., 0] > 0)
    assert read_mask([path]).shape == (W, H)


@pytest.mark.parametrize("axes", [(1, 1), (-1, 1), (1, -1), (-1, -1)])
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32])
def test_nifti_keeps_labels_and_turns_as_the_picture(tmp_path: Path, axes: tuple[int, int], dtype: type) -> None:
    affine = np.diag([*axes, 1, 1]).astype(float)
    path = tmp_path / "m.nii.gz"
    nibabel.save(nibabel.Nifti1Image((LUNGS.T[..., None] // 50).astype(dtype), affine), path)
    picture = tmp_path / "i.nii.gz"
    nibabel.save(nibabel.Nifti1Image(LUNGS.T[..., None], affine), picture)
    assert np.array_equal(read_stored(path) * 50, read_image(picture, 1)[..., 0])
    assert np.array_equal(read_mask([path], [3, 4]), np.isin(read_image(picture, 1)[..., 0], (150, 200)))


def test_nifti_without_orientation_and_in_three_dimensions(tmp_path: Path) -> None:
    nibabel.save(nibabel.Nifti1Image(LUNGS.T, None), tmp_path / "m.nii")
    assert np.array_equal(read_stored(tmp_path / "m.nii"), LUNGS)
    nibabel.save(nibabel.Nifti1Image(np.zeros((4, 4, 2), np.uint8), np.eye(4)), tmp_path / "volume.nii")
    with pytest.raises(MaskError, match=r"volume.nii: its shape is \(4, 4, 2\)"):
        read_stored(tmp_path / "volume.nii")
    nibabel.save(nibabel.Nifti1Image(np.full((4, 4), 0.5, np.float32), np.eye(4)), tmp_path / "soft.nii")
    with pytest.raises(MaskError, match="fractions"):
        read_stored(tmp_path / "soft.nii")


def test_dicom_as_stored(tmp_path: Path) -> None:
    path = save_dicom(
        tmp_path / "m.dcm", LUNGS.astype(np.uint16) * 3, RescaleSlope="2", RescaleIntercept="-9", WindowWidth="1"
    )
    assert np.array_equal(read_mask([path], [450, 600]), BINARY)
    with pytest.raises(MaskError, match="lossy compression changes the values"):
        read_stored(save_dicom(tmp_path / "lossy.dcm", LUNGS, LossyImageCompression="01"))
    encapsulated = pydicom.encaps.encapsulate([b"no picture"])
    for syntax in (JPEGBaseline8Bit, JPEGLSNearLossless, JPEG2000):
        path = save_dicom(tmp_path / "jpeg.dcm", LUNGS, syntax, PixelData=encapsulated)
        with pytest.raises(MaskError, match="lossy compression changes the values"):
            read_stored(path)
    path = save_dicom(tmp_path / "damaged.dcm", LUNGS, JPEG2000Lossless, PixelData=encapsulated)
    with pytest.raises(MaskError, match=r"damaged.dcm: cannot be read"):
        read_stored(path)


def test_masks_are_joined(tmp_path: Path) -> None:
    left = save(tmp_path / "left.png", (LUNGS == 150) * np.uint8(255))
    right = save(tmp_path / "right.png", (LUNGS == 200) * np.uint8(1))
    assert np.array_equal(read_mask([left, right]), BINARY)
    empty = save(tmp_path / "empty.png", np.zeros((H, W), np.uint8))
    assert np.array_equal(read_mask([left, empty]), LUNGS == 150)
    with pytest.raises(MaskError, match=r"small.png: the mask is 6 x 8 pixels and .*left.png is 6 x 9"):
        read_mask([left, save(tmp_path / "small.png", LUNGS[:, :8])])


@pytest.mark.parametrize(
    ("pixels", "values", "message"),
    [
        (np.zeros((H, W), np.uint8), None, "no lungs in the mask"),
        (LUNGS, None, r"0 \(35 pixels\), 150 \(6 pixels\), 200 \(12 pixels\), 250 \(1 pixels\).*give mask_values"),
        (LUNGS, [1], r"no lungs in the mask: it holds 0 \(35 pixels\), 150 .* and mask_values is \[1\]"),
        (BINARY + np.uint8(1), None, r"1 \(36 pixels\), 2 \(18 pixels\), expected 0 and one other"),
        (np.arange(H * W, dtype=np.uint8).reshape(H, W), None, "54 values, the most frequent of them"),
        (
            np.full((H, W), 255, np.uint8),
            None,
            "100% of the image and 100% of its border would be lung; is the mask inverted",
        ),
        (LUNGS, [0, 150, 200], "98% of the image and .* would be lung"),
        (LUNGS, [0], "65% of the image and .* would be lung; is the mask inverted"),
    ],
)
def test_refused_values(tmp_path: Path, pixels: np.ndarray, values: list[int] | None, message: str) -> None:
    with pytest.raises(MaskError, match=f"m.png.*{message}"):
        read_mask([save(tmp_path / "m.png", pixels)], values)


def test_lungs_that_fill_a_cropped_image_are_no_inversion(tmp_path: Path) -> None:
    pixels = np.zeros((10, 10), np.uint8)
    pixels[1:, 1:] = 255
    pixels[1:, 9] = 0
    pixels[9, 1:7] = 0
    assert read_mask([save(tmp_path / "m.png", pixels)]).mean() == 0.66


def test_other_size_than_the_image(tmp_path: Path) -> None:
    with pytest.raises(MaskError, match=r"the mask is 6 x 9 pixels and the image is 9 x 6 \(height x width\)"):
        read_mask([save(tmp_path / "m.png", LUNGS)], [150], (W, H))


def test_jpeg_is_refused_under_any_name(tmp_path: Path) -> None:
    for name in ("m.jpg", "m.png"):
        with pytest.raises(MaskError, match=r"m\.(jpg|png): JPEG changes the values at every edge; save .* as PNG"):
            read_mask([save(tmp_path / name, LUNGS, format="JPEG")], [150, 200])


def test_files_that_are_no_masks(tmp_path: Path) -> None:
    with pytest.raises(MaskError, match=r"none.png: does not exist"):
        read_mask([tmp_path / "none.png"])
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(MaskError, match=r"text.png: cannot be read"):
        read_mask([tmp_path / "text.png"])
    path = save(tmp_path / "half.png", np.random.RandomState(0).randint(0, 255, (99, 99), np.uint8))
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(MaskError, match=r"half.png: cannot be read"):
        read_mask([path])
    pages = [Image.fromarray(LUNGS), Image.fromarray(LUNGS)]
    pages[0].save(tmp_path / "pages.tif", save_all=True, append_images=pages[1:])
    with pytest.raises(MaskError, match=r"pages.tif: 2 pages or frames"):
        read_mask([tmp_path / "pages.tif"])
    Image.fromarray(LUNGS).convert("CMYK").save(tmp_path / "cmyk.tif")
    with pytest.raises(MaskError, match="CMYK"):
        read_mask([tmp_path / "cmyk.tif"])


def test_published_masks(real_data: Path) -> None:
    for folder, values, suffix in (("jsrt_224", [150, 200], ".png"), ("shenzhen_256", None, ".jpg")):
        for path in sorted((real_data / "chest_xray" / folder / "masks").glob("*.png"))[::25]:
            image = read_image(path.parents[1] / "images" / f"{path.stem}{suffix}", 1)[..., 0]
            mask = read_mask([path], values, image.shape)
            assert 0.05 < mask.mean() < 0.5
            # Lungs lie on both sides of the middle and do not reach the corners.
            assert mask[:, : mask.shape[1] // 2].any() and mask[:, mask.shape[1] // 2 :].any()
            assert not mask[[0, 0, -1, -1], [0, -1, 0, -1]].any()
