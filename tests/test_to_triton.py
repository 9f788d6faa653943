"""Triton repositories: their configuration by Triton's own schema, and answers of a real server."""

import json
import os
import re
from collections.abc import Iterator
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import onnxruntime
import pytest
from google.protobuf import text_format  # type: ignore[import-untyped]
from onnx import TensorProto
from tritonclient.grpc import model_config_pb2  # type: ignore[import-untyped]
from tritonclient.utils import InferenceServerException  # type: ignore[import-untyped]

from deitlt.bundle import OUTPUTS, Bundle, open_bundle
from deitlt.classifier import Classifier
from deitlt.errors import DeitLTError
from deitlt.metrics import softmax
from deitlt.preprocess import Pixels, PreprocessSpec
from export.to_triton import export_triton, main
from export.triton_config import ServerOptions
from tests import triton_support as support
from tests.bundle_support import DIGITS
from tests.triton_support import PYTHON, Array, Environment, Protocol, World, as_encoded, config

both_protocols = pytest.mark.parametrize("protocol", ["http", "grpc"])
THREADS = {"intra_op_thread_count", "inter_op_thread_count", "execution_mode"}
FOR_CLIENTS = {"preprocess", "classes_sha256", "answers", "variant", "bundle_version_1"}
CALLERS_FAULT = ("400", "StatusCode.INVALID_ARGUMENT")
Capsys = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return open_bundle(DIGITS)


@pytest.fixture(scope="module")
def golden(bundle: Bundle) -> Pixels:
    with np.load(bundle.path / "golden.npz") as arrays:
        return np.asarray(arrays["pixels"])


def refusal(capsys: Capsys, *arguments: str | Path) -> str:
    """The one line that the program ends with status 2 on."""
    assert main([str(argument) for argument in arguments]) == 2
    out, err = capsys.readouterr()
    assert (out, err[:11], err.count("\n")) == ("", "to_triton: ", 1)
    return err


def test_the_configuration_agrees_with_the_graph(bundle: Bundle, tmp_path: Path) -> None:
    model = export_triton(bundle, tmp_path)
    graph = model / "1" / "model.onnx"
    assert graph.read_bytes() == bundle.artefact().path.read_bytes()
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    types = {"tensor(uint8)": "TYPE_UINT8", "tensor(float)": "TYPE_FP32"}
    parsed, kind = config(model), model_config_pb2.DataType.Name
    stated = [(t.name, kind(t.data_type), list(t.dims)) for t in (*parsed.input, *parsed.output)]
    real = [*session.get_inputs(), *session.get_outputs()[:3]]  # not the features behind them
    assert stated == [(t.name, types[t.type], t.shape[1:]) for t in real]


def test_the_cpu_configuration(bundle: Bundle, tmp_path: Path) -> None:
    parsed = config(export_triton(bundle, tmp_path))
    assert (parsed.name, parsed.backend, parsed.max_batch_size) == ("digits", "onnxruntime", 32)
    assert [output.label_filename for output in parsed.output] == ["labels.txt"] * 3
    assert parsed.input[0].format == model_config_pb2.ModelInput.FORMAT_NHWC
    (group,) = parsed.instance_group
    assert (group.kind, group.count) == (model_config_pb2.ModelInstanceGroup.KIND_CPU, 2)
    assert parsed.parameters["intra_op_thread_count"].string_value == "1"
    assert set(parsed.parameters) == FOR_CLIENTS | THREADS
    batching = parsed.dynamic_batching
    assert list(batching.preferred_batch_size) == [1]
    assert batching.max_queue_delay_microseconds == 0
    assert batching.default_queue_policy.max_queue_size == 64
    assert parsed.version_policy.latest.num_versions == 1
    assert [sample.batch_size for sample in parsed.model_warmup] == [1]


def test_options_of_the_command_line_arrive(bundle: Bundle, tmp_path: Path) -> None:
    command = f"{bundle.path} {tmp_path} --name a.b-c_1 --model-version 7 --max-batch-size 3"
    command += " --instances 5 --max-queue-delay-us 250 --max-queue-size 9 --backend python"
    assert main(command.split()) == 0
    parsed = config(tmp_path / "a.b-c_1")
    assert (parsed.name, parsed.backend, parsed.max_batch_size) == ("a.b-c_1", "python", 3)
    assert parsed.instance_group[0].count == 5
    batching = parsed.dynamic_batching
    assert batching.default_queue_policy.max_queue_size == 9
    assert (batching.max_queue_delay_microseconds, batching.preferred_batch_size) == (250, [])
    assert parsed.parameters["bundle_version_7"].string_value == bundle.version
    assert open_bundle(tmp_path / "a.b-c_1" / "7" / "bundle").version == bundle.version


