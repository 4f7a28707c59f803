"""Inference of the multimix bundle: masks in the geometry of their files, the table, mistakes."""

import csv
import itertools
import json
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
import pytest
import torch
from monai.bundle import create_workflow
from nibabel.orientations import io_orientation
from PIL import Image
from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage

from label_efficient.data.images import read_image
from label_efficient.data.picture_set import PictureSet
from label_efficient.data.picture_transforms import LoadPictured, Preprocessd
from label_efficient.networks.weights import save_model
from multimix.data import load_data
from multimix.mask_output import mask_names, outline, read_grid, write_mask
from multimix.network import METHODS
from multimix.plausibility import SHAPE_COLUMNS
from multimix.predictions import interpret
from multimix.shipped import ShippedMultiMix
from multimix.streams import PartSet
from multimix.transforms import Preprocess, to_input

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / "bundles" / "multimix" / "configs" / "inference.json"
SIZE = 32
CLASSES = ["NORMAL", "PNEUMONIA"]


def _weights(folder: Path, method: str = "multimix", lung_bias: float = 0.0, **info: Any) -> tuple[Path, Any]:
    torch.manual_seed(0)
    network = ShippedMultiMix(method=method, num_classes=2).eval()
    if network.decoder is not None:
        torch.nn.init.constant_(network.decoder.to_mask.bias, lung_bias)
    description = {"bundle": "multimix", "method": method, "classes": CLASSES, "image_size": SIZE, "keep_aspect": True}
    save_model(folder / "model.pt", network.state_dict(), description | info)
    return folder / "model.pt", network


def _run(dataset_dir: Path, weights: Path, output_dir: Path, **settings: Any) -> list[dict[str, str]]:
    values = {"dataset_dir": str(dataset_dir), "ckpt_path": str(weights), "output_dir": str(output_dir)}
    values |= {"num_workers": 0, "batch_size": 3, "device": "cpu", **settings}
    create_workflow(config_file=str(CONFIG), workflow_type="infer", logging_file=False, **values).run()
    with open(output_dir / "predictions.csv", newline="") as file:
        return list(csv.DictReader(file))


def _cause(function: Any, *arguments: Any, **settings: Any) -> str:
    """Messages of an error and of what caused it: MONAI wraps what an expression of a config raises."""
    with pytest.raises((RuntimeError, ValueError)) as caught:
        function(*arguments, **settings)
    text, error = "", caught.value
    while error is not None:
        text, error = f"{text}\n{error}", error.__cause__
    return text


def _dicom(path: Path, pixels: np.ndarray, **tags: Any) -> None:
    meta = pydicom.dataset.FileMetaDataset()
    meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    meta.MediaStorageSOPInstanceUID = "1.2.3"
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset = pydicom.Dataset()
    dataset.file_meta = meta
    dataset.Rows, dataset.Columns = pixels.shape
    dataset.SamplesPerPixel, dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 1, 16, 12, 11
    dataset.PixelRepresentation, dataset.PhotometricInterpretation = 0, "MONOCHROME2"
    for name, value in tags.items():
        setattr(dataset, name, value)
    dataset.PixelData = pixels.astype("<u2").tobytes()
    dataset.save_as(path, enforce_file_format=True)


def _mask(path: Path) -> np.ndarray:
    return np.asarray(nibabel.load(path).dataobj) if path.suffix == ".gz" else np.asarray(Image.open(path))


@pytest.mark.parametrize("axes", list(itertools.permutations(range(3))))
@pytest.mark.parametrize("signs", list(itertools.product((1, -1), repeat=3)))
def test_mask_of_a_nifti_picture_lies_on_the_voxels_that_it_was_read_from(tmp_path, axes, signs):
    voxels = np.random.default_rng(0).permutation(35).astype(np.uint8).reshape(5, 7, 1)
    sizes = np.array([2.0, 3.0, 5.0])
    affine = np.eye(4)
    affine[:3, :3] = np.eye(3)[:, axes] * signs * sizes
    affine[:3, 3] = 7, -8, 9
    image = nibabel.Nifti1Image(voxels, affine)
    image.header.set_xyzt_units("mm")
    nibabel.save(image, tmp_path / "a.nii.gz")
    picture = read_image(tmp_path / "a.nii.gz", channels=1)[..., 0]
    grid = read_grid(tmp_path / "a.nii.gz")
    assert np.array_equal(grid.to_file(picture), voxels)
    write_mask(tmp_path / "m.nii.gz", picture > 17, grid)
    written = nibabel.load(tmp_path / "m.nii.gz")
    assert np.array_equal(np.asarray(written.dataobj), voxels > 17)
    assert written.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(written.affine, affine)
    rows_are_x = picture.shape == (5, 7)
    assert grid.spacing == pytest.approx((2, 3) if rows_are_x else (3, 2))


