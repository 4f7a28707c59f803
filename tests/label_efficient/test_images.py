"""Reading images: pixel values and orientation of files made here, and a refusal for every unusable one."""

import gzip
import logging
import os
import re
import struct
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
from picture_files import (
    GREY,
    RGB,
    jpeg_bytes,
    refused,
    save,
    stretched,
    write_dicom,
    write_nifti,
    write_png,
    write_tiff,
)
from PIL import Image, ImageFile
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    JPEG2000Lossless,
)

from label_efficient.data import images as _images
from label_efficient.data.image_files import find_images, list_images
from label_efficient.data.images import ImageError, read_image
from label_efficient.files import write_json

# PNG, JPEG, TIFF, BMP


@pytest.mark.parametrize("suffix", [".png", ".PNG", ".tif", ".TIFF", ".bmp"])
def test_8_bit_values_are_kept(tmp_path, suffix):
    grey = read_image(save(tmp_path / f"grey{suffix}", GREY))
    assert grey.dtype == np.uint8 and grey.flags.c_contiguous and grey.flags.writeable
    np.testing.assert_array_equal(grey, np.stack([GREY] * 3, axis=-1))
    np.testing.assert_array_equal(read_image(tmp_path / f"grey{suffix}", 1), GREY[..., None])
    np.testing.assert_array_equal(read_image(save(tmp_path / f"rgb{suffix}", RGB)), RGB)


def test_colour_to_grey_is_luma(tmp_path):
    grey = read_image(save(tmp_path / "rgb.png", RGB), channels=1)
    assert grey.shape == (3, 4, 1)
    assert np.abs(grey[..., 0] - RGB @ [0.299, 0.587, 0.114]).max() <= 0.51


def test_equal_channels_to_grey_keep_their_values(tmp_path):
    every = np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], 3, axis=2)
    np.testing.assert_array_equal(read_image(save(tmp_path / "a.png", every), 1)[..., 0], every[..., 0])