def test_a_client_can_work_from_the_repository_alone(bundle: Bundle, tmp_path: Path) -> None:
    classes = [f'{i}: "Größe", \\ ' for i in range(10)]
    model = export_triton(replace(bundle, classes=classes), tmp_path)
    labels = (model / "labels.txt").read_bytes()
    assert labels.decode().split("\n") == [*classes, ""]
    parameters = config(model).parameters
    assert parameters["classes_sha256"].string_value == sha256(labels).hexdigest()
    fields = json.loads(parameters["preprocess"].string_value)
    assert PreprocessSpec.from_dict(fields) == bundle.preprocess


def test_the_warm_up_image_is_a_real_one(bundle: Bundle, golden: Pixels, tmp_path: Path) -> None:
    model = export_triton(bundle, tmp_path)
    image = config(model).model_warmup[0].inputs["images"]
    raw = (model / "warmup" / image.input_data_file).read_bytes()
    assert np.array_equal(np.frombuffer(raw, np.uint8).reshape(list(image.dims)), golden[0])


def test_the_schema_finds_an_unknown_key(bundle: Bundle, tmp_path: Path) -> None:
    file = export_triton(bundle, tmp_path) / "config.pbtxt"
    file.write_bytes(file.read_bytes() + b"max_batchsize: 1")
    with pytest.raises(text_format.ParseError, match="max_batchsize"):
        config(file.parent)


def test_a_version_joins_the_others(bundle: Bundle, tmp_path: Path) -> None:
    before = support.tree(export_triton(bundle, tmp_path))
    newer = replace(bundle, version="0123456789ab")
    after = support.tree(export_triton(newer, tmp_path, model_version=12))
    assert after.keys() - before.keys() == {"12", "12/model.onnx"}
    assert {name for name in before if before[name] != after[name]} == {"config.pbtxt"}
    parameters = config(tmp_path / "digits").parameters
    assert parameters["bundle_version_1"].string_value == bundle.version
    assert parameters["bundle_version_12"].string_value == newer.version
    export_triton(bundle, tmp_path, model_version=2)
    assert {"1", "2", "12"} <= support.tree(tmp_path / "digits").keys()


def test_other_models_stay(bundle: Bundle, tmp_path: Path) -> None:
    before = support.tree(export_triton(bundle, tmp_path, name="other"))
    export_triton(bundle, tmp_path)
    model = export_triton(bundle, tmp_path, PYTHON, model_version=3, overwrite=True)
    assert support.tree(tmp_path / "other") == before
    assert {path.name for path in tmp_path.iterdir()} == {"digits", "other"}
    assert {path.name for path in model.iterdir() if path.is_dir()} == {"3", "warmup"}


def test_refusals_are_one_line(bundle_path: Path, tmp_path: Path, capsys: Capsys) -> None:
    models = tmp_path / "models"
    assert main([str(bundle_path), str(models)]) == 0
    capsys.readouterr()
    (models / "notes" / "mine").mkdir(parents=True)
    before = support.tree(models)
    for options, reason in (
        ("", "--overwrite"),
        ("--model-version 1", "has a version 1 already"),
        ("--model-version 2 --instances 3", "does not agree .*KIND_CPU count: 3"),
        ("--model-version 0", "model version is 0"),
        ("--name a/b", "'a/b' is no name"),
        ("--name new --max-batch-size 0", "max batch size is 0"),
        ("--name new --instances 0", "instances is 0"),
        ("--name new --max-queue-delay-us -1", "max queue delay is -1"),
        ("--name new --variant int4", "no variant 'int4', only float32"),
        ("--name notes --overwrite", "something else than a Triton model"),
    ):
        assert re.search(reason, refusal(capsys, bundle_path, models, *options.split()))
    assert "not a bundle" in refusal(capsys, models, models, "--name", "new")
    assert "is a Triton model" in refusal(capsys, bundle_path, models / "digits")
    places = {"": "is a bundle", "a/b": "is inside the bundle", "model.onnx": "is a file"}
    for place, what in places.items():
        assert what in refusal(capsys, bundle_path, bundle_path / place)
    (bundle_path / "model.onnx").write_bytes(b"changed")
    assert "changed since it was written" in refusal(capsys, bundle_path, models, "--name", "new")
    with pytest.raises(SystemExit, match="2"):
        main([str(bundle_path), str(models), "--backend", "tensorrt"])
    assert support.tree(models) == before


