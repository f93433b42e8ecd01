"""What `jobs/report.py` finds, what it leaves alone, and that its table is a manifest."""

import hashlib
from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import PIL.Image
import pyarrow as pa
import pyarrow.parquet
import pytest
from running import SHARED, pictures

from pipeline import cli, manifest, plan, records
from pipeline.config import UpscaleConfig
from pipeline.engine.upscaler import Upscaler
from pipeline.images.consistency import measure
from pipeline.ledger import Ledger
from pipeline.models import zoo
from pipeline.records import ITEM_SCHEMA, SOURCE_SCHEMA, Outcome
from pipeline.storage import Store

KODAK = SHARED / "kodak"
GOOD = {
    "quality_psnr": 42.0,
    "quality_delta_e": 0.5,
    "quality_local_difference": 7.0,
    "quality_bias_red": 0.2,
    "quality_bias_green": -0.1,
    "quality_bias_blue": 0.3,
    "quality_clipped_share": 0.001,
    "quality_constant_share": 0.0,
    "quality_plain_psnr": 36.0,
    "quality_detail": 4.0,
}


def items(output, sources):
    """What a run plans for these sources."""
    blank = dict.fromkeys(SOURCE_SCHEMA.names)
    table = pa.Table.from_pylist([blank | source for source in sources], schema=SOURCE_SCHEMA)
    return plan.identify(table, output=str(output), format="auto").select(ITEM_SCHEMA.names)


def report_of(output, planned, rows, *, rows_per_file=500_000, report=None):
    """A report as a run leaves it. rows: of each item, the columns of its outcome."""
    ledger = Ledger(Store(), str(report or output / "_report"), rows_per_file=rows_per_file)
    shard = output / "_report" / "runs" / "run" / "shards" / "0-00000.parquet"
    shard.parent.mkdir(parents=True)
    pyarrow.parquet.write_table(planned, shard)
    blank = Outcome(
        item_id="",
        key="",
        source_uri="",
        status="done",
        attempts=1,
        model="m",
        model_sha256="",
        model_licence="",
        recipe="",
        precision="fp32",
        device="cpu",
        run_id="run",
        last_run_id="run",
        shard="00000",
        node="n",
        worker="w",
        finished_at=datetime(2026, 1, 1, tzinfo=UTC),
    )
    outcomes = [
        replace(
            blank,
            item_id=item["item_id"],
            key=item["key"],
            source_uri=item["uri"],
            source_version=item["version"],
            output_uri=item["output_uri"],
            **columns,
        )
        for item, columns in zip(planned.to_pylist(), rows, strict=True)
    ]
    ledger.commit("run", 0, records.to_table(outcomes))
    ledger.compact({})


def numbered(count):
    return [{"uri": f"s3://in/p{n:04d}.png", "version": f"v{n}"} for n in range(count)]


def listed(capsys, *arguments):
    """What the command prints: the lines before its table, and the table by key."""
    assert cli.run("report", list(map(str, arguments))) == 0
    head, _, table = capsys.readouterr().out.partition("TIMES")
    rows = [line.split(None, 2) for line in table.splitlines()[1:] if "s3://" in line]
    return head, {key: (float(times), rest) for times, key, rest in rows}