@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
@pytest.mark.parametrize("flat", [True, False])
def test_nifti_without_orientation_stays_so_and_has_no_known_spacing(tmp_path, kind, flat):
    voxels = np.arange(12, dtype=np.int16).reshape((3, 4) if flat else (3, 4, 1))
    image = kind(voxels, None)
    image.header["descrip"] = b"Jane Doe"
    nibabel.save(image, tmp_path / "a.nii.gz")
    grid = read_grid(tmp_path / "a.nii.gz")
    picture = read_image(tmp_path / "a.nii.gz", channels=1)[..., 0]
    write_mask(tmp_path / "m.nii.gz", picture > 100, grid)
    written = nibabel.load(tmp_path / "m.nii.gz")
    assert grid.spacing is None and written.shape == voxels.shape
    assert np.array_equal(np.asarray(written.dataobj), voxels > 11 * 100 / 255)
    assert (written.header["qform_code"], written.header["sform_code"]) == (0, 0)
    np.testing.assert_allclose(written.affine, nibabel.load(tmp_path / "a.nii.gz").affine)
    assert b"Jane" not in bytes(written.header["descrip"])


@pytest.mark.parametrize("unit, factor", [("mm", 1), ("micron", 0.001), ("meter", 1000), ("unknown", 1)])
def test_spacing_of_nifti_is_in_millimetres(tmp_path, unit, factor):
    image = nibabel.Nifti1Image(np.arange(12, dtype=np.uint8).reshape(3, 4, 1), np.diag([2.0, 3.0, 1.0, 1.0]))
    image.header.set_xyzt_units(unit)
    nibabel.save(image, tmp_path / "a.nii")
    assert read_grid(tmp_path / "a.nii").spacing == pytest.approx((3 * factor, 2 * factor))


@pytest.mark.parametrize(
    "tags, spacing, affine",
    [
        ({}, None, np.diag([-1, -1, 1, 1])),
        ({"PixelSpacing": [0.5, 0.25]}, (0.5, 0.25), np.diag([-0.25, -0.5, 1, 1])),
        ({"ImagerPixelSpacing": [0.5, 0.25]}, (0.5, 0.25), np.diag([-0.25, -0.5, 1, 1])),
        ({"ImagerPixelSpacing": [1, 2], "PixelSpacing": [3, 4]}, (3, 4), np.diag([-4, -3, 1, 1])),
        ({"PixelSpacing": [0, 0], "ImagerPixelSpacing": [1, 2]}, (1, 2), np.diag([-2, -1, 1, 1])),
        (
            # Coronal: along a row to the patient's left (LPS +x), along a column to the feet (-z).
            {
                "PixelSpacing": [0.5, 0.25],
                "ImageOrientationPatient": [1, 0, 0, 0, 0, -1],
                "ImagePositionPatient": [10, 20, 30],
            },
            (0.5, 0.25),
            [[-0.25, 0, 0, -10], [0, 0, -1, -20], [0, -0.5, 0, 30], [0, 0, 0, 1]],
        ),
        (
            {"ImageOrientationPatient": [1, 0, 0, 1, 0, 0], "ImagePositionPatient": [1, 2, 3]},
            None,
            np.diag([-1, -1, 1, 1]),
        ),
    ],
)
def test_mask_of_dicom_is_nifti_with_the_affine_of_its_tags(tmp_path, tags, spacing, affine):
    pixels = np.arange(12).reshape(3, 4)
    _dicom(tmp_path / "1.2.840.113", pixels, **tags)
    picture = read_image(tmp_path / "1.2.840.113", channels=1)[..., 0]
    grid = read_grid(tmp_path / "1.2.840.113")
    write_mask(tmp_path / "m.nii.gz", picture > 100, grid)
    written = nibabel.load(tmp_path / "m.nii.gz")
    assert grid.spacing == spacing
    np.testing.assert_allclose(written.affine, affine, atol=1e-6)
    assert np.array_equal(np.asarray(written.dataobj)[..., 0].T, pixels > 11 * 100 / 255)


