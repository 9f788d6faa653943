"""The rows of `deitlt predict` in each format, read back by the library that is made for it."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from deitlt.batch.formats import ParquetRows, row_writer
from deitlt.batch.rows import Kind, Layout
from deitlt.bundle import FEATURES
from deitlt.classifier import Classifier
from deitlt.prediction import Options, Prediction
from tests.predict_support import FORMATS, hash_classifier, predict, read_rows

Png = Callable[[int], bytes]
ODD_NAMES = ["ünï,code.png", '"quoted".png', "line\nbreak.png", "carriage\rreturn.png"]
ODD_NAMES += ["日本 語.png", " spaces .png"]


@pytest.fixture
def photos(tmp_path: Path, png: Png) -> Path:
    """Three pictures and a damaged one."""
    root = tmp_path / "photos"
    root.mkdir()
    for number in range(4):
        (root / f"{number}.png").write_bytes(png(number) if number != 1 else png(number)[:-60])
    return root


def typed(row: dict[str, Any], columns: dict[str, Any]) -> dict[str, Any]:
    """A row of CSV with the types that its text stands for; empty is None."""
    return {
        name: None
        if row[name] == ""
        else (row[name] == "true" if kind is bool else kind(row[name]))
        for name, kind in columns.items()
    }


def expected_rows(
    photos: Path, classifier: Classifier, layout: Layout, options: Options
) -> list[dict[str, Any]]:
    """What should stand there, written down a second time and column by column."""
    score = "logit" if layout.logits else "prob"
    rows: list[dict[str, Any]] = []
    for file in sorted(photos.iterdir()):
        (answer,) = classifier.predict_each([file], options)
        row: dict[str, Any] = dict.fromkeys(layout.columns)
        row |= {"filename": file.name, "model_version": classifier.bundle.version}
        if not isinstance(answer, Prediction):
            rows.append({**row, "error": "decode_failed"})
            continue
        logits = answer.logits or {}
        ranked = []
        for place, best in enumerate(answer.top_k):
            cells: dict[str, Any] = {"index": best.index, "label": best.label}
            cells[score] = logits["logits"][best.index] if layout.logits else best.probability
            if answer.experts:
                for head, name, found in (
                    ("cls", "cls_logits", answer.experts.cls[place]),
                    ("dist", "distillation_logits", answer.experts.dist[place]),
                ):
                    cells[f"{head}_label"] = found.label
                    value = logits[name][found.index] if layout.logits else found.probability
                    cells[f"{head}_{score}"] = value
            ranked.append(cells)
        once: dict[str, Any] = {"group": answer.group}
        if answer.experts:
            once |= {"agree": answer.experts.agree}
        if layout.wide:
            wide = {f"{k}_{r}": v for r, cells in enumerate(ranked, 1) for k, v in cells.items()}
            rows.append({**row, **wide, **once})
        else:
            for rank, cells in enumerate(ranked, 1):
                rows.append({**row, **cells, "rank": rank, **(once if rank == 1 else {})})
    return rows


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize(
    ("flags", "layout"),
    [
        (["--topk", "3"], Layout(3)),
        (["--topk", "99", "--experts"], Layout(10, experts=True)),
        (["--topk", "2", "--wide"], Layout(2, wide=True)),
        (["--topk", "2", "--wide", "--experts"], Layout(2, wide=True, experts=True)),
        (
            ["--topk", "2", "--experts", "--output-type", "logit"],
            Layout(2, experts=True, logits=True),
        ),
        (["--topk", "2", "--wide", "--output-type", "logit"], Layout(2, wide=True, logits=True)),
    ],
)
def test_every_column_of_every_layout(
    flags: list[str],
    layout: Layout,
    format: str,
    photos: Path,
    tmp_path: Path,
    classifier: Classifier,
) -> None:
    output = tmp_path / f"rows.{format}"
    assert predict(photos, "--output", output, *flags) == 3
    found = read_rows(output)
    if format == "csv":
        found = [typed(row, dict(layout.columns)) for row in found]
    options = Options(layout.top_k, layout.experts, logits=layout.logits)
    expected = expected_rows(photos, classifier, layout, options)
    assert len(found) == len(expected)
    for row, wanted in zip(found, expected, strict=True):
        assert list(row) == list(layout.columns)
        assert row == pytest.approx(wanted, abs=2e-5)


def test_names_of_columns_are_the_published_ones() -> None:
    first, last = ["filename", "rank", "index", "label"], ["group", "error", "model_version"]
    experts = ["cls_label", "cls_prob", "dist_label", "dist_prob", "agree"]
    assert list(Layout(3, experts=True).columns) == [*first, "prob", *experts, *last]
    assert list(Layout(3, logits=True).columns) == [*first, "logit", *last]
    wide = ["index_1", "label_1", "prob_1", "index_2", "label_2", "prob_2"]
    assert list(Layout(2, wide=True).columns) == ["filename", *wide, *last]


@pytest.mark.parametrize("flags", [["--topk", "2"], ["--wide"]])
def test_embeddings_stand_in_the_first_row_of_an_image(
    flags: list[str], photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    classifier = hash_classifier()
    monkeypatch.setattr("deitlt.commands.predict.open_model", lambda arguments, bundle: classifier)
    output = tmp_path / "rows.parquet"
    assert predict(photos, "--output", output, "--embeddings", *flags) == 3
    columns = ("cls_embedding", "distillation_embedding")
    assert {str(pq.read_schema(output).field(name).type) for name in columns} == {
        "list<element: float>"
    }
    files = sorted(photos.iterdir())
    answers = classifier.predict_each(files, Options(embeddings=True))
    expected: dict[str, Any] = {
        file.name: [answer.embeddings[name] for name in FEATURES]
        if isinstance(answer, Prediction) and answer.embeddings
        else [None, None]
        for file, answer in zip(files, answers, strict=True)
    }
    rows = read_rows(output)
    for row in rows:
        vectors = [row[name] for name in columns]
        assert vectors == (expected[row["filename"]] if row.get("rank") != 2 else [None, None])
    assert len(rows) == (4 if "--wide" in flags else 7)


def test_types_of_parquet(photos: Path, tmp_path: Path) -> None:
    output = tmp_path / "rows.parquet"
    assert predict(photos, "--output", output, "--experts") == 3
    types = {field.name: str(field.type) for field in pq.read_schema(output)}
    assert types == {
        **dict.fromkeys(("filename", "label", "cls_label", "dist_label"), "string"),
        **dict.fromkeys(("group", "error", "model_version"), "string"),
        **dict.fromkeys(("rank", "index"), "int32"),
        **dict.fromkeys(("prob", "cls_prob", "dist_prob"), "float"),
        "agree": "bool",
    }


@pytest.mark.parametrize("format", FORMATS)
def test_odd_names_come_back(format: str, tmp_path: Path, png: Png) -> None:
    (tmp_path / "in").mkdir()
    for name in ODD_NAMES:
        (tmp_path / "in" / name).write_bytes(png(0))
    output = tmp_path / f"rows.{format}"
    assert predict(tmp_path / "in", "--output", output) == 0
    assert [row["filename"] for row in read_rows(output)] == sorted(ODD_NAMES)


@pytest.mark.parametrize("format", ["csv", "jsonl"])
def test_a_name_that_is_no_unicode_comes_back_byte_for_byte(
    format: str, tmp_path: Path, png: Png
) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / os.fsdecode(b"caf\xe9.png")).write_bytes(png(0))
    output = tmp_path / f"rows.{format}"
    assert predict(tmp_path / "in", "--output", output) == 0
    (row,) = read_rows(output)
    assert os.fsencode(row["filename"]) == b"caf\xe9.png"
    # A list of such names, taken from the rows, leads to the same files.
    (tmp_path / "in" / "list.csv").write_bytes(b"filename\ncaf\xe9.png\n")
    again = tmp_path / f"again.{format}"
    assert predict("--filepaths", tmp_path / "in" / "list.csv", "--output", again) == 0
    assert again.read_bytes() == output.read_bytes()


def test_a_name_that_is_no_unicode_is_escaped_in_parquet(tmp_path: Path, png: Png) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / os.fsdecode(b"caf\xe9.png")).write_bytes(png(0))
    assert predict(tmp_path / "in", "--output", tmp_path / "rows.parquet") == 0
    assert read_rows(tmp_path / "rows.parquet")[0]["filename"] == r"caf\xe9.png"


def test_parts_of_parquet_become_equal_row_groups(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deitlt.batch.formats.ROW_GROUP", 10)
    writer = ParquetRows(tmp_path, {"rank": int, "vector": list[float]})
    writer.open(0)
    numbers = np.arange(47, dtype=np.float32)
    for start, end in ((0, 3), (3, 30), (30, 30), (30, 47)):
        rows = [{"rank": i, "vector": numbers[:i]} for i in range(start, end)]
        writer.append(rows)
    file = pq.ParquetFile(writer.finish())
    sizes = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
    assert sizes == [10, 10, 10, 10, 7]
    table = file.read()
    assert table["rank"].to_pylist() == list(range(47))
    assert table["vector"].to_pylist() == [list(range(i)) for i in range(47)]


@pytest.mark.parametrize("format", FORMATS)
def test_what_stands_behind_a_mark_is_gone(format: str, tmp_path: Path) -> None:
    columns: dict[str, Kind] = {"filename": str, "rank": int}

    def write(mark: int, *names: str) -> int:
        writer = row_writer(format, tmp_path, columns)
        writer.open(mark)
        marks = [writer.append([{"filename": name, "rank": 1}]) for name in names]
        writer.close()
        return marks[0]

    mark = write(0, "a.png", "much longer.png", "c.png")
    write(mark, "b.png")
    writer = row_writer(format, tmp_path, columns)
    writer.open(write(mark, "b.png"))
    rows = writer.finish().rename(tmp_path / f"rows.{format}")
    assert [row["filename"] for row in read_rows(rows)] == ["a.png", "b.png"]


def test_pyarrow_is_asked_for_by_its_extra(
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    assert predict(photos, "--output", tmp_path / "rows.parquet") == 2
    assert "pip install 'deitlt[parquet]'" in capsys.readouterr().err
    assert not (tmp_path / "rows.parquet.partial").exists()
