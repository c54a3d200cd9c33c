"""Files for KubeRay, checked by the operator's own schemas, and what those cannot see: names, versions, arguments."""

import os
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator
from ray.serve.schema import ServeDeploySchema

from recsys_ray.presets import load_preset
from serve_app.config import ServeConfig

ROOT = Path(__file__).parents[2]
KUBERAY = ROOT / "clusters" / "kuberay"
SCHEMAS = Path(os.environ.get("RECSYS_RAY_SCHEMAS", ROOT.parent / "shared" / "schemas")) / "kuberay"
FILES = {
    "raycluster": "rayclusters",
    "rayjob": "rayjobs",
    "rayjob-gpu-large": "rayjobs",
    "rayservice": "rayservices",
}

needs_schemas = pytest.mark.skipif(
    not SCHEMAS.is_dir(), reason=f"KubeRay's schemas are absent: {SCHEMAS} (set RECSYS_RAY_SCHEMAS)"
)


@needs_schemas
@pytest.mark.parametrize("name", FILES)
def test_kuberay_accepts_the_file(name: str) -> None:
    assert [error.message for error in _validator(name).iter_errors(_load(name))] == []


@needs_schemas
def test_the_check_sees_a_field_that_does_not_exist() -> None:
    document = _load("rayjob")
    document["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0]["imagee"] = "x"
    assert any("imagee" in error.message for error in _validator("rayjob").iter_errors(document))


@pytest.mark.parametrize("name", FILES)
def test_the_token_is_a_reference_and_pods_run_without_rights(name: str) -> None:
    cluster = _cluster(name)
    assert cluster["authOptions"] == {"mode": "token", "secretName": "recsys-ray-token"}
    for template in _templates(cluster):
        assert template["spec"]["securityContext"]["runAsNonRoot"] is True
        for container in template["spec"]["containers"]:
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            assert not any("TOKEN" in variable["name"] for variable in container["env"])


@pytest.mark.parametrize("name", FILES)
def test_pods_are_fenced_probed_and_keep_artifacts_in_the_shared_claim(name: str) -> None:
    claim, policy = yaml.safe_load_all((KUBERAY / "base.yaml").read_text())
    fenced = policy["spec"]["podSelector"]["matchLabels"].items()
    for template in _templates(_cluster(name)):
        assert fenced <= template["metadata"]["labels"].items()
        volume = template["spec"]["volumes"][0]
        assert volume["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
        container = template["spec"]["containers"][0]
        assert container["volumeMounts"][0]["name"] == volume["name"]
        assert {"livenessProbe", "readinessProbe"} <= container.keys()
        assert container["resources"]["requests"] == container["resources"]["limits"]


@pytest.mark.parametrize("name", FILES)
def test_versions_are_those_of_the_project(name: str) -> None:
    lines = (ROOT / "clusters" / "constraints.txt").read_text().splitlines()
    pinned = dict(line.split("==") for line in lines if not line.startswith("#"))
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert _cluster(name)["rayVersion"] == pinned["ray"]
    for template in _templates(_cluster(name)):
        tag = template["spec"]["containers"][0]["image"].partition(":")[2]
        assert tag in (f"{version}-cpu", f"{version}-gpu")


@pytest.mark.parametrize("name", FILES)
def test_gpu_workers_are_a_group_of_their_own(name: str) -> None:
    cpu, gpu = _cluster(name)["workerGroupSpecs"]
    assert "nvidia.com/gpu" not in cpu["template"]["spec"]["containers"][0]["resources"]["limits"]
    spec = gpu["template"]["spec"]
    assert int(spec["containers"][0]["resources"]["limits"]["nvidia.com/gpu"]) >= 1
    assert spec["containers"][0]["image"].endswith("-gpu")
    assert spec["tolerations"][0]["key"] == "nvidia.com/gpu"


@pytest.mark.parametrize(("name", "preset"), [("rayjob", "gpu_small"), ("rayjob-gpu-large", "gpu_large")])
def test_the_job_runs_its_preset_on_as_many_gpus_as_workers(name: str, preset: str) -> None:
    spec = _load(name)["spec"]
    command = shlex.split(spec["entrypoint"])
    assert command[:4] == ["python", "-m", "recsys_ray", "run"]
    options = list(zip(command[4::2], command[5::2], strict=True))
    assert {name for name, _ in options} == {"--preset", "--set", "--storage"}
    given = dict(options)
    config = load_preset(
        given["--preset"], None, [value for name, value in options if name == "--set"], Path(given["--storage"])
    )
    assert given["--preset"] == preset
    group = spec["rayClusterSpec"]["workerGroupSpecs"][1]
    limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert config.training.workers * config.training.gpus == group["replicas"] * int(limits["nvidia.com/gpu"])
    assert config.training.workers * config.training.cpus <= group["replicas"] * int(limits["cpu"])
    assert config.storage.startswith("/artifacts/")


def test_the_service_deploys_an_application_that_is_valid() -> None:
    deploy = ServeDeploySchema.model_validate(yaml.safe_load(_load("rayservice")["spec"]["serveConfigV2"]))
    (application,) = deploy.applications
    assert application.import_path == "serve_app.app:build_app"
    config = ServeConfig.parse(application.args)
    assert config.release == "/artifacts/storage/release"
    assert deploy.http_options.port == 8000


def _load(name: str) -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load((KUBERAY / f"{name}.yaml").read_text())
    return document


def _cluster(name: str) -> dict[str, Any]:
    spec = _load(name)["spec"]
    cluster: dict[str, Any] = spec.get("rayClusterSpec") or spec.get("rayClusterConfig") or spec
    return cluster


def _templates(cluster: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        yield group["template"]


def _validator(name: str) -> Draft202012Validator:
    definition = yaml.load((SCHEMAS / f"ray.io_{FILES[name]}.yaml").read_text(), Loader=yaml.CSafeLoader)
    (version,) = (version for version in definition["spec"]["versions"] if version["name"] == "v1")
    return Draft202012Validator(_strict(version["schema"]["openAPIV3Schema"]))


def _strict(node: Any) -> Any:
    """Kubernetes drops fields that it does not know without a word; here they are errors."""
    if isinstance(node, list):
        return [_strict(inner) for inner in node]
    if not isinstance(node, dict):
        return node
    strict = {key: _strict(value) for key, value in node.items()}
    open_ended = node.get("x-kubernetes-preserve-unknown-fields") or "additionalProperties" in node
    if isinstance(node.get("properties"), dict) and node.get("type") == "object" and not open_ended:
        strict["additionalProperties"] = False
    return strict
