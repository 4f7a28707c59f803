"""Predicted masks, written in the geometry of the image file that they belong to."""

import gzip
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageColor
from scipy import ndimage

from label_efficient.data.images import IMAGE_SUFFIXES, quiet
from label_efficient.files import write_whole
from label_efficient.output_names import output_name, told_apart

from .mask_figures import PREDICTED

NIFTI_SUFFIXES = (".nii.gz", ".nii")
_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
_MILLIMETRES = {"meter": 1000.0, "mm": 1.0, "micron": 0.001}
_SPACING_TAGS = ("PixelSpacing", "ImagerPixelSpacing")
_PLACE_TAGS = ("ImageOrientationPatient", "ImagePositionPatient")


@dataclass(frozen=True)
class FileGrid:
    """How a picture, as `images.read_image` shows it, lies in its file."""

    affine: np.ndarray  # 4 x 4, from voxel (column, row, slice of the file) to millimetres, RAS as in NIfTI
    spacing: tuple[float, float] | None = None  # millimetres from row to row and along a row, or None if unknown
    placed: bool = False  # whether the affine is where the patient was
    back: np.ndarray | None = None  # orientation (nibabel's) that turns the picture into the file's voxels, if needed
    slice_axis: int = 2  # of the turned picture, before it is turned back
    header: Any = None  # of a NIfTI file

    def to_file(self, mask: np.ndarray) -> np.ndarray:
        """Mask H x W of the picture to the voxels of the file, X x Y x 1 (W x H x 1 for pictures and DICOM)."""
        voxels = np.expand_dims(mask.T, self.slice_axis)
        if self.back is not None:
            from nibabel.orientations import apply_orientation

            voxels = apply_orientation(voxels, self.back)
        return np.ascontiguousarray(voxels)


def read_grid(path: str | Path) -> FileGrid:
    """Read the geometry of an image file that `images.read_image` can read."""
    name = Path(path).name.lower()
    if name.endswith(NIFTI_SUFFIXES):
        return _nifti_grid(path)
    if name.endswith(IMAGE_SUFFIXES) and not name.endswith(".dcm"):
        return FileGrid(np.eye(4))
    return _dicom_grid(path)


def _nifti_grid(path: str | Path) -> FileGrid:
    import nibabel
    from nibabel.affines import voxel_sizes
    from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform

    with quiet():
        image: Any = nibabel.load(path)
    if not (image.header["qform_code"] or image.header["sform_code"]):  # `read_image` takes it as stored
        return FileGrid(np.asarray(image.affine), header=image.header)
    own, shown = io_orientation(image.affine), axcodes2ornt("LPI")
    turn = ornt_transform(own, shown)
    slice_axis = int(turn[2, 0])
    sizes = np.empty(3)
    sizes[turn[:, 0].astype(int)] = voxel_sizes(image.affine)
    # Files that name no unit are in millimetres, to every program that reads them.
    column, row = np.delete(sizes, slice_axis) * _MILLIMETRES.get(image.header.get_xyzt_units()[0], 1.0)
    back = ornt_transform(shown, own)
    return FileGrid(np.asarray(image.affine), (float(row), float(column)), True, back, slice_axis, image.header)


def _dicom_grid(path: str | Path) -> FileGrid:
    import pydicom

    with quiet():
        dataset = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=[*_SPACING_TAGS, *_PLACE_TAGS])
        found = [_numbers(dataset, tag, 2) for tag in _SPACING_TAGS]
        directions, position = _numbers(dataset, _PLACE_TAGS[0], 6), _numbers(dataset, _PLACE_TAGS[1], 3)
    known = [(float(s[0]), float(s[1])) for s in found if s is not None and (s > 0).all()]
    spacing = known[0] if known else None
    row, column = spacing or (1.0, 1.0)
    lps, placed = np.diag([column, row, 1.0, 1.0]), False
    if directions is not None and position is not None:
        along_row, along_column = directions[:3], directions[3:]
        normal = np.cross(along_row, along_column)
        placed = abs(float(np.linalg.norm(normal)) - 1) < 0.01
        if placed:
            lps[:3] = np.stack([along_row * column, along_column * row, normal, position], axis=1)
    return FileGrid(_LPS_TO_RAS @ lps, spacing, placed)


