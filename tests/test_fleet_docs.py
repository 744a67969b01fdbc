"""What docs/fleet.md shows is parsed by the command line itself; manifests are checked, not run."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import click
import pytest
import yaml

from boxwright.cli.fleet import command

DOCS = Path(__file__).resolve().parents[1] / "docs"


def fleet_lines(text: str) -> list[list[str]]:
    joined = text.replace("\\\n", " ")
    lines = [re.split(r"\s#\s", line)[0].strip() for line in joined.splitlines()]
    lines = [line.replace("$((8 * ${#nodes[@]}))", "8") for line in lines]
    return [shlex.split(line)[2:] for line in lines if line.startswith("boxwright fleet ")]


def parse(words: list[str]) -> None:
    """Have click read a command without running it."""
    verb = command.commands[words[0]]
    verb.make_context(words[0], list(words[1:]), resilient_parsing=False)


@pytest.mark.parametrize("name", ["fleet.md", "deploy/slurm.sh"])
def test_every_command_is_one(name):
    lines = fleet_lines((DOCS / name).read_text(encoding="utf-8"))
    assert len(lines) >= (1 if name.endswith(".sh") else 7)
    for words in lines:
        parse(words)


def test_a_wrong_command_would_be_noticed():
    with pytest.raises(click.UsageError):
        parse(["predict", "a.onnx", "in/", "--out", "o", "--actor", "2"])


def test_the_kuberay_manifest_is_a_ray_job():
    """Against what KubeRay's RayJob v1 demands, by hand: no cluster and no schema are here."""
    job = yaml.safe_load((DOCS / "deploy/kuberay.yaml").read_text(encoding="utf-8"))
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    words = shlex.split(job["spec"]["entrypoint"])
    assert words[:2] == ["boxwright", "fleet"]
    parse(words[2:])
    cluster = job["spec"]["rayClusterSpec"]
    assert re.fullmatch(r"\d+\.\d+\.\d+", cluster["rayVersion"])
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    for group in groups:
        assert all(isinstance(v, str) for v in group["rayStartParams"].values())
        (container,) = group["template"]["spec"]["containers"]
        limits = container["resources"]["limits"]
        assert limits == container["resources"]["requests"]
        assert all(isinstance(v, str) for v in limits.values())
        volumes = {v["name"] for v in group["template"]["spec"]["volumes"]}
        assert {m["name"] for m in container["volumeMounts"]} == volumes
    worker = cluster["workerGroupSpecs"][0]
    assert worker["minReplicas"] <= worker["replicas"] <= worker["maxReplicas"]
    gpus = int(worker["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"])
    most = int(words[words.index("--actors") + 1].split(",")[1])
    assert most == worker["maxReplicas"] * gpus / float(words[words.index("--num-gpus") + 1])


def test_the_slurm_script_is_a_script():
    subprocess.run(["bash", "-n", str(DOCS / "deploy/slurm.sh")], check=True)
