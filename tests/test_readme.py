"""Every command and every Python line of the README, run on small real data."""

import glob
import io
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable, Mapping
from importlib import import_module
from itertools import dropwhile
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from serving.service import LongTailClassifier
from serving.settings import Settings
from tests.bundle_support import DIGITS
from tests.predict_support import read_rows

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(bash|python)\n(.*?)```", README, re.DOTALL)
COMMANDS = [
    shlex.split(line, comments=True)
    for language, block in BLOCKS
    if language == "bash"
    for line in block.splitlines()
    if line.strip()
]
# What makes a full-size command of the README finish in seconds.
SHRINK = ["--epochs", "1", "--drw-epoch", "1", "--batch-size", "8", "--workers", "0"]
SHRINK += ["--imbalance-factor", "None"]
STUDENT = [*SHRINK, "--micro-batch-size", "None", "--size", "pico", "--allow-weak-teacher"]


def commands(program: str) -> list[list[str]]:
    """The README's commands that begin like this, environment variables left out."""
    bare = [[*dropwhile(lambda word: word.startswith("DEITLT_"), words)] for words in COMMANDS]
    wanted = program.split()
    return [words for words in bare if words[: len(wanted)] == wanted]


@pytest.fixture(scope="module")
def home(
    tmp_path_factory: pytest.TempPathFactory,
    class_tree: Callable[[Path, Mapping[str, int]], Path],
    png: Callable[[int], bytes],
) -> Path:
    """A user's folder with the files that the README names."""
    home = tmp_path_factory.mktemp("home")
    for name in ("DATA", "cifar10"):
        class_tree(home / name / "train", {"a": 12, "b": 10})
        class_tree(home / name / "test", {"a": 4, "b": 4})
    class_tree(home, {"photos": 3})
    for name in ("photo.png", "other.png"):
        (home / name).write_bytes(png(1))
    return home


def test_every_command_is_tested_here() -> None:
    programs = {" ".join(words[:3] if words[0] == "python" else words[:1]) for words in COMMANDS}
    assert programs == {
        "make",
        "curl",
        "python -m training.train_teacher",
        "python -m training.train_student",
        "python -m training.evaluate",
        "python -m training.analyze",
        "python -m training.doctor",
        "python -m training.prepare",
        "python -m training.reproduce",
        "python -m training.benchmark",
        "python -m export.to_bundle",
        "python -m export.to_triton",
        "python -m export.benchmark",
        "python -m export.import_checkpoint",
        "python -m serving.benchmark",
        "torchrun",
        "deitlt",
        "bentoml",  # tests/test_to_bento.py
        "docker",  # tests/test_dockerfile.py, tests/test_deploy.py
        "kubectl",  # tests/test_deploy.py
        "find",
        "DEITLT_MODEL=bundle/",
        "DEITLT_MODEL=bundles/quick",
        "DEITLT_TRITON=grpc://localhost:8001",
    }


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = [words[1] for words in commands("make")]
    assert targets == ["demo", "serve", "test"]
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)


def test_your_own_data_from_training_to_predictions(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(home)
    assert run("training.doctor") == 3  # six images have copies: the tree is made of few pictures
    assert run("training.train_teacher", *SHRINK) == 0
    assert run("training.train_student", *STUDENT) == 0
    assert run("training.evaluate") == 0
    assert run("training.analyze") == 0
    assert (home / "report" / "report.html").is_file()
    assert run("export.to_bundle") == 0
    (evaluate,) = commands("deitlt evaluate")
    assert import_module("deitlt.cli").main(evaluate[1:]) == 0
    assert (home / "evaluation" / "confusion.png").is_file()
    predict, predict_int8 = commands("deitlt predict")[:2]
    assert import_module("deitlt.cli").main(predict[1:]) == 0
    assert len((home / "predictions.csv").read_text().splitlines()) == 1 + 3
    # Eight images cannot show that nothing was lost, so the gate is asked for nothing.
    assert run("export.to_bundle", "--max-loss", "100", "--max-group-loss", "100", which=1) == 0
    (inspect,) = commands("deitlt inspect")
    assert import_module("deitlt.cli").main(inspect[1:]) == 0
    assert import_module("deitlt.cli").main(predict_int8[1:]) == 0
    assert run("export.to_triton") == 0
    assert (home / "repository" / "quick" / "config.pbtxt").is_file()
    assert run("export.benchmark.__main__", "--quick", "--rows", "plain", "float32", "int8") == 0
    # Bare calls alone; test_serving_benchmark.py starts the servers.
    alone = ("--quick", "--concurrency", "1", "--servers", "triton", "--loads")
    assert run("serving.benchmark.__main__", *alone) == 0


def test_many_images(
    tmp_path: Path,
    class_tree: Callable[[Path, Mapping[str, int]], Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(DIGITS, "bundle")
    class_tree(Path("photos"), {"a": 2, "b": 1})
    images = sorted(Path("photos").rglob("*.png"))
    Path("list.csv").write_text("image_path\n" + "\n".join(map(str, images)))
    Path("shards").mkdir()
    for number in range(2):
        with tarfile.open(f"shards/{number}.tar", "w") as archive:
            archive.add(images[number], "0.png")
    main = import_module("deitlt.cli").main
    _, *plain = [words for words in commands("deitlt predict") if "int8" not in words]
    folder, shards, listed = plain
    assert main(folder[1:]) == 0
    assert len(read_rows(Path("rows.csv"))) == 3 * 3
    assert Path("run.json").is_file()
    at = shards.index("shards/*.tar")
    assert main([*shards[1:at], *sorted(glob.glob(shards[at])), *shards[at + 1 :]]) == 0
    names = [row["filename"] for row in read_rows(Path("rows.jsonl"))]
    assert names == ["shards/0.tar/0.png", "shards/1.tar/0.png"]
    assert main(listed[1:]) == 0
    assert [row["filename"] for row in read_rows(Path("rows.parquet"))] == list(map(str, images))
    (words,) = commands("find")
    at = words.index("|")
    found = subprocess.run(words[:at], stdout=subprocess.PIPE, check=True).stdout
    monkeypatch.setattr(sys, "stdin", type("Stdin", (), {"buffer": io.BytesIO(found)}))
    assert main(words[at + 2 :]) == 0
    assert len(read_rows(Path("found.csv"))) == 3


def test_the_papers_sets(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(home)
    assert run("training.prepare") == 2  # nothing is downloaded over what is there
    assert "cifar10: exists already" in capsys.readouterr().err
    small = ["--img-size", "16"]
    assert run("training.train_teacher", *SHRINK, *small, which=1) == 0
    assert run("training.train_student", *STUDENT, *small, "--patch-size", "4", which=1) == 0
    (words,) = commands("torchrun")
    program, *arguments = words[words.index("-m") + 1 :]
    assert import_module(program).main(arguments) == 2  # the data is not there
    assert "ImageNet_LT: there is no such folder" in capsys.readouterr().err
    assert run("training.reproduce", "--only", "none") == 2
    assert "no experiment 'none'" in capsys.readouterr().err
    assert run("training.reproduce", "--seeds", "0", which=1) == 2  # the table itself takes minutes
    assert "--seeds must be at least 1" in capsys.readouterr().err
    assert run("export.import_checkpoint") == 2
    assert "deit_lt.pth" in capsys.readouterr().err


def run(program: str, *more: str, which: int = 0) -> Any:
    """Exit status of a command of the README, in this process, with more arguments."""
    words = commands(f"python -m {program.removesuffix('.__main__')}")[which]
    return import_module(program).main([*words[3:], *more])


def test_the_service_that_the_readme_starts_is_the_one_there_is() -> None:
    starts = commands("bentoml serve")
    assert len(starts) == 3
    for words in starts:
        module, _, name = words[2].partition(":")
        assert getattr(import_module(module), name) is LongTailClassifier


def test_every_setting_is_in_the_table_with_its_default() -> None:
    table = dict(re.findall(r"^\| `(DEITLT_\w+)` \| (.+?) \|", README, re.MULTILINE))
    source = (ROOT / "serving" / "settings.py").read_text(encoding="utf-8")
    assert set(table) == set(re.findall(r'"(DEITLT_\w+)"', source))
    defaults = Settings.from_environ({})
    for name in (
        "queue_size",
        "max_bytes",
        "max_held_bytes",
        "max_pixels",
        "max_images",
        "timeout_s",
        "drain_s",
        "reload_s",
        "max_batch",
    ):
        stated = table[f"DEITLT_{name.upper()}"].partition(" ")[0]
        assert float(stated) == getattr(defaults, name), name
    assert table["DEITLT_DEVICE"] == f"`{defaults.device}`"
    assert (table["DEITLT_VARIANT"], defaults.variant) == ("none", "")


def test_curl_lines_are_answered(
    home: Path, explaining_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DEITLT_MODEL", str(explaining_bundle))
    monkeypatch.setenv("DEITLT_EXPLAIN", "true")
    lines = commands("curl")
    assert len(lines) == 4
    service: Any = LongTailClassifier  # BentoML's decorator has no types
    with TestClient(service.to_asgi()) as client:
        for words in lines:
            url = words[-1].removeprefix("http://localhost:3000")
            if "--data-binary" in words:
                body = (home / words[words.index("--data-binary") + 1][1:]).read_bytes()
                kind = words[words.index("-H") + 1].partition(": ")[2]
                answer = client.post(url, content=body, headers={"Content-Type": kind})
                if "explain" in url:
                    maps = answer.json()["rollouts"]
                    assert set(maps) == {"cls_rollout", "distillation_rollout"}
                elif "experts=true" in url:
                    assert len(answer.json()["top_k"]) == 3
                    assert set(answer.json()["experts"]) == {"cls", "dist", "agree"}
                else:
                    assert len(answer.json()["logits"]) == 3
            else:
                forms = [words[i + 1] for i, word in enumerate(words) if word == "-F"]
                parts = [form.split("=@") for form in forms]
                files = [(name, (file, (home / file).read_bytes())) for name, file in parts]
                answer = client.post(url, files=files)
                assert [set(r) >= {"label"} for r in answer.json()["results"]] == [True, True]
            assert answer.status_code == 200


def test_python_lines_run(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(home)
    (block,) = [block for language, block in BLOCKS if language == "python"]
    exec(compile(block, "README.md", "exec"), {})
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_links_lead_to_files() -> None:
    targets = re.findall(r"\]\((?!https?://)([^)]+)\)", README)
    assert targets
    for target in targets:
        assert (ROOT / target).exists(), target
