"""Faults: what dies costs nothing but time, and what cannot live costs one row."""

import os
import signal
import textwrap
import time
from contextlib import suppress
from pathlib import Path

import PIL.Image
import pytest
from running import (
    Runs,
    accounted,
    pictures,
    private_ray,
    processes,
    report,
    results,
    summary,
    temporary,
    wait_for,
)

COUNT = 200


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, small_model):
    """sha256 of every result of a run over the same pictures that nothing disturbs."""
    folder = tmp_path_factory.mktemp("undisturbed")
    paths = pictures(folder / "in", COUNT)
    with private_ray() as ray:
        runs = Runs(folder, small_model, ray)
        runs.upscale("--manifest", paths[0].parent, "--output", folder / "out")
    return results(folder / "out")


def committed(output):
    """Fragments that the report holds so far."""
    return list((output / "_report" / "log").glob("*/*.parquet"))


def slow(runs):
    """A source that takes a moment for each picture, so that there is a half way."""
    plugin(
        runs,
        """
        time.sleep(0.1)
        """,
    )


def plugin(runs, body):
    """A file system `odd://`, as anyone may install one: local files, and `body` at each read."""
    folder = runs.folder / "plugin"
    info = folder / "oddfs-1.0.dist-info"
    info.mkdir(parents=True, exist_ok=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: oddfs\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[fsspec.specs]\nodd = oddfs:OddFileSystem\n")
    code = """
    import os, signal, time
    from fsspec import AbstractFileSystem


    class OddFileSystem(AbstractFileSystem):
        protocol = "odd"

        def info(self, path, **kwargs):
            local = path.partition("disk")[2]
            return {"name": path, "size": os.path.getsize(local), "type": "file"}

        def cat_file(self, path, start=None, end=None, **kwargs):
            local = path.partition("disk")[2]
            with open(local, "rb") as file:
                data = file.read()
    """
    inner = textwrap.indent(textwrap.dedent(body).strip(), " " * 8)
    text = textwrap.dedent(code).rstrip() + "\n" + inner + "\n        return data[start:end]\n"
    (folder / "oddfs.py").write_text(text)
    runs.environment["PYTHONPATH"] = str(folder)


def odd_manifest(runs, paths):
    """What says that the pictures are to be read by the plug-in."""
    manifest = runs.folder / "manifest.csv"
    lines = ["uri,key", *(f"odd://disk{path},{path.name}" for path in paths)]
    manifest.write_text("\n".join(lines))
    return "--manifest", manifest, "--storage.source.allow", "odd"


def children(pid, program):
    """Process ids of those of its children that run this program."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it may be gone already
            parent = (folder / "stat").read_text().rpartition(")")[2].split()[1]
            if int(parent) == pid and program in (folder / "cmdline").read_text():
                found.append(int(folder.name))
    return found


def check_exact(output, paths, undisturbed):
    """Every input once and done, and every result as an undisturbed run makes it."""
    rows = report(output)
    assert sorted(rows) == sorted(path.name for path in paths)
    assert {row["status"] for row in rows.values()} == {"done"}
    assert results(output) == {key: row["output_sha256"] for key, row in rows.items()}
    assert results(output) == undisturbed
    assert temporary(output) == []


def test_a_killed_driver_loses_nothing_and_repeats_nothing_that_was_done(runs, undisturbed):
    paths, output = pictures(runs.folder / "in", COUNT), runs.folder / "out"
    slow(runs)
    asked = (*odd_manifest(runs, paths), "--output", output)
    process = runs.start(*asked)
    wait_for(lambda: len(committed(output)) >= 2 or process.poll() is not None)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    done = {file: file.read_bytes() for file in committed(output)}
    assert done
    assert process.returncode == -signal.SIGKILL

    runs.upscale(*asked)
    made = summary(output)
    assert made["done_before"] > 0
    assert made["done"] > 0
    assert made["done_before"] + made["done"] == COUNT
    assert accounted(made)
    first_run = next(iter(done)).parent.name
    rows = report(output).values()
    assert sum(row["run_id"] == first_run for row in rows) == made["done_before"]
    check_exact(output, paths, undisturbed)


def test_a_stopped_run_keeps_what_it_has_and_goes_on_later(runs, undisturbed):
    paths, output = pictures(runs.folder / "in", COUNT), runs.folder / "out"
    slow(runs)
    asked = (*odd_manifest(runs, paths), "--output", output)
    process = runs.start(*asked)
    wait_for(lambda: committed(output) or process.poll() is not None)
    process.terminate()
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 5, said
    made = summary(output)
    assert 0 < made["done"] < COUNT
    assert made["not_started"] == COUNT - made["done"]
    assert accounted(made)
    assert len(report(output)) == made["done"]
    assert temporary(output) == []
    runs.upscale(*asked)
    assert summary(output)["done_before"] == made["done"]
    check_exact(output, paths, undisturbed)


def test_a_run_that_waits_for_workers_can_be_stopped(runs):
    paths, output = pictures(runs.folder / "in", 2), runs.folder / "out"
    asked = ("--manifest", paths[0].parent, "--output", output)
    process = runs.start(*asked, "--workers.gpus", "1", "--workers.count", "1")
    wait_for(lambda: list(output.glob("_report/runs/*/shards/*")) or process.poll() is not None)
    time.sleep(5)  # until it waits inside Ray
    process.terminate()
    said, _ = process.communicate(timeout=30)
    assert process.returncode == 5, said
    assert summary(output)["not_started"] == 2


def test_a_killed_worker_costs_nothing(runs, undisturbed):
    paths, output = pictures(runs.folder / "in", COUNT), runs.folder / "out"
    slow(runs)
    asked = (*odd_manifest(runs, paths), "--output", output)
    process = runs.start(*asked)
    wait_for(lambda: committed(output) or process.poll() is not None)
    (pid, *_) = wait_for(lambda: processes(runs.ray, "MapWorker"))
    decoders = wait_for(lambda: children(pid, "pipeline.images.child"))
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: not any(Path(f"/proc/{decoder}").exists() for decoder in decoders))
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said
    assert len({row["worker"] for row in report(output).values()}) == 2
    check_exact(output, paths, undisturbed)


def test_an_input_that_its_decoder_cannot_bear_costs_its_own_row(runs):
    paths, output = pictures(runs.folder / "in", 12), runs.folder / "out"
    PIL.Image.new("RGB", (6000, 6000)).save(paths[5])
    asked = ("--manifest", paths[0].parent, "--output", output, "--scale", "0.01")
    runs.upscale(*asked, "--limits.decode-bytes", 2**26, code=3)
    rows = report(output)
    failed = {key: row["error_code"] for key, row in rows.items() if row["status"] == "failed"}
    assert failed == {"p005.png": "decode_memory_limit"}
    assert len({row["worker"] for row in rows.values()}) == 1


def test_inputs_that_kill_their_worker_cost_a_row_each_and_end(runs):
    paths, output = pictures(runs.folder / "in", 40), runs.folder / "out"
    for path in (paths[4], paths[5], paths[30]):
        path.write_bytes(path.read_bytes() + b"POISON")
    plugin(
        runs,
        """
        if data.endswith(b"POISON"):
            os.kill(os.getpid(), signal.SIGKILL)
        """,
    )
    asked = (*odd_manifest(runs, paths), "--output", output)
    runs.upscale(*asked, code=3)
    rows = report(output)
    assert len(rows) == 40
    crashed = {key: row for key, row in rows.items() if row["status"] == "failed"}
    assert sorted(crashed) == ["p004.png", "p005.png", "p030.png"]
    for row in crashed.values():
        assert (row["error_code"], row["error_class"]) == ("worker_crash", "transient")
        assert "workers.max_crashes" in row["error_message"]
    assert sum(row["status"] == "done" for row in rows.values()) == 37
    assert temporary(output) == []
