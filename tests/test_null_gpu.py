"""ONNX Runtime's CUDA provider and torch's CUDA build on a GPU that computes nothing."""

import json
import os
import re
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests import null_gpu_support
from tests.bundle_support import DIGITS
from tests.null_gpu_support import run
from tests.predict_support import read_rows
from tests.serve_support import serving
from tests.service_support import CLASSIFY, PATIENCE_S, picture

Environ = dict[str, Any]
NUM_IMAGES = 300

# Loads each graph and calls it; fails where a node of it would be left on the CPU.
LOAD = """
import sys
import numpy as np
import deitlt
for variant in sys.argv[2:]:
    classifier = deitlt.load(sys.argv[1], variant=variant, device="cuda")
    answers = classifier.predict([np.zeros((20, 24, 3), np.uint8)])
    print(variant, classifier.runtime.provider, len(answers))
"""
# cuDNN's plans are more than a null GPU has; torch's own convolutions take their place.
TRAIN = """
import sys, torch
torch.backends.cudnn.enabled = False
from training import evaluate, train_student, train_teacher
programs = {"teacher": train_teacher, "student": train_student, "evaluate": evaluate}
sys.exit(programs[sys.argv[1]].main(sys.argv[2:]))
"""


@pytest.fixture(scope="module")
def gpu(tmp_path_factory: pytest.TempPathFactory) -> Environ:
    return null_gpu_support.build(tmp_path_factory.mktemp("null-gpu"))