def test_other_classes_are_another_model(bundle: Bundle, tmp_path: Path) -> None:
    export_triton(bundle, tmp_path)
    with pytest.raises(DeitLTError, match="other classes"):
        export_triton(replace(bundle, classes=bundle.classes[::-1]), tmp_path, model_version=2)
    with pytest.raises(DeitLTError, match="line break"):
        export_triton(replace(bundle, classes=["a\nb", *bundle.classes[1:]]), tmp_path, name="new")
    assert {path.name for path in tmp_path.iterdir()} == {"digits"}


def test_variants_are_found_in_the_manifest(bundle_path: Path, tmp_path: Path) -> None:
    opened = open_bundle(bundle_path)
    entry = opened.manifest["artefacts"]["float32"]
    artefacts = {"float32": entry, "script": {**entry, "file": "m.pt", "format": "torchscript"}}
    byte = TensorProto.UINT8
    for name, image, kind, dims, outputs in (
        ("half", "images", byte, (16, 16, 3), OUTPUTS),
        ("normalised", "pixel_values", TensorProto.FLOAT, (3, 16, 16), OUTPUTS[:1]),
        ("turned", "images", byte, (3, 16, 16), OUTPUTS),
        ("odd", "images", byte, (16, 16, 3), ("cls_logits",)),
    ):
        (bundle_path / name).write_bytes(support.graph_file(image, kind, dims, outputs))
        artefacts[name] = {**entry, "file": name}
    bundle = replace(opened, manifest={**opened.manifest, "artefacts": artefacts})
    kind_name = model_config_pb2.DataType.Name
    for variant, options, expected in (
        ("half", ServerOptions(), ["UINT8", "FP16", "FP16", "FP16"]),
        ("half", PYTHON, ["UINT8", "STRING", "FP32", "FP32", "FP32"]),
        ("normalised", ServerOptions(), ["FP32", "FP16"]),
        ("normalised", PYTHON, ["UINT8", "STRING", "FP32"]),
        ("script", PYTHON, ["UINT8", "STRING", "FP32", "FP32", "FP32"]),
    ):
        model = export_triton(bundle, tmp_path, options, variant=variant, overwrite=True)
        parsed = config(model)
        types = [kind_name(tensor.data_type) for tensor in (*parsed.input, *parsed.output)]
        assert types == [f"TYPE_{name}" for name in expected]
        image = parsed.model_warmup[0].inputs[parsed.input[0].name]
        size = np.prod(image.dims) * (4 if types[0] == "TYPE_FP32" else 1)
        assert (model / "warmup" / image.input_data_file).stat().st_size == size
        assert parsed.parameters["variant"].string_value == variant
    for variant, reason in (
        ("fp16", "no variant 'fp16', only float32, script"),
        ("script", "torchscript, which ONNX Runtime does not run"),
        ("turned", "turned: does not map images"),
        ("odd", "odd: does not map images"),
    ):
        with pytest.raises(DeitLTError, match=reason):
            export_triton(bundle, tmp_path, variant=variant, name="new")


@pytest.mark.parametrize("options", ["--name new", "--overwrite", "--model-version 2"])
@pytest.mark.parametrize("broken", ["shutil.copyfile", "export.to_triton.write_text"])
def test_a_failure_leaves_the_repository_as_it_was(
    options: str, broken: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capsys
) -> None:
    export_triton(open_bundle(DIGITS), tmp_path)
    before = support.tree(tmp_path)

    full = Mock(side_effect=OSError(28, os.strerror(28), "disk"))
    monkeypatch.setattr(broken, full)
    assert "disk: No space left" in refusal(capsys, DIGITS, tmp_path, *options.split())
    assert support.tree(tmp_path) == before


