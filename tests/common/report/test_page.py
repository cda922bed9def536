from __future__ import annotations

import base64
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from common.report import page as report

VOID = {"meta", "img", "br", "link", "input", "hr"}
NASTY = "<b>Été & Söhne</b> \"q\" 'a'.tif"
SCORES = {
    "task": "hela_nuclei",
    "split": "test",
    "n_images": 3,
    "n_pixels": 1_234_567,
    "iou": 0.9476,
    "miou": 0.9612,
    "pixel_accuracy": 0.99,
    "f1": 0.973,
    "kappa": None,
    "boundary_f1": float("nan"),
    "per_class_iou": {"background & rest": 0.9, "nucleus": 0.7},
    "absent_classes": [],
    "confusion_matrix": [[90, 10], [0, 30]],
    "threshold": 0.47,
    "auc": 0.998,
    "loss": 0.0312,
    "det": 0.8125,
}
HISTORY = [
    {"epoch": 1, "lr": 1e-3, "train_loss": 0.5, "val_loss": None, "miou": 0.4, "iou_nucleus": 0.4, "iou_a<b>&c": 0.3}
]


class Page(HTMLParser):
    """Reads a page, checking that tags nest; keeps what the tests ask about."""

    def __init__(self, source):
        super().__init__()
        self.stack, self.words, self.attributes, self.ids, self.headings, self.cells = [], [], [], [], [], []
        self.feed(source)
        self.close()
        assert self.stack == []
        self.text = " ".join(self.words)

    def handle_starttag(self, tag, attrs):
        self.attributes += [(tag, name, value) for name, value in attrs]
        self.ids += [value for name, value in attrs if name == "id"]
        if tag not in VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.ids += [value for name, value in attrs if name == "id"]
        self.attributes += [(tag, name, value) for name, value in attrs]

    def handle_endtag(self, tag):
        assert self.stack.pop() == tag

    def handle_data(self, data):
        if data.strip() and "style" not in self.stack:
            self.words.append(data.strip())
            if self.stack[-1] == "h2":
                self.headings.append(data.strip())
            if self.stack[-1] in ("td", "th", "small", "dd"):
                self.cells.append(data.strip())

    def values(self, tag, name):
        return [value for t, n, value in self.attributes if (t, n) == (tag, name)]


def write(path, **arguments):
    report.write_report(path, report.Report(**{"title": "Run", "summary": {}, "config": {}} | arguments))
    return path.read_text(encoding="utf-8")


def picture(seed=0, height=40, width=120):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return write(
        tmp_path_factory.mktemp("run") / "report.html",
        title=f"hela {NASTY}",
        summary={"network": "UNet", "time": float("nan")},
        config={
            "lr": 3e-5,
            "ema": True,
            "resume": None,
            "augment": {"flip": True},
            "mean": [0.25, 0.5],
            "root": f"/data/{NASTY}",
        },
        audit=["92 pairs", f"left out: {NASTY}"],
        history=HISTORY,
        scores=SCORES,
        calibration=[(0.1, 0.2, 30), (float("nan"), float("nan"), 0), (0.9, 0.8, 10)],
        roc=[(0, 0), (0.2, 0.9), (1, 1)],
        examples={
            "best": [(NASTY, 0.9, picture(1))],
            "worst": [("plain", None, picture(2)), ("third", 0.25, picture(3))],
        },
        palette={1: (1, 2, 3)},
        files={"best_iou.pt": f"weights {NASTY}"},
    )


@pytest.fixture(scope="module")
def page(source):
    return Page(source)


def test_page_has_every_section_and_unique_ids(page):
    expected = ["Headline figures", "Data audit", "Curves", "Classes", "Confusion matrix", "Calibration", "Examples"]
    assert page.headings == [*expected, "Configuration", "Files"]
    assert len(page.ids) == len(set(page.ids))
    links = page.values("a", "href")
    assert len(links) == 9 and {link[1:] for link in links} <= set(page.ids)


def test_page_stands_alone(source, page):
    without_pictures = re.sub(r"data:image/(png|jpeg);base64,[A-Za-z0-9+/=]+", "", source)
    assert not re.search(r"https?:|file:|//\w|@import|<script|<link|<iframe", without_pictures)
    assert page.values("use", "xlink:href")
    for name in ("src", "href", "xlink:href", "srcset"):
        for tag in ("img", "a", "use", "image", "link"):
            assert all(value.startswith(("data:image/", "#")) for value in page.values(tag, name))
    assert all(target in page.ids for target in re.findall(r"url\(#([^)]+)\)", without_pictures))
    assert all(value[1:] in page.ids for value in page.values("use", "xlink:href"))


def test_names_are_escaped_everywhere(source, page):
    assert "<b>\u00c9" not in source and "a<b>" not in source
    assert page.text.count(NASTY) == 6  # title twice, audit, example, config, files
    assert NASTY in page.values("img", "alt")
    assert "a<b>&c" in page.text
    assert "background & rest" in page.text


