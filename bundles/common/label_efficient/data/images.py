"""Any picture file as uint8 pixels, the way a viewer shows it, or an `ImageError` that names the file.

What decides the pixel values:
    * 8-bit PNG, JPEG, TIFF, BMP and NIfTI are kept. Deeper grey goes linearly to 0..255 from the picture's
      own minimum and maximum (constant: zeros): 12-bit data divided by 257 would be almost black.
    * 16-bit colour keeps its high byte, as in viewers, and is refused where that would be almost black.
    * Opaque alpha is dropped, partial transparency composited on black, an invisible picture refused.
    * Grey DICOM: rescale, the first VOI table or window, else minimum to maximum; bone bright, padding black.
"""

import contextlib
import gzip
import logging
import os
import re
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageFile, ImageOps, TiffImagePlugin

from label_efficient.files import open_file, printable

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".dcm", ".nii", ".nii.gz")
_ONE_PICTURE = f"a 2-D picture ({', '.join(IMAGE_SUFFIXES)}, or DICOM without an ending)"
MOST_PIXELS = 178_956_970  # Pillow's own limit, here for DICOM and NIfTI too
MOST_HEADER = 2**24  # bytes of what is no pixels
_STRIP = 64  # rows
_NO_ENDING = re.compile(r"[^.]*(\.\d+)*")  # DICOM files are often named by their UID: 1.2.840.113
_quiet_lock = threading.Lock()  # warning filters are global: threads would restore each other's


class ImageError(ValueError):
    """A file that cannot be used as an image: which, what was found, what was expected, what to do."""


def read_image(path: str | os.PathLike[str], channels: int = 3, max_pixels: int = MOST_PIXELS) -> np.ndarray:
    """Read one 2-D picture; the rules above give its pixel values.

    Args:
        path: a file with one of `IMAGE_SUFFIXES` (any case), or DICOM without an ending.
        channels: 3 (grey is repeated) or 1 (colour becomes ITU-R 601 luma).
        max_pixels: a picture of more is refused by its header, before anything is decoded.

    Returns:
        Array (H, W, channels), uint8 0..255, C-contiguous, writable; rows top to bottom, EXIF orientation
        applied. NIfTI follows its affine: columns run to the patient's left, rows to the back (LPS, as ITK
        stores a picture), or to the feet in coronal and sagittal slices.

    Raises:
        ImageError: the file is missing, damaged, too large, not an image, or not exactly one 2-D picture.
    """
    path = Path(path)
    head, size = _read_head(path)
    name, most_bytes = path.name.lower(), 8 * max_pixels + MOST_HEADER
    try:
        if not head:
            raise refusal(path, "the file is empty (0 bytes)", "copy it again from its source")
        if size > most_bytes:
            raise refusal(path, f"a file of {size} bytes", *too_large(max_pixels))
        if head[128:] == b"DICM" and (name.endswith(".dcm") or _NO_ENDING.fullmatch(name)):
            from label_efficient.data.dicom_pixels import read_dicom  # which reads by the rules here

            pixels = read_dicom(path, max_pixels)
        elif name.endswith((".nii", ".nii.gz")):
            pixels = _read_nifti(path, max_pixels)
        elif name.endswith(IMAGE_SUFFIXES) and not name.endswith(".dcm"):
            pixels = _read_picture(path, max_pixels)
        else:
            raise refusal(path, f"no known ending or first bytes ({head[:8]!r})", "convert or rename it")
        if pixels.shape[2:] == (4,):
            if not pixels[..., 3].any():
                raise refusal(path, "every pixel is fully transparent", "save it without alpha")
            pixels = np.rint(pixels[..., :3] * (pixels[..., 3:] / 255)).astype(np.uint8)
    except ImageError:
        raise
    except Image.DecompressionBombError as error:
        raise refusal(path, str(error), *too_large(max_pixels)) from error
    except Exception as error:  # decoders raise anything, from struct.error to IndexError
        found = f"cannot be read ({type(error).__name__}: {error}; first bytes {head[:8]!r})"
        raise refusal(path, found, "it is damaged or of another kind: copy or export it again") from error
    if pixels.shape[2:] == (3,) and channels == 1:
        pixels = np.asarray(Image.fromarray(np.ascontiguousarray(pixels)).convert("L"))
    shape = (*pixels.shape[:2], channels)
    return np.array(np.broadcast_to(np.atleast_3d(pixels), shape), np.uint8, order="C")


