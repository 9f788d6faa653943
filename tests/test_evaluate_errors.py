"""`deitlt evaluate` used wrongly, interrupted, without matplotlib, on odd runtimes and names."""

import csv
import json
import os
import signal
import sys
from collections.abc import Callable, Generator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from deitlt.batch.pipeline import predict_iter
from deitlt.bundle import Bundle
from deitlt.classifier import Classifier
from deitlt.cli import main
from deitlt.preprocess import Pixels
from deitlt.runtimes import Outputs, open_runtime
from tests.bundle_support import DIGITS

ClassTree = Callable[[Path, Mapping[str, int]], Path]


def run(*arguments: object) -> int:
    """The exit status, of the digits if no bundle is first, returned or argparse's."""
    words = [str(argument) for argument in arguments]
    bundle = [str(DIGITS)] if words[0].startswith("-") else []
    try:
        return main(["evaluate", *bundle, "--device", "cpu", *words])
    except SystemExit as exit_status:
        return int(exit_status.code or 0)


@pytest.fixture
def data(tmp_path: Path, class_tree: ClassTree) -> Path:
    """Three pictures of two classes."""
    return class_tree(tmp_path / "data", {"1": 2, "4": 1})


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs the command, which must end with status 2 and one line; gives that line."""

    def refuse(*arguments: object) -> str:
        assert run(*arguments) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.startswith("deitlt")
        assert captured.err.count("\n") == 1
        return captured.err

    return refuse


Refused = Callable[..., str]


def test_wrong_data_is_one_line(
    refused: Refused, data: Path, tmp_path: Path, class_tree: ClassTree
) -> None:
    output = tmp_path / "evaluation"
    rest = ("--output", output, "--no-plots")
    assert "nowhere: there is no such folder" in refused("--data", tmp_path / "nowhere", *rest)
    assert "has no test images, only all" in refused("--data", data, "--split", "test", *rest)
    class_tree(data, {"elephant": 1})
    assert "class 'elephant' of all is not among the 10" in refused("--data", data, *rest)
    assert not output.exists()


def test_wrong_options_are_one_line(refused: Refused, data: Path, tmp_path: Path) -> None:
    given = ("--data", data, "--output", tmp_path / "evaluation", "--no-plots")
    assert "--min-images is 0" in refused(*given, "--min-images", 0)
    assert "has no variant 'int4'" in refused(*given, "--variant", "int4")
    assert "not a bundle" in refused(tmp_path / "none", *given)
    assert "--output" in refused("--data", data)
    assert "--data" in refused("--output", tmp_path)
    assert not (tmp_path / "evaluation").exists()


def test_a_taken_output_is_left_alone(
    refused: Refused, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "evaluation"
    given = ("--data", data, "--output", output, "--no-plots")
    assert run(*given, "--predictions") == 0
    capture = (output / "metrics.json").read_bytes()
    capsys.readouterr()
    assert "pass --overwrite" in refused(*given)
    assert (output / "metrics.json").read_bytes() == capture
    assert run(*given, "--overwrite") == 0
    capsys.readouterr()
    assert not (output / "predictions.csv").exists()  # it was replaced, not added to
    other = tmp_path / "other"
    other.mkdir()
    (other / "metrics.json").write_text("{}")
    line = refused("--data", data, "--output", other, "--overwrite", "--no-plots")
    assert "holds other files" in line
    (tmp_path / "file").write_text("")
    assert "is a file" in refused("--data", data, "--output", tmp_path / "file", "--no-plots")


def test_a_place_that_cannot_be_written_is_refused_before_the_run(
    refused: Refused, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deitlt.commands.evaluate.find_bundle", lambda _: pytest.fail("it began"))
    given = ("--data", data, "--no-plots", "--output")
    (tmp_path / "file").write_text("")
    assert "file: no folder can be made in it" in refused(*given, tmp_path / "file" / "a" / "b")
    monkeypatch.setattr("os.path.ismount", tmp_path.__eq__)
    assert f"{tmp_path}: is where a volume is mounted" in refused(*given, tmp_path)
    monkeypatch.setattr("os.access", lambda *_: False)  # the tests may run as root
    assert f"{tmp_path}: no folder can be made in it" in refused(*given, tmp_path / "evaluation")


def test_an_empty_folder_may_be_filled_from_inside(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert run("--data", data, "--output", ".", "--no-plots") == 0
    assert (tmp_path / "here" / "metrics.json").is_file()


def test_nothing_readable_is_one_line(refused: Refused, data: Path, tmp_path: Path) -> None:
    for file in data.rglob("*.png"):
        file.write_bytes(b"")
    line = refused("--data", data, "--output", tmp_path / "evaluation", "--no-plots")
    assert "none of the 3 images could be read; the first is 1/0.png: " in line
    assert not (tmp_path / "evaluation").exists()


def test_matplotlib_is_asked_for_before_the_run(
    refused: Refused, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    output = tmp_path / "evaluation"
    with monkeypatch.context() as patch:
        patch.setattr("deitlt.commands.evaluate.find_bundle", lambda _: pytest.fail("it began"))
        assert "pip install 'deitlt[plots]'" in refused("--data", data, "--output", output)
    assert not output.exists()
    assert run("--data", data, "--output", output, "--no-plots") == 0


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_leaves_the_former_evaluation(
    number: signal.Signals,
    status: int,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    output = tmp_path / "evaluation"
    given = ("--data", data, "--output", output, "--no-plots", "--overwrite", "-j", 1)
    assert run(*given) == 0
    former = (output / "metrics.json").read_bytes()
    capsys.readouterr()

    def interrupted(*arguments: Any, **options: Any) -> Generator[Any, None, None]:
        with closing(predict_iter(*arguments, **options)) as results:
            yield next(results)
        signal.raise_signal(number)

    monkeypatch.setattr("deitlt.evaluation.answers.predict_iter", interrupted)
    assert run(*given) == status
    assert capsys.readouterr().err == "deitlt: interrupted; nothing was written\n"
    assert (output / "metrics.json").read_bytes() == former
    assert sorted(file.name for file in tmp_path.iterdir()) == ["data", "evaluation"]


def test_a_file_name_that_is_no_text_comes_back(data: Path, tmp_path: Path) -> None:
    odd = os.fsdecode(b'4/\xff\r"odd"\n.png')
    (data / "4" / "0.png").rename(data / odd)
    output = tmp_path / "evaluation"
    assert run("--data", data, "--output", output, "--no-plots", "--predictions") == 0
    with (output / "predictions.csv").open(
        newline="", encoding="utf-8", errors="surrogateescape"
    ) as file:
        assert [row["filename"] for row in csv.DictReader(file)] == ["1/0.png", "1/1.png", odd]


class AverageAlone:
    """A runtime whose graph was exported without its experts."""

    provider = "test"

    def __init__(self, bundle: Bundle) -> None:
        self._runtime = open_runtime(bundle, device="cpu", num_threads=1)

    def run(self, pixels: Pixels) -> Outputs:
        return Outputs(self._runtime.run(pixels).logits)


def test_a_graph_without_experts_has_figures_of_the_average(
    data: Path, tmp_path: Path, classifier: Classifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = Classifier(classifier.bundle, AverageAlone(classifier.bundle))
    monkeypatch.setattr("deitlt.commands.evaluate.open_model", lambda *_: alone)
    output = tmp_path / "evaluation"
    assert run("--data", data, "--output", output, "--predictions") == 0
    metrics = json.loads((output / "metrics.json").read_text())
    assert list(metrics["heads"]) == ["average"]
    assert metrics["agreement"] == {}
    header = (output / "predictions.csv").read_text().splitlines()[0]
    assert header == "filename,true_label,label,prob,correct,true_group,error"
    assert (output / "reliability_all.png").stat().st_size > 10_000


def test_triton_is_asked_at_its_address(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def remote(url: str, bundle: Bundle) -> AverageAlone:
        asked.append(url)
        return AverageAlone(bundle)

    monkeypatch.setattr("deitlt.commands.model_choice.TritonRuntime", remote)
    output = tmp_path / "evaluation"
    given = ("--data", data, "--output", output, "--no-plots")
    assert run(*given, "--triton", "grpc://127.0.0.1:1") == 0
    assert asked == ["grpc://127.0.0.1:1"]
    assert json.loads((output / "metrics.json").read_text())["variant"] == "triton"
