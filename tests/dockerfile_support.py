"""The steps of a Dockerfile, run without Docker under a folder that stands for `/`.

Every stage has the same folder, so `COPY --from` finds what it copies in place. The base image is a
virtual environment of the Python that runs the tests; no user is switched to.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

TIMEOUT_S = 300


@dataclass
class Stage:
    """One `FROM` with what follows it."""

    name: str
    base: str
    steps: list[tuple[str, str]] = field(default_factory=list)

    def last(self, instruction: str) -> str:
        """The arguments of the last such instruction."""
        return [text for name, text in self.steps if name == instruction][-1]


def read_stages(text: str) -> dict[str, Stage]:
    """The named stages of a Dockerfile, in their order."""
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    stages: dict[str, Stage] = {}
    for line in re.sub(r"\\\n\s*", "", "\n".join(lines)).splitlines():
        instruction, _, rest = line.partition(" ")
        if instruction == "FROM":
            base, _, name = rest.split()
            stage = stages[name] = Stage(name, base)
        elif stages:  # before the first there is but the version of Python
            stage.steps.append((instruction, rest))
    return stages


class Machine:
    """What a Dockerfile's steps make, under `root`."""

    def __init__(self, root: Path, context: Path) -> None:
        self.root, self.context = root, context
        base = root / "usr" / "local"
        subprocess.run([sys.executable, "-m", "venv", base], check=True, timeout=TIMEOUT_S)
        kept = {n: v for n, v in os.environ.items() if not n.startswith(("PYTHON", "DEITLT_"))}
        self.environ = {**kept, "PATH": f"{base / 'bin'}{os.pathsep}{os.environ['PATH']}"}
        self.cwd = root

    def build(self, stages: dict[str, Stage], target: str) -> None:
        """Run the steps of a stage, after those of every stage that it needs, each once.

        A stage goes on in the folder and with the environment in which its base ended.
        """
        start = self.cwd, self.environ
        ends: dict[str, tuple[Path, dict[str, str]]] = {}

        def visit(name: str) -> None:
            stage = stages[name]
            sources = [re.match(r"--from=(\S+)", text) for _, text in stage.steps]
            for needed in [stage.base, *(source[1] for source in sources if source)]:
                if needed in stages and needed not in ends:
                    visit(needed)
            self.cwd, environ = ends.get(stage.base, start)
            self.environ = dict(environ)
            for instruction, text in stage.steps:
                self.step(instruction, text)
            ends[name] = self.cwd, self.environ

        visit(target)

    def step(self, instruction: str, text: str) -> None:
        """Run one step."""
        if instruction == "ARG":
            name, _, value = text.partition("=")
            self.environ[name] = value
        elif instruction == "ENV":
            for word in shlex.split(self.under_root(text)):
                name, _, value = word.partition("=")
                self.environ[name] = value.replace("$PATH", self.environ["PATH"])
        elif instruction == "WORKDIR":
            self.cwd = Path(self.under_root(text))
            self.cwd.mkdir(parents=True, exist_ok=True)
        elif instruction == "COPY":
            self.copy(text.split())
        elif instruction == "RUN":
            self.run(["bash", "-euc", self.under_root(text)])
        else:
            assert instruction in ("USER", "EXPOSE", "HEALTHCHECK", "CMD"), instruction

    def copy(self, words: list[str]) -> None:
        """`COPY`, of files and folders of the build context or of another stage."""
        if words[0].startswith("--from="):
            _, source, target = words
            assert source == target
            assert Path(self.under_root(source)).exists(), source
            return
        *names, target = words
        for name in names:
            assert name not in ignored(self.context), name
            if (self.context / name).is_dir():
                ignore = shutil.ignore_patterns("__pycache__")
                shutil.copytree(self.context / name, self.cwd / target, ignore=ignore)
            else:
                shutil.copy(self.context / name, self.cwd / target)

    def run(self, command: list[str]) -> subprocess.CompletedProcess[str]:
        """Run a command there; it must end well."""
        result = subprocess.run(
            command,
            cwd=self.cwd,
            env=self.environ,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
        )
        assert result.returncode == 0, result.stderr
        return result

    def under_root(self, text: str) -> str:
        """Absolute paths of the image as paths of this machine; /tmp stays what it is."""
        return re.sub(r"(?<![\w.:/])/(?=[a-z])(?!tmp\b)", f"{self.root}/", text)


def ignored(context: Path) -> list[str]:
    """What .dockerignore keeps out of the build."""
    return (context / ".dockerignore").read_text(encoding="utf-8").split()


def exec_form(text: str) -> list[str]:
    """The words of a `CMD [...]`, also at the end of a HEALTHCHECK."""
    words: list[str] = json.loads(text[text.index("[") :])
    return words
