"""The main job end to end: real files, a real Ray, a real S3 server."""

import hashlib
import json
import shutil
import tarfile

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import torch
from running import (
    ROOT,
    SHARED,
    accounted,
    opened,
    picture,
    pictures,
    report,
    results,
    sha256,
    summary,
    temporary,
)

from pipeline.models import checkpoints


def test_a_folder_is_upscaled_and_the_second_run_does_nothing(runs):
    source, output = runs.folder / "in", runs.folder / "out"
    paths = pictures(source, 10)
    (source / "broken.png").write_bytes(paths[0].read_bytes()[:80])
    (source / "notes.txt").write_text("no picture")
    said = runs.upscale("--manifest", source, "--output", output, code=3)
    rows = report(output)
    assert sorted(rows) == sorted(path.name for path in source.glob("*.png"))
    broken = rows.pop("broken.png")
    assert (broken["status"], broken["error_code"]) == ("failed", "decode_failed")
    assert (broken["error_class"], broken["error_stage"]) == ("permanent", "decode")
    assert all(row["status"] == "done" for row in rows.values())
    assert results(output) == {name: row["output_sha256"] for name, row in rows.items()}
    assert (output / "p000.png").exists()
    assert opened(output / "p000.png").size == (64, 48)
    made = summary(output)
    assert (made["done"], made["failed"], made["ignored"]) == (10, 1, 1)
    assert accounted(made)
    assert "1 x decode_failed" in said
    assert temporary(output) == []

    before = {path: path.stat().st_mtime_ns for path in output.rglob("*.png")}
    said = runs.upscale("--manifest", source, "--output", output)
    assert "0 workers" in said or summary(output)["workers"] == 0
    assert before == {path: path.stat().st_mtime_ns for path in output.rglob("*.png")}
    assert report(output).keys() == rows.keys() | {"broken.png"}
    assert accounted(summary(output))

    # A changed source, a new one, and another recipe.
    picture(77).save(source / "p000.png")
    pictures(source, 1, start=50)
    runs.upscale("--manifest", source, "--output", output)
    assert summary(output)["done"] == 2
    asked = ("--manifest", source, "--output", output, "--scale", "1.5")
    said = runs.upscale(*asked, code=2)
    assert "11 results in this output were made otherwise (scale: - before, 1.5 now)" in said
    runs.upscale(*asked, "--on-change", "redo", "--limit", "2", code=3)
    made = summary(output)
    assert (made["done"], made["failed"], made["not_started"]) == (1, 1, 10)
    assert {row["output_width"] for row in report(output).values()} == {48, 64, None}


@pytest.mark.skipif(not (SHARED / "kodak").exists(), reason="the shared photographs are not here")
def test_photographs_are_what_the_network_computes_on_the_whole_image(runs):
    weights = SHARED / "weights"
    runs.environment["REMASTER_MODELS"] = str(weights)
    output = runs.folder / "out"
    asked = ("--model", "realesr-animevideov3", "--precision", "fp32")
    runs.upscale("--manifest", SHARED / "kodak", "--output", output, *asked)
    rows = report(output)
    assert len(rows) == 8
    assert {row["model_sha256"][:8] for row in rows.values()} == {"b8a83768"}
    file = weights / "realesr-animevideov3.pth"
    net = checkpoints.build(checkpoints.load(file))
    for source in sorted((SHARED / "kodak").glob("*.png")):
        pixels = np.asarray(opened(source).convert("RGB"))
        x_bchw = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].float() / 255
        with torch.inference_mode():
            y_chw = (net(x_bchw)[0].clamp(0, 1) * 255).round()
        got = np.asarray(opened(output / source.name)).astype(np.int16)
        assert np.abs(got - y_chw.permute(1, 2, 0).numpy()).max() <= 1


@pytest.fixture
def bucket(request, swift):
    name = "e2e-" + hashlib.sha256(request.node.name.encode()).hexdigest()[:12]
    return swift.make_bucket(name)


