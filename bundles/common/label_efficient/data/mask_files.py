"""Lung masks: files as drawn by people, read as stored values and turned into one mask of both lungs, or refused.

An image may be rescaled and still be the image; a mask may not: which value is lung is the whole of its content. So
nothing here rescales, resizes or guesses:
    * PNG, TIFF, BMP and GIF keep their values; a palette picture is read by index, not by colour, save for a GIF of
      greys, which knows no other way to store them; colour is accepted where its channels are equal; what is fully
      transparent is 0.
    * NIfTI and DICOM keep their integers, NIfTI turned as `images.read_image` turns the picture.
    * JPEG, and DICOM with lossy compression, are refused: the values at every edge are made up.
"""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageFile, ImageOps

from label_efficient.data.images import MOST_PIXELS, ImageError, check_shape, nifti_picture, open_nifti
from label_efficient.files import open_file, printable

MASK_SUFFIXES = (".png", ".tif", ".tiff", ".bmp", ".gif", ".dcm", ".nii", ".nii.gz")
_MOST_COVERED = 0.9  # the two lungs fill 8 to 46 % of a chest X-ray
_MOST_OF_BORDER = 0.5  # at most 6 % in 813 reference masks (JSRT, Shenzhen)
_MAX_SHOWN = 8
_LOSSY = "changes the values at every edge; save the mask as PNG, from its source"


class MaskError(ValueError):
    """A file that cannot be used as a lung mask: which, what was found, and what to do."""

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))


def border_of(mask: np.ndarray) -> np.ndarray:
    """The outermost pixels of a mask H x W, each once."""
    return np.concatenate([mask[0], mask[-1], mask[1:-1, 0], mask[1:-1, -1]])


def read_mask(
    paths: Sequence[str | os.PathLike[str]],
    values: Sequence[int] | None = None,
    shape: tuple[int, int] | None = None,
) -> np.ndarray:
    """Read the mask of one image.

    Args:
        paths: One file or several of the same size, which are joined: left and right lung, for example.
        values: Stored values that are lung, in every one of the files. Without them a file must be binary: 0 and one
            other value, which is lung.
        shape: Height and width of the image.

    Returns:
        bool H x W, C-contiguous, true in the lungs.

    Raises:
        MaskError: A file is missing, damaged, lossy or not binary; its size is not the image's; no pixel is lung; or
            more than 90 % are, or more than half of the border: lungs never, the rest of an image nearly always.
    """
    names = ", ".join(map(str, paths))
    stored = [read_stored(path) for path in paths]
    height, width = shape or stored[0].shape
    for path, layer in zip(paths, stored, strict=True):
        if layer.shape != (height, width):
            raise MaskError(
                f"{path}: the mask is {layer.shape[0]} x {layer.shape[1]} pixels and "
                f"{'the image' if shape else paths[0]} is {height} x {width} (height x width); give the mask at the "
                "size of its image"
            )
    mask = np.logical_or.reduce([_lungs(path, layer, values) for path, layer in zip(paths, stored, strict=True)])
    if not mask.any():
        found = "" if values is None else f": it holds {_counts(np.stack(stored))}, and mask_values is {list(values)}"
        raise MaskError(f"{names}: no lungs in the mask{found}")
    border = border_of(mask)
    if mask.mean() > _MOST_COVERED or border.mean() > _MOST_OF_BORDER:
        raise MaskError(
            f"{names}: {mask.mean():.0%} of the image and {border.mean():.0%} of its border would be lung; is the mask "
            "inverted? mask_values says which stored values are lung"
        )
    return mask


def read_stored(path: str | os.PathLike[str]) -> np.ndarray:
    """Read the stored values of one mask file: integers H x W, rows from top to bottom.

    A MaskError if it is missing, damaged, lossy, not one 2-D picture, or has colours or fractions.
    """
    path = Path(path)
    name = path.name.lower()
    try:
        with open_file(path) as file:
            head = file.read(132)
        if name.endswith((".nii", ".nii.gz")):
            stored = _read_nifti(path)
        elif head[128:] == b"DICM":
            stored = _read_dicom(path)
        else:
            stored = _read_picture(path)
    except MaskError:
        raise
    except ImageError as error:
        raise MaskError(str(error)) from error
    except OSError as error:
        problem = "does not exist" if isinstance(error, FileNotFoundError) else f"cannot be read ({error})"
        raise MaskError(f"{path}: {problem}; expected a mask ({', '.join(MASK_SUFFIXES)})") from error
    except Exception as error:  # decoders raise anything
        raise MaskError(f"{path}: cannot be read ({type(error).__name__}: {error}); it is damaged") from error
    if stored.ndim != 2:
        raise MaskError(f"{path}: its shape is {stored.shape}, expected one 2-D picture")
    if stored.dtype.kind == "f":
        if not (np.isfinite(stored).all() and (stored == np.rint(stored)).all()):
            raise MaskError(f"{path}: it holds fractions, expected whole numbers: save it after thresholding")
        stored = stored.astype(np.int64)
    if stored.dtype.kind not in "biu":
        raise MaskError(f"{path}: its values are {stored.dtype}, expected whole numbers")
    return np.ascontiguousarray(stored.astype(np.uint8) if stored.dtype == bool else stored)


