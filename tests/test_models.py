"""Bundles that are written again while they are served: taken over whole, or not at all."""

import errno
import gc
import logging
import shutil
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import pytest

from deitlt.bundle import MODEL, open_bundle
from deitlt.classifier import Classifier, load
from deitlt.engine import Engine
from deitlt.errors import BundleError, UnknownModel, UsageError
from deitlt.prediction import Prediction
from deitlt.runtimes import open_runtime
from serving.backend import Backend
from serving.models import Models
from serving.settings import Settings
from tests.service_support import LIMITS, picture

PATIENCE_S = 30


def load_cpu(path: Path) -> Classifier:
    return load(path, device="cpu", num_threads=1)


def replace(target: Path, source: Path) -> None:
    """Put another bundle in its place as an export does, in renames."""
    target.rename(target.with_name("old"))
    source.rename(target)
    shutil.rmtree(target.with_name("old"))


def test_a_new_bundle_takes_over(tmp_path: Path, make_bundle: Callable[..., Path]) -> None:
    served = make_bundle(tmp_path / "served", name="a")
    models = Models([served], load_cpu)
    old = models.default
    assert models.refresh() == []
    replace(served, make_bundle(tmp_path / "next", name="b"))
    (new,) = models.refresh()
    assert models.default is new
    assert (old.name, new.name) == ("a", "b")
    assert models.find("b", new.version) is new
    with pytest.raises(UnknownModel, match="no model a; served are b"):
        models.find("a")
    assert old.classifier.predict_one(picture()).label  # whoever holds it can still use it


def test_the_service_lets_go_of_a_replaced_model_and_says_so(
    tmp_path: Path, make_bundle: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="deitlt.serving")
    served = make_bundle(tmp_path / "served", name="a")
    backend = Backend.start(Settings.from_environ({**LIMITS, "DEITLT_MODEL": str(served)}))
    try:
        old = weakref.ref(backend.models.default.classifier)
        replace(served, make_bundle(tmp_path / "next", name="b"))
        (new,) = backend.models.refresh()
        gc.collect()
        assert old() is None, "its graph stays in memory"
        (future,) = backend.engine.submit_all([picture()], classifier=new.classifier)
        assert future.result(PATIENCE_S).label
    finally:
        backend.close()
    assert f"b: version {new.version} replaces" in caplog.text


