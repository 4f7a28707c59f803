"""Reference boxes: coordinates as their format means them, and nothing of another image taken for this one's."""

import xml.etree.ElementTree as ET
from collections.abc import Sequence
from pathlib import Path

import pytest
from PIL import Image

from gated_attention.reference_boxes import ReferenceBox, read_reference_boxes

FILES = ["a.jpg", "b.png"]
SIZES = {"a.jpg": (100, 200), "b.png": (50, 60)}.__getitem__
HEADER = "file,xmin,ymin,xmax,ymax,name"


def _voc(
    boxes: Sequence[tuple[str, object, object, object, object]],
    *,
    filename: str = "a.jpg",
    size: tuple[int, int] = (100, 200),
) -> str:
    objects = "".join(
        f"<object><name>{name}</name><bndbox><xmin>{x0}</xmin><ymin>{y0}</ymin><xmax>{x1}</xmax><ymax>{y1}</ymax>"
        "</bndbox></object>"
        for name, x0, y0, x1, y1 in boxes
    )
    stored = f"<size><width>{size[1]}</width><height>{size[0]}</height><depth>3</depth></size>"
    return f"<annotation><filename>{filename}</filename>{stored}{objects}</annotation>"


def _folder(tmp_path: Path, **contents: str) -> Path:
    folder = tmp_path / "xml"
    for name, content in contents.items():
        path = folder / f"{name.replace('__', '/')}.xml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return folder


def _csv(tmp_path: Path, *lines: str) -> Path:
    path = tmp_path / "boxes.csv"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


GOOD = ("RBC", 1, 1, 10, 20)


def wide(file: str) -> tuple[int, int]:
    return 100, 200


def test_voc_pixels_from_one_become_edges(tmp_path: Path):
    folder = _folder(tmp_path, a=_voc([("WBC", 1, 1, 200, 100), ("RBC", 11, 21, 12.5, 40)]))
    boxes = read_reference_boxes(folder, FILES, SIZES)
    assert boxes == {
        "a.jpg": [ReferenceBox("WBC", 0, 0, 200, 100), ReferenceBox("RBC", 10, 20, 12.5, 40)],
        "b.png": [],
    }
    assert boxes.remarks == ["reference boxes: 1 of 2 images have no reference box and do not count"]


@pytest.mark.parametrize(
    ("lines", "name"),
    [
        ([HEADER, "a.jpg,0,0,200,100,WBC", "a.jpg,10,20,12.5,40,WBC", "", ",,,,,"], "WBC"),
        (["ymax,xmax,ymin,xmin,path", "100,200,0,0,a.jpg", "40,12.5,20,10,a.jpg"], ""),
        (["filename,X,y,width,height,class", "a.jpg,0,0,200,100,WBC", "a.jpg,10,20,2.5,20,WBC"], "WBC"),
        # Beside corners, width and height are the image's.
        (
            [
                "\ufefffilename,x,y,width,height,class,xmin,ymin,xmax,ymax",  # as spreadsheets begin UTF-8
                "a.jpg,1,1,200,100,WBC,0,0,200,100",
                "C:\\data\\a.jpg,1,1,200,100,WBC,10,20,12.5,40",
            ],
            "WBC",
        ),
    ],
)
def test_csv_has_edges(tmp_path: Path, lines: list[str], name: str):
    path = _csv(tmp_path, *lines)
    boxes = read_reference_boxes(path, FILES, SIZES)
    assert boxes == {"a.jpg": [ReferenceBox(name, 0, 0, 200, 100), ReferenceBox(name, 10, 20, 12.5, 40)], "b.png": []}


def test_sizes_are_asked_for_images_with_entries_only(tmp_path: Path):
    asked = []
    read_reference_boxes(_folder(tmp_path, a=_voc([GOOD])), FILES, lambda file: asked.append(file) or SIZES(file))
    assert set(asked) == {"a.jpg"}


def test_boxes_at_the_border(tmp_path: Path):
    folder = _folder(tmp_path, a=_voc([("A", 0, 0, 10, 10), ("B", 190, 90, 201, 101), GOOD, ("C", 1, 1, 200, 100)]))
    boxes = read_reference_boxes(folder, ["a.jpg"], SIZES)
    assert boxes["a.jpg"][:2] == [ReferenceBox("A", 0, 0, 10, 10), ReferenceBox("B", 189, 89, 200, 100)]
    assert boxes.remarks == ["reference boxes: 2 boxes passed the image's border by 1 pixel or less and were cut there"]
    path = _csv(tmp_path, HEADER, "a.jpg,-1,0,10,10,A", "a.jpg,0,0,201,10,B")
    boxes = read_reference_boxes(path, ["a.jpg"], SIZES)
    assert boxes["a.jpg"] == [ReferenceBox("A", 0, 0, 10, 10), ReferenceBox("B", 0, 0, 200, 10)]


