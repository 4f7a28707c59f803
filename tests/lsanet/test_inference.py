"""Grad-CAM overlays of files outside of the folder."""

from types import SimpleNamespace

import numpy as np
import torch
from PIL import Image

from label_efficient.evaluation.decisions import Decision
from label_efficient.run_folder import RunFolder
from lsanet.inference import PredictionWriter
from lsanet.shipped import NodeInferer
from lsanet.transforms import Preprocess


def test_no_overlay_lands_beside_a_file_that_a_list_names_by_its_whole_path(tmp_path):
    picture = tmp_path / "mine" / "a.png"
    picture.parent.mkdir()
    Image.fromarray(np.zeros((8, 12, 3), np.uint8)).save(picture)
    writer = PredictionWriter(
        run_folder=RunFolder(tmp_path / "out", "inference"),
        network=torch.nn.Identity(),
        inferer=NodeInferer(),
        preprocess=Preprocess(image_size=8, keep_aspect=True, mean=(0.5,) * 3, std=(0.5,) * 3),
        classes=["a", "b"],
        decision=Decision(["a", "b"]),
        settings=SimpleNamespace(),
        saliency=True,
    )
    writer.files, writer.paths, writer.names = [str(picture)], [str(picture)], writer.name_files([str(picture)])
    writer.heat = torch.ones(1, 8, 8)
    writer.job(0, 0, {})()
    assert list(picture.parent.iterdir()) == [picture]
    (overlay,) = (tmp_path / "out" / "saliency").rglob("*.png")
    assert Image.open(overlay).size == (12, 8)
