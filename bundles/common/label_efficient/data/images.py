"""Any picture file as uint8 pixels, the way a viewer shows it, or an `ImageError` that names the file.

What decides the pixel values:
    * 8-bit PNG, JPEG, TIFF, BMP and NIfTI are kept. Deeper grey goes linearly to 0..255 from the picture's
      own minimum and maximum (constant: zeros): 12-bit data divided by 257 would be almost black.
    * 16-bit colour keeps its high byte, as in viewers, and is refused where that would be almost black.
    * Opaque alpha is dropped, partial transparency composited on black, an invisible picture refused.
    * Grey DICOM: rescale, the first VOI table or window, else minimum to maximum; bone bright, padding black.
"""

import contextlib
import importlib
import logging
import os
import re
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageFile, ImageOps

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".dcm", ".nii", ".nii.gz")
_ONE_PICTURE = f"a 2-D picture ({', '.join(IMAGE_SUFFIXES)}, or DICOM without an ending)"
_MAX_PIXELS = 178_956_970  # Pillow's own limit, here for DICOM and NIfTI too
_STRIP = 64  # rows
_NO_ENDING = re.compile(r"[^.]*(\.\d+)*")  # DICOM files are often named by their UID: 1.2.840.113
_quiet_lock = threading.Lock()  # warning filters are global: threads would restore each other's


class ImageError(ValueError):
    """A file that cannot be used as an image: which, what was found, what was expected, what to do."""


def read_image(path: str | os.PathLike[str], channels: int = 3) -> np.ndarray:
    """Read one 2-D picture; the rules above give its pixel values.

    Args:
        path: a file with one of `IMAGE_SUFFIXES` (any case), or DICOM without an ending.
        channels: 3 (grey is repeated) or 1 (colour becomes ITU-R 601 luma).

    Returns:
        Array (H, W, channels), uint8 0..255, C-contiguous, writable; rows top to bottom, EXIF orientation
        applied. NIfTI follows its affine: columns run to the patient's left, rows to the back (LPS, as ITK
        stores a picture), or to the feet in coronal and sagittal slices.

    Raises:
        ImageError: the file is missing, damaged, not an image, or not exactly one 2-D picture.
    """
    path = Path(path)
    head, name = _read_head(path), path.name.lower()
    try:
        if not head:
            raise _refusal(path, "the file is empty (0 bytes)", "copy it again from its source")
        if head[128:] == b"DICM" and (name.endswith(".dcm") or _NO_ENDING.fullmatch(name)):
            pixels = _read_dicom(path)
        elif name.endswith((".nii", ".nii.gz")):
            pixels = _read_nifti(path)
        elif name.endswith(IMAGE_SUFFIXES) and not name.endswith(".dcm"):
            pixels = _read_picture(path)
        else:
            raise _refusal(path, f"no known ending or first bytes ({head[:8]!r})", "convert or rename it")
        if pixels.shape[2:] == (4,):
            if not pixels[..., 3].any():
                raise _refusal(path, "every pixel is fully transparent", "save it without alpha")
            pixels = np.rint(pixels[..., :3] * (pixels[..., 3:] / 255)).astype(np.uint8)
    except ImageError:
        raise
    except Exception as error:  # decoders raise anything, from struct.error to IndexError
        found = f"cannot be read ({type(error).__name__}: {error}; first bytes {head[:8]!r})"
        raise _refusal(path, found, "it is damaged or of another kind: copy or export it again") from error
    if pixels.shape[2:] == (3,) and channels == 1:
        pixels = np.asarray(Image.fromarray(np.ascontiguousarray(pixels)).convert("L"))
    shape = (*pixels.shape[:2], channels)
    return np.array(np.broadcast_to(np.atleast_3d(pixels), shape), np.uint8, order="C")