@pytest.mark.parametrize(
    "files, names",
    [
        (["a/b.png", "c.JPEG"], ["a/b.png", "c.png"]),
        (["a.dcm", "b.nii", "c.nii.gz", "1.2.840.113"], ["a.nii.gz", "b.nii.gz", "c.nii.gz", "1.2.840.113.nii.gz"]),
        (["a.png", "a.jpg", "b.png"], ["a.png.png", "a.jpg.png", "b.png"]),
        (["a.dcm", "a.nii.gz", "a.png"], ["a.dcm.nii.gz", "a.nii.gz.nii.gz", "a.png"]),
        (["A.png", "a.tif"], ["A.png.png", "a.tif.png"]),
        (["a.png", "a.jpg", "a.png.png"], ["a.png.png", "a.jpg.png", "a.png.png.png"]),
        (["/data/x.png", "../../y.png"], ["data/x.png", "y.png"]),
        (["../x.png", "x.png", "x.png.png"], ["x.png.png", "b74f9ac89822-x.png.png", "x.png.png.png"]),
        (["p.1.2.png"], ["p.1.2.png"]),
    ],
)
def test_no_two_images_share_a_mask_file(files, names):
    assert mask_names(files) == dict(zip(files, names, strict=True))


def test_outline_is_the_border_of_the_mask_and_nothing_else():
    image = np.full((300, 300, 3), 7, np.uint8)
    mask = np.zeros((300, 300), bool)
    mask[100:200, 50:100] = True
    border = mask.copy()
    border[101:199, 51:99] = False
    assert np.array_equal((outline(image, mask) != 7).any(axis=2), border)
    assert np.array_equal(outline(image, np.zeros_like(mask)), image) and (image == 7).all()


def test_uncertainty_is_the_entropy_of_the_classes_or_of_the_pixels():
    pred = torch.zeros(2, 4, 4, 4)
    pred[0, 2] = 2.0
    pred[1, 1] = 1.5
    result = interpret(pred, "multimix", temperature=2.0)
    p = 1 / (1 + np.exp(-1.0))
    np.testing.assert_allclose(result.probabilities, [[p, 1 - p], [0.5, 0.5]], rtol=1e-6)
    np.testing.assert_allclose(result.uncertainty, [-(p * np.log2(p) + (1 - p) * np.log2(1 - p)), 1], rtol=1e-6)
    p = 1 / (1 + np.exp(-1.5))
    masks = interpret(pred[:, :2], "unet", temperature=1.0).uncertainty
    np.testing.assert_allclose(masks, [1, -(p * np.log2(p) + (1 - p) * np.log2(1 - p))], rtol=1e-6)
    pred[1, 1, 0, 0] = torch.nan  # of one image, which alone is without a prediction
    assert interpret(pred, "multimix", temperature=1.0).uncertainty.isnan().tolist() == [False, True]


@pytest.fixture
def pictures(tmp_path) -> Path:
    """Files of every kind: grey, colour, 16-bit, tiny, not square, NIfTI, DICOM, and damaged."""
    folder, rng = tmp_path / "in", np.random.default_rng(0)
    (folder / "sub").mkdir(parents=True)
    noise = rng.integers(0, 256, (40, 25), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "a.png")
    Image.fromarray(np.repeat(noise[..., None], 3, axis=2)).save(folder / "a.jpg")
    Image.fromarray(rng.integers(0, 256, (30, 64, 3), dtype=np.uint8)).save(folder / "sub" / "colour.bmp")
    Image.fromarray(rng.integers(0, 4096, (33, 33)).astype(np.uint16)).save(folder / "deep.png")
    Image.fromarray(noise[:3, :5]).save(folder / "tiny.tif")
    turned = nibabel.Nifti1Image(noise[..., None], np.diag([0.5, -0.5, 1, 1]))
    turned.header.set_xyzt_units("mm")
    nibabel.save(turned, folder / "n.nii.gz")
    _dicom(folder / "d.dcm", noise.astype(np.uint16) * 16, PixelSpacing=[0.2, 0.1])
    (folder / "e.png").write_bytes(b"not a picture")
    return folder