@pytest.mark.parametrize("corners", [(-1, 1, 9, 9), (1, -1, 9, 9), (1, 1, 202, 9), (1, 1, 9, 102), (500, 1, 600, 9)])
def test_boxes_outside_of_the_image(tmp_path: Path, corners: tuple[int, ...]):
    with pytest.raises(ValueError, match=r"box 2 \(RBC\) reaches from .* outside of the image of 200 x 100 pixels"):
        read_reference_boxes(_folder(tmp_path, a=_voc([GOOD, ("RBC", *corners)])), FILES, SIZES)
    # Within the tolerance, and nothing of it is in the image.
    path = _csv(tmp_path, HEADER, "a.jpg,0,0,10,10,", "a.jpg,200.2,0,200.8,10,")
    with pytest.raises(ValueError, match=r"line 3 \(a\.jpg\): box reaches from \(200\.2, 0\) .* outside of the image"):
        read_reference_boxes(path, FILES, SIZES)


@pytest.mark.parametrize("corners", [(10, 1, 10, 5), (11, 1, 10, 5), (1, 5, 10, 5), (1, 6, 10, 5)])
def test_boxes_without_area(tmp_path: Path, corners: tuple[int, ...]):
    path = _csv(tmp_path, HEADER, "a.jpg,1,1,5,5,", f"a.jpg,{','.join(map(str, corners))},RBC")
    with pytest.raises(ValueError, match=r"line 3 \(a\.jpg\): box .*expected xmin < xmax and ymin < ymax"):
        read_reference_boxes(path, FILES, SIZES)


def test_points_and_repeated_boxes_are_left_out_and_counted(tmp_path: Path):
    same_place = ("WBC", *GOOD[1:])
    folder = _folder(tmp_path, a=_voc([GOOD, ("RBC", 7, 8, 7, 8), GOOD, same_place]))
    boxes = read_reference_boxes(folder, ["a.jpg"], SIZES)
    assert boxes["a.jpg"] == [ReferenceBox("RBC", 0, 0, 10, 20), ReferenceBox("WBC", 0, 0, 10, 20)]
    assert boxes.remarks == [
        "reference boxes: 1 boxes without extent (both corners the same) were left out",
        "reference boxes: 1 boxes were there twice and count once",
    ]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("<annotation>", "not readable as XML"),
        ("", "not readable as XML"),
        ("<html/>", "it is <html>, expected Pascal VOC's <annotation>"),
        ('<?xml version="1.0" encoding="nonsense"?><annotation/>', "not readable as XML"),
        ("<!DOCTYPE annotation><annotation/>", "DOCTYPE"),
        ("<annotation>&unknown;</annotation>", "not readable as XML"),
        (_voc([GOOD], filename="c.jpg"), r"its <filename> is c\.jpg, expected a\.jpg"),
        (_voc([GOOD], size=(200, 100)), "its <size> is 100 x 200, and a.jpg has 200 x 100"),
        (_voc([GOOD], size=(50, 100)), "its <size> is 100 x 50, and a.jpg has 200 x 100"),
        ("<annotation><object/></annotation>", "its <size> is nothing x nothing"),
        (
            _voc([GOOD, ("RBC", "ten", "", "nan", 5)]),
            r"box 2 \(RBC\) has xmin='ten', ymin='', xmax='nan', expected num",
        ),
        (_voc([]).replace("</size>", "</size><object><name>R</name></object>"), r"box 1 \(R\) has xmin=''"),
    ],
)
def test_unusable_xml(tmp_path: Path, content: str, expected: str):
    with pytest.raises(ValueError, match=rf"a\.xml: .*{expected}"):
        read_reference_boxes(_folder(tmp_path, a=content), FILES, SIZES)


def test_entities_are_never_expanded(tmp_path: Path):
    secret = tmp_path / "secret"
    secret.write_text("12")
    levels = "".join(f'<!ENTITY e{k} "{f"&e{k - 1};" * 10}">' for k in range(1, 12))
    for name, dtd in (("bomb", f'<!ENTITY e0 "1">{levels}'), ("file", f'<!ENTITY e11 SYSTEM "{secret.as_uri()}">')):
        body = _voc([("&e11;", 1, 1, 10, 10)])
        content = f"<!DOCTYPE annotation [{dtd}]>{body}"
        with pytest.raises(ValueError, match="DOCTYPE"):
            read_reference_boxes(_folder(tmp_path / name, a=content), FILES, SIZES)
        folder = _folder(tmp_path / name, a="")
        (folder / "a.xml").write_bytes(content.encode("utf-16"))
        with pytest.raises(ValueError, match="DOCTYPE"):
            read_reference_boxes(folder, FILES, SIZES)