def list_images(folder: str | os.PathLike[str]) -> list[Path]:
    """Find the images below a folder, through links too, in the same order on every machine.

    Returns:
        Paths that start with `folder`, sorted by their POSIX path in it: names with `IMAGE_SUFFIXES` (any
        case), and DICOM files without an ending except DICOMDIR; none whose name starts with ".".

    Raises:
        ImageError: the folder is missing, not a folder, unreadable in part, or holds no image.
    """
    top, images, errors = Path(folder), list[Path](), list[OSError]()
    for root, folders, files in os.walk(top, onerror=errors.append, followlinks=True):
        here = Path(root).resolve()  # a link to a folder above it would be followed without end
        folders[:] = [f for f in folders if f[0] != "." and not here.is_relative_to((here / f).resolve())]
        images += [Path(root, f) for f in files if f[0] != "." and _is_listed(Path(root, f))]
    if errors or not images:
        found = f"cannot be listed ({errors[0]})" if errors else "no image in it"
        raise _refusal(top, found, "check the path")
    return sorted(images, key=lambda path: path.relative_to(top).as_posix())


def _refusal(path: Path, found: str, advice: str, expected: str = _ONE_PICTURE) -> ImageError:
    return ImageError(f"{path}: {found}; expected {expected}. What to do: {advice}.")