def test_jpeg_and_cmyk(tmp_path):
    smooth = np.add.outer(np.arange(64), 2 * np.arange(48)).astype(np.uint8)
    colour = np.stack([smooth, 255 - smooth, smooth // 2], axis=-1)
    jpeg = read_image(save(tmp_path / "a.jpg", colour, quality=95, subsampling=0))
    assert np.abs(jpeg.astype(int) - colour).max() < 12
    cmyk = read_image(save(tmp_path / "a.jpeg", colour, "CMYK", quality=95))
    assert np.abs(cmyk.astype(int) - colour).max() < 16
    np.testing.assert_array_equal(read_image(save(tmp_path / "a.tif", colour, "CMYK")), colour)


def test_opaque_alpha_changes_nothing(tmp_path):
    opaque = np.full(GREY.shape, 255, np.uint8)
    rgba = save(tmp_path / "rgba.png", np.dstack([RGB, opaque]))
    np.testing.assert_array_equal(read_image(rgba), RGB)
    grey_alpha = save(tmp_path / "la.png", np.dstack([GREY] * 3 + [opaque]), "LA")
    np.testing.assert_array_equal(read_image(grey_alpha, 1)[..., 0], GREY)


def test_partial_alpha_is_composited_on_black(tmp_path):
    alpha = np.array([255, 128, 51, 0], np.uint8)[None].repeat(3, axis=0)
    path = save(tmp_path / "rgba.png", np.dstack([RGB, alpha]))
    np.testing.assert_array_equal(read_image(path), np.rint(RGB * (alpha[..., None] / 255)))
    refused(save(tmp_path / "none.png", np.dstack([RGB, alpha * 0])), "fully transparent")


def test_transparent_colour_key(tmp_path):
    path = save(tmp_path / "key.png", GREY, transparency=int(GREY[1, 2]))
    expected = GREY.copy()
    expected[1, 2] = 0
    np.testing.assert_array_equal(read_image(path, 1)[..., 0], expected)


def test_palette_is_looked_up(tmp_path):
    indices = np.array([[0, 1, 2], [2, 2, 1]], np.uint8)
    palette = np.array([[200, 10, 20], [3, 250, 5], [30, 40, 250]], np.uint8)
    picture = Image.fromarray(indices).convert("P")
    picture.putpalette(palette.tobytes())
    picture.save(tmp_path / "plain.png")
    np.testing.assert_array_equal(read_image(tmp_path / "plain.png"), palette[indices])
    picture.save(tmp_path / "clear.png", transparency=bytes([255, 0, 128]))
    expected = np.rint(palette * (np.array([[255], [0], [128]]) / 255))[indices]
    np.testing.assert_array_equal(read_image(tmp_path / "clear.png"), expected)


def test_1_bit_becomes_black_and_white(tmp_path):
    bits = np.array([[True, False, False], [True, True, False]])
    path = save(tmp_path / "a.png", bits)
    assert Image.open(path).mode == "1"
    np.testing.assert_array_equal(read_image(path, 1)[..., 0], bits * 255)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("dtype", ["<u2", ">u2"])
def test_12_bits_in_16_fill_the_range(tmp_path, suffix, dtype):
    values = (GREY.astype(dtype) * 18) + 100
    path = save(tmp_path / f"a{suffix}", values)
    assert Image.open(path).mode in ("I;16", "I;16B", "I")
    np.testing.assert_array_equal(read_image(path, 1)[..., 0], stretched(values))


@pytest.mark.parametrize(
    "values",
    [
        GREY.astype(np.int32) * 1000 - 50_000,
        GREY.astype(np.uint32) * 18_000_000,
        GREY.astype(np.uint16) * 250,
        GREY.astype(np.int16) * 120 - 13_000,
        GREY.astype(np.int16).astype(np.int8),
        GREY.astype(np.float32) / 7 - 3,
    ],
    ids=lambda values: str(values.dtype),
)
def test_deep_tiff_fills_the_range(tmp_path, values):
    np.testing.assert_array_equal(read_image(write_tiff(tmp_path / "a.tif", values), 1)[..., 0], stretched(values))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_tiff_where_white_is_zero_is_turned(tmp_path, dtype):
    values = (GREY + 35).astype(dtype)
    path = write_tiff(tmp_path / "a.tif", values, photometric=0)
    expected = 255 - values if dtype is np.uint8 else stretched(-values.astype(float))
    np.testing.assert_array_equal(read_image(path, 1)[..., 0], expected)


def test_constant_deep_image_is_black(tmp_path):
    for number, value in enumerate((0, 7, 65535)):
        path = save(tmp_path / f"{number}.png", np.full((3, 4), value, np.uint16))
        np.testing.assert_array_equal(read_image(path), np.zeros((3, 4, 3)))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused(tmp_path, bad):
    values = GREY.astype(np.float32)
    values[1, 1] = bad
    refused(save(tmp_path / "a.tif", values), "infinite, missing")


def test_16_bit_colour_keeps_its_high_byte_or_is_refused(tmp_path):
    def write(name, values):
        rows = b"".join(b"\0" + row.tobytes() for row in values.astype(">u2"))
        return write_png(tmp_path / name, 4, 3, 16, {2: 4, 3: 2, 4: 6}[values.shape[2]], rows)

    np.testing.assert_array_equal(read_image(write("full.png", RGB.astype(int) * 256 + 99)), RGB)
    refused(write("12_bit.png", RGB.astype(int) * 16), "16-bit colour")
    alpha = np.dstack([GREY.astype(int) * 16, np.full(GREY.shape, 65535)])
    refused(write("12_bit_alpha.png", alpha), "16-bit colour")


ORIENTED = {  # what a viewer shows of the stored rows, after the EXIF standard
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a, 2).swapaxes(0, 1),
    8: lambda a: np.rot90(a, 1),
}


@pytest.mark.parametrize("orientation", ORIENTED)
def test_exif_orientation(tmp_path, orientation):
    exif = Image.Exif()
    exif[274] = orientation
    expected = ORIENTED[orientation](RGB)
    np.testing.assert_array_equal(read_image(save(tmp_path / "a.png", RGB, exif=exif)), expected)
    np.testing.assert_array_equal(read_image(save(tmp_path / "a.tif", RGB, exif=exif)), expected)
    deep = write_tiff(tmp_path / "deep.tif", GREY.astype(np.uint16) * 9, orientation=orientation)
    np.testing.assert_array_equal(read_image(deep, 1)[..., 0], stretched(ORIENTED[orientation](GREY)))
    smooth = np.add.outer(np.arange(64), 3 * np.arange(48)).astype(np.uint8)
    jpeg = read_image(save(tmp_path / "a.jpg", smooth, exif=exif, quality=95), 1)[..., 0]
    assert jpeg.shape == ORIENTED[orientation](smooth).shape
    assert np.abs(jpeg.astype(int) - ORIENTED[orientation](smooth)).max() < 12


@pytest.mark.parametrize("name", ["a.tif", "a.png"])
def test_several_pages_are_refused(tmp_path, name):
    pages = [Image.fromarray(GREY + n) for n in range(3)]
    pages[0].save(tmp_path / name, save_all=True, append_images=pages[1:])
    refused(tmp_path / name, "3 pages or frames; expected 1")


def test_phone_jpeg_with_previews_is_its_photograph(tmp_path):
    photograph = Image.fromarray(np.full((32, 16), 200, np.uint8))
    preview = Image.fromarray(np.full((8, 8), 10, np.uint8))
    photograph.save(tmp_path / "a.jpg", format="MPO", save_all=True, append_images=[preview])
    assert Image.open(tmp_path / "a.jpg").n_frames == 2
    np.testing.assert_array_equal(read_image(tmp_path / "a.jpg", 1), np.full((32, 16, 1), 200))


# Files that are no images


def test_missing_folder_empty_text(tmp_path):
    refused(tmp_path / "nothing.png", "No such file")
    (tmp_path / "folder.png").mkdir()
    refused(tmp_path / "folder.png", "directory")
    (tmp_path / "text.png").write_text("this is no picture")
    for suffix in _images.IMAGE_SUFFIXES:
        (tmp_path / f"empty{suffix}").write_bytes(b"")
        refused(tmp_path / f"empty{suffix}", "empty")
        (tmp_path / f"text{suffix}").write_text("this is no picture" * 30)
        assert "b'this is " in refused(tmp_path / f"text{suffix}")
    (tmp_path / "notes.txt").write_text("this is no picture")
    refused(tmp_path / "notes.txt", "no known ending")
    (tmp_path / "LICENSE").write_text("this is no picture" * 30)
    refused(tmp_path / "LICENSE", "no known ending")
    with pytest.raises(ImageError, match="null"):
        read_image("a\0.png")


def test_permission_denied(tmp_path, monkeypatch):
    path = save(tmp_path / "a.png", GREY)

    def forbidden(self, *args, **kwargs):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "open", forbidden)
    refused(path, "Permission denied")


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.bmp", "a.tif", "lzw.tif", "a.nii", "a.nii.gz", "a.dcm"])
@pytest.mark.parametrize("part", [0.4, 0.9])
def test_truncated_files_are_refused(tmp_path, monkeypatch, name, part):
    noise = np.random.default_rng(0).integers(0, 256, (64, 48), dtype=np.uint8)
    path = tmp_path / name
    if name.endswith(".dcm"):
        write_dicom(path, noise)
    elif ".nii" in name:
        write_nifti(path, noise)
    else:
        save(path, noise, compression="tiff_lzw" if name == "lzw.tif" else None)
    whole = path.read_bytes()
    read_image(path)
    path.write_bytes(whole[: int(len(whole) * part)])
    refused(path)
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)  # as other code in the process may do
    refused(path)


