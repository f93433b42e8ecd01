"""Manifests of every kind become the same table."""

import gzip
import json
import os
import tarfile

import pyarrow as pa
import pyarrow.parquet
import pytest

from pipeline import manifest
from pipeline.config import UpscaleConfig
from pipeline.errors import ConfigError
from pipeline.records import EXTRA_LIMIT, SOURCE_SCHEMA
from pipeline.storage import Store


def read(uri, **values):
    asked = UpscaleConfig.load(None, {"manifest": str(uri), "output": "/elsewhere", **values})
    return manifest.read(asked, Store())


def rows(uri, **values):
    table = read(uri, **values).sources
    assert table.schema.equals(SOURCE_SCHEMA)
    return table.to_pylist()


ROWS = [
    {"uri": "s3://b/1.png", "key": "007", "size": 10, "artist": "Ada", "year": 1843},
    {"uri": "s3://b/2.png", "key": "é x", "size": 20, "artist": "Bea", "year": None},
]


def as_parquet(path):
    pyarrow.parquet.write_table(pa.Table.from_pylist(ROWS), path)


def as_csv(path):
    lines = ["uri,key,size,artist,year", "s3://b/1.png,007,10,Ada,1843", "s3://b/2.png,é x,20,Bea,"]
    path.write_text("\n".join(lines))


def as_jsonl(path):
    path.write_text("\n".join(json.dumps(row) for row in ROWS))


def as_gzip(path):
    path.write_bytes(gzip.compress("\n".join(json.dumps(row) for row in ROWS).encode()))


WRITERS = {
    "m.parquet": as_parquet,
    "m.csv": as_csv,
    "m.jsonl": as_jsonl,
    "m.ndjson.gz": as_gzip,
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_kind_of_table_says_the_same(tmp_path, name):
    WRITERS[name](tmp_path / name)
    first, second = rows(tmp_path / name)
    assert (first["uri"], first["key"], first["size"]) == ("s3://b/1.png", "007", 10)
    assert second["key"] == "é x"
    assert json.loads(first["extra"])["artist"] == "Ada"
    assert str(json.loads(first["extra"])["year"]) == "1843"


def test_a_folder_or_glob_of_tables_is_one_manifest(tmp_path):
    as_parquet(tmp_path / "a.parquet")
    as_csv(tmp_path / "b.csv")
    assert len(rows(tmp_path)) == 4
    assert len(rows(f"{tmp_path}/*.csv")) == 2


def test_columns_map_by_name_and_by_template(tmp_path):
    table = pa.table(
        {
            "Bucket": ["b", "b"],
            "Key": ["x/1.png", "x/2.png"],
            "ETag": ["e1", "e2"],
            "Size": [1, 2],
            "LastModified": pa.array([0, 1_500_000], pa.timestamp("us", "UTC")),
            "model": ["ours", "ours"],
        }
    )
    pyarrow.parquet.write_table(table, tmp_path / "inventory.parquet")
    columns = {
        "uri": "s3://{Bucket}/{Key}",
        "version": "ETag",
        "size": "Size",
        "mtime": "LastModified",
    }
    found = rows(tmp_path / "inventory.parquet", columns=columns, carry=["Key"])
    assert [row["uri"] for row in found] == ["s3://b/x/1.png", "s3://b/x/2.png"]
    assert [row["version"] for row in found] == ["e1", "e2"]
    assert [row["mtime"] for row in found] == [0.0, 1.5]
    assert [json.loads(row["extra"]) for row in found] == [{"Key": "x/1.png"}, {"Key": "x/2.png"}]


def test_byte_ranges_into_a_tar_are_taken_as_they_are(tmp_path):
    picture = tmp_path / "p.png"
    picture.write_bytes(b"picture")
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        tar.add(picture, "p.png")
    with tarfile.open(tmp_path / "a.tar") as tar:
        member = tar.getmember("p.png")
    row = {"uri": "a.tar", "key": "p.png", "offset": member.offset_data, "length": member.size}
    (tmp_path / "m.jsonl").write_text(json.dumps(row))
    (found,) = rows(tmp_path / "m.jsonl")
    data = Store().read(found["uri"], offset=found["offset"], length=found["length"])
    assert data == b"picture"


def test_what_is_carried_is_chosen_and_never_cut(tmp_path):
    long = {"uri": "s3://b/1.png", "short": "yes", "long": "x" * EXTRA_LIMIT, "raw": "z"}
    (tmp_path / "m.jsonl").write_text(json.dumps(long))
    (row,) = rows(tmp_path / "m.jsonl")
    assert json.loads(row["extra"]) == {"short": "yes", "raw": "z", "_dropped": ["long"]}
    assert len(row["extra"].encode()) <= EXTRA_LIMIT
    (row,) = rows(tmp_path / "m.jsonl", carry="none")
    assert row["extra"] is None
    with pytest.raises(ConfigError, match="no column 'nothing'"):
        rows(tmp_path / "m.jsonl", carry=["nothing"])


def test_pictures_inside_a_table_are_not_carried(tmp_path):
    table = pa.table({"uri": ["s3://b/1.png"], "bytes": [b"\x89PNG"], "caption": ["c"]})
    pyarrow.parquet.write_table(table, tmp_path / "m.parquet")
    (row,) = rows(tmp_path / "m.parquet")
    assert json.loads(row["extra"]) == {"caption": "c"}


def test_a_scan_takes_images_and_counts_the_rest(tmp_path):
    for name in ("a.png", "sub/B.JPG", "sub/._b.jpg", ".hidden/c.png", "notes.txt", "metadata.csv"):
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(b"x" * 5)
    found = read(tmp_path)
    table = found.sources.to_pylist()
    assert [row["key"] for row in table] == ["a.png", "sub/B.JPG"]
    assert [row["size"] for row in table] == [5, 5]
    assert all(row["mtime"] for row in table)
    assert found.ignored == 4
    assert [row["key"] for row in rows(f"{tmp_path}/sub/*.JPG")] == ["B.JPG"]
    assert [row["key"] for row in rows(tmp_path / "a.png")] == ["a.png"]
    assert [row["key"] for row in rows(tmp_path, scan={"suffixes": [".txt"]})] == ["notes.txt"]


def test_a_scan_leaves_out_our_own_output_and_report(tmp_path):
    for name in ("a.png", "up/a.png", "up/_report/b.png"):
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"x")
    assert [row["key"] for row in rows(tmp_path, output=str(tmp_path / "up"))] == ["a.png"]
    for above in (tmp_path, tmp_path.parent):
        with pytest.raises(ConfigError, match="is the source"):
            rows(tmp_path, output=str(above))