def test_a_damaged_new_bundle_leaves_the_old_one(
    tmp_path: Path,
    make_bundle: Callable[..., Path],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    served = make_bundle(tmp_path / "served", name="a")
    models = Models([served], load_cpu)
    old = models.default
    broken = make_bundle(tmp_path / "next", name="b")
    (broken / MODEL).write_bytes(b"broken")
    replace(served, broken)
    assert models.refresh() == []
    assert models.default is old
    assert "stays in use" in caplog.text
    # One whose graph does not take what it says, which the runtime notices.
    replace(served, make_bundle(tmp_path / "other", name="d"))
    with monkeypatch.context() as patched:
        patched.setattr(
            "serving.models.Models._warm", Mock(side_effect=RuntimeError("a runtime's"))
        )
        assert models.refresh() == []
    assert models.default is old
    assert "the new one does not run" in caplog.text
    shutil.rmtree(served)
    assert models.refresh() == []
    assert models.default is old
    with monkeypatch.context() as patched:
        patched.setattr(Path, "rglob", Mock(side_effect=OSError(errno.ESTALE, "Stale file handle")))
        assert models.refresh() == [], "and the watching thread lives on"
    make_bundle(served, name="c")
    assert [model.name for model in models.refresh()] == ["c"]


def test_a_bundle_that_stays_damaged_is_loaded_again_only_now_and_then(
    tmp_path: Path,
    make_bundle: Callable[..., Path],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 0.0
    monkeypatch.setattr("serving.models.time", SimpleNamespace(monotonic=lambda: now))
    served = make_bundle(tmp_path / "served", name="a")
    load = Mock(side_effect=load_cpu)
    models = Models([served], load)
    copied = make_bundle(tmp_path / "next", name="b")
    sound = (copied / MODEL).read_bytes()
    (copied / MODEL).write_bytes(sound[:-1])  # still on its way
    replace(served, copied)
    load.reset_mock()
    tries = []
    while now < 7200:
        assert models.refresh() == []
        tries += [now] * load.call_count
        load.reset_mock()
        now += 5
    assert (tries[:4], len(tries)) == ([0, 5, 10, 15], 21)  # ten minutes apart in the end
    assert caplog.text.count("stays in use") == len(tries)
    assert models.num_refused == 1
    (served / MODEL).write_bytes(sound)  # the manifest is as it was
    assert [model.name for model in models.refresh()] == ["b"]
    assert models.num_refused == 0


def test_folders_may_change_places(
    tmp_path: Path, make_bundle: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    bundles = {name: make_bundle(tmp_path / name, name=name) for name in "abcd"}
    current, previous, other = (tmp_path / name for name in ("current", "previous", "other"))

    def point(folder: Path, name: str) -> None:
        folder.unlink(missing_ok=True)
        folder.symlink_to(bundles[name])

    for folder, name in ((current, "b"), (previous, "a"), (other, "c")):
        point(folder, name)
    models = Models([current, previous, other], load_cpu)
    point(current, "a")  # taken back, but previous still has it
    point(other, "d")  # need not wait for that
    assert [model.name for model in models.refresh()] == ["d"]
    assert [model.name for model in models.all()] == ["b", "a", "d"]
    assert "another folder has the bundle" in caplog.text
    point(previous, "b")
    assert [model.name for model in models.refresh()] == ["a", "b"]
    assert [model.name for model in models.all()] == ["a", "b", "d"]


def test_a_model_is_of_one_bundle_though_a_link_is_moved_meanwhile(
    tmp_path: Path, make_bundle: Callable[..., Path]
) -> None:
    bundle, link = make_bundle(tmp_path / "a", name="a"), tmp_path / "current"
    link.symlink_to(bundle)

    def load_and_move(path: Path) -> Classifier:
        found = open_bundle(path)
        link.unlink()
        link.symlink_to(tmp_path)  # which holds another one, or as here none
        return Classifier(found, open_runtime(found, device="cpu", num_threads=1))

    models = Models([link], load_and_move)
    assert models.default.version == open_bundle(bundle).version
    assert models.default.path == link  # looked at again as it was given


def test_a_change_while_a_bundle_is_read_is_seen_the_next_time(
    tmp_path: Path, make_bundle: Callable[..., Path]
) -> None:
    served, following = (make_bundle(tmp_path / name, name=name) for name in "ab")

    def load_and_change(path: Path) -> Classifier:
        classifier = load_cpu(path)
        if following.exists():
            replace(served, following)
        return classifier

    models = Models([served], load_and_change)
    assert models.default.name == "a"
    assert [model.name for model in models.refresh()] == ["b"]


def test_every_form_of_a_model_has_answered_before_it_is_served(
    tmp_path: Path, make_bundle: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Classifier] = []
    answer = Classifier.predict_one

    def noted(self: Classifier, image: bytes) -> Prediction:
        asked.append(self)
        return answer(self, image)

    monkeypatch.setattr(Classifier, "predict_one", noted)
    served = make_bundle(tmp_path / "served", name="a")
    models = Models([served], load_cpu, lambda bundle: load_cpu(bundle.path))
    assert asked == [*models.default.forms()]
    assert len(asked) == 2


def test_no_request_is_dropped_while_versions_change(
    tmp_path: Path, make_bundle: Callable[..., Path]
) -> None:
    served = make_bundle(tmp_path / "served", name="v0")
    models = Models([served], load_cpu)
    models.watch(0.01)
    seen: list[str] = []
    done = threading.Event()

    def ask() -> None:
        while not done.is_set():
            model = models.default
            (future,) = engine.submit_all([picture()], classifier=model.classifier)
            future.result(PATIENCE_S)
            seen.append(model.name)

    with Engine(models.default.classifier, num_workers=2) as engine:
        asking = threading.Thread(target=ask)
        asking.start()
        try:
            for number in (1, 2, 3):
                name = f"v{number}"
                replace(served, make_bundle(tmp_path / "next", name=name))
                reached = threading.Event()
                for _ in range(PATIENCE_S * 100):
                    if seen and seen[-1] == name:
                        reached.set()
                        break
                    done.wait(0.01)
                assert reached.is_set(), f"{name} was not taken over"
        finally:
            done.set()
            asking.join()
            models.close()
    assert list(dict.fromkeys(seen)) == ["v0", "v1", "v2", "v3"]


def test_what_cannot_be_served_is_refused(tmp_path: Path, make_bundle: Callable[..., Path]) -> None:
    one = make_bundle(tmp_path / "one", name="a")
    two = shutil.copytree(one, tmp_path / "two")
    with pytest.raises(UsageError, match="hold the same bundle"):
        Models([one, two], load_cpu)
    with pytest.raises(BundleError, match="not a bundle"):
        Models([tmp_path / "nothing"], load_cpu)