def test_bombs_and_zero_sizes_are_refused(tmp_path, monkeypatch):
    refused(write_png(tmp_path / "zero.png", 0, 4, 8, 0, b""))
    refused(write_png(tmp_path / "bomb.png", 60_000, 60_000, 8, 0, b""), "3600000000 pixels")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    refused(write_png(tmp_path / "bomb.png", 60_000, 60_000, 8, 0, b""), "60000 x 60000 pixels")
    refused(write_dicom(tmp_path / "bomb.dcm", GREY, Rows=60_000, Columns=60_000), "60000 x 60000 pixels")
    refused(write_dicom(tmp_path / "zero.dcm", GREY, Rows=0), "0 x 4 pixels")
    path = write_nifti(tmp_path / "bomb.nii", GREY)
    header = bytearray(path.read_bytes())
    header[42:46] = struct.pack("<hh", 30_000, 30_000)
    path.write_bytes(header)
    refused(path, "30000 x 30000 pixels")


def test_large_pictures_and_odd_headers_warn_nobody(tmp_path, monkeypatch, capfd):
    path = save(tmp_path / "a.png", GREY)
    scan = write_tiff(tmp_path / "a.tif", GREY)
    raw = scan.read_bytes()
    exif = struct.pack("<HHII", 34665, 4, 1, len(raw) - 5)  # in place of the orientation, and cut off
    scan.write_bytes(raw.replace(struct.pack("<HHIHH", 274, 3, 1, 1, 0), exif))
    film = write_dicom(tmp_path / "a.dcm", GREY)
    raw = film.read_bytes()
    at = raw.index(struct.pack("<HH2s", 0x7FE0, 0x10, b"OB")) + 8
    film.write_bytes(raw[:at] + struct.pack("<I", 16) + raw[at + 4 :] + bytes(4))  # pydicom remarks on padding
    plain = write_nifti(tmp_path / "a.nii", GREY)
    header = bytearray(plain.read_bytes())
    header[76:92] = struct.pack("<ffff", 0, 1, 1, 0)  # qfac and pixdim[3] of zero: nibabel remarks on both
    plain.write_bytes(header)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 8)  # GREY has 12: Pillow warns from one to two limits
    logging.getLogger("pydicom").addHandler(handler := logging.StreamHandler())
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for file in (path, scan, film, plain):
                read_image(file)
            with pytest.warns(Image.DecompressionBombWarning):  # the filters are as they were
                Image.open(path).close()
    finally:
        logging.getLogger("pydicom").removeHandler(handler)
    assert not [str(warning.message) for warning in caught]
    assert capfd.readouterr() == ("", "")
    assert not logging.getLogger("nibabel.global").filters


