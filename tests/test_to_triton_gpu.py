"""What a Triton repository for a GPU says and holds, by Triton's own schema."""

from dataclasses import replace
from pathlib import Path

import pytest
from tritonclient.grpc import model_config_pb2  # type: ignore[import-untyped]

from deitlt.bundle import open_bundle
from deitlt.runtimes import CUDA_OPTIONS
from export.to_triton import export_triton, main
from export.triton_config import ServerOptions
from tests.bundle_support import DIGITS
from tests.triton_support import config

GPU = ServerOptions(device="gpu")
# On a CPU there are numbers of threads beside them.
FOR_CLIENTS = {"preprocess", "classes_sha256", "answers", "variant", "bundle_version_1"}


def test_the_gpu_configuration(tmp_path: Path) -> None:
    bundle = open_bundle(DIGITS)
    for largest, sizes in ((32, [8, 16, 32]), (20, [8, 16, 20]), (4, [4])):
        options = ServerOptions(device="gpu", max_batch_size=largest)
        parsed = config(export_triton(bundle, tmp_path, options, overwrite=True))
        (group,) = parsed.instance_group
        assert (group.kind, group.count) == (model_config_pb2.ModelInstanceGroup.KIND_GPU, 1)
        assert list(parsed.dynamic_batching.preferred_batch_size) == sizes
        assert [sample.batch_size for sample in parsed.model_warmup] == sizes
        assert parsed.dynamic_batching.max_queue_delay_microseconds > 0
        assert parsed.dynamic_batching.default_queue_policy.max_queue_size == 256
        assert set(parsed.parameters) == FOR_CLIENTS
        (accelerator,) = parsed.optimization.execution_accelerators.gpu_execution_accelerator
        assert (accelerator.name, dict(accelerator.parameters)) == ("cuda", CUDA_OPTIONS)
        assert accelerator.parameters["use_tf32"] == "0"


def test_a_gpu_gets_fp16_or_is_told_where_attention_runs(
    bundle_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(bundle_path), str(tmp_path / "plain"), "--device", "gpu"]) == 0
    assert "computes attention on the CPU all the same" in capsys.readouterr().out
    assert main([str(bundle_path), str(tmp_path / "cpu")]) == 0
    assert "computes attention" not in capsys.readouterr().out
    opened = open_bundle(bundle_path)
    entry = opened.manifest["artefacts"]["float32"]
    manifest = {**opened.manifest, "artefacts": {"float32": entry, "fp16": entry}}
    both = replace(opened, manifest=manifest)
    for options, variant in ((ServerOptions(), "float32"), (GPU, "fp16")):
        model = export_triton(both, tmp_path / variant, options)
        assert config(model).parameters["variant"].string_value == variant