def _read_head(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(132)
    except (OSError, ValueError) as error:  # missing, a folder, forbidden; ValueError: an impossible name
        raise _refusal(path, f"cannot be opened ({error})", "check path and permissions") from error


def _is_listed(path: Path) -> bool:
    if _NO_ENDING.fullmatch(path.name):
        return path.name != "DICOMDIR" and path.is_file() and _read_head(path)[128:] == b"DICM"
    return path.name.lower().endswith(IMAGE_SUFFIXES)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hide what the libraries say about headers: a user can do nothing about it."""
    nothing = logging.Filter("-")  # lets through the records of a logger of this name only
    with _quiet_lock, warnings.catch_warnings(), contextlib.ExitStack() as stack:
        warnings.simplefilter("ignore")
        for logger in map(logging.getLogger, ("pydicom", "nibabel.global")):
            logger.addFilter(nothing)
            stack.callback(logger.removeFilter, nothing)
        yield


def _check_shape(path: Path, height: Any, width: Any, frames: Any = 1) -> None:
    if int(frames or 1) != 1:
        raise _refusal(path, f"{frames} pages or frames", "export the one to use", "1 page or frame")
    if not 0 < int(height or 0) * int(width or 0) <= _MAX_PIXELS:
        raise _refusal(path, f"{height} x {width} pixels", "export it again", f"1 to {_MAX_PIXELS} pixels")


def _to_uint8(path: Path, values: np.ndarray, low: Any = None, high: Any = None) -> np.ndarray:
    """Scale values of any shape from low..high to 0..255; without these, from their range unless 8-bit."""
    if values.dtype == np.uint8 and low is None:
        return values
    if values.dtype.kind not in "biuf" or not np.isfinite(values).all():
        raise _refusal(path, "it holds infinite, missing or complex values", "replace them", "finite numbers")
    low, high = map(float, (values.min(), values.max()) if low is None else (low, high))
    scale = 255 / (high - low) if low != high else 0
    return np.rint(np.clip((values.astype(np.float64) - low) * scale, 0, 255)).astype(np.uint8)


def _read_picture(path: Path) -> np.ndarray:
    ImageFile.LOAD_TRUNCATED_IMAGES = False  # other code may have set it: half a picture is none
    with path.open("rb") as file:
        with _quiet():
            picture = Image.open(file, formats=("PNG", "JPEG", "TIFF", "BMP"))
            # A phone's JPEG may carry previews and depth maps (MPO): its first picture is the photograph.
            pages = 1 if picture.format == "MPO" else getattr(picture, "n_frames", 1)
            _check_shape(path, picture.height, picture.width, pages)
            deep, deep_colour = picture.mode[0] in "IF", ";16" in str(picture.tile)
            if picture.format == "TIFF":
                picture.load()  # reads the tags once more, with warnings
        picture.load()  # outside of the lock, so that threads decode side by side
    with _quiet():
        ImageOps.exif_transpose(picture, in_place=True)
    tags = getattr(picture, "tag_v2", {})
    bits, kind = tags.get(258, (0,))[0], tags.get(339, (1,))[0]  # Pillow reads uint32 and int8 wrongly
    if deep or (kind == 2 and picture.mode == "L"):
        values = np.asarray(picture)
        values = values.view({(32, 1): np.uint32, (8, 2): np.int8}.get((bits, kind), values.dtype))
        return _to_uint8(path, -values.astype(np.float64) if tags.get(262) == 0 else values)  # white is zero
    grey = "L" if picture.mode in ("1", "L") else "RGB"
    pixels = _converted(picture, "RGBA" if picture.has_transparency_data else grey)
    if deep_colour and pixels[..., :3].max() < 64:  # as 14-bit data would be
        raise _refusal(path, "16-bit colour, almost black when cut to 8", "stretch and save it in 8 bits")
    return pixels


def _converted(picture: Image.Image, mode: str) -> np.ndarray:
    """Pixels in a mode, strip by strip: at once, Pillow would have a large picture four times in memory."""
    pixels = np.empty((picture.height, picture.width, *[len(mode)][: len(mode) > 1]), np.uint8)
    for top in range(0, picture.height, _STRIP):
        bottom = min(top + _STRIP, picture.height)
        pixels[top:bottom] = np.asarray(picture.crop((0, top, picture.width, bottom)).convert(mode))
    return pixels


def _read_dicom(path: Path) -> np.ndarray:
    import pydicom

    old = pydicom.__version__.startswith("2.")
    tools = importlib.import_module("pydicom.pixel_data_handlers.util" if old else "pydicom.pixels")
    with _quiet():
        dataset = pydicom.dcmread(path)
        if not any(key in dataset for key in ("PixelData", "FloatPixelData", "DoubleFloatPixelData")):
            raise _refusal(path, "DICOM without pixel data, or cut off", "leave it out or export it again")
        _check_shape(path, *(dataset.get(key) for key in ("Rows", "Columns", "NumberOfFrames")))
        try:
            pixels = dataset.pixel_array
        except Exception as error:  # no decoder, or whatever the decoder raises
            syntax = dataset.file_meta.get("TransferSyntaxUID")
            found = f"transfer syntax {getattr(syntax, 'name', '')} ({syntax}) does not decode: {error}"
            advice = "pip install pylibjpeg pylibjpeg-libjpeg pylibjpeg-openjpeg, or export it uncompressed"
            raise _refusal(path, found, advice) from error
        colour = str(dataset.get("PhotometricInterpretation"))
        if colour in ("MONOCHROME1", "MONOCHROME2"):
            return _scale_dicom(path, dataset, pixels, tools)
        if colour == "PALETTE COLOR":
            pixels = tools.apply_color_lut(pixels, dataset)
            return (pixels >> 8 if pixels.max() > 255 else pixels).astype(np.uint8)  # of 16 or 8 bits
        if colour not in ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_RCT", "YBR_ICT"):
            raise _refusal(path, f"photometric interpretation {colour}", "export it as grey or RGB")
        if old and colour.startswith("YBR_FULL"):
            pixels = tools.convert_color_space(pixels, colour, "RGB")
        return _to_uint8(path, pixels)


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
    return _to_uint8(path, values, low, high) * ~padding


def _read_nifti(path: Path) -> np.ndarray:
    import nibabel

    with _quiet():
        image: Any = nibabel.load(path)
        shape = image.shape
        vectors = shape[2:] in ((1, 1, 3), (1, 1, 4)) and image.get_data_dtype() == np.uint8  # ITK's colour
        if len(shape) < 2 or not (vectors or set(shape[2:]) <= {1}):
            raise _refusal(path, f"a volume of shape {shape}", "export the slice to use", "one slice")
        _check_shape(path, shape[1], shape[0])
        values = np.asanyarray(image.dataobj)
    if values.dtype.names:  # RGB24 and RGBA32
        values = np.stack([values[name] for name in values.dtype.names], axis=-1)
    return _to_uint8(path, nifti_picture(image, values))


def nifti_picture(image: Any, values: np.ndarray) -> np.ndarray:
    """Values of a NIfTI slice, (X, Y) or more axes, as rows and columns the way its affine turns them, (H, W, C)."""
    from nibabel.orientations import apply_orientation, axcodes2ornt, io_orientation, ornt_transform

    values, slice_axis = values.reshape(*values.shape[:2], 1, -1), 2
    if image.header["qform_code"] or image.header["sform_code"]:  # without either, it is taken as stored
        turn = ornt_transform(io_orientation(image.affine), axcodes2ornt("LPI"))
        values, slice_axis = apply_orientation(values, turn), int(turn[2, 0])
    return np.take(values, 0, axis=slice_axis).swapaxes(0, 1)