def test_threads_leave_the_warning_filters_alone(tmp_path):
    paths = [save(tmp_path / f"{n}.png", GREY + n) for n in range(40)]
    before = list(warnings.filters)
    with ThreadPoolExecutor(8) as pool:
        pictures = list(pool.map(read_image, paths))
    assert warnings.filters == before
    for number, picture in enumerate(pictures):
        np.testing.assert_array_equal(picture[..., 0], GREY + number)


# NIfTI


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "A.NII.GZ"])
@pytest.mark.parametrize("axes", [(), (1,), (1, 1)])
def test_nifti_as_itk_writes_a_png(tmp_path, name, axes):
    path = write_nifti(tmp_path / name, GREY.T.reshape(*GREY.T.shape, *axes))
    np.testing.assert_array_equal(read_image(path, 1)[..., 0], GREY)


@pytest.mark.parametrize(
    ("diagonal", "expected"),
    [
        ((-1, -1, 1), GREY),
        ((1, -1, 1), GREY[:, ::-1]),
        ((-1, 1, 1), GREY[::-1]),
        ((1, 1, 1), GREY[::-1, ::-1]),
        ((-0.5, -2, -3), GREY),
    ],
)
def test_nifti_follows_its_affine(tmp_path, diagonal, expected):
    np.testing.assert_array_equal(read_image(write_nifti(tmp_path / "a.nii", GREY.T, diagonal), 1)[..., 0], expected)


