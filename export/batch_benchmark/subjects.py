"""The students that the ways run, as bundles that `deitlt` reads."""

from dataclasses import dataclass
from pathlib import Path

from deitlt.bundle import Bundle
from deitlt.classifier import Classifier
from deitlt.preprocess import PreprocessSpec
from deitlt.runtimes import OnnxRuntime
from deitlt.student import DeiTLT, StudentConfig
from export.benchmark.artefacts import Subject, write, write_minimal_bundle
from export.benchmark.rows import FLOAT32_FILE, INT8_FILE
from export.benchmark.students import describe, untrained


@dataclass(frozen=True)
class Contestant:
    """A student with random weights, which take the same time as trained ones.

    Attributes:
        name: its shape for people.
        model: in PyTorch.
        bundle: its bundle.
        graphs: its ONNX files by precision, float32 and perhaps int8.
    """

    name: str
    model: DeiTLT
    bundle: Bundle
    graphs: dict[str, Path]

    @property
    def spec(self) -> PreprocessSpec:
        """How its images are prepared."""
        return self.bundle.preprocess

    def runtime(self, precision: str = "float32", *, threads: int = 1) -> OnnxRuntime:
        """ONNX Runtime with so many threads inside a call."""
        return OnnxRuntime(self.graphs[precision], device="cpu", num_threads=threads)

    def classifier(self, precision: str = "float32", *, fast_decode: bool = False) -> Classifier:
        """As the pipeline takes it."""
        bundle = self.bundle.with_fast_decode() if fast_decode else self.bundle
        return Classifier(bundle, self.runtime(precision))


def make(config: StudentConfig, folder: Path, *, int8: bool = False) -> Contestant:
    """Write a student's graphs and its bundle into a new folder."""
    folder.mkdir(parents=True)
    student = untrained(config, None, 0)
    subject = Subject(student.model, student.card, student.calibration, "cpu", folder)
    files = {"float32": FLOAT32_FILE} | ({"int8": INT8_FILE} if int8 else {})
    for file in files.values():
        write(subject, file)
    graphs = {precision: folder / file for precision, file in files.items()}
    return Contestant(
        describe(config), student.model, write_minimal_bundle(subject, folder / "bundle"), graphs
    )