def test_a_folder_of_all_kinds(pictures, tmp_path):
    weights, network = _weights(tmp_path)
    rows = _run(pictures, weights, tmp_path / "out", saliency=True, overlays=True, num_workers=2)
    by_file = {row["file"]: row for row in rows}
    assert list(rows[0]) == [
        "file", "pred", "p_NORMAL", "p_PNEUMONIA", "uncertainty", "lung_area_px", "lung_area_mm2", "left_fraction",
        "right_fraction", "split", *SHAPE_COLUMNS, "implausible", "mask", "error",
    ]  # fmt: skip
    masks = {file: row["mask"] for file, row in by_file.items()}
    assert masks == {
        "a.jpg": "masks/a.jpg.png",
        "a.png": "masks/a.png.png",
        "d.dcm": "masks/d.nii.gz",
        "deep.png": "masks/deep.png",
        "e.png": "",
        "n.nii.gz": "masks/n.nii.gz",
        "sub/colour.bmp": "masks/sub/colour.png",
        "tiny.tif": "masks/tiny.png",
    }
    assert "e.png" in by_file["e.png"]["error"] and not by_file["e.png"]["pred"]
    preprocess = Preprocess(image_size=SIZE)
    for file, name in masks.items():
        if not name:
            continue
        picture = read_image(pictures / file, channels=1)[..., 0]
        with torch.no_grad():
            pred = network(torch.from_numpy(preprocess(picture))[None, None].float() / 255)[0]
        expected = preprocess.restore(torch.sigmoid(pred[1]), *picture.shape).numpy() > 0.5
        found = _mask(tmp_path / "out" / name)
        assert found.dtype == np.uint8 and set(np.unique(found)) <= ({0, 255} if name.endswith("png") else {0, 1})
        if file == "d.dcm":
            found = found[..., 0].T
        elif file == "n.nii.gz":  # stored with x to the right and y to the front, shown in LPS
            assert found.shape == (40, 25, 1)
            found = found[::-1, :, 0].T
        assert np.array_equal(found > 0, expected), file
        row = by_file[file]
        assert float(row["p_PNEUMONIA"]) == pytest.approx(float(pred[2:, 0, 0].softmax(0)[1]), abs=2e-6)
        assert float(row["lung_area_px"]) == expected.sum() and row["error"] == ""
        pixel = {"d.dcm": 0.02, "n.nii.gz": 0.25}.get(file)
        assert row["lung_area_mm2"] == "" or float(row["lung_area_mm2"]) == pytest.approx(expected.sum() * pixel)
        assert (row["lung_area_mm2"] == "") == (pixel is None)
        shown = Path(name).relative_to("masks")
        drawn = shown if shown.suffix == ".png" else f"{shown}.png"
        for kind in ("saliency", "overlays"):
            assert Image.open(tmp_path / "out" / kind / drawn).size == picture.shape[::-1]
    assert (tmp_path / "out" / "figures" / "least_certain.png").is_file()
    report = (tmp_path / "out" / "report.html").read_text()
    assert "e.png" in report and "not a medical device" in report
    assert not [p for p in (tmp_path / "out").rglob("*") if p.name.endswith(".tmp")]
    again = _run(pictures, weights, tmp_path / "again", batch_size=1)
    assert [{k: v for k, v in row.items() if k[:2] != "p_" and k != "uncertainty"} for row in again] == [
        {k: v for k, v in row.items() if k[:2] != "p_" and k != "uncertainty"} for row in rows
    ]