@pytest.fixture(scope="module")
def world(
    golden: Pixels, triton_environment: Environment, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[World]:
    with support.make_world(tmp_path_factory.mktemp("triton"), golden, triton_environment) as world:
        yield world


@both_protocols
def test_image_files_get_the_answers_of_the_library(protocol: Protocol, world: World) -> None:
    answer = world.server.ask(protocol, {"encoded": as_encoded(world.photos)})
    outputs = np.stack([answer[name] for name in OUTPUTS], axis=1)
    np.testing.assert_array_equal(outputs, world.local["outputs"], strict=True)
    probabilities = softmax(answer["logits"])
    assert [str(best) for best in probabilities.argmax(axis=1)] == list(world.local["labels"])
    np.testing.assert_allclose(probabilities.max(axis=1), world.local["probabilities"], rtol=1e-6)


@both_protocols
def test_pixels_get_the_answers_of_the_graph(
    protocol: Protocol, world: World, golden: Pixels, classifier: Classifier
) -> None:
    answer = world.server.ask(protocol, {"images": golden})
    outputs = np.stack([answer[name] for name in OUTPUTS], axis=1)
    np.testing.assert_array_equal(outputs, world.local["outputs"][: len(golden)], strict=True)
    # This process may have another version of ONNX Runtime than the server.
    here = classifier.runtime.run(golden).logits
    np.testing.assert_allclose(outputs[:, 0], here, rtol=0, atol=1e-4)


@both_protocols
def test_a_damaged_image_fails_alone_in_its_batch(protocol: Protocol, world: World) -> None:
    before = sum(world.server.batches("patient").values())
    photos = world.photos
    sent = [photos[:1], photos[1:3], [photos[8][:700]], photos[3:6], photos[6:7], photos[7:8]]
    answers = world.server.ask_together(protocol, sent, "patient")
    failed = answers.pop(2)
    assert isinstance(failed, InferenceServerException)
    assert failed.status() in CALLERS_FAULT
    assert failed.message().startswith("decode_failed: the image is damaged")
    np.testing.assert_array_equal(np.concatenate(answers), world.local["outputs"][:8, 0])
    # Fewer batches than requests: the damaged image did have neighbours.
    assert sum(world.server.batches("patient").values()) - before < len(sent)


def test_requests_are_run_one_by_one_on_a_cpu(world: World) -> None:
    requests = [[photo] for photo in world.photos] * 3
    answers = world.server.ask_together("http", requests, "renewed")
    expected = np.tile(world.local["outputs"][:, 0], (3, 1))
    np.testing.assert_array_equal(np.concatenate(answers), expected)
    assert world.server.batches("renewed").keys() == {1}


@both_protocols
def test_wrong_requests_are_the_callers(protocol: Protocol, world: World, golden: Pixels) -> None:
    image = as_encoded(world.photos[:1])
    wrong: list[tuple[dict[str, Array], str]] = [
        ({"images": np.zeros((1, 8, 8, 3), np.uint8)}, "unexpected shape"),
        ({"images": np.zeros((17, 16, 16, 3), np.uint8)}, "batch-size must be <= 16"),
        ({"images": golden.astype(np.float32)}, "data-type"),
        ({"images": golden[:1], "encoded": image}, "send one of the inputs"),
        ({"encoded": as_encoded([b"text"])}, "unsupported_image: not an image"),
        ({"encoded": as_encoded([b""])}, "decode_failed: the image is empty"),
        ({"encoded": as_encoded([*world.photos[:2], b"text"])}, "image 3 of 3: not an image"),
    ]
    for inputs, reason in wrong:
        with pytest.raises(InferenceServerException, match=reason) as caught:
            world.server.ask(protocol, inputs)
        assert caught.value.status() in CALLERS_FAULT
    assert len(world.server.ask(protocol, {"encoded": image})["logits"]) == 1


@both_protocols
def test_classes_come_with_their_names(protocol: Protocol, world: World, golden: Pixels) -> None:
    rows = world.server.best(protocol, golden, "distillation_logits", 3)
    for row, logits in zip(rows, world.local["outputs"][: len(golden), 2], strict=True):
        for text, index in zip(row, np.argsort(-logits)[:3], strict=True):
            value, position, label = text.split(":", 2)
            assert (int(position), label) == (index, str(index))
            assert float(value) == pytest.approx(logits[index], abs=1e-6)


def test_a_new_version_takes_over(world: World, bundle: Bundle, golden: Pixels) -> None:
    export_triton(bundle, world.models, PYTHON, name="renewed", model_version=2)
    with world.server.client() as client:
        assert client.get_model_metadata("renewed")["versions"] == ["1"]
        client.load_model("renewed")
        assert client.get_model_metadata("renewed")["versions"] == ["2"]
    assert world.server.ask("grpc", {"images": golden}, "renewed")["logits"].shape == (8, 10)


def test_a_changed_bundle_is_not_served(world: World, bundle: Bundle) -> None:
    model = export_triton(bundle, world.models, PYTHON, name="changed")
    with (model / "1" / "bundle" / "model.onnx").open("ab") as file:
        file.write(b"\0")
    told = pytest.raises(InferenceServerException, match="changed since it was written")
    with world.server.client() as client, told:
        client.load_model("changed")