def test_undefined_values_read_na(page):
    assert not re.search(r"\b(nan|NaN|None|null|inf)\b", page.text)
    pairs = dict(zip(page.words, page.words[1:], strict=False))
    assert pairs["boundary F1"] == pairs["Cohen's kappa"] == pairs["plain"] == pairs["time"] == "n/a"


def test_scores_are_shown(page):
    pairs = dict(zip(page.words, page.words[1:], strict=False))
    assert pairs["mean IoU"] in ("0.961", "(test)")
    for value in (
        "0.961",
        "0.948",
        "0.990",
        "0.973",
        "0.998",
        "0.4700",
        "0.0312",
        "0.812",
        "1\u202f234\u202f567",
        "0.250",
    ):
        assert value in page.words
    assert (
        pairs["resume"] == "none"
        and pairs["augment.flip"] == "yes"
        and pairs["mean"] == "0.25, 0.5"
        and pairs["lr"] == "3e-05"
    )


def test_confusion_cells_hold_share_and_count(page):
    start = page.cells.index("90.0 %")
    assert page.cells[start : start + 9] == ["90.0 %", "90", "10.0 %", "10", "nucleus", "0.0 %", "0", "100.0 %", "30"]


def test_pictures_are_the_ones_passed(page):
    shown = page.values("img", "src")
    assert len(shown) == 3
    for seed, uri in enumerate(shown, start=1):
        decoded = np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))).convert("RGB"))
        assert decoded.shape == (40, 120, 3)
        errors = [np.abs(decoded.astype(int) - picture(other)).mean() for other in (1, 2, 3)]
        assert np.argmin(errors) == seed - 1


def test_charts_follow_the_page_colors(source):
    charts = re.findall(r"<svg.*?</svg>", source, flags=re.DOTALL)
    assert len(charts) == 6
    assert all("currentColor" in chart and "#1f2933" not in chart and "viewBox" in chart for chart in charts)
    assert all(re.search(r"<text[^>]*>", chart) for chart in charts)


def test_sections_without_data_are_left_out(tmp_path):
    page = Page(write(tmp_path / "report.html", title="Only a title"))
    assert page.headings == []
    assert page.text == "Only a title Only a title"
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_empty_groups_and_histories_without_values_are_left_out(tmp_path):
    empty = {
        "examples": {"best": []},
        "history": [{"epoch": 1, "miou": None}],
        "calibration": [(0.5, 0.5, 0)],
        "roc": [],
    }
    assert Page(write(tmp_path / "report.html", **empty)).headings == []


def test_audit_can_be_a_table(tmp_path):
    rows = [{"part": "train", "pairs": 12_000}, {"part": "val", "pairs": None, "size": "64 x 64"}]
    page = Page(write(tmp_path / "report.html", audit=rows))
    assert page.cells == ["part", "pairs", "size", "train", "12\u202f000", "n/a", "val", "n/a", "64 x 64"]


def test_many_large_pictures_keep_the_page_small(tmp_path):
    noise = [(f"n{i}", 0.5, picture(i, 500, 1500)) for i in range(10)]
    path = tmp_path / "report.html"
    page = Page(write(path, examples={"best": noise}, history=HISTORY, scores=SCORES))
    assert len(page.values("img", "src")) == 10
    assert path.stat().st_size < 3_000_000


def test_class_table_follows_the_confusion_matrix():
    matrix = [[50, 10, 0], [5, 15, 0], [0, 0, 0]]
    rows = report.class_table(
        {"per_class_iou": {"a": 50 / 65, "b": 0.5, "c": None}, "confusion_matrix": matrix}, {0: (9, 8, 7)}
    )
    assert [row.precision for row in rows] == [50 / 55, 15 / 25, None]
    assert [row.recall for row in rows] == [50 / 60, 15 / 20, None]
    assert [row.truth for row in rows] == [60, 20, 0]
    assert [row.share for row in rows] == [0.75, 0.25, 0]
    assert [row.color for row in rows] == ["rgb(9, 8, 7)", None, None]


def test_many_classes_have_no_foreground_score(tmp_path):
    scores = {
        "iou": None,
        "auc": None,
        "threshold": None,
        "miou": None,
        "per_class_iou": {"a": 0.5, "b": None, "c": 0.2},
    }
    page = Page(write(tmp_path / "report.html", scores=scores | {"absent_classes": ["b"]}))
    assert "mean IoU" in page.words
    assert not {"foreground IoU", "ROC area", "threshold"} & set(page.words)
    assert "left out of the mean IoU: b." in page.text


def test_a_matrix_of_other_classes_is_refused(tmp_path):
    with pytest.raises(ValueError, match="3 rows, per_class_iou 2 classes"):
        write(tmp_path / "report.html", scores=SCORES | {"confusion_matrix": np.eye(3, dtype=int).tolist()})
    assert not list(tmp_path.iterdir())


def test_flat_pictures_become_png_and_keep_their_pixels():
    flat = np.zeros((64, 64, 3), np.uint8)
    flat[:, 32:] = (255, 0, 0)
    uri = report.data_uri(flat, side=640, quality=80)
    assert uri.startswith("data:image/png;base64,")
    decoded = np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))).convert("RGB"))
    np.testing.assert_array_equal(decoded, flat)
