"""Deployment files around a repository: images, compose, Kubernetes, KServe.

YAML is written from data, never from templates. Tags and versions are settings of one record.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from boxwright.errors import RequestError, StoreError
from boxwright.store import write_atomic

__all__ = ["Deployment", "deployment_files", "write_deployment"]

NUMPY = "numpy<2"  # NumPy 2 corrupts tensors in the server's python backend
OPENCV = "opencv-python-headless==4.11.0.86"
_HTTP, _GRPC, _METRICS = 8000, 8001, 8002
_KSERVE_HTTP, _KSERVE_GRPC = 8080, 9000
_USER = 1000  # triton-server in the public image
_MODELS = "/models"


@dataclass(frozen=True, slots=True)
class Deployment:
    """What the files say.

    Attributes:
        name: Of services and resources; a DNS label.
        repository: Path of the repository, as compose sees it.
        models: That are loaded; none are all.
        triton_tag: Of nvcr.io/nvidia/tritonserver. Its TensorRT must be that of the plans.
        jetson_tag: Of the same for Jetson.
        tensorrt_tag: Of nvcr.io/nvidia/tensorrt, in which Boxwright runs on x86 GPUs.
        l4t_tag: Of nvcr.io/nvidia/l4t-tensorrt, in which it runs on a Jetson.
        package: What pip installs as Boxwright.
        image: Name of the server's image with NumPy and OpenCV.
        gpus: GPUs of one server; 0 serves on the CPU.
        replicas: Servers in Kubernetes.
        claim: Persistent volume claim that holds the repository.
        claim_gib: Its size.
        memory_gib: Of one server.
        cpus: Of one server.
    """

    name: str
    repository: str
    models: tuple[str, ...] = ()
    triton_tag: str = "24.10-py3"
    jetson_tag: str = "24.10-py3-igpu"
    tensorrt_tag: str = "24.10-py3"
    l4t_tag: str = "r10.3.0-devel"
    package: str = "boxwright[export,triton]"
    image: str = "boxwright-triton:latest"
    gpus: int = 1
    replicas: int = 1
    claim: str = "boxwright-models"
    claim_gib: int = 10
    memory_gib: int = 8
    cpus: int = 4


def deployment_files(asked: Deployment) -> dict[str, str]:
    """Return the files by name.

    Raises:
        RequestError: The name is no DNS label.
    """
    _check(asked)
    return {
        "Dockerfile.triton": _dockerfile_triton(f"tritonserver:{asked.triton_tag}"),
        "Dockerfile.triton-jetson": _dockerfile_triton(f"tritonserver:{asked.jetson_tag}"),
        "Dockerfile.gpu": _dockerfile_boxwright(f"tensorrt:{asked.tensorrt_tag}", asked.package),
        "Dockerfile.jetson": _dockerfile_boxwright(f"l4t-tensorrt:{asked.l4t_tag}", asked.package),
        "compose.yaml": _yaml([_compose(asked)]),
        "kubernetes.yaml": _yaml([_claim(asked), _workload(asked), _service(asked)]),
        "kserve.yaml": _yaml([_runtime(asked), _inference_service(asked)]),
    }


def write_deployment(asked: Deployment, out: Path, *, force: bool = False) -> list[Path]:
    """Write the files; return their paths.

    Raises:
        RequestError: The name is no DNS label.
        StoreError: A file is there and differs, or cannot be written.
    """
    files = deployment_files(asked)
    for name, text in files.items():
        path = out / name
        if path.exists() and not force and path.read_text(encoding="utf-8") != text:
            raise StoreError(str(path), "it is there, and differs", "use --force, or another --out")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise StoreError(
            str(out), f"it cannot be made ({reason})", "choose another --out"
        ) from None
    for name, text in files.items():
        write_atomic(out / name, text.encode())
    return [out / name for name in files]


def _check(asked: Deployment) -> None:
    name = asked.name
    plain = name.replace("-", "")
    label = plain.isascii() and plain.isalnum() and plain == plain.lower() and name[0].isalpha()
    if not label or name[-1] == "-" or len(name) > 63:
        raise RequestError(
            f"--name {name}", "it is no DNS label", "use lower-case letters, digits and -"
        )
    if asked.gpus < 0 or asked.replicas < 1:
        raise RequestError(
            f"--gpus {asked.gpus} --replicas {asked.replicas}", "they count from 0 and 1", "use 1"
        )


def _dockerfile_triton(image: str) -> str:
    """Return the image of a server whose python models find NumPy and OpenCV."""
    return f"""\