def test_all_problems_are_in_one_message(tmp_path: Path):
    bad = _voc([("RBC", 5, 5, 4, 9), GOOD, ("RBC", 1, 1, 999, 9)])
    with pytest.raises(ValueError, match=r"(?s)3 problems.*a\.xml: box 1 .*a\.xml: box 3 .*b\.xml: not readable"):
        read_reference_boxes(_folder(tmp_path, a=bad, b="<"), FILES, SIZES)


@pytest.mark.parametrize("filename", ["a.jpg", "a", "a.png", "C:\\data\\a.jpg", "/home/pi/a.jpg", ""])
def test_filename_of_the_xml_may_have_another_ending_or_folder(tmp_path: Path, filename: str):
    assert read_reference_boxes(_folder(tmp_path, a=_voc([GOOD], filename=filename)), FILES, SIZES)["a.jpg"]


def test_entries_belong_to_the_image_that_their_path_ends_like(tmp_path: Path):
    files = ["left/x.jpg", "right/x.jpg", "data/1.2.840", "y.tif"]
    of = {name: _voc([GOOD], filename=name) for name in ("x", "1.2.840", "y", "1.2.841")}
    folder = _folder(
        tmp_path,
        left__x=of["x"],
        **{"1.2.840": of["1.2.840"], "sub__y": of["y"], "1.2.841": of["1.2.841"], "other__x": "not of these: not read"},
    )
    (folder / "._y.xml").write_bytes(b"what a Mac leaves behind")
    (folder / "y.xml").mkdir()
    boxes = read_reference_boxes(folder, files, wide)
    assert {file for file, found in boxes.items() if found} == {"left/x.jpg", "data/1.2.840", "y.tif"}
    assert "reference boxes: 2 entries are for other images and were skipped" in boxes.remarks
    path = _csv(tmp_path, HEADER, "left/x.jpg,0,0,5,5,", "1.2.840,0,0,5,5,", "/slides/sub/y.tif,0,0,5,5,")
    again = read_reference_boxes(path, files, wide)
    assert [bool(found) for found in again.values()] == [bool(found) for found in boxes.values()]


def test_the_image_of_exactly_this_path_comes_first(tmp_path: Path):
    files = ["sub/a.jpg", "a.jpg"]
    boxes = read_reference_boxes(_folder(tmp_path, a=_voc([GOOD])), files, wide)
    assert boxes["a.jpg"] and not boxes["sub/a.jpg"]
    boxes = read_reference_boxes(_folder(tmp_path, a=_voc([GOOD]), sub__a=_voc([GOOD])), files, wide)
    assert boxes["a.jpg"] and boxes["sub/a.jpg"]


def test_unclear_entries_are_refused(tmp_path: Path):
    files = ["left/x.jpg", "right/x.jpg"]
    with pytest.raises(ValueError, match=r"x\.xml: it may be of left/x\.jpg or of right/x\.jpg"):
        read_reference_boxes(_folder(tmp_path, x=_voc([GOOD], filename="x")), files, wide)
    with pytest.raises(ValueError, match=r"line 2 \(x\.jpg\): it may be left/x\.jpg or right/x\.jpg"):
        read_reference_boxes(_csv(tmp_path, HEADER, "x.jpg,0,0,5,5,"), files, wide)
    folder = _folder(tmp_path / "two", a=_voc([GOOD]), train__a=_voc([GOOD]))
    with pytest.raises(ValueError, match=r"train/a\.xml: a\.jpg has a\.xml already"):
        read_reference_boxes(folder, FILES, SIZES)


def test_other_images_of_the_data_set(tmp_path: Path):
    path = _csv(tmp_path, HEADER, "a.jpg,0,0,5,5,", "b.png,0,0,999,5,")
    boxes = read_reference_boxes(path, ["a.jpg"], SIZES, other_files=["b.png"])
    assert list(boxes) == ["a.jpg"]
    assert boxes.remarks == ["reference boxes: 1 entries are for other images and were skipped"]
    # Of the same name in another folder: without the other, the entry would be taken for the image that is asked for.
    folder = _folder(tmp_path, x=_voc([GOOD], filename="x"))
    with pytest.raises(ValueError, match="it may be of"):
        read_reference_boxes(folder, ["left/x.jpg"], wide, other_files=["right/x.jpg"])


