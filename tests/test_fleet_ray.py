"""The engine `ray` on a small cluster of this machine; the test with killed nodes is `long`."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny_models

import boxwright
from boxwright.cli.fleet_ray import actors_from_text
from boxwright.errors import RequestError

ray = pytest.importorskip("ray", reason="the extra ray is not installed: no cluster is tried")
pytest.importorskip("pyarrow", reason="the extra ray is not installed: no cluster is tried")

TEXT = "synthetic://150?seed=4&corrupt=0.1"
_SMALL = {"num_cpus": 1, "object_store_memory": 80 << 20}
SOURCE = str(Path(boxwright.__file__).parents[1])


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Two nodes of one CPU, which find this very boxwright."""
    from ray.cluster_utils import Cluster

    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([SOURCE, *filter(None, [before])])
    made = Cluster(initialize_head=True, head_node_args={**_SMALL, "include_dashboard": False})
    made.add_node(**_SMALL)
    made.wait_for_nodes()
    yield made
    ray.shutdown()
    made.shutdown()
    if before is None:
        del os.environ["PYTHONPATH"]
    else:
        os.environ["PYTHONPATH"] = before


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return tiny_models.ultralytics_onnx(tmp_path_factory.mktemp("model") / "tiny.onnx", offset=-5)


def words(model: Path, out: Path, *more: object, text: str = TEXT) -> tuple[object, ...]:
    base = ("fleet", "predict", model, text, "--out", out, "--runtime", "onnxruntime", "--json")
    return (*base, "--shard-size", 20, "--batch", 4, *more)


@pytest.mark.slow
def test_a_cluster_gives_the_rows_of_one_machine(cluster, model, tmp_path, cli):
    local = json.loads(cli(*words(model, tmp_path / "local", "--workers", 1)).out)
    out, address = tmp_path / "ray", ("--engine", "ray", "--ray-address", cluster.address)
    ran = cli(*words(model, out, *address, "--actors", "1,2"))
    found = json.loads(ran.out)
    assert ran.code == 1 and found["rows"] == 150, ran.err
    for key in ("results_sha256", "failed", "detections", "listing_sha256"):
        assert found[key] == local[key], key
    names = [f"shard-{i:06d}.parquet" for i in range(8)]
    assert sorted(p.name for p in (out / "shards").iterdir()) == names
    for name in names[3:6]:
        (out / "shards" / name).unlink()
    again = json.loads(cli(*words(model, out, *address, "--actors", 2, "--shared-out")).out)
    assert again["done_before"] == 90
    assert again["results_sha256"] == local["results_sha256"]
    assert sorted(p.name for p in (out / "shards").iterdir()) == names


@pytest.mark.slow
def test_a_refusal_of_an_actor_is_one_line(cluster, model, tmp_path, cli):
    more = ("--engine", "ray", "--ray-address", cluster.address, "--actors", 1)
    ran = cli(*words(model, tmp_path / "out", *more, "--score-threshold", "1.5"))
    assert ran.code == 2
    assert "score threshold 1.5: it is not between 0 and 1" in ran.error


@pytest.mark.slow
def test_a_run_on_a_cluster_has_the_hashes_of_one_machine(cluster, model, tmp_path, cli):
    sources = [tmp_path / "a.onnx", tmp_path / "b.onnx"]
    for seed, path in enumerate(sources):
        tiny_models.ultralytics_onnx(path, seed=seed)
    line = ("fleet", "run", *sources, "--family", "ultralytics", "--skip-verify", "--json")
    line = (*line, "--outputs", "raw,end2end", "--models", tmp_path)
    hashes = []
    for name, more in (
        ("local", ("--jobs", 2)),
        ("ray", ("--engine", "ray", "--ray-address", cluster.address)),
    ):
        ran = cli(*line, "--out", tmp_path / name, *more)
        assert ran.code == 0, ran.err
        branches = json.loads(ran.out)["branches"]
        hashes.append({b["file"]: b["sha256"] for b in branches})
    assert hashes[0] == hashes[1] and len(hashes[0]) == 4 and all(hashes[0].values())


def test_there_must_be_a_cluster(model, tmp_path, environment):
    """In a process of its own: this one is connected."""
    more = ("--engine", "ray", "--ray-address", "127.0.0.1:1")
    line = [str(w) for w in words(model, tmp_path / "out", *more)]
    run = subprocess.run(
        [sys.executable, "-m", "boxwright", *line],
        env={**environment, "RAY_gcs_rpc_server_reconnect_timeout_s": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert run.returncode == 2
    assert "--ray-address 127.0.0.1:1: there is no cluster" in run.stderr


def test_actors_are_a_number_or_a_range():
    assert actors_from_text(" 2 , 5") == (2, 5)
    for text in ("0", "5,2", "a", "1,2,3", ""):
        with pytest.raises(RequestError, match=r"use e\.g\. 8 or 2,16"):
            actors_from_text(text)


@pytest.mark.long
def test_four_nodes_with_kills_lose_nothing(tmp_path):
    """A node, an actor and the driver are killed; benchmarks/fleet_faults.py says how."""
    script = Path(__file__).parents[1] / "benchmarks" / "fleet_faults.py"
    if not script.is_file():
        pytest.skip("the benchmarks are not here")
    found = tmp_path / "found.json"
    run = subprocess.Popen(
        [sys.executable, str(script), "--pictures", "8000", "--out", str(found)],
        env={**os.environ, "PYTHONPATH": SOURCE},
        start_new_session=True,
    )
    try:
        assert run.wait(600) == 0
    finally:
        if run.poll() is None:
            os.killpg(run.pid, signal.SIGKILL)
            time.sleep(0.1)
    data = json.loads(found.read_text())
    assert data["one_hash"]
    for trial in ("local", "driver", "node_and_actor"):
        assert data[trial]["rows"] == 8000 and data[trial]["each_once_in_order"]
        assert data[trial]["errors_are_the_corrupt"]
    assert data["driver"]["done_before"] > 0