# Triton with what the python models of a Boxwright repository need.
# The TensorRT in this image must be the one that the plans were built with.
FROM nvcr.io/nvidia/{image}
ENV PIP_BREAK_SYSTEM_PACKAGES=1
# NumPy 2 corrupts tensors in the python backend.
RUN python3 -m pip install --no-cache-dir "{NUMPY}" "{OPENCV}" \\
    && python3 -c "import cv2, numpy; assert numpy.__version__ < '2'"
USER {_USER}
EXPOSE {_HTTP} {_GRPC} {_METRICS}
HEALTHCHECK --interval=10s --timeout=5s --start-period=120s --retries=3 \\
    CMD ["curl", "--fail", "--silent", "http://localhost:{_HTTP}/v2/health/ready"]
CMD ["tritonserver", "--model-repository={_MODELS}"]
"""


def _dockerfile_boxwright(image: str, package: str) -> str:
    """Return the image in which Boxwright itself builds plans and repositories."""
    return f"""\
# Boxwright beside TensorRT: docker run --gpus all -v "$PWD:/work" IMAGE run yolo11n.pt
FROM nvcr.io/nvidia/{image}
ARG PACKAGE="{package}"
ENV PIP_BREAK_SYSTEM_PACKAGES=1
RUN python3 -m pip install --no-cache-dir "${{PACKAGE}}" "cuda-bindings>=12.6,<13" \\
    && boxwright --version