def _lungs(path: str | os.PathLike[str], stored: np.ndarray, values: Sequence[int] | None) -> np.ndarray:
    if values is not None:
        return np.isin(stored, list(values))
    found = np.unique(stored)
    if len(found) > 2 or (len(found) == 2 and found[0] != 0):
        raise MaskError(
            f"{path}: it holds {_counts(stored)}, expected 0 and one other value; give mask_values, the stored values "
            "that are lung (a mask with soft edges needs a threshold first)"
        )
    return stored != 0


def _counts(stored: np.ndarray) -> str:
    values, counts = np.unique(stored, return_counts=True)
    order = np.sort(np.argsort(-counts, kind="stable")[:_MAX_SHOWN])
    shown = ", ".join(f"{values[i]} ({counts[i]} pixels)" for i in order)
    return f"{len(values)} values, the most frequent of them {shown}" if len(values) > _MAX_SHOWN else shown


def _read_picture(path: Path) -> np.ndarray:
    ImageFile.LOAD_TRUNCATED_IMAGES = False  # other code may have set it: half a mask is none
    with open_file(path) as file, Image.open(file) as picture:
        if picture.format in ("JPEG", "MPO"):
            raise MaskError(f"{path}: JPEG {_LOSSY}")
        if picture.format not in ("PNG", "TIFF", "BMP", "GIF"):
            raise MaskError(f"{path}: it is {picture.format}, expected one of {', '.join(MASK_SUFFIXES)}")
        frames = getattr(picture, "n_frames", 1)
        check_shape(path, MOST_PIXELS, picture.height, picture.width, frames)
        if ";16" in str(picture.tile) and picture.mode[0] != "I":
            raise MaskError(f"{path}: 16-bit colour, of which the lower 8 bits would be lost; save it as grey")
        picture.load()
        shown = _by_palette(path, picture) if picture.mode == "P" else picture
        stored = np.asarray(ImageOps.exif_transpose(shown))
    if picture.mode in ("LA", "RGBA"):
        alpha, stored = stored[..., -1], stored[..., :-1]
        if not np.isin(alpha, (0, 255)).all():
            raise MaskError(f"{path}: it is partly transparent; save it without transparency")
        stored = stored * (alpha == 255)[..., None]
    elif picture.mode not in ("1", "L", "P", "RGB") and picture.mode[0] not in "IF":
        raise MaskError(f"{path}: its colours are {picture.mode}, expected grey, a palette or RGB")
    if stored.ndim == 3:
        if (stored != stored[..., :1]).any():
            raise MaskError(f"{path}: it is coloured, expected grey values; save it with one value per structure")
        stored = stored[..., 0]
    return stored


def _by_palette(path: Path, picture: Image.Image) -> Image.Image:
    """The picture of the indices, or of the greys in a GIF; refused where white is 0 and black is not."""
    used = np.unique(np.asarray(picture))
    colours = np.asarray(picture.getpalette("RGB")).reshape(-1, 3)
    colours = np.pad(colours, ((0, 256 - len(colours)), (0, 0)))[used]
    if picture.format == "GIF" and (colours == colours[:, :1]).all():
        return picture.convert("L")
    if len(used) == 2 and used[0] == 0 and colours[0].sum() > colours[1].sum():
        raise MaskError(
            f"{path}: its palette shows the value 0 brighter than the value {used[1]}; save it as grey, the lungs white"
        )
    return picture


def _read_dicom(path: Path) -> np.ndarray:
    import pydicom

    from label_efficient.data.dicom_pixels import check_deflated

    check_deflated(path, MOST_PIXELS)
    with open_file(path) as file:
        dataset = pydicom.dcmread(file)
    syntax = dataset.file_meta.TransferSyntaxUID
    exact = not syntax.is_compressed or ("Lossless" in syntax.name and "Lossy" not in syntax.name)
    if str(dataset.get("LossyImageCompression") or ("00" if exact else "01")) == "01":
        raise MaskError(f"{path}: lossy compression {_LOSSY}")
    check_shape(path, MOST_PIXELS, *(dataset.get(key) for key in ("Rows", "Columns", "NumberOfFrames")))
    pixels = dataset.pixel_array
    return pixels[0] if pixels.ndim == 3 and len(pixels) == 1 else pixels


def _read_nifti(path: Path) -> np.ndarray:
    image = open_nifti(path)
    shape, kind = image.shape, image.get_data_dtype()
    if kind.names or len(shape) < 2 or not set(shape[2:]) <= {1}:
        raise MaskError(f"{path}: its shape is {shape} of {kind}, expected one slice of whole numbers")
    check_shape(path, MOST_PIXELS, shape[1], shape[0])
    values = np.asanyarray(image.dataobj)
    return nifti_picture(image, values)[..., 0]