def refusal(path: Path, found: str, advice: str, expected: str = _ONE_PICTURE) -> ImageError:
    """The error of a file: what was found, and what to do."""
    return ImageError(printable(f"{path}: {found}; expected {expected}. What to do: {advice}."))


def too_large(max_pixels: int) -> tuple[str, str]:
    """Advice, and what is expected."""
    return f"make it smaller, or allow more (max_pixels, at most {MOST_PIXELS})", f"1 to {max_pixels} pixels"


def _read_head(path: Path) -> tuple[bytes, int]:
    """The first bytes, as many as tell a DICOM, and the size of the file."""
    try:
        with open_file(path) as file:
            return file.read(132), os.fstat(file.fileno()).st_size
    except (OSError, ValueError) as error:  # missing, a folder, forbidden; ValueError: an impossible name
        raise refusal(path, f"cannot be opened ({error})", "check path and permissions") from error


def is_image_name(path: Path) -> bool:
    """Whether a file is an image by its name, or, without an ending, by the mark of a DICOM."""
    if _NO_ENDING.fullmatch(path.name):
        with contextlib.suppress(ImageError):
            return path.name != "DICOMDIR" and path.is_file() and _read_head(path)[0][128:] == b"DICM"
    return path.name.lower().endswith(IMAGE_SUFFIXES)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Hide what the libraries say about headers: a user can do nothing about it."""
    nothing = logging.Filter("-")  # lets through the records of a logger of this name only
    with _quiet_lock, warnings.catch_warnings(), contextlib.ExitStack() as stack:
        warnings.simplefilter("ignore")
        for logger in map(logging.getLogger, ("pydicom", "nibabel.global")):
            logger.addFilter(nothing)
            stack.callback(logger.removeFilter, nothing)
        yield


def check_shape(path: Path, max_pixels: int, height: Any, width: Any, frames: Any = 1) -> None:
    """Refuse several pages or frames, no pixels, and too many."""
    if int(frames or 1) != 1:
        raise refusal(path, f"{frames} pages or frames", "export the one to use", "1 page or frame")
    if not 0 < int(height or 0) * int(width or 0) <= max_pixels:
        raise refusal(path, f"{height} x {width} pixels", *too_large(max_pixels))


def to_uint8(path: Path, values: np.ndarray, low: Any = None, high: Any = None) -> np.ndarray:
    """Scale values of any shape from low..high to 0..255; without these, from their range unless 8-bit."""
    if values.dtype == np.uint8 and low is None:
        return values
    if values.dtype.kind not in "biuf" or not np.isfinite(values).all():
        raise refusal(path, "it holds infinite, missing or complex values", "replace them", "finite numbers")
    low, high = map(float, (values.min(), values.max()) if low is None else (low, high))
    scale = 255 / (high - low) if low != high else 0
    pixels = np.empty(values.shape, np.uint8)
    for top in range(0, len(values), _STRIP):  # at once, it would be eight times as large in between
        strip = values[top : top + _STRIP].astype(np.float64)
        pixels[top : top + _STRIP] = np.rint(np.clip((strip - low) * scale, 0, 255))
    return pixels


def _read_picture(path: Path, max_pixels: int) -> np.ndarray:
    ImageFile.LOAD_TRUNCATED_IMAGES = False  # other code may have set it: half a picture is none
    with open_file(path) as file:
        with quiet():
            try:
                picture = Image.open(file, formats=("PNG", "JPEG", "TIFF", "BMP"))
            except Image.UnidentifiedImageError:
                _explain_tiff(path, file)
                raise
            # A phone's JPEG may carry previews and depth maps (MPO): its first picture is the photograph.
            pages = 1 if picture.format == "MPO" else getattr(picture, "n_frames", 1)
            check_shape(path, max_pixels, picture.height, picture.width, pages)
            deep, deep_colour = picture.mode[0] in "IF", ";16" in str(picture.tile)
            if picture.format == "TIFF":
                picture.load()  # reads the tags once more, with warnings
        picture.load()  # outside of the lock, so that threads decode side by side
    with quiet():
        ImageOps.exif_transpose(picture, in_place=True)
    tags = getattr(picture, "tag_v2", {})
    bits, kind = tags.get(258, (0,))[0], tags.get(339, (1,))[0]  # Pillow reads uint32 and int8 wrongly
    if deep or (kind == 2 and picture.mode == "L"):
        values = np.asarray(picture)
        values = values.view({(32, 1): np.uint32, (8, 2): np.int8}.get((bits, kind), values.dtype))
        return to_uint8(path, -values.astype(np.float64) if tags.get(262) == 0 else values)  # white is zero
    grey = "L" if picture.mode in ("1", "L") else "RGB"
    pixels = _converted(picture, "RGBA" if picture.has_transparency_data else grey)
    if deep_colour and pixels[..., :3].max() < 64:  # as 14-bit data would be
        raise refusal(path, "16-bit colour, almost black when cut to 8", "stretch and save it in 8 bits")
    return pixels


def _explain_tiff(path: Path, file: Any) -> None:
    """Refuse a TIFF of a type that Pillow does not know, such as float16, by its type."""
    file.seek(0)
    if (head := file.read(16))[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        tags: Any = TiffImagePlugin.ImageFileDirectory_v2(head if b"+" in head[2:4] else head[:8])
        file.seek(tags.next)
        tags.load(file)
        bits, words = tags.get(258, (1,)), {2: "signed integers", 3: "floating point", 5: "complex numbers"}
        kind = words.get(tags.get(339, (1,))[0], "unsigned integers")
        found = f"a TIFF of {bits[0]}-bit {kind}, {len(bits)} a pixel, compression {tags.get(259, 1)}"
        raise refusal(path, found, "save it as 8- or 16-bit integers or 32-bit floating point, one or three a pixel")


def _converted(picture: Image.Image, mode: str) -> np.ndarray:
    """Pixels in a mode, strip by strip: at once, Pillow would have a large picture four times in memory."""
    pixels = np.empty((picture.height, picture.width, *[len(mode)][: len(mode) > 1]), np.uint8)
    for top in range(0, picture.height, _STRIP):
        bottom = min(top + _STRIP, picture.height)
        pixels[top:bottom] = np.asarray(picture.crop((0, top, picture.width, bottom)).convert(mode))
    return pixels


def open_nifti(path: Path) -> Any:
    """A NIfTI file as nibabel's image, none of its values read.

    An ImageError where its values begin so late that nibabel would fill the memory with what stands before them.
    """
    import nibabel

    with open_file(path) as file, gzip.open(file) if path.suffix.lower() == ".gz" else file as content:
        head = content.read(540)
    sizes = {int.from_bytes(head[:4], "little"), int.from_bytes(head[:4], "big")}
    if not sizes & {348, 540}:
        raise ValueError("no NIfTI header")
    kind = nibabel.Nifti2Header if 540 in sizes else nibabel.Nifti1Header
    header: Any = kind(head[: kind.sizeof_hdr], check=False)
    if not header.get_data_offset() <= MOST_HEADER:
        raise refusal(path, f"a NIfTI header of {header.get_data_offset()} bytes", "export it again")
    with quiet():
        return nibabel.load(path)


def _read_nifti(path: Path, max_pixels: int) -> np.ndarray:
    image = open_nifti(path)
    with quiet():
        shape = image.shape
        vectors = shape[2:] in ((1, 1, 3), (1, 1, 4)) and image.get_data_dtype() == np.uint8  # ITK's colour
        if len(shape) < 2 or not (vectors or set(shape[2:]) <= {1}):
            raise refusal(path, f"a volume of shape {shape}", "export the slice to use", "one slice")
        check_shape(path, max_pixels, shape[1], shape[0])
        values = np.asanyarray(image.dataobj)
    if values.dtype.names:  # RGB24 and RGBA32
        values = np.stack([values[name] for name in values.dtype.names], axis=-1)
    return to_uint8(path, nifti_picture(image, values))


def nifti_picture(image: Any, values: np.ndarray) -> np.ndarray:
    """Values of a NIfTI slice, (X, Y) or more axes, as rows and columns the way its affine turns them, (H, W, C)."""
    from nibabel.orientations import apply_orientation, axcodes2ornt, io_orientation, ornt_transform

    values, slice_axis = values.reshape(*values.shape[:2], 1, -1), 2
    if image.header["qform_code"] or image.header["sform_code"]:  # without either, it is taken as stored
        turn = ornt_transform(io_orientation(image.affine), axcodes2ornt("LPI"))
        values, slice_axis = apply_orientation(values, turn), int(turn[2, 0])
    return np.take(values, 0, axis=slice_axis).swapaxes(0, 1)