def test_an_object_store_is_read_and_written(runs, swift, bucket):
    runs.environment |= swift.environment
    store = fsspec.filesystem("s3", skip_instance_cache=True, **swift.options)
    paths = pictures(runs.folder / "in", 197)
    broken = {
        "cut.png": paths[0].read_bytes()[:90],
        "page.png": b"<html>503</html>",
        "empty.png": b"",
    }
    files = {path.name: path.read_bytes() for path in paths[1:]} | broken
    assert len(files) == 199
    store.pipe({f"{bucket}/in/{name}": data for name, data in files.items()})
    rows = [{"uri": f"{bucket}/in/{name}", "key": name, "year": 1900} for name in files]
    rows.append({"uri": f"{bucket}/in/gone.png", "key": "gone.png", "year": 1901})
    with store.open(f"{bucket}/manifest.parquet", "wb") as file:
        pyarrow.parquet.write_table(pa.Table.from_pylist(rows), file)
    asked = ("--manifest", f"{bucket}/manifest.parquet", "--output", f"{bucket}/out")
    said = runs.upscale(*asked, code=3)
    assert swift.secret not in said.replace(str(runs.folder), "")

    view = pyarrow.parquet.read_table(f"{bucket[5:]}/out/_report/outcomes", filesystem=store)
    found = {row["key"]: row for row in view.to_pylist()}
    assert len(found) == view.num_rows == 200
    codes = {key: row["error_code"] for key, row in found.items() if row["status"] == "failed"}
    assert codes == {
        "cut.png": "decode_failed",
        "page.png": "not_an_image",
        "empty.png": "not_an_image",
        "gone.png": "not_found",
    }
    done = [row for row in found.values() if row["status"] == "done"]
    assert len(done) == 196
    assert {sha256(store.cat(row["output_uri"])) for row in done} == {
        row["output_sha256"] for row in done
    }
    assert json.loads(found["gone.png"]["extra"]) == {"year": 1901}
    head = store.call_s3("head_object", Bucket=bucket[5:], Key="out/p001.png")
    assert head["ContentType"] == "image/png"
    assert head["Metadata"]["remaster-item"] == found["p001.png"]["item_id"]

    said = runs.upscale(*asked)
    assert "plan: 200 sources: 196 done before, 4 failed before" in said
    head = json.loads(store.cat(f"{bucket}/out/_report/latest.json"))
    path = f"{bucket}/out/_report/runs/{head['last_run']}/summary.json"
    again = json.loads(store.cat(path))
    assert again["workers"] == 0
    assert again["wall_s"] < 60
    assert accounted(again)


def test_manifests_of_every_kind_and_a_part_of_one_keep_the_keys(runs):
    source, output = runs.folder / "in", runs.folder / "out"
    paths = [*pictures(source / "a", 2), *pictures(source / "b", 2, start=2)]
    with tarfile.open(source / "all.tar", "w") as tar:
        for path in paths:
            tar.add(path, path.name)
    with tarfile.open(source / "all.tar") as tar:
        members = [(tar.getmember(path.name), path.name) for path in paths]
    ranges = [
        {"uri": "all.tar", "key": f"t/{name}", "offset": item.offset_data, "length": item.size}
        for item, name in members
    ]
    (source / "tar.jsonl").write_text("\n".join(map(json.dumps, ranges)))
    table = pa.table({"where": [path.relative_to(source).as_posix() for path in paths]})
    pyarrow.parquet.write_table(table, source / "all.parquet")
    (source / "part.csv").write_text("uri,note\nb/p002.png,007\n")

    runs.upscale("--manifest", source / "tar.jsonl", "--output", output)
    columns = ("--columns", "uri=where")
    runs.upscale("--manifest", source / "all.parquet", "--output", output, *columns)
    made = {name: digest for name, digest in results(output).items() if name.startswith("t/")}
    assert len(made) == 4
    for path in paths:
        key = f"{str(source)[1:]}/{path.relative_to(source).as_posix()}"
        assert results(output)[key] == made[f"t/{path.name}"], "a range is as good as a file"
    said = runs.upscale("--manifest", source / "part.csv", "--output", output)
    assert "1 sources: 1 done before" in said
    assert len(report(output)) == 8


def test_a_bad_row_is_a_failed_row_and_costs_no_worker(runs):
    pictures(runs.folder / "in", 1)
    rows = [
        {"uri": "in/p000.png", "key": "good.png", "year": 1900},
        {"uri": "in/p000.png", "key": "../../evil.png", "year": 1901},
        {"uri": "http://127.0.0.1/p.png"},
        {"uri": "in/vast.jpg", "width": 40_000, "height": 2_000},
    ]
    (runs.folder / "m.jsonl").write_text("\n".join(map(json.dumps, rows)))
    output = runs.folder / "out"
    asked = ("--manifest", "m.jsonl", "--output", output, "--probe", "--scale", "2")
    said = runs.upscale(*asked, code=3)
    assert "1 to do, 3 refused (1 x bad_key, 1 x source_refused, 1 x output_too_large)" in said
    found = report(output)
    assert found["good.png"]["status"] == "done"
    evil = found["../../evil.png"]
    assert (evil["error_code"], evil["error_stage"]) == ("bad_key", "plan")
    assert json.loads(evil["extra"]) == {"year": 1901}
    assert found["127.0.0.1/p.png"]["error_code"] == "source_refused"
    assert not list(runs.folder.parent.rglob("evil.png"))
    assert list(results(output)) == ["good.png"]
    assert accounted(summary(output))

    said = runs.upscale(*asked)
    assert "1 done before, 3 failed before" in said
    said = runs.upscale(*asked, "--storage.source.allow", "http", code=3)
    assert "1 to do, 1 done before, 2 failed before" in said
    refused = report(output)["127.0.0.1/p.png"]
    assert refused["error_code"] == "access_denied"
    assert "no public address" in refused["error_message"]