WORKDIR /work
USER {_USER}
ENTRYPOINT ["boxwright"]
CMD ["--help"]
"""


def _server_words(
    asked: Deployment, models: str, http: int = _HTTP, grpc: int = _GRPC
) -> list[str]:
    words = ["tritonserver", f"--model-repository={models}", f"--http-port={http}"]
    words += [f"--grpc-port={grpc}", f"--metrics-port={_METRICS}"]
    words += ["--model-control-mode=explicit", "--exit-on-error=false"]
    words += [f"--load-model={name}" for name in asked.models or ("*",)]
    return [*words, *([] if asked.gpus else ["--model-config-name=cpu"])]


def _compose(asked: Deployment) -> dict[str, Any]:
    service: dict[str, Any] = {
        "image": asked.image,
        "build": {"context": ".", "dockerfile": "Dockerfile.triton"},
        "command": _server_words(asked, _MODELS),
        "ports": [f"127.0.0.1:{port}:{port}" for port in (_HTTP, _GRPC, _METRICS)],
        "volumes": [
            {"type": "bind", "source": asked.repository, "target": _MODELS, "read_only": True}
        ],
        "shm_size": "1gb",
        "ulimits": {"memlock": -1, "stack": 67108864},
        "restart": "unless-stopped",
        "stop_grace_period": "40s",
        "healthcheck": {
            "test": [
                "CMD", "curl", "--fail", "--silent", f"http://localhost:{_HTTP}/v2/health/ready",
            ],
            "interval": "10s",
            "timeout": "5s",
            "retries": 3,
            "start_period": "120s",
        },
    }  # fmt: skip
    if asked.gpus:
        device = {"driver": "nvidia", "count": asked.gpus, "capabilities": ["gpu"]}
        service["deploy"] = {"resources": {"reservations": {"devices": [device]}}}
    return {"name": asked.name, "services": {"triton": service}}


def _metadata(asked: Deployment, name: str = "") -> dict[str, Any]:
    return {"name": name or asked.name, "labels": {"app.kubernetes.io/name": asked.name}}


def _claim(asked: Deployment) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": _metadata(asked, asked.claim),
        "spec": {
            "accessModes": ["ReadWriteOnce" if asked.replicas == 1 else "ReadOnlyMany"],
            "resources": {"requests": {"storage": f"{asked.claim_gib}Gi"}},
        },
    }


def _resources(asked: Deployment) -> dict[str, Any]:
    plain = {"cpu": str(asked.cpus), "memory": f"{asked.memory_gib}Gi"}
    gpu = {"nvidia.com/gpu": str(asked.gpus)} if asked.gpus else {}
    return {"requests": {**plain, **gpu}, "limits": {"memory": plain["memory"], **gpu}}


def _probe(path: str, port: str | int, **times: int) -> dict[str, Any]:
    return {"httpGet": {"path": f"/v2/health/{path}", "port": port}, **times}


def _security() -> dict[str, Any]:
    return {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "runAsNonRoot": True,
        "runAsUser": _USER,
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def _workload(asked: Deployment) -> dict[str, Any]:
    labels = {"app.kubernetes.io/name": asked.name}
    container = {
        "name": "triton",
        "image": asked.image,
        "args": _server_words(asked, _MODELS),
        "ports": [
            {"name": name, "containerPort": port}
            for name, port in (("http", _HTTP), ("grpc", _GRPC), ("metrics", _METRICS))
        ],
        "resources": _resources(asked),
        "startupProbe": _probe("live", "http", periodSeconds=5, failureThreshold=60),
        "readinessProbe": _probe("ready", "http", periodSeconds=5, failureThreshold=3),
        "livenessProbe": _probe("live", "http", periodSeconds=10, failureThreshold=3),
        "securityContext": _security(),
        "volumeMounts": [
            {"name": "models", "mountPath": _MODELS, "readOnly": True},
            {"name": "shared-memory", "mountPath": "/dev/shm"},
        ],
    }
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": _metadata(asked),
        "spec": {
            "replicas": asked.replicas,
            "selector": {"matchLabels": labels},
            "template": {
                "metadata": {
                    "labels": labels,
                    "annotations": {
                        "prometheus.io/scrape": "true",
                        "prometheus.io/port": str(_METRICS),
                    },
                },
                "spec": {
                    "terminationGracePeriodSeconds": 60,
                    "containers": [container],
                    "volumes": [
                        {
                            "name": "models",
                            "persistentVolumeClaim": {"claimName": asked.claim},
                        },
                        {
                            "name": "shared-memory",
                            "emptyDir": {"medium": "Memory", "sizeLimit": "1Gi"},
                        },
                    ],
                },
            },
        },
    }


def _service(asked: Deployment) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": _metadata(asked),
        "spec": {
            "selector": {"app.kubernetes.io/name": asked.name},
            "ports": [
                {"name": name, "port": port, "targetPort": name}
                for name, port in (("http", _HTTP), ("grpc", _GRPC), ("metrics", _METRICS))
            ],
        },
    }


def _runtime(asked: Deployment) -> dict[str, Any]:
    """Return a serving runtime of our image: KServe's own Triton lacks NumPy and OpenCV."""
    return {
        "apiVersion": "serving.kserve.io/v1alpha1",
        "kind": "ServingRuntime",
        "metadata": _metadata(asked, f"{asked.name}-triton"),
        "spec": {
            "annotations": {
                "prometheus.kserve.io/port": str(_METRICS),
                "prometheus.kserve.io/path": "/metrics",
            },
            "supportedModelFormats": [{"name": "triton", "version": "2"}],
            "protocolVersions": ["v2", "grpc-v2"],
            "containers": [
                {
                    "name": "kserve-container",
                    "image": asked.image,
                    "args": _server_words(asked, "/mnt/models", _KSERVE_HTTP, _KSERVE_GRPC),
                    "ports": [{"containerPort": _KSERVE_HTTP, "protocol": "TCP"}],
                    "readinessProbe": _probe("ready", _KSERVE_HTTP, periodSeconds=5),
                    "resources": _resources(asked),
                    "securityContext": _security(),
                }
            ],
        },
    }


def _inference_service(asked: Deployment) -> dict[str, Any]:
    return {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": _metadata(asked),
        "spec": {
            "predictor": {
                "minReplicas": asked.replicas,
                "model": {
                    "modelFormat": {"name": "triton", "version": "2"},
                    "protocolVersion": "v2",
                    "runtime": f"{asked.name}-triton",
                    "storageUri": f"pvc://{asked.claim}",
                    "resources": _resources(asked),
                },
            }
        },
    }


class _Plain(yaml.SafeDumper):
    """Writes equal parts out each time: anchors are for machines."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _yaml(documents: Sequence[Mapping[str, Any]]) -> str:
    return yaml.dump_all(documents, Dumper=_Plain, sort_keys=False, width=100)