def test_nifti_with_swapped_axes_and_without_orientation(tmp_path):
    swapped = np.array([[0, -1, 0, 0], [-1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])  # stored [y, x]
    path = write_nifti(tmp_path / "swapped.nii", GREY, affine=swapped)
    np.testing.assert_array_equal(read_image(path, 1)[..., 0], GREY)
    nibabel.Nifti1Image(GREY.T, None).to_filename(tmp_path / "plain.nii")
    np.testing.assert_array_equal(read_image(tmp_path / "plain.nii", 1)[..., 0], GREY)


def test_nifti_slices_of_the_body_stand_upright(tmp_path):
    # Stored as [left, up] and as [front, up], rows of the array one step apart on each.
    coronal = np.array([[-1, 0, 0, 0], [0, 0, 1, 0], [0, 1, 0, 0], [0, 0, 0, 1]])
    sagittal = np.array([[0, 0, 1, 0], [1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1]])
    path = write_nifti(tmp_path / "coronal.nii", GREY.T[..., None], affine=coronal)
    np.testing.assert_array_equal(read_image(path, 1)[..., 0], GREY[::-1])  # head up
    path = write_nifti(tmp_path / "sagittal.nii", GREY.T[..., None], affine=sagittal)
    np.testing.assert_array_equal(read_image(path, 1)[..., 0], GREY[::-1, ::-1])  # head up, face left


@pytest.mark.parametrize("names", ["RGB", "RGBA"])
def test_nifti_colour(tmp_path, names):
    colour = np.dstack([RGB, np.full(GREY.shape, 255, np.uint8)])[..., : len(names)]
    structured = np.ascontiguousarray(colour.swapaxes(0, 1)).view([(name, "u1") for name in names])[..., 0]
    path = write_nifti(tmp_path / "struct.nii", structured)
    assert nibabel.load(path).get_data_dtype().names == tuple(names)
    np.testing.assert_array_equal(read_image(path), RGB)
    vectors = colour.swapaxes(0, 1)[:, :, None, None]  # how ITK writes a picture of vectors
    pixels = read_image(write_nifti(tmp_path / "vectors.nii", vectors))
    np.testing.assert_array_equal(pixels, RGB)
    assert pixels.flags.c_contiguous and pixels.flags.writeable


@pytest.mark.parametrize("dtype", [np.int16, np.uint16, np.int8, np.float32, np.float64])
def test_nifti_deep_values_fill_the_range(tmp_path, dtype):
    values = (GREY // 2).astype(dtype) + dtype(3)
    path = write_nifti(tmp_path / "a.nii", values.T)
    np.testing.assert_array_equal(read_image(path, 1)[..., 0], stretched(values))


def test_nifti_slope_is_applied(tmp_path):
    path = write_nifti(tmp_path / "a.nii", GREY.T)
    raw = bytearray(path.read_bytes())
    raw[112:120] = struct.pack("<ff", -0.25, 3)
    path.write_bytes(raw)
    np.testing.assert_array_equal(read_image(path, 1)[..., 0], stretched(-GREY.astype(float)))


def test_nifti_that_is_no_picture(tmp_path):
    message = refused(write_nifti(tmp_path / "a.nii", np.zeros((4, 3, 5), np.int16)), r"\(4, 3, 5\)")
    assert "export the slice" in message
    refused(write_nifti(tmp_path / "b.nii", np.zeros((4, 1, 5), np.int16)), r"\(4, 1, 5\)")
    refused(write_nifti(tmp_path / "c.nii", np.zeros((4, 3), np.complex64)), "complex")
    values = GREY.T.astype(np.float32)
    values[0, 0] = np.nan
    refused(write_nifti(tmp_path / "d.nii", values), "missing")


# Folders


def test_list_images(tmp_path):
    names = ["b/2.PNG", "a.jpg", "b/1.tif", "B.nii.gz", "b/c/x.Dcm", "b.png", "a/z.jpeg"]
    others = [".hidden.png", ".git/a.png", "b/.x/a.png", "notes.txt", "a.png.bak", "a.gz", "README"]
    for name in names + others:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"-")
    write_dicom(tmp_path / "b" / "IM1", GREY)
    write_dicom(tmp_path / "b" / "DICOMDIR", GREY)
    found = list_images(str(tmp_path))
    expected = ["B.nii.gz", "a.jpg", "a/z.jpeg", "b.png", "b/1.tif", "b/2.PNG", "b/IM1", "b/c/x.Dcm"]
    assert [path.relative_to(tmp_path).as_posix() for path in found] == expected
    assert found == list_images(tmp_path)


def test_list_images_relative_and_through_links(tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    (tmp_path / "other").mkdir()
    save(tmp_path / "other" / "a.png", GREY)
    (tmp_path / "data" / "link").symlink_to(tmp_path / "other")
    (tmp_path / "data" / "loop").symlink_to(tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    assert list_images("data") == [Path("data/link/a.png")]


def test_list_images_refusals(tmp_path):
    path = save(tmp_path / "file.png", GREY)
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").write_text("-")
    found = {tmp_path / "none": "No such file", path: "Not a directory", tmp_path / "empty": "no image in it"}
    for place, match in found.items():
        with pytest.raises(ImageError, match=match) as caught:
            list_images(place)
        assert str(place) in str(caught.value) and ".nii.gz" in str(caught.value)


# What would never end, or fill the memory


def test_only_regular_files_are_opened(tmp_path):
    os.mkfifo(tmp_path / "b.png")
    refused(tmp_path / "b.png", "pipe, socket or device")
    (tmp_path / "null.png").symlink_to(os.devnull)
    refused(tmp_path / "null.png", "pipe, socket or device")
    (tmp_path / "gone.png").symlink_to("nowhere")
    refused(tmp_path / "gone.png", "No such file")
    (tmp_path / "ring.png").symlink_to("ring.png")
    refused(tmp_path / "ring.png", "symbolic links")
    save(tmp_path / "good.png", GREY)
    assert [path.name for path in list_images(tmp_path)] == ["b.png", "gone.png", "good.png", "null.png", "ring.png"]


def test_folders_linked_in_rings_and_each_file_once(tmp_path, caplog):
    names = ["a", "b", "c"]
    for name, other in zip(names, ["b", "c", "a"], strict=True):
        (tmp_path / "data" / name).mkdir(parents=True)
        save(tmp_path / "data" / name / "x.png", GREY)
        (tmp_path / "data" / name / "0_next").symlink_to(f"../{other}")
    (tmp_path / "data" / "a" / "0.png").symlink_to("x.png")
    (tmp_path / "data" / "a" / "up").symlink_to(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    save(tmp_path / "elsewhere" / "y.png", GREY)
    (tmp_path / "elsewhere" / "back").symlink_to("../data")
    (tmp_path / "data" / "c" / "out").symlink_to("../../elsewhere")
    found = [item["file"] for item in find_images(str(tmp_path / "data"))]
    assert found == ["a/x.png", "b/x.png", "c/out/y.png", "c/x.png"]
    assert "1 files are" in caplog.text and "a/0.png" in caplog.text


LARGE = {
    "a.png": lambda path: save(path, GREY),
    "a.tif": lambda path: save(path, GREY.astype(np.uint16)),
    "a.bmp": lambda path: save(path, GREY),
    "a.jpg": lambda path: save(path, GREY),
    "a.dcm": lambda path: write_dicom(path, GREY),
    "a.nii": lambda path: write_nifti(path, GREY),
    "a.nii.gz": lambda path: write_nifti(path, GREY.astype(np.float64)),
}


@pytest.mark.parametrize("name", LARGE)
def test_more_pixels_than_allowed_are_refused_before_they_are_decoded(tmp_path, name):
    path = LARGE[name](tmp_path / name)
    assert read_image(path, max_pixels=12).shape == (*read_image(path).shape[:2], 3)
    with pytest.raises(ImageError, match=r"pixels; expected 1 to 11 pixels.*max_pixels") as caught:
        read_image(path, max_pixels=11)
    assert str(path) in str(caught.value) and re.search("3 x 4|4 x 3", str(caught.value))
    with path.open("r+b") as file:
        file.truncate(2**24 + 8 * 12 + 1)  # sparse: takes no room
    with pytest.raises(ImageError, match="a file of 16777313 bytes"):
        read_image(path, max_pixels=12)


def test_bombs_are_refused_before_they_are_inflated(tmp_path):
    film = write_dicom(tmp_path / "a.dcm", GREY)
    raw = film.read_bytes()
    dataset = pydicom.dcmread(film)
    dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    dataset.save_as(film)
    np.testing.assert_array_equal(read_image(film, 1)[..., 0], stretched(GREY))
    with film.open("rb") as file:
        pydicom.filereader.read_preamble(file, False)
        pydicom.filereader._read_file_meta_info(file)
        start = film.read_bytes()[: file.tell()]
    deflate = zlib.compressobj(9, wbits=-15)
    film.write_bytes(start + deflate.compress(bytes(2**24 + 8 * 13)) + deflate.flush())
    with pytest.raises(ImageError, match="deflated DICOM"):
        read_image(film, max_pixels=12)
    film.write_bytes(raw)
    big = jpeg_bytes(np.zeros((40, 30), np.uint8), "JPEG2000", no_jp2=True)
    refused(write_dicom(tmp_path / "b.dcm", big, JPEG2000Lossless), "its pixels are 40 x 30, its header says 3 x 4")
    slice_ = write_nifti(tmp_path / "a.nii", GREY)
    header = bytearray(slice_.read_bytes())
    header[108:112] = struct.pack("<f", 2.0**40)
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress(header))
    refused(tmp_path / "a.nii.gz", "NIfTI header of 1099511627776 bytes")


@pytest.mark.parametrize(
    ("dtype", "kind"), [("f2", "16-bit floating"), ("f8", "64-bit floating"), ("u8", "64-bit uns")]
)
def test_tiff_of_a_type_that_is_not_read_says_its_type(tmp_path, dtype, kind):
    message = refused(write_tiff(tmp_path / "a.tif", GREY.astype(dtype)), f"a TIFF of {kind}")
    assert "damaged" not in message and "32-bit" in message


def test_names_that_are_not_utf_8_are_read_and_shown(tmp_path, caplog):
    name = os.fsdecode(b"\xff\xe4.png")
    save(tmp_path / name, GREY)
    (tmp_path / os.fsdecode(b"\xfe.txt")).write_text("-")
    [item] = find_images(str(tmp_path))
    assert item["file"] == r"\udcff\udce4.png" and read_image(item["image"]).shape == (3, 4, 3)
    assert r"\udcfe.txt" in caplog.text
    (tmp_path / name).write_bytes(b"-")
    with pytest.raises(ImageError) as caught:
        read_image(item["image"])
    assert r"\udcff\udce4.png" in str(caught.value)
    (tmp_path / "list.txt").write_bytes(b"\xff\xe4.png\r\n")
    write_json(tmp_path / "list.json", [name])
    for path in ("list.txt", "list.json"):
        assert find_images(None, str(tmp_path / path)) == [item]


# Real images


def test_real_chest_films(real_data):
    """The two films hold the same pixels; one says that low values are bright."""
    first, second = (read_image(real_data / "samples" / f"chest_cr_{n}.dcm", 1) for n in (1, 2))
    assert first.shape == second.shape == (1024, 1024, 1)
    np.testing.assert_array_equal(first, 255 - second)
    assert second[500, 520:560].mean() > 150  # the spine is brighter than the lung beside it
    assert second[400, 250:350].mean() < second[500, 520:560].mean() - 40
    assert second[800:1000, 200:400].mean() > second[300:500, 250:350].mean() + 40  # liver below lung


def test_real_ct_and_png(real_data):
    ct = read_image(real_data / "samples" / "CT_small.dcm", 1)[..., 0]
    np.testing.assert_array_equal(ct, stretched(pydicom.dcmread(real_data / "samples/CT_small.dcm").pixel_array))
    assert ct[20:60, :20].mean() < 40 < ct[20:30, 60:70].mean()  # lung at the side, vertebra in the middle
    for path in sorted((real_data / "samples").glob("*.png")):
        np.testing.assert_array_equal(read_image(path, 1)[..., 0], np.asarray(Image.open(path)))