def spoilt(source, result):
    """What can go wrong with a result, by its name. source, result: (H, W, 3), 8 bits."""
    height, width = result.shape[:2]
    tile, tint = result.copy(), result.astype(int)
    tile[height // 3 :, width // 3 :][:64, :64] = 0
    tint[:, :, 2] += 10
    enlarged = PIL.Image.fromarray(source).resize((width, height), PIL.Image.Resampling.BICUBIC)
    return {
        "tile": tile,
        "tint": tint.clip(0, 255).astype(np.uint8),
        "shift": np.roll(result, 4, axis=1),
        "constant": np.full_like(result, 128),
        "plain": np.asarray(enlarged),
    }


@pytest.fixture(scope="module")
def real():
    """Sources and what the packaged network makes of them."""
    if not KODAK.exists():
        pytest.skip("shared/data/kodak is not there")
    spec = zoo.resolve("remaster-compact-x4", store=Store(), models_uri=None)
    net = zoo.load_generator(spec, store=Store(), cache_dir=zoo.default_cache_dir())
    upscaler, found = Upscaler(net, device="cpu", precision="fp32"), []
    for path in sorted(KODAK.glob("*.png")):
        with PIL.Image.open(path) as image:
            small = image.convert("RGB").reduce(6)
        source = np.array(small)
        found.append((source, upscaler(source).pixels))
    return found


def test_spoilt_results_are_found_and_real_ones_are_not(real, tmp_path, capsys):
    kinds = list(spoilt(*real[0]))
    good = [(f"good{n}", *pair) for n, pair in enumerate(real)]
    bad = [
        (f"{kind}{n}", source, spoilt(source, result)[kind])
        for n, (source, result) in enumerate(real)
        for kind in kinds
    ]
    sources = [{"uri": f"s3://in/{n}.png", "key": f"{n}.png", "size": 1} for n, *_ in good + bad]
    rows = [measure(source, result).columns() for _, source, result in good + bad]
    report_of(tmp_path, items(tmp_path, sources), rows)
    _, table = listed(capsys, "--output", tmp_path, "--thresholds.spread", "0.001")
    found = {kind: [key for key in table if key.startswith(kind)] for kind in kinds}
    assert set(table) == {key for keys in found.values() for key in keys}, "no good one"
    assert all(len(found[kind]) == len(real) for kind in ("tile", "tint", "constant", "plain"))
    assert len(found["shift"]) > len(real) / 2, "by one pixel of a smooth source is nothing"
    assert all("plain_psnr" in table[key][1] for key in found["plain"])
    assert all("local_difference" in table[key][1] for key in found["tile"])
    assert all("bias" in table[key][1] for key in found["tint"])
    assert all("constant_share" in table[key][1] for key in found["constant"])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"quality_psnr": 20.0}, "psnr 20 < 27 dB"),
        ({"quality_delta_e": 4.5}, "delta_e 4.5 > 3"),
        ({"quality_local_difference": 200.0}, "local_difference 200 > 25"),
        ({"quality_bias_blue": -6.0}, "bias 6 > 4"),
        ({"quality_bias_alpha": 40.0}, "bias 40 > 4"),
        ({"quality_clipped_share": 0.3}, "clipped_share 0.3 > 0.15"),
        ({"quality_constant_share": 0.5}, "constant_share 0.5 > 0.02"),
        ({"quality_plain_psnr": 60.0}, "plain_psnr 60 > 50 dB"),
        ({"quality_plain_psnr": float("inf")}, "plain_psnr inf > 50 dB"),
        ({"quality_psnr": 20.0, "quality_bias_red": 5.0}, "psnr 20 < 27 dB, bias 5 > 4"),
    ],
)
def test_a_finding_has_both_numbers_and_its_setting(change, said, tmp_path, capsys):
    report_of(tmp_path, items(tmp_path, numbered(40)), [GOOD] * 39 + [GOOD | change])
    head, table = listed(capsys, "--output", tmp_path)
    assert list(table) == ["in/p0039.png"]
    times, rest = table["in/p0039.png"]
    assert 1 < times <= 100
    assert rest.split("  ")[0] == said
    assert "s3://in/p0039.png" in rest
    assert f"{tmp_path}/in/p0039.png" in rest
    assert f"1 {said.split()[0]} " in head
    assert f"(thresholds.{said.split()[0]}" in head


def test_what_is_usual_in_a_report_is_no_outlier_but_for_tint_and_interpolation(tmp_path, capsys):
    rng = np.random.default_rng(1)
    usual = [GOOD | {"quality_psnr": float(psnr)} for psnr in rng.normal(24, 0.5, 100)]
    rows = [*usual, GOOD | {"quality_psnr": 12.0}]
    report_of(tmp_path / "loose", items(tmp_path / "loose", numbered(101)), rows)
    head, table = listed(capsys, "--output", tmp_path / "loose")
    assert list(table) == ["in/p0100.png"]
    assert "thresholds.psnr, median 24" in head
    few = tmp_path / "few"
    report_of(few, items(few, numbered(4)), usual[:4])
    assert len(listed(capsys, "--output", few)[1]) == 4, "four rows do not say what is usual"
    for number, change in enumerate([{"quality_bias_red": 9.0}, {"quality_plain_psnr": 55.0}]):
        folder = tmp_path / str(number)
        report_of(folder, items(folder, numbered(50)), [GOOD | change] * 50)
        assert len(listed(capsys, "--output", folder)[1]) == 50


def test_the_worst_of_many_files_are_listed_and_only_what_is_done(tmp_path, capsys):
    rng = np.random.default_rng(2)
    off = [float(value) for value in rng.uniform(10, 90, 60)]
    statuses = ["failed" if n % 7 == 0 else "skipped" if n % 11 == 0 else "done" for n in range(60)]
    rows = [
        (GOOD | {"quality_local_difference": value} if status == "done" else {})
        | {"status": status}
        for value, status in zip(off, statuses, strict=True)
    ]
    rows[1] = {"status": "done"}  # adopted: of its result nothing is known
    report_of(tmp_path, items(tmp_path, numbered(60)), rows, rows_per_file=7)
    arguments = ("--output", tmp_path, "--top", 5, "--thresholds.spread", 0.001)
    head, table = listed(capsys, *arguments, "--thresholds.local-difference", 60)
    done = [n for n, status in enumerate(statuses) if status == "done" and n != 1]
    beyond = sorted((n for n in done if off[n] > 60), key=lambda n: -off[n])
    assert list(table) == [f"in/p{n:04d}.png" for n in beyond[:5]]
    assert f"{len(done) + 1} done, {statuses.count('failed')} failed" in head
    assert f"(1 of them without figures); {len(beyond)} outliers" in head
    assert "the worst 5 of them (top)" in head