@pytest.fixture(scope="module")
def photos(png: Callable[[int], bytes], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for number in range(NUM_IMAGES):
        (folder / f"{number:03}.png").write_bytes(png(number % 8))
    return folder


def predict(
    gpu: Environ, photos: Path, output: Path, *options: str, **knobs: str
) -> "subprocess.CompletedProcess[str]":
    words = ["-m", "deitlt.cli", "predict", photos, "--model", DIGITS, "--output", output]
    return run(gpu, [*words, "--device", "cuda", "-j", "1", *options], **knobs)


def test_every_graph_of_a_bundle_runs_on_cuda_whole(gpu: Environ, whole_bundle: Path) -> None:
    """Whole: `OnnxRuntime` refuses a graph of which a node stays on the CPU."""
    graphs = ("float32", "fp16", "explain", "average", "nchw")
    loaded = run(gpu, ["-c", LOAD, whole_bundle, *graphs])
    assert loaded.returncode == 0, loaded.stderr
    assert loaded.stdout.splitlines() == [f"{name} CUDAExecutionProvider 1" for name in graphs]


def test_a_batch_run_finds_its_batch_size(gpu: Environ, photos: Path, tmp_path: Path) -> None:
    output, log = tmp_path / "rows.csv", tmp_path / "log.json"
    done = predict(gpu, photos, output, "--log", str(log))
    assert done.returncode == 0, done.stderr
    assert json.loads(log.read_text())["run"]["device"] == "CUDAExecutionProvider"
    assert [row["filename"] for row in read_rows(output)] == sorted(os.listdir(photos))


def test_a_full_gpu_makes_the_batches_smaller(gpu: Environ, photos: Path, tmp_path: Path) -> None:
    output = tmp_path / "rows.csv"
    done = predict(gpu, photos, output, "-b", "256", NULL_GPU_BYTES="16000000")
    assert done.returncode == 0, done.stderr
    assert "null GPU: no memory for" in done.stderr
    assert [row["filename"] for row in read_rows(output)] == sorted(os.listdir(photos))


def test_a_lost_gpu_ends_the_run_in_one_line_and_the_next_goes_on(
    gpu: Environ, photos: Path, tmp_path: Path
) -> None:
    output = tmp_path / "rows.csv"
    ended = predict(gpu, photos, output, "-b", "8", NULL_GPU_COPIES="150")
    assert ended.returncode == 2
    last = ended.stderr.strip().splitlines()[-1]
    assert last.startswith("deitlt: the GPU is lost to this process (CUDA_ERROR_ILLEGAL_ADDRESS)")
    assert not output.exists()
    again = predict(gpu, photos, output, "-b", "8")
    assert again.returncode == 0, again.stderr
    earlier = re.search(r"300 images \((\d+) of them earlier\)", again.stderr)
    assert earlier
    assert 0 < int(earlier[1]) < NUM_IMAGES
    assert [row["filename"] for row in read_rows(output)] == sorted(os.listdir(photos))


def test_the_service_answers_from_cuda(gpu: Environ, tmp_path: Path) -> None:
    with serving(tmp_path, **gpu, DEITLT_DEVICE="cuda", DEITLT_MODEL=str(DIGITS)) as (_, port):
        url = f"http://127.0.0.1:{port}"
        (card,) = httpx.get(f"{url}/v1/models", timeout=PATIENCE_S).json()["models"]
        assert "CUDAExecutionProvider" in json.dumps(card)
        answer = httpx.post(url + CLASSIFY, content=picture(), timeout=PATIENCE_S)
        assert answer.status_code == 200, answer.text


def test_a_service_that_lost_its_gpu_is_not_alive(gpu: Environ, tmp_path: Path) -> None:
    lost = gpu | {"NULL_GPU_COPIES": "400", "DEITLT_DEVICE": "cuda", "DEITLT_MODEL": str(DIGITS)}
    with serving(tmp_path, **lost) as (_, port):
        url = f"http://127.0.0.1:{port}"
        assert httpx.get(f"{url}/livez", timeout=PATIENCE_S).status_code == 200
        limit = time.monotonic() + PATIENCE_S
        status = 200
        while status == 200 and time.monotonic() < limit:
            status = httpx.post(url + CLASSIFY, content=picture(), timeout=PATIENCE_S).status_code
        assert status == 503
        assert httpx.get(f"{url}/livez", timeout=PATIENCE_S).status_code == 503


def train(
    gpu: Environ, program: str, *words: object, **knobs: str
) -> "subprocess.CompletedProcess[str]":
    return run(gpu, ["-c", TRAIN, program, *words], **knobs)


def test_a_teacher_is_trained_from_a_captured_graph_and_a_student_from_it(
    gpu: Environ, digits: Path, tmp_path: Path
) -> None:
    teacher, student = tmp_path / "teacher", tmp_path / "student"
    short = ("--data", digits, "--epochs", "2", "--device", "cuda")
    taught = train(gpu, "teacher", "digits", *short, "--output", teacher)
    assert taught.returncode == 0, taught.stderr
    assert "null GPU: 1 graphs captured" in taught.stderr
    weak = ("--teacher", teacher, "--allow-weak-teacher", "--compile", "False")
    distilled = train(gpu, "student", "digits", *short, *weak, "--output", student)
    assert distilled.returncode == 0, distilled.stderr
    judged = train(gpu, "evaluate", student, "--data", digits, "--device", "cuda")
    assert judged.returncode == 0, judged.stderr
    # Zero logits name the first class of all, one of ten.
    heads = json.loads((student / "metrics-test.json").read_text())["heads"]
    assert heads["average"]["balanced"]["value"] == 0.1


def test_training_beyond_the_memory_of_a_gpu_ends_in_one_line(
    gpu: Environ, digits: Path, tmp_path: Path
) -> None:
    words = ("digits", "--data", digits, "--device", "cuda", "--output", tmp_path / "run")
    ended = train(gpu, "teacher", *words, NULL_GPU_BYTES="30000000")
    assert ended.returncode == 2
    assert "Traceback" not in ended.stderr
    assert "the GPU's memory is full" in ended.stderr.strip().splitlines()[-1]


def test_a_gpu_that_is_lost_in_training_ends_it_in_one_line(
    gpu: Environ, digits: Path, tmp_path: Path
) -> None:
    words = ("digits", "--data", digits, "--device", "cuda", "--output", tmp_path / "run")
    ended = train(gpu, "teacher", *words, NULL_GPU_COPIES="1500")
    assert ended.returncode == 2
    assert "Traceback" not in ended.stderr
    assert "CUDA error: an illegal memory access was encountered; train on" in ended.stderr