def test_a_raised_limit_lifts_what_it_refused(runs):
    places = ["--manifest", runs.folder / "in", "--output", runs.folder / "out"]
    (path,) = pictures(runs.folder / "in", 1)
    pixels = "--limits.max-input-pixels"
    assert "1 x input_too_large" in runs.upscale(*places, pixels, "767", code=3)
    for same in ("767", "766"):
        assert "1 failed before" in runs.upscale(*places, pixels, same, "--dry-run")
    runs.upscale(*places, pixels, "768")
    assert report(runs.folder / "out")[path.name]["status"] == "done"


def test_formats_and_sizes_are_as_asked(runs):
    source = runs.folder / "in"
    source.mkdir()
    picture(1).save(source / "gray.jpg", quality=95)
    picture(1).convert("L").save(source / "gray.jpg", quality=95)
    picture(2).convert("RGBA").save(source / "logo.png")
    picture(3).save(source / "scan.tif")
    picture(4).save(source / "web.webp")
    for options, size in (([], (64, 48)), (["--long-side", "50", "--format", "png"], (50, 38))):
        output = runs.folder / f"out{size[0]}"
        runs.upscale("--manifest", source, "--output", output, *options)
        made = {path.stem: opened(path) for path in output.glob("*.*")}
        assert {name: image.size for name, image in made.items()} == dict.fromkeys(
            ("gray", "logo", "scan", "web"), size
        )
        assert made["gray"].mode == "L"
        assert made["logo"].mode == "RGBA"
        if options:
            assert {image.format for image in made.values()} == {"PNG"}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--manifest", "in"], "output is required"),
        (
            ["--manifest", "in", "--output", "out", "--ouput", "x"],
            "unrecognized arguments: --ouput",
        ),
        (["--manifest", "nowhere", "--output", "out"], "there is no file at"),
        (["--manifest", "in", "--output", "s3:/out"], "s3:/out"),
        (["--manifest", "in", "--output", "gs://b/out"], "pip install 'remaster-ray[gcs]'"),
        (["--manifest", "in", "--output", "out", "--model", "RealESRGAN_x4plsu"], "RealESRGAN_x4p"),
        (["--manifest", "in", "--output", "out", "--model", "gone.pth"], "gone.pth"),
        (["--manifest", "in", "--output", "in"], "is the source"),
        (["--manifest", "two", "--output", "out", "--format", "png"], "a.jpg and"),
    ],
)
def test_what_cannot_be_ends_with_2_and_one_sentence_before_anything_starts(runs, arguments, said):
    pictures(runs.folder / "in", 1)
    (runs.folder / "none").mkdir()
    (runs.folder / "none" / "gcsfs.py").write_text("raise ImportError('as if it were not there')")
    runs.environment["PYTHONPATH"] = str(runs.folder / "none")
    (runs.folder / "two").mkdir()
    for suffix in ("jpg", "png"):
        picture(0).save(runs.folder / "two" / f"a.{suffix}")
    printed = runs.upscale(*arguments, code=2)
    assert said in printed
    assert len(printed.strip().splitlines()) == 1
    assert not (runs.folder / "out").exists()
    assert not list(runs.ray.iterdir()), "no Ray was started"


def test_a_dry_run_writes_nothing(runs):
    pictures(runs.folder / "in", 3)
    said = runs.upscale("--manifest", "in", "--output", "out", "--dry-run", "--sample", "2")
    assert "plan: 3 sources: 2 to do, 1 outside the sample" in said
    assert not (runs.folder / "out").exists()


def test_the_jobs_work_from_anywhere(runs):
    """As in a job's working directory: a copy of the tree, nothing of ours installed."""
    copy = runs.folder / "tree"
    for part in ("pipeline", "jobs"):
        shutil.copytree(ROOT / part, copy / part)
    pictures(runs.folder / "in", 1)
    command = runs.command("--manifest", "in", "--output", "out")
    assert command[1] == str(ROOT / "jobs" / "upscale.py")
    runs.command = lambda *_: [command[0], "-I", str(copy / "jobs" / "upscale.py"), *command[2:]]
    runs.upscale()
    assert len(report(runs.folder / "out")) == 1
