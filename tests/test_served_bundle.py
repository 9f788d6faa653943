"""A model on a Triton server that is of another export than the bundle here is told of."""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from deitlt.bundle import MODEL, Bundle, open_bundle
from deitlt.served_bundle import check_parameters
from export.to_triton import export_triton
from tests.bundle_support import DIGITS
from tests.triton_support import config


@pytest.fixture
def told(caplog: pytest.LogCaptureFixture) -> Any:
    """What is logged of a model's folder where a bundle and a version are asked for."""

    def tell(model: Path, bundle: Bundle, version: str = "") -> str:
        caplog.clear()
        parameters = {
            key: {"string_value": value.string_value}
            for key, value in config(model).parameters.items()
        }
        with caplog.at_level(logging.WARNING):
            check_parameters("here", bundle, parameters, version)
        return "".join(caplog.messages)

    return tell


def test_answers_of_another_export_are_told_of(told: Any, tmp_path: Path) -> None:
    bundle = open_bundle(DIGITS)
    newer = replace(bundle, version="0123456789ab")
    model = export_triton(bundle, tmp_path)
    assert told(model, bundle) == ""
    assert f"from version {bundle.version} of the bundle" in told(model, newer)
    assert "its answers bear version 0123456789ab" in told(model, newer)
    export_triton(newer, tmp_path, model_version=10)  # the one that is served then
    assert "from version 0123456789ab" in told(model, bundle)
    assert told(model, newer) == told(model, bundle, "1") == ""
    assert told(model, bundle, "3") == ""  # of which nothing is stated


def test_a_repository_inside_a_bundle_is_of_it(told: Any, tmp_path: Path) -> None:
    bundle = open_bundle(DIGITS)
    unnamed = replace(bundle, version=bundle.manifest["files"][MODEL]["sha256"][:12])
    assert told(export_triton(unnamed, tmp_path), bundle) == ""