@pytest.mark.parametrize("keep_aspect", [True, False])
def test_pixels_are_those_of_training(pictures, tmp_path, keep_aspect):
    def labelled(files: list[str]) -> list[dict[str, Any]]:
        return [{"image": str(pictures / file), "label": index % 2} for index, file in enumerate(files)]

    sections = {
        "training": labelled(["a.png", "sub/colour.bmp", "d.dcm"]),
        "validation": labelled(["deep.png", "n.nii.gz"]),
        "test": [],
    }
    (tmp_path / "list.json").write_text(json.dumps({"labels": {"0": "NORMAL", "1": "PNEUMONIA"}, **sections}))
    preprocess = Preprocess(image_size=SIZE, keep_aspect=keep_aspect)
    data = load_data(str(tmp_path / "list.json"), method="enc", preprocess=preprocess)
    load, prepare = LoadPictured("image", 1), Preprocessd("image", preprocess.to_network)
    for part in (data.splits["train"], data.splits["val"]):
        trained_on = to_input(PartSet(part)[range(len(part))]["image"])
        files = [{"image": str(entry.image), "file": entry.file} for entry in part.entries]
        predicted = PictureSet(files, lambda item: prepare(load(item)), SIZE, channels=1)
        assert len(predicted) >= 2
        for index in range(len(predicted)):
            assert predicted[index]["error"] == ""
            assert torch.equal(predicted[index]["image"], trained_on[index])


@pytest.mark.parametrize("method", METHODS)
def test_tables_have_the_columns_of_the_method(pictures, tmp_path, method):
    weights, _ = _weights(tmp_path, method)
    rows = _run(pictures / "sub", weights, tmp_path / "out")
    assert ("p_NORMAL" in rows[0]) == ("pred" in rows[0]) == METHODS[method].classifies
    assert ("mask" in rows[0]) == ("lung_area_px" in rows[0]) == METHODS[method].segments
    assert (tmp_path / "out" / "masks").is_dir() == METHODS[method].segments
    assert 0 <= float(rows[0]["uncertainty"]) <= 1


@pytest.mark.parametrize("method, setting", [("unet", "saliency"), ("enc", "overlays")])
def test_overlays_that_the_method_cannot_have_are_refused(pictures, tmp_path, method, setting):
    weights, _ = _weights(tmp_path, method)
    assert f"{setting}=True" in _cause(_run, pictures, weights, tmp_path / "out", **{setting: True})


def test_empty_masks_are_counted_and_named(pictures, tmp_path, caplog):
    weights, _ = _weights(tmp_path, lung_bias=-100.0)
    rows = _run(pictures / "sub", weights, tmp_path / "out", overlays=True)
    assert (rows[0]["lung_area_px"], rows[0]["split"], rows[0]["error"]) == ("0", "none", "")
    assert caplog.text.count("colour.bmp: the mask is implausible: no lung was found") == 2  # and at the end
    assert "no lung was found" in (tmp_path / "out" / "report.html").read_text()
    assert not _mask(tmp_path / "out" / "masks" / "colour.png").any()


def test_temperature_beside_the_weights_is_applied(pictures, tmp_path):
    from label_efficient.evaluation.calibration import write_calibration

    weights, _ = _weights(tmp_path)
    plain = float(_run(pictures / "sub", weights, tmp_path / "out")[0]["p_NORMAL"])
    same: dict[str, Any] = dict.fromkeys(("nll_before", "nll_after", "ece_before", "ece_after"), 0.5)
    write_calibration(tmp_path / "calibration.json", {"temperature": 3.0, "fitted_on": "validation", "n": 9, **same})
    calibrated = float(_run(pictures / "sub", weights, tmp_path / "calibrated")[0]["p_NORMAL"])
    logit = np.log(plain / (1 - plain))
    assert calibrated == pytest.approx(1 / (1 + np.exp(-logit / 3)), abs=5e-6) and calibrated != plain