def _numbers(dataset: Any, tag: str, count: int) -> np.ndarray | None:
    """The numbers of a tag, or None where it is missing, empty or not so many finite numbers."""
    try:
        values = np.array([float(value) for value in dataset.get(tag) or ()])
    except (TypeError, ValueError):
        return None
    return values if len(values) == count and np.isfinite(values).all() else None


def write_mask(path: str | Path, mask: np.ndarray, grid: FileGrid) -> None:
    """Write a mask, bool H x W as the picture is shown, whole or not at all.

    `.png` of 0 and 255, or `.nii.gz` of 0 and 1 on the voxels of the picture's file.
    """
    values = mask.astype(np.uint8)
    if Path(path).suffix == ".png":
        picture = Image.fromarray(values * 255)
        write_whole(path, lambda file: picture.save(file, format="PNG", compress_level=1))
    else:
        content = _nifti_bytes(grid.to_file(values), grid)
        write_whole(path, lambda file: file.write(content))


def _nifti_bytes(voxels: np.ndarray, grid: FileGrid) -> bytes:
    import nibabel

    if grid.header is None:
        image = nibabel.Nifti1Image(voxels, grid.affine)
        image.header.set_xyzt_units("mm" if grid.spacing else "unknown")
        image.set_sform(grid.affine, "scanner" if grid.placed else "aligned")
    else:
        # The file's own header, so that grid, unit and codes stay; nothing that describes its values.
        header = nibabel.Nifti1Header.from_header(grid.header)
        header.extensions.clear()
        header.set_data_dtype(np.uint8)
        header.set_intent("none")
        for name in ("cal_min", "cal_max", "descrip", "aux_file", "db_name"):
            header[name] = 0 if name.startswith("cal") else b""
        flat = len(grid.header.get_data_shape()) == 2
        image = nibabel.Nifti1Image(voxels[..., 0] if flat else voxels, grid.affine, header)
    return gzip.compress(image.to_bytes(), compresslevel=1, mtime=0)


def mask_names(files: Sequence[str]) -> dict[str, str]:
    """Names of the mask files, relative to their folder, for the names of image files.

    The relative path with another ending: `.png` for pictures, `.nii.gz` for NIfTI and DICOM. Images that would share
    a mask file (`a.png` and `a.jpg`; also `A.png` and `a.png`, the same file to some systems) keep their ending before
    it: `a.png.png`, `a.jpg.png`. All are safe as of `output_name`; what is the same then is told apart by a checksum.
    """
    inside = {file: output_name(file) for file in files}
    full = {file: path + _mask_suffix(path) for file, path in inside.items()}
    names = {file: path[: len(path) - len(_ending(path))] + _mask_suffix(path) for file, path in inside.items()}
    for _ in range(2):  # the first longer names may be those of others
        shared = Counter(name.casefold() for name in names.values())
        names = {file: full[file] if shared[name.casefold()] > 1 else name for file, name in names.items()}
    return told_apart(names)


def _ending(path: str) -> str:
    """The ending that makes it an image; none of DICOM files named by their UID."""
    endings = [s for s in (*NIFTI_SUFFIXES, *IMAGE_SUFFIXES) if path.lower().endswith(s)]
    return path[-len(endings[0]) :] if endings else ""


def _mask_suffix(path: str) -> str:
    return ".nii.gz" if _ending(path).lower() in ("", ".dcm", *NIFTI_SUFFIXES) else ".png"


def outline(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """A copy of the picture, uint8 H x W x 3, with the border of the mask, bool H x W, drawn just inside of it."""
    drawn, width = image.copy(), max(round(max(mask.shape) / 256), 1)
    drawn[mask & ~ndimage.binary_erosion(mask, iterations=width)] = ImageColor.getrgb(PREDICTED)
    return drawn


def save_outline(path: Path, *, image: np.ndarray, mask: np.ndarray) -> None:
    """Write `outline` as PNG at the size of the picture."""
    picture = Image.fromarray(outline(image, mask))
    write_whole(path, lambda file: picture.save(file, format="PNG"))