def test_csv_with_images_that_the_data_set_does_not_have(tmp_path: Path):
    path = _csv(tmp_path, HEADER, "a.jpg,0,0,5,5,", "c.jpg,0,0,5,5,", "c.jpg,0,0,6,6,", ",1,2,3,4,")
    with pytest.raises(
        ValueError, match=r"(?s)2 problems.*line 3 and 1 more: 'c.jpg' is no image .*line 5: '' is no image"
    ):
        read_reference_boxes(path, FILES, SIZES)


def test_csv_with_wrong_numbers(tmp_path: Path):
    path = _csv(tmp_path, HEADER, "a.jpg,0,zero,5,inf,", "a.jpg,0,0", "a.jpg,0,0,5,102,RBC")
    with pytest.raises(ValueError, match="3 problems") as error:
        read_reference_boxes(path, FILES, SIZES)
    assert "line 2 (a.jpg) has ymin='zero', ymax='inf', expected numbers" in str(error.value)
    assert "line 3 (a.jpg) has xmax='', ymax='', expected numbers" in str(error.value)
    assert "line 4 (a.jpg): box reaches" in str(error.value)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "the file is empty"),
        (b"file;xmin;ymin;xmax\n", "its columns are file, xmin, ymin, xmax; expected file, xmin"),
        (b"file,xmin,ymin,xmax,height\n", "its columns are"),
        (b"xmin,ymin,xmax,ymax\n", "its columns are"),
        (b"file,xmin\xff", "not UTF-8"),
        (b"file,xmin,ymin,xmax,ymax\n", r"no box for any of the 2 images \(a\.jpg"),
    ],
)
def test_unusable_csv(tmp_path: Path, content: bytes, expected: str):
    path = tmp_path / "boxes.csv"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=expected):
        read_reference_boxes(path, FILES, SIZES)


def test_missing_or_empty_sources(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="nowhere: no such folder"):
        read_reference_boxes(tmp_path / "nowhere", FILES, SIZES)
    with pytest.raises(ValueError, match="no XML file in this folder"):
        read_reference_boxes(tmp_path, FILES, SIZES)
    (tmp_path / "boxes.txt").write_text("a")
    with pytest.raises(ValueError, match=r"expected a folder of Pascal-VOC XML files, or a \.csv"):
        read_reference_boxes(tmp_path / "boxes.txt", FILES, SIZES)
    for name, content in (("c", _voc([GOOD], filename="c")), ("a", _voc([]))):
        with pytest.raises(ValueError, match="no box for any of the 2 images"):
            read_reference_boxes(_folder(tmp_path / name, **{name: content}), FILES, SIZES)


def test_bccd(real_data: Path):
    root = real_data / "microscopy" / "bccd"
    pictures = sorted((root / "JPEGImages").glob("*.jpg"))
    sizes = {}
    for path in pictures:
        with Image.open(path) as image:
            sizes[f"JPEGImages/{path.name}"] = image.size[::-1]
    boxes = read_reference_boxes(root / "Annotations", list(sizes), sizes.__getitem__)
    assert list(boxes) == list(sizes) and len(boxes) == 364
    assert sum(map(len, boxes.values())) == 4886
    assert boxes.remarks == ["reference boxes: 2 boxes without extent (both corners the same) were left out"]
    first = ET.parse(root / "Annotations" / "BloodImage_00000.xml").findall("object")
    texts = [[thing.findtext(f"bndbox/{c}") for c in ("xmin", "ymin", "xmax", "ymax")] for thing in first]
    expected = [
        ReferenceBox(t.findtext("name"), int(a) - 1, int(b) - 1, int(c), int(d))
        for t, (a, b, c, d) in zip(first, texts, strict=True)
    ]
    assert boxes["JPEGImages/BloodImage_00000.jpg"] == expected

    files = [f"JPEGImages/{name}.jpg" for name in (root / "ImageSets" / "Main" / "test.txt").read_text().split()]
    boxes = read_reference_boxes(root / "Annotations", files, sizes.__getitem__, other_files=sizes)
    assert list(boxes) == files and all(boxes.values())
    assert "reference boxes: 292 entries are for other images and were skipped" in boxes.remarks
    with pytest.raises(ValueError, match="is it of another image"):
        read_reference_boxes(root / "Annotations", files, lambda file: (240, 320))
