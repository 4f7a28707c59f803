"""Figures of the evaluation, recomputed on films whose prediction is known, and the report of each kind of run."""

import csv
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.bundle import create_workflow
from PIL import Image
from sklearn import metrics as sk

from multimix.shipped import ShippedMultiMix

CONFIGS = Path(__file__).resolve().parents[2] / "bundles" / "multimix" / "configs"
CLASSES = ["few <b>", "many"]
SIZES = ((64, 40), (40, 64), (64, 64), (64, 48))  # height x width: all reach 32 x 32 by halving
SPACING = [0.5, 0.5]


class _Page(HTMLParser):
    """Titles of the sections, text, tables and images of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.titles: list[str] = []
        self.tables: list[list[list[str]]] = []
        self.sources: list[str] = []
        self.seen: set[str] = set()
        self.text = self.inside = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.seen.add(tag)
        self.sources += [value for name, value in attrs if name in ("src", "href")]
        if tag == "h2":
            self.titles.append("")
        elif tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
        self.inside = tag

    def handle_data(self, data: str) -> None:
        self.text += data
        if self.inside == "h2":
            self.titles[-1] += data.strip()
        elif self.inside in ("td", "th"):
            self.tables[-1][-1][-1] += data

    def handle_endtag(self, tag: str) -> None:
        self.inside = ""

    def table(self, first: str) -> dict[str, dict[str, str]]:
        """The first table with a row of this name: row to column to cell."""
        head, *rows = next(t for t in self.tables if any(row[0] == first for row in t))
        return {row[0]: dict(zip(head[1:], row[1:], strict=True)) for row in rows}


def box(shape: tuple[int, int], index: int, shift: int = 0) -> np.ndarray:
    """A rectangle with even edges, of a size that depends on the index."""
    height, width = shape
    top, left = height // 8 * 2, width // 8 * 2
    lungs = np.zeros(shape, bool)
    lungs[top + shift : top + shift + height // 4 + 4 * (index % 3), left : left + width // 4 + 4 * (index % 2)] = True
    return lungs


def make_films(folder: Path, *, test: int = 9) -> Path:
    """Bright rectangles whose masks are those rectangles, moved; the network below predicts the rectangles."""
    folder.mkdir(parents=True, exist_ok=True)
    content: dict[str, Any] = {"labels": CLASSES}
    number = 0
    for section, count in {"training": 4, "validation": 4, "test": test, "cross_domain": 4}.items():
        content[section] = []
        for place in range(count):
            shape = SIZES[place % 4]
            name = f"{section}/{number}.png"
            (folder / section).mkdir(exist_ok=True)
            lungs = box(shape, place)
            Image.fromarray(np.where(lungs, 255, number).astype(np.uint8)).save(folder / name)
            reference = box(shape, place, shift=2 * (place % 3))
            Image.fromarray(reference.astype(np.uint8)).save(folder / f"{section}/mask{number}.png")
            item: dict[str, Any] = {"image": name, "source": "north" if place % 3 else "south"}
            if section != "test" or place != 7:
                item["label"] = int(place % 2) if place != 4 else 1
            if section != "test" or place != 8:
                item |= {"mask": f"{section}/mask{number}.png"}
            if section == "test":
                item["spacing"] = SPACING
            content[section].append(item)
            number += 1
    # One source of the other hospitals has a single class, and no masks.
    for item in content["cross_domain"]:
        item["source"] = "east" if item["label"] else "west"
        if item["label"]:
            item.pop("mask")
    (folder / "films.json").write_text(json.dumps(content))
    return folder / "films.json"


def known_prediction(self: ShippedMultiMix, image: torch.Tensor) -> torch.Tensor:
    """Lung where the picture is bright, and class "many" where more than a seventh of its columns are."""
    lungs = image > 0.5
    columns = lungs.any(dim=2).float().mean(dim=(1, 2))
    many = (40 * (columns - 0.2))[:, None, None, None].expand_as(image)
    return torch.cat([torch.zeros_like(image), 20.0 * lungs - 10, torch.zeros_like(image), many], dim=1)


def run(films: Path, output_dir: Path, **settings: Any) -> None:
    """One step of training, and the evaluation."""
    values = {"dataset": str(films), "output_dir": str(output_dir), "image_size": 32, "batch_size": 2}
    values |= {"num_workers": 1, "max_epochs": 1, "steps_per_epoch": 1, **settings}
    parser = create_workflow(config_file=str(CONFIGS / "train.json"), workflow_type="train", **values).parser
    parser.get_parsed_content("train::trainer").run()
    parser.get_parsed_content("evaluation").run()


@pytest.fixture(scope="module")
def known(tmp_path_factory) -> Path:
    """A run whose predictions are known: films in data, the run in out."""
    folder = tmp_path_factory.mktemp("known")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ShippedMultiMix, "forward", known_prediction)
        run(make_films(folder / "data"), folder / "out", method="umtl")
    return folder


def metrics_of(known: Path) -> dict[str, Any]:
    return json.loads((known / "out" / "metrics.json").read_text())


def rows_of(known: Path, section: str) -> list[dict[str, str]]:
    with open(known / "out" / "predictions.csv", newline="") as file:
        return [row for row in csv.DictReader(file) if row["section"] == section]


def test_masks_are_compared_at_the_size_of_their_files(known):
    rows = rows_of(known, "test")
    found: dict[str, list[float]] = {"dice": [], "jaccard": [], "precision": [], "recall": [], "hd95": []}
    for row in rows:
        path = known / "data" / row["file"]
        if row["dice"] == "":
            assert path.stem == "16"
            continue
        predicted = np.asarray(Image.open(path)) == 255
        reference = np.asarray(Image.open(path.with_name(f"mask{path.name}"))) == 1
        assert predicted.shape in SIZES and predicted.any()
        pair = (reference.ravel(), predicted.ravel())
        expected = {
            "dice": sk.f1_score(*pair), "jaccard": sk.jaccard_score(*pair),
            "precision": sk.precision_score(*pair), "recall": sk.recall_score(*pair), "area_px": predicted.sum(),
            "reference_area_px": reference.sum(), "area_mm2": predicted.sum() / 4,
        }  # fmt: skip
        for name, value in expected.items():
            assert float(row[name]) == pytest.approx(value, rel=1e-5), (row["file"], name)
        assert float(row["hd95_mm"]) == pytest.approx(float(row["hd95"]) / 2, rel=1e-5)
        for name in found:
            found[name].append(float(row[name]))
    assert len(found["dice"]) == 8 and 0.3 < min(found["dice"]) < 0.95 and max(found["dice"]) == 1
    summary = metrics_of(known)["test"]["segmentation"]
    assert summary["n"] == 8
    for name, values in found.items():
        assert summary[name] == pytest.approx(np.mean(values), rel=1e-5)
        assert summary[f"{name}_sd"] == pytest.approx(np.std(values, ddof=1), rel=1e-4)
        assert summary[f"{name}_median"] == pytest.approx(np.median(values), rel=1e-5)


def test_classes_are_those_of_scikit_learn(known):
    rows = [row for row in rows_of(known, "test") if row["label"]]
    truth, pred = ([CLASSES.index(row[name]) for row in rows] for name in ("label", "pred"))
    scores = [float(row["p_many"]) for row in rows]
    # What the network says is known from the films alone.
    for row in rows:
        lungs = np.asarray(Image.open(known / "data" / row["file"])) == 255
        share = lungs.any(axis=0).sum() / max(lungs.shape)
        assert float(row["p_many"]) == pytest.approx(1 / (1 + np.exp(-40 * (share - 0.2))), abs=2e-6)
    figures = metrics_of(known)["test"]["classification"]
    assert figures["n"] == len(rows) == 8 and 0 < figures["acc"] < 1
    assert figures["acc"] == pytest.approx(sk.accuracy_score(truth, pred))
    assert figures["macro_f1"] == pytest.approx(sk.f1_score(truth, pred, average="macro"))
    assert figures["balanced_accuracy"] == pytest.approx(sk.balanced_accuracy_score(truth, pred))
    assert figures["auc"] == pytest.approx(sk.roc_auc_score(truth, scores))
    assert figures["confusion"] == sk.confusion_matrix(truth, pred).tolist()
    for row, f1 in zip(figures["per_class"], sk.f1_score(truth, pred, average=None), strict=True):
        assert row["f1"] == pytest.approx(f1)


def test_figures_by_source_are_those_of_the_source_alone(known):
    metrics = metrics_of(known)
    for section, key in (("test", "test"), ("cross_domain", "cross_domain")):
        rows = rows_of(known, section)
        by_source = metrics[key]["by_source"]
        assert set(by_source) == {row["source"] for row in rows}
        for source, figures in by_source.items():
            own = [row for row in rows if row["source"] == source]
            right = [row["label"] == row["pred"] for row in own if row["label"]]
            assert figures["classification"]["n"] == len(right)
            assert figures["classification"]["acc"] == pytest.approx(np.mean(right))
            dice = [float(row["dice"]) for row in own if row["dice"]]
            assert ("segmentation" in figures) == bool(dice)
            if dice:
                assert figures["segmentation"]["dice"] == pytest.approx(np.mean(dice), rel=1e-5)
    east = metrics["cross_domain"]["by_source"]["east"]
    assert east["classification"]["auc"] is None and "segmentation" not in east


def test_tables_of_the_report_are_the_metrics(known):
    page = _Page((known / "out" / "report.html").read_text())
    metrics = metrics_of(known)
    classes, masks = page.table("accuracy"), page.table("Dice")
    north = metrics["test"]["by_source"]["north"]
    for table, row, task, key in (
        (classes, "accuracy", "classification", "acc"), (classes, "macro F1", "classification", "macro_f1"),
        (masks, "Dice", "segmentation", "dice"), (masks, "HD95, mm", "segmentation", "hd95_mm"),
    ):  # fmt: skip
        assert float(table[row]["test, in domain"]) == pytest.approx(metrics["test"][task][key], rel=1e-3)
        assert float(table[row]["test, in domain: north"]) == pytest.approx(north[task][key], rel=1e-3)
    assert "cross-domain: east" in classes["accuracy"] and "cross-domain: east" not in masks["Dice"]
    assert masks["HD95, mm"]["validation"] == "\N{EN DASH}"  # no spacing there


def test_report_is_one_page_without_links_or_markup_of_the_data(known):
    text = (known / "out" / "report.html").read_text()
    page = _Page(text)
    assert CLASSES[0] in page.text and "<b>" not in text and "script" not in page.seen
    figures = list((known / "out" / "figures").glob("*.png"))
    assert len([s for s in page.sources if s.startswith("data:image/")]) >= len(figures) >= 7
    assert not [s for s in page.sources if not s.startswith(("data:image/", "#"))]
    assert "not a medical device" in page.text and "Synthetic" not in page.text
    for title in ("Figures", "Data", "Training", "Masks", "Classes", "Calibration", "Hardest cases", "Saliency maps"):
        assert title in page.titles


CLASS_TITLES = {"Classes", "Calibration", "Hardest cases", "Saliency maps"}
CLASS_FIGURES = {"confusion_matrix.png", "roc.png", "reliability.png", "saliency.png"}
MASK_FIGURES = {"dice.png", "boundaries_test.png", "boundaries_cross_domain.png"}


@pytest.mark.parametrize("method", ["unet", "enc"])
def test_a_report_has_no_sections_of_a_task_that_the_method_has_not(tmp_path, method):
    run(make_films(tmp_path / "data"), tmp_path / "out", method=method)
    page = _Page((tmp_path / "out" / "report.html").read_text())
    figures = {p.name for p in (tmp_path / "out" / "figures").iterdir()}
    rows = {row[0] for table in page.tables for row in table}
    if method == "unet":
        assert not CLASS_TITLES & set(page.titles) and "Masks" in page.titles
        assert figures == MASK_FIGURES | {"history.png"} and "Dice" in rows and "accuracy" not in rows
    else:
        assert set(page.titles) >= CLASS_TITLES and "Masks" not in page.titles
        assert figures == CLASS_FIGURES | {"history.png"} and "Dice" not in rows and "accuracy" in rows


def test_without_a_test_part_the_report_says_that_validation_is_shown(tmp_path):
    path = make_films(tmp_path / "data", test=0)
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"cross_domain": []}))
    run(path, tmp_path / "out", method="enc")
    page = _Page((tmp_path / "out" / "report.html").read_text())
    assert "By class, validation" in page.text and "validation images whose true class" in page.text
    assert set(page.table("accuracy")["accuracy"]) >= {"validation"} and "test, in domain" not in page.text


def test_evaluation_alone_has_no_training_section(known, tmp_path):
    settings = {"dataset": str(known / "data" / "films.json"), "output_dir": str(tmp_path), "image_size": 32}
    parser = create_workflow(
        config_file=[str(CONFIGS / "train.json"), str(CONFIGS / "evaluate.json")], workflow_type="train",
        ckpt_path=str(known / "out" / "model.pt"), method="umtl", num_workers=1, **settings,
    ).parser  # fmt: skip
    parser.get_parsed_content("evaluation").run()
    page = _Page((tmp_path / "report.html").read_text())
    assert "Training" not in page.titles and "Masks" in page.titles
    assert not (tmp_path / "figures" / "history.png").exists()
    # The true weights, not those known ones: otherwise the fixture would have tested nothing.
    again = json.loads((tmp_path / "metrics.json").read_text())
    assert again["test"]["segmentation"]["dice"] != metrics_of(known)["test"]["segmentation"]["dice"]


def test_settings_that_differ_are_in_the_report(known):
    text = (known / "out" / "report.html").read_text()
    assert re.search(r"image_size.{0,80}32", text, re.DOTALL)
    assert _Page(text).text.count("umtl") >= 2
