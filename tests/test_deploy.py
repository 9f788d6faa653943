"""The compose file and the Kubernetes manifest: valid, and in step with Dockerfile and settings."""

import re
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import kubernetes_validate
import pytest
import yaml

from serving.settings import Settings
from tests.dockerfile_support import exec_form, read_stages

CHECKOUT = Path(__file__).resolve().parents[1]
DEPLOY = CHECKOUT / "serving" / "deploy"
STAGES = read_stages((CHECKOUT / "Dockerfile").read_text(encoding="utf-8"))
COMPOSE: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text(encoding="utf-8"))
OBJECTS: list[dict[str, Any]] = [
    *yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text(encoding="utf-8"))
]
DEPLOYMENT, SERVICE = OBJECTS
POD = DEPLOYMENT["spec"]["template"]["spec"]
(CONTAINER,) = POD["containers"]
PORT = int(exec_form(STAGES["service"].last("CMD"))[-1])
SETTINGS = set(
    re.findall(r'"(DEITLT_\w+)"', (CHECKOUT / "serving/settings.py").read_text(encoding="utf-8"))
)


def filled(value: Any, **variables: str) -> Any:
    """Compose's `${NAME:-default}` put in, in every text of a value."""
    if isinstance(value, dict):
        return {key: filled(item, **variables) for key, item in value.items()}
    if isinstance(value, list):
        return [filled(item, **variables) for item in value]
    if isinstance(value, str):
        pattern = r"\$\{(\w+):-([^}]*)\}"
        return re.sub(pattern, lambda found: variables.get(found[1]) or found[2], value)
    return value


@pytest.mark.parametrize("version", ["1.33", kubernetes_validate.latest_version()])
@pytest.mark.parametrize("number", [0, 1])
def test_kubernetes_takes_the_manifest(number: int, version: str) -> None:
    kubernetes_validate.validate(OBJECTS[number], version, strict=True)


def test_kubernetes_refuses_a_misspelt_field() -> None:
    wrong = {**SERVICE, "spec": {**SERVICE["spec"], "sellector": {}}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, "1.33", strict=True)


def test_the_pod_may_do_little() -> None:
    user, _ = STAGES["service"].last("USER").split(":")
    assert POD["securityContext"]["runAsNonRoot"] is True
    assert POD["securityContext"]["runAsUser"] == int(user)
    assert CONTAINER["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    # All that the image writes to.
    assert "BENTOML_HOME=/tmp/" in STAGES["service"].last("ENV")
    assert [mount["mountPath"] for mount in CONTAINER["volumeMounts"]] == ["/tmp"]


def test_the_pod_is_asked_on_the_port_it_has() -> None:
    (port,) = CONTAINER["ports"]
    assert port["containerPort"] == PORT
    probes = {name: CONTAINER[f"{name}Probe"] for name in ("startup", "readiness", "liveness")}
    paths = {name: probe["httpGet"]["path"] for name, probe in probes.items()}
    assert paths == {"startup": "/readyz", "readiness": "/readyz", "liveness": "/livez"}
    assert {probe["httpGet"]["port"] for probe in probes.values()} == {port["name"]}
    assert [entry["targetPort"] for entry in SERVICE["spec"]["ports"]] == [port["name"]]
    labels = DEPLOYMENT["spec"]["template"]["metadata"]["labels"]
    assert SERVICE["spec"]["selector"] == DEPLOYMENT["spec"]["selector"]["matchLabels"] == labels


def test_large_bundles_have_time_to_be_read() -> None:
    probe = CONTAINER["startupProbe"]
    start_s = probe["periodSeconds"] * probe["failureThreshold"]
    assert start_s >= 300
    health = STAGES["service"].last("HEALTHCHECK")
    assert f"--start-period={start_s}s" in health


@pytest.mark.parametrize("ready", [True, False])
def test_a_container_is_asked_for_its_health_past_a_proxy(
    ready: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if ready and self.path == "/readyz" else 503)
            self.end_headers()

    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    with HTTPServer(("127.0.0.1", 0), Answer) as server:
        Thread(target=server.handle_request, daemon=True).start()
        _, *words = exec_form(STAGES["service"].last("HEALTHCHECK"))
        command = [word.replace(str(PORT), str(server.server_port)) for word in words]
        result = subprocess.run([sys.executable, *command], capture_output=True, text=True)
    assert (result.returncode == 0) == ready, result.stderr


def test_the_pod_has_time_to_finish() -> None:
    pause_s = int(CONTAINER["lifecycle"]["preStop"]["exec"]["command"][1])
    values = {entry["name"]: entry.get("value", "") for entry in CONTAINER["env"]}
    spare_s = (
        POD["terminationGracePeriodSeconds"] - pause_s - Settings.from_environ(values).timeout_s
    )
    assert spare_s >= 5


def test_the_pod_has_memory_for_the_largest_images() -> None:
    values = {entry["name"]: entry.get("value", "") for entry in CONTAINER["env"]}
    settings = Settings.from_environ(values)
    readme = (CHECKOUT / "README.md").read_text(encoding="utf-8")
    (bytes_a_pixel,) = map(int, re.findall(r"up to (\d+) bytes a pixel", readme))
    images = settings.num_workers * settings.max_pixels * bytes_a_pixel
    limit = int(CONTAINER["resources"]["limits"]["memory"].removesuffix("Mi")) << 20
    assert limit >= images + settings.max_held_bytes + (400 << 20)  # Python, BentoML and the model


def test_variables_are_settings_with_good_values() -> None:
    pod = {entry["name"]: entry.get("value", "") for entry in CONTAINER["env"]}
    compose = filled(COMPOSE["services"]["service"]["environment"])
    for values in (pod, compose):
        assert set(values) <= SETTINGS
        Settings.from_environ(values)
    assert str(Settings.from_environ(pod).num_workers) == CONTAINER["resources"]["requests"]["cpu"]


def test_compose_starts_the_image_of_the_dockerfile() -> None:
    service = filled(COMPOSE["services"]["service"])
    assert service["build"]["context"] == "."  # of --project-directory
    assert service["build"]["target"] in STAGES
    for name in service["build"]["args"]:
        assert name in STAGES["packages"].last("ARG")
    assert "triton" in service["build"]["args"]["EXTRAS"].split(",")
    assert service["ports"] == [f"{PORT}:{PORT}"]
    (volume,) = service["volumes"]
    source, target, access = volume.split(":")
    assert (CHECKOUT / source / "bundle.json").is_file()
    assert (service["environment"]["DEITLT_MODEL"], access) == (target, "ro")
    assert service["read_only"] is True
    assert service["tmpfs"] == ["/tmp"]
    stop_s = int(service["stop_grace_period"].removesuffix("s"))
    assert stop_s >= Settings.from_environ({}).timeout_s + 5


def test_compose_puts_triton_behind_it_on_demand() -> None:
    triton = COMPOSE["services"]["triton"]
    assert triton["profiles"] == ["triton"]
    assert COMPOSE["services"]["service"]["depends_on"] == {
        "triton": {"condition": "service_healthy", "required": False}
    }
    # The address that the head of the file gives is that of the service by its name.
    (address,) = re.findall(r"DEITLT_TRITON=(\S+)", (DEPLOY / "compose.yaml").read_text())
    service = filled(COMPOSE["services"]["service"], DEITLT_TRITON=address)
    host = Settings.from_environ(service["environment"]).triton
    assert host == "grpc://triton:8001"
    assert triton["volumes"][0].endswith(f":{triton['command'][1].partition('=')[2]}:ro")
