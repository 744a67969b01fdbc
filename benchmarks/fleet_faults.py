"""Kills under load on a Ray cluster of four simulated nodes: every input exactly once, by hash.

    python benchmarks/fleet_faults.py --pictures 20000 --out fleet_faults.json

One node is killed hard, one actor, and in the end the driver (SIGKILL), whose command is then
started again. The results are read with pyarrow, apart from Boxwright's own check, and their hash
is compared with the local engine's.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from boxwright.environment import describe_machine, package_versions
from boxwright.fleet.synthetic import synthetic_from_text
from boxwright.store import write_atomic

sys.path.insert(0, str(Path(__file__).parent))
from fleet_scale import ROOT, tiny_detector


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--pictures", type=int, default=20_000)
    parser.add_argument("--shard-size", type=int, default=250)
    parser.add_argument("--out", type=Path, default=Path("fleet_faults.json"))
    return parser.parse_args()


class Trial:
    """The cluster, the command and what happened."""

    def __init__(self, place: Path, wishes: argparse.Namespace) -> None:
        from ray.cluster_utils import Cluster

        self.place, self.wishes = place, wishes
        self.text = f"synthetic://{wishes.pictures}?seed=3&corrupt=0.01"
        self.model = tiny_detector(place)
        self.events: list[str] = []
        small = {"num_cpus": 1, "object_store_memory": 100 << 20}
        head = {**small, "include_dashboard": False}
        self.cluster = Cluster(initialize_head=True, head_node_args=head)
        self.nodes = [self.cluster.add_node(**small) for _ in range(3)]
        self.cluster.wait_for_nodes()

    def words(self, out: str, engine: str) -> list[str]:
        """Return the command line."""
        words = ["fleet", "predict", str(self.model), self.text, "--out", str(self.place / out)]
        words += ["--runtime", "onnxruntime", "--batch", "8", "--json", "--engine", engine]
        words += ["--shard-size", str(self.wishes.shard_size)]
        if engine == "ray":
            words += ["--ray-address", self.cluster.address, "--actors", "2,4"]
        return [sys.executable, "-m", "boxwright", *words]

    def start(self, out: str, engine: str) -> subprocess.Popen[bytes]:
        """Start the command."""
        environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
        return subprocess.Popen(self.words(out, engine), env=environment, stdout=subprocess.PIPE)

    def done(self, out: str) -> int:
        """Return how many shards are there."""
        return len(list((self.place / out / "shards").glob("shard-*.parquet")))

    def wait_for(self, out: str, shards: int, run: subprocess.Popen[bytes]) -> None:
        """Wait until so many shards are there."""
        while self.done(out) < shards:
            if run.poll() is not None:
                raise RuntimeError(f"it ended with {run.returncode} before shard {shards}")
            time.sleep(0.05)

    def event(self, text: str) -> None:
        """Keep and print what happened."""
        self.events.append(text)
        print(text, flush=True)

    def kill_node(self, out: str) -> None:
        """Kill a node with all its processes."""
        node = self.nodes.pop()
        self.cluster.remove_node(node, allow_graceful=False)
        self.event(f"a node was killed hard after {self.done(out)} shards")

    def kill_actor(self, out: str) -> None:
        """Kill the process of one actor."""
        for place in Path("/proc").iterdir():
            if place.name.isdigit() and _is_actor(place):
                os.kill(int(place.name), signal.SIGKILL)
                self.event(f"an actor (process {place.name}) was killed after {self.done(out)}")
                return
        raise RuntimeError("no actor was found")


def _is_actor(place: Path) -> bool:
    try:
        words = (place / "cmdline").read_bytes()
        mine = place.stat().st_uid == os.getuid()
    except OSError:
        return False
    return mine and words.startswith(b"ray::MapWorker") and b"ShardActor" in words


def check(folder: Path, text: str) -> dict[str, Any]:
    """Read the results with pyarrow alone, and compare them with the inputs."""
    from pyarrow import parquet

    ids: list[int] = []
    errors: list[int] = []
    for path in sorted((folder / "shards").glob("*.parquet")):
        table = parquet.read_table(path, columns=["id", "path", "error"])
        own = table.column("id").to_pylist()
        paths = table.column("path").to_pylist()
        assert paths == [f"{text}#{i}" for i in own]
        ids += own
        found = zip(own, table.column("error").to_pylist(), strict=True)
        errors += [i for i, e in found if e is not None]
    whole = synthetic_from_text(text)
    bad = [i for i in range(whole.count) if whole.is_corrupt(i)]
    return {
        "rows": len(ids),
        "each_once_in_order": ids == list(range(whole.count)),
        "errors": len(errors),
        "errors_are_the_corrupt": errors == bad,
        "left_over": [p.name for p in (folder / "shards").glob(".*")],
    }


def trial(name: str, body: Callable[[Trial, str], None], it: Trial) -> dict[str, Any]:
    """Run the command on Ray while something is killed; the body waits for its end."""
    it.events = []
    start = time.monotonic()
    body(it, name)
    folder = it.place / name
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    found = {
        "events": it.events,
        "seconds": time.monotonic() - start,
        "results_sha256": summary["results_sha256"],
        "done_before": summary["done_before"],
        "load_average": os.getloadavg(),
        **check(folder, it.text),
    }
    print(name, json.dumps(found, indent=1), flush=True)
    return found


def node_and_actor(it: Trial, out: str) -> None:
    """Kill a node at a quarter and an actor at a half."""
    shards = -(-it.wishes.pictures // it.wishes.shard_size)
    run = it.start(out, "ray")
    it.wait_for(out, shards // 4, run)
    it.kill_node(out)
    it.wait_for(out, shards // 2, run)
    it.kill_actor(out)
    run.communicate()
    it.event(f"the command ended with status {run.returncode} (1: pictures failed)")


def driver(it: Trial, out: str) -> None:
    """Kill the driver at a third and start it again."""
    shards = -(-it.wishes.pictures // it.wishes.shard_size)
    run = it.start(out, "ray")
    it.wait_for(out, shards // 3, run)
    run.kill()
    run.communicate()
    it.event(f"the driver was killed after {it.done(out)} shards")
    run = it.start(out, "ray")
    run.communicate()
    it.event(f"the command, started again, ended with status {run.returncode}")


def local(it: Trial, out: str) -> None:
    """Run the local engine, undisturbed."""
    it.start(out, "local").communicate()


def main() -> None:
    """Run it."""
    wishes = arguments()
    with tempfile.TemporaryDirectory(prefix="fleet-faults-") as name:
        it = Trial(Path(name), wishes)
        result: dict[str, Any] = {
            "machine": describe_machine(),
            "packages": package_versions(("ray", "pyarrow", "onnxruntime")),
            "pictures": wishes.pictures,
            "shard_size": wishes.shard_size,
        }
        try:
            result["local"] = trial("local", local, it)
            result["driver"] = trial("driver", driver, it)
            result["node_and_actor"] = trial("node_and_actor", node_and_actor, it)
        finally:
            it.cluster.shutdown()
        trials = [result[n] for n in ("local", "driver", "node_and_actor")]
        result["one_hash"] = len({t["results_sha256"] for t in trials}) == 1
        write_atomic(wishes.out, json.dumps(result, indent=1).encode())
        print("one hash" if result["one_hash"] else "DIFFERENT HASHES")


if __name__ == "__main__":
    main()