def test_a_list_with_missing_repeated_and_outside_files(pictures, tmp_path):
    weights, _ = _weights(tmp_path)
    (tmp_path / "list.txt").write_text(f"a.png\nmissing.png\na.png\n../in/deep.png\n{pictures}/tiny.tif\n")
    rows = _run(pictures, weights, tmp_path / "out", datalist=str(tmp_path / "list.txt"))
    assert [bool(row["error"]) for row in rows] == [False, True, False, False, False]
    assert "missing.png" in rows[1]["error"]
    assert {k: v for k, v in rows[0].items() if k[:2] != "p_"} == {k: v for k, v in rows[2].items() if k[:2] != "p_"}
    assert all((tmp_path / "out" / row["mask"]).is_file() for row in rows if row["mask"])
    assert rows[3]["mask"] == "masks/in/deep.png" and str(pictures)[1:] in rows[4]["mask"]


def test_nothing_readable_is_an_error_after_the_table(tmp_path):
    weights, _ = _weights(tmp_path)
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_bytes(b"x")
    assert "none of the 1 files" in _cause(_run, tmp_path / "in", weights, tmp_path / "out")
    assert "a.png" in (tmp_path / "out" / "predictions.csv").read_text()


def test_mistakes_with_weights_are_named(pictures, tmp_path):
    weights, _ = _weights(tmp_path)
    run = (_run, pictures, weights, tmp_path / "out")
    info = json.loads((tmp_path / "model.json").read_text())
    for change, message in (
        ({"bundle": "lsanet"}, "weights of the bundle 'lsanet'"),
        ({"method": "unet"}, "does not hold the weights of this network"),
        ({"image_size": 99}, "image_size=99: expected a multiple of 32"),
        ({"method": "unknown"}, "method='unknown': expected one of unet"),
        ({"classes": ["a", "b", "c"]}, "does not hold the weights of this network"),
    ):
        (tmp_path / "model.json").write_text(json.dumps(info | change))
        assert message in _cause(*run)
    del info["bundle"]
    (tmp_path / "model.json").write_text(json.dumps(info))
    assert "bundle missing" in _cause(*run)
    (tmp_path / "model.json").unlink()
    assert "model.json: no such file" in _cause(*run)


def test_mistakes_with_images_are_named(tmp_path):
    weights, _ = _weights(tmp_path)
    (tmp_path / "in").mkdir()
    values = {"ckpt_path": str(weights), "output_dir": str(tmp_path / "out"), "num_workers": 0}
    workflow = create_workflow(config_file=str(CONFIG), workflow_type="infer", logging_file=False, **values)
    assert "no images: give --dataset_dir FOLDER" in _cause(workflow.run)
    assert "no image in it" in _cause(_run, tmp_path / "in", weights, tmp_path / "out")
    assert "no such file" in _cause(_run, tmp_path, weights, tmp_path / "out", datalist=str(tmp_path / "no.txt"))
    assert "did you mean 'overlays'" in _cause(_run, tmp_path, weights, tmp_path / "out", overlay=True)


def test_real_dicom_and_png(real_data, tmp_path):
    weights, _ = _weights(tmp_path)
    files = ["chest_cr_1.dcm", "chest_cr_2.dcm", "chest_nih_512_a.png"]
    (tmp_path / "list.txt").write_text("\n".join(files))
    rows = _run(real_data / "samples", weights, tmp_path / "out", datalist=str(tmp_path / "list.txt"))
    for row, file in zip(rows, files, strict=True):
        shape = read_image(real_data / "samples" / file).shape
        mask = _mask(tmp_path / "out" / row["mask"])
        assert (mask.shape[:2] if file.endswith("png") else mask.shape[1::-1]) == shape[:2] and row["error"] == ""
    tags = pydicom.dcmread(real_data / "samples" / files[0], stop_before_pixels=True)
    spacing = [float(s) for s in tags.get("PixelSpacing") or tags.ImagerPixelSpacing]
    image = nibabel.load(tmp_path / "out" / rows[0]["mask"])
    np.testing.assert_allclose(image.header.get_zooms()[:2], spacing[::-1], rtol=1e-6)
    assert float(rows[0]["lung_area_mm2"]) == pytest.approx(float(rows[0]["lung_area_px"]) * np.prod(spacing))
    assert io_orientation(image.affine)[:, 0].tolist() in ([0, 1, 2], [0, 2, 1])
