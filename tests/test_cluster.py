"""More than one machine, as far as one machine can show it: nodes, and a head that takes jobs."""

import json
import socket
import subprocess
import sys

import pytest
from running import (
    ROOT,
    accounted,
    pictures,
    processes,
    report,
    results,
    summary,
    temporary,
    wait_for,
)

COUNT = 60


def free_ports(count):
    """Ports below those that Ray's workers listen on."""
    found = []
    for port in range(6400, 9000):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)):
                found.append(port)
        if len(found) == count:
            return found
    raise AssertionError("no free ports")


# Three nodes in a process of their own; a line on stdin removes the last one, without grace.
NODES = """
import sys
from ray.cluster_utils import Cluster
store = dict(object_store_memory=100 * 2**20)
cluster = Cluster(initialize_head=True, head_node_args=dict(
    num_cpus=1, include_dashboard=False, **store))
nodes = [cluster.add_node(num_cpus=1, num_gpus=1, **store) for _ in range(2)]
cluster.wait_for_nodes()
print(cluster.address, flush=True)
sys.stdin.readline()
cluster.remove_node(nodes[-1], allow_graceful=False)
print("removed", flush=True)
sys.stdin.readline()
cluster.shutdown()
"""


@pytest.fixture
def nodes(runs):
    process = subprocess.Popen(
        [sys.executable, "-c", NODES],
        env=runs.env(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    runs.environment["RAY_ADDRESS"] = process.stdout.readline().strip()
    assert runs.environment["RAY_ADDRESS"], "the cluster did not start"
    yield process
    process.communicate("\n")


def test_a_removed_node_costs_nothing(runs, nodes):
    paths, output = pictures(runs.folder / "in", COUNT), runs.folder / "out"
    gpus = ("--workers.gpus", "1", "--workers.cpus", "0", "--workers.in-flight", "1")
    asked = ("--manifest", runs.folder / "in", "--output", output, *gpus)
    said = runs.upscale(*asked, code=2)
    assert "which each node of this cluster would look for on its own disk" in said
    process = runs.start(*asked, "--storage.source.allow", "file")
    wait_for(lambda: list(output.glob("*.png")) or process.poll() is not None)
    print("\n", file=nodes.stdin, end="", flush=True)
    assert nodes.stdout.readline() == "removed\n"
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said
    rows = report(output)
    assert sorted(rows) == [path.name for path in paths]
    assert {row["status"] for row in rows.values()} == {"done"}
    assert results(output) == {key: row["output_sha256"] for key, row in rows.items()}
    assert summary(output)["workers"] == 2
    assert accounted(summary(output))
    assert temporary(output) == []


@pytest.fixture
def head(runs):
    """A head as people start it; the address that jobs are submitted to."""
    port, dashboard = free_ports(2)
    command = [
        "ray",
        "start",
        "--head",
        "--num-cpus=2",
        f"--port={port}",
        f"--dashboard-port={dashboard}",
        "--dashboard-agent-listen-port=0",
        f"--temp-dir={runs.ray}",
        f"--object-store-memory={100 * 2**20}",
        "--disable-usage-stats",
    ]
    subprocess.run(command, env=runs.env(), check=True, capture_output=True)
    return f"http://127.0.0.1:{dashboard}"


@pytest.mark.parametrize(
    "entrypoint", [["python", "jobs/upscale.py"], ["jobs/upscale.py"]], ids=["python", "script"]
)
def test_a_submitted_job_does_the_same(runs, head, entrypoint):
    source, output = runs.folder / "in", runs.folder / "out"
    pictures(source, 6)
    (source / "broken.png").write_bytes(b"no picture")
    submit = ["ray", "job", "submit", "--address", head]
    submit += ["--submission-id", "night", "--working-dir", str(ROOT)]
    submit += ["--runtime-env-json", json.dumps({"excludes": [".venv*", ".git", "demo"]})]
    asked = runs.command("--manifest", source, "--output", output)[2:]
    env = runs.env()
    done = subprocess.run(
        [*submit, "--", *entrypoint, *asked], env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert exit_code(head, env) == 3, done.stdout
    rows = report(output)
    assert len(rows) == 7
    assert sum(row["status"] == "done" for row in rows.values()) == 6
    assert rows["broken.png"]["error_code"] == "not_an_image"
    assert accounted(summary(output))
    assert not processes(runs.ray, "MapWorker")


def exit_code(address, env):
    """`driver_exit_code` of the job, which `ray job submit` itself reduces to 0 or 1."""
    ask = (
        "import sys; from ray.job_submission import JobSubmissionClient; "
        "print(JobSubmissionClient(sys.argv[1]).get_job_info('night').driver_exit_code)"
    )
    said = subprocess.run(
        [sys.executable, "-c", ask, address], env=env, capture_output=True, text=True, check=True
    )
    return int(said.stdout.split()[-1])