def test_probing_asks_the_store_for_what_the_manifest_lacks(tmp_path):
    (tmp_path / "a.png").write_bytes(b"12345")
    (tmp_path / "m.csv").write_text("uri,size\na.png,\nb.png,\nc.png,7\n")
    assert [row["size"] for row in rows(tmp_path / "m.csv")] == [None, None, 7]
    probed = rows(tmp_path / "m.csv", probe=True)
    assert [row["size"] for row in probed] == [5, None, 7]
    assert probed[0]["mtime"] == (tmp_path / "a.png").stat().st_mtime


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("url\ns3://b/1.png\n", "has no column 'uri' but url"),
        ("uri,scale\ns3://b/1.png,2\n", "scale are reserved"),
        ("uri,size\ns3://b/1.png,many\n", "column size"),
        ("uri,key\n,x\n", "a row has the uri"),
        ("uri,uri\na.png,b.png\n", "two columns of one name"),
    ],
)
def test_a_table_that_is_no_manifest_is_answered_with_what_it_holds(tmp_path, text, said):
    (tmp_path / "m.csv").write_text(text)
    with pytest.raises(ConfigError, match=said):
        rows(tmp_path / "m.csv")


def test_values_of_jsonl_stay_as_they_stand(tmp_path):
    row = {"uri": "../x/./a.png", "key": "1999-12-31", "version": '"2024-01-01T00:00:00"', "n": 1}
    (tmp_path / "m.jsonl").write_text(json.dumps(row) + "\n\n")
    (found,) = rows(tmp_path / "m.jsonl")
    assert found["uri"] == str(tmp_path.parent / "x" / "a.png")
    assert (found["key"], found["version"]) == ("1999-12-31", "2024-01-01T00:00:00")
    (tmp_path / "m.jsonl").write_text("[1, 2]")
    with pytest.raises(ConfigError, match="no JSON object"):
        rows(tmp_path / "m.jsonl")


def test_templates_that_cannot_be_filled_are_answered(tmp_path):
    (tmp_path / "m.jsonl").write_text('{"B": "b", "K": "1.png"}\n{"B": "b", "K": null}')
    with pytest.raises(ConfigError, match="rows without a K cannot fill"):
        rows(tmp_path / "m.jsonl", columns={"uri": "s3://{B}/{K}"})
    with pytest.raises(ConfigError, match="is no template"):
        rows(tmp_path / "m.jsonl", columns={"uri": "s3://{B/{K}"})


@pytest.mark.parametrize("name", ["m.parquet", "m.jsonl", "m.csv.gz"])
def test_a_damaged_table_is_a_configuration_error(tmp_path, name):
    (tmp_path / name).write_bytes(b"\x00\x01 no table at all {")
    with pytest.raises(ConfigError, match=f"cannot read .*{name}"):
        rows(tmp_path / name)


def test_nothing_to_do_is_said(tmp_path):
    with pytest.raises(ConfigError, match="there is no file at"):
        rows(tmp_path / "nowhere")
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(ConfigError, match=r"holds no images: 1 other .*\.png"):
        rows(tmp_path)


def test_sources_that_nothing_can_read_are_answered_before_anything_starts(tmp_path):
    (tmp_path / "m.csv").write_text("uri\ns3://b/1.png\ndropbox://b/2.png\n")
    with pytest.raises(ConfigError, match=r"dropbox://b/2\.png"):
        rows(tmp_path / "m.csv")
    (tmp_path / "in").mkdir()
    with open(os.fsencode(tmp_path / "in") + b"/\xff.png", "wb") as file:
        file.write(b"x")
    with pytest.raises(ConfigError, match=r"1 file names are not UTF-8, .*xff\.png"):
        rows(tmp_path / "in")


@pytest.mark.parametrize("uri", ["nowhere://b/2.png", "S3://b/2.png", "s3:///2.png", "file://x"])
def test_what_is_no_uri_is_the_plan_s_to_refuse(tmp_path, uri):
    (tmp_path / "m.csv").write_text(f"uri\ns3://b/1.png\n{uri}\n")
    assert [row["uri"] for row in rows(tmp_path / "m.csv")] == ["s3://b/1.png", uri]


def test_a_table_without_rows_is_a_night_without_work(tmp_path):
    (tmp_path / "m.csv").write_text("uri,size\n")
    assert rows(tmp_path / "m.csv") == []


def test_a_wrong_mapping_names_the_columns_there_are(tmp_path):
    as_csv(tmp_path / "m.csv")
    with pytest.raises(ConfigError, match=r"no column 'Path' but uri, key, size, artist, year"):
        rows(tmp_path / "m.csv", columns={"uri": "Path"})
    with pytest.raises(
        ConfigError, match=r"columns.url: there is no such column, there are height"
    ):
        rows(tmp_path / "m.csv", columns={"uri": "uri", "url": "uri"})