@pytest.mark.parametrize("suffix", ["parquet", "csv", "jsonl"])
def test_the_table_is_a_manifest_of_the_same_items(suffix, tmp_path, capsys):
    digest = hashlib.sha256(b"").hexdigest()
    sources = [
        {"uri": "s3://in/a,b.png", "version": "007"},
        {"uri": 's3://in/say "é".tif', "key": "x/é.tif", "version": "d41d8-2", "sha256": digest},
        {"uri": "/in/c.png", "size": 17, "mtime": 1763856793.123456},
        {"uri": "/in/d.png", "size": 18, "mtime": 1763856793.1 + 1e-7},
        {"uri": "s3://in/big.tar", "key": "m.jpg", "version": "t", "offset": 512, "length": 99},
        {"uri": "s3://in/nothing-known.png"},
    ]
    out, file = tmp_path / "out", tmp_path / f"redo.{suffix}"
    planned = items(out, sources)
    report_of(out, planned, [GOOD | {"quality_psnr": 3.0, "quality_plain_psnr": np.inf}] * 6)
    assert cli.run("report", ["--output", str(out), "--outliers", str(file)]) == 0
    assert f"outliers {file}" in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", file.name]
    asked = UpscaleConfig(manifest=str(file), output=str(out))
    found = manifest.read(asked, Store())
    again = plan.identify(found.sources, output=str(out), format="auto")
    names = [name for name in ITEM_SCHEMA.names if name not in ("shard", "attempts")]
    assert again.select(names).sort_by("key").equals(planned.select(names).sort_by("key"))
    assert all("psnr 3 < 27 dB" in extra for extra in again["extra"].to_pylist())


def test_without_its_shards_a_report_gives_what_its_rows_know(tmp_path, capsys):
    out, file = tmp_path / "out", tmp_path / "redo.parquet"
    report_of(out, items(out, numbered(2)), [GOOD, GOOD | {"quality_psnr": 3.0}])
    (out / "_report" / "runs" / "run" / "shards" / "0-00000.parquet").unlink()
    assert cli.run("report", ["--output", str(out), "--outliers", str(file)]) == 0
    assert "1 of them are in no shard" in capsys.readouterr().out
    (row,) = pyarrow.parquet.read_table(file).to_pylist()
    assert (row["uri"], row["key"], row["version"]) == ("s3://in/p0001.png", "in/p0001.png", "v1")


def test_a_report_without_faults_lists_nothing_and_writes_an_empty_table(tmp_path, capsys):
    report = tmp_path / "elsewhere"
    report_of(tmp_path, items(tmp_path, numbered(3)), [GOOD] * 3, report=report)
    file = tmp_path / "none.parquet"
    arguments = ("--output", "s3://not/asked", "--report.uri", report, "--outliers", file)
    assert listed(capsys, *arguments, "--storage.report.region", "eu-central-1")[1] == {}
    assert pyarrow.parquet.read_table(file).num_rows == 0


def test_rows_of_older_versions_have_no_figures(tmp_path, capsys):
    report_of(tmp_path, items(tmp_path, numbered(3)), [GOOD] * 3)
    (file,) = (tmp_path / "_report" / "outcomes").glob("*.parquet")
    table = pyarrow.parquet.read_table(file)
    older = [name for name in table.column_names if not name.startswith("quality_")]
    pyarrow.parquet.write_table(table.select(older), file)
    assert "(3 of them without figures); 0 outliers" in listed(capsys, "--output", tmp_path)[0]


def test_what_is_no_report_is_said_in_one_line(tmp_path, capsys):
    for arguments, words in (
        (["--output", str(tmp_path)], "no report of a run that has ended"),
        (["--output", str(tmp_path), "--outliers", "x.txt"], "ends in one of .parquet, .csv"),
        ([], "output is required"),
    ):
        assert cli.run("report", arguments) == 2
        said = capsys.readouterr().err
        assert words in said
        assert len(said.splitlines()) == 1
    report_of(tmp_path, items(tmp_path, numbered(3)), [GOOD] * 3)
    (file,) = (tmp_path / "_report" / "outcomes").glob("*.parquet")
    file.write_bytes(file.read_bytes()[:-100])
    assert cli.run("report", ["--output", str(tmp_path)]) == 1
    assert f"the report's file {file} is damaged" in capsys.readouterr().err


def test_a_run_s_outliers_are_its_own_items(runs, tmp_path, capsys):
    pictures(tmp_path / "in", 3)
    places = ("--manifest", tmp_path / "in", "--output", tmp_path / "out")
    runs.upscale(*places)
    file = tmp_path / "redo.csv"
    all_of_them = ["--thresholds.psnr", "200", "--outliers", str(file)]
    assert cli.run("report", ["--output", str(tmp_path / "out"), *all_of_them]) == 0
    assert "3 done, 0 failed, 0 skipped; 3 outliers" in capsys.readouterr().out
    again = ("--manifest", file, "--output", tmp_path / "out", "--dry-run")
    assert "3 sources: 3 done before" in runs.upscale(*again)
