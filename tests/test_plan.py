"""Identity, keys, refusals and what is left to do: pure functions on tables."""

import unicodedata

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import plan
from pipeline.errors import ConfigError
from pipeline.records import OUTCOME_SCHEMA, SOURCE_SCHEMA

NOTHING = OUTCOME_SCHEMA.empty_table()
exact = settings(deadline=None, derandomize=True, max_examples=60)


def sources(*rows):
    return pa.Table.from_pylist([dict(row) for row in rows], schema=SOURCE_SCHEMA)


def items(*rows, format="auto"):
    return plan.identify(sources(*rows), output="s3://out/up", format=format)


def outcomes(table, *, recipe="r", status="done", error_class=None, attempts=1, error_stage=None):
    rows = [
        {
            **dict.fromkeys(OUTCOME_SCHEMA.names),
            "item_id": row["item_id"],
            "key": row["key"],
            "recipe": recipe,
            "status": status,
            "error_class": error_class,
            "error_stage": error_stage,
            "attempts": attempts,
        }
        for row in table.to_pylist()
    ]
    return pa.Table.from_pylist(rows, schema=OUTCOME_SCHEMA)


def left(table, latest, **options):
    asked = {"recipe": "r", "on_change": "refuse", "retry_failed": "transient", **options}
    return plan.remaining(table, latest, **asked)


@pytest.mark.parametrize(
    ("source", "format", "output", "made"),
    [
        ({"uri": "s3://b/x/y.JPG"}, "auto", "b/x/y.JPG", "jpeg"),
        ({"uri": "s3://b/x/y.jpeg", "key": "k/y.jpeg"}, "png", "k/y.png", "png"),
        ({"uri": "/data/a.tif"}, "auto", "data/a.tif", "tiff"),
        ({"uri": "s3://b/scan.bmp"}, "auto", "b/scan.tif", "tiff"),
        ({"uri": "s3://b/scan.JP2"}, "auto", "b/scan.tif", "tiff"),
        ({"uri": "s3://b/scan.pgm"}, "png", "b/scan.png", "png"),
        ({"uri": "s3://b/page.2024.05"}, "auto", "b/page.2024.05.png", "png"),
        ({"uri": "s3://b/x", "key": "007"}, "webp", "007.webp", "webp"),
        ({"uri": "s3://b/x.jpg", "key": "A/first"}, "auto", "A/first.jpg", "jpeg"),
        ({"uri": "s3://b/x.jpg", "key": "A/first.png"}, "auto", "A/first.jpg", "jpeg"),
        ({"uri": "s3://b/all.tar", "key": "m.webp"}, "auto", "m.webp", "webp"),
        ({"uri": "s3://b/R.JPG"}, "jpeg", "b/R.JPG", "jpeg"),
        ({"uri": "s3://b/.png"}, "auto", "b/.png.png", "png"),
        ({"uri": "https://host/a.png?X-Amz-Signature=f00"}, "auto", "host/a.png", "png"),
        ({"uri": "s3://b/a?b.png"}, "auto", "b/a?b.png", "png"),
    ],
)
def test_the_output_is_made_of_the_key_and_the_format(source, format, output, made):
    (row,) = items(source, format=format).to_pylist()
    assert row["output_uri"] == f"s3://out/up/{output}"
    assert row["output_format"] == made


def test_an_identity_is_the_key_the_place_and_the_version_or_else_size_and_time():
    base = {"uri": "s3://b/a.png", "version": "v1", "size": 10, "mtime": 5.0}

    def identity(**changes):
        return items({**base, **changes})["item_id"][0].as_py()

    assert identity() == identity(size=11, mtime=6.0), "a version says more than size and time"
    changed = [identity(), identity(version="v2"), identity(key="k.png"), identity(offset=3)]
    changed += [identity(version=None), identity(version=None, size=11)]
    changed += [identity(version=None, mtime=6.0), identity(uri="s3://b/b.png")]
    assert len(set(changed)) == len(changed)


@exact
@given(st.lists(st.text("ab/é.", min_size=1, max_size=6), min_size=1, max_size=8, unique=True))
def test_a_source_has_the_same_identity_in_every_manifest(names):
    uris = [f"s3://b/{name}" for name in names]
    together = items(*({"uri": uri} for uri in uris)).to_pylist()
    alone = [items({"uri": uri}).to_pylist()[0] for uri in uris]
    assert together == alone or len({row["item_id"] for row in alone}) < len(alone)
    assert all(unicodedata.is_normalized("NFC", row["key"]) for row in together)


def test_a_source_listed_twice_is_one_item():
    table = items({"uri": "s3://b/a.png"}, {"uri": "s3://b/b.png"}, {"uri": "s3://b/a.png"})
    assert table["uri"].to_pylist() == ["s3://b/a.png", "s3://b/b.png"]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"uri": "s3://b/a.jpg"}, {"uri": "s3://b/a.png"}),
        ({"uri": "s3://b/A.png"}, {"uri": "s3://b/a.png"}),
        ({"uri": "s3://b/\u00e9.png"}, {"uri": "s3://b/e\u0301.png"}),
        ({"uri": "s3://b/1.png", "key": "k.png"}, {"uri": "s3://b/2.png", "key": "k.png"}),
        ({"uri": "s3://b/a.tar", "offset": 512}, {"uri": "s3://b/a.tar", "offset": 2048}),
        ({"uri": "s3://b/a.png", "version": "1"}, {"uri": "s3://b/a.png", "version": "2"}),
    ],
)
def test_two_sources_with_one_output_are_refused_by_name(one, other):
    with pytest.raises(ConfigError) as caught:
        plan.refuse(
            items(one, other, format="png"),
            NOTHING,
            output="s3://out/up",
            report="s3://out/up/_report",
        )
    assert one["uri"] in str(caught.value)
    assert other["uri"] in str(caught.value)


def test_a_refused_source_has_its_key_all_the_same():
    """The report has one row of a key: two sources would take turns at it."""
    refused = {"uri": "https://h/1.png", "key": "k.png"}
    table = items({"uri": "s3://b/2.png", "key": "k.png"}, refused)
    ids = {table["item_id"][1].as_py()}
    places = {"output": "s3://out/up", "report": "s3://out/up/_report"}
    with pytest.raises(ConfigError, match="would both be written to"):
        plan.refuse(table, NOTHING, **places, refused=ids)
    inside = items({"uri": "s3://out/up/x.png", "key": "y.png"})
    plan.refuse(inside, NOTHING, **places, refused={inside["item_id"][0].as_py()})


@pytest.mark.parametrize(
    ("uri", "key"),
    [
        ("https://bob:hunter2@host/a.png?sig=1", "host/a.png"),
        ("sftp://bob@host/a@b.png", "host/a@b.png"),
        ("abfss://box@account.example/a.png", "box@account.example/a.png"),
        ("s3://b/a@b.png", "b/a@b.png"),
    ],
)
def test_a_key_of_a_uri_holds_no_password(uri, key):
    assert items({"uri": uri})["key"].to_pylist() == [key]


def test_nothing_to_do_is_a_plan_too():
    table = items()
    plan.refuse(table, NOTHING, output="s3://out/up", report="s3://out/up/_report")
    assert left(table, NOTHING).todo.num_rows == 0
    assert plan.choose(table, 3).num_rows == plan.choose(table, 0.5).num_rows == 0


def test_an_output_of_an_earlier_night_is_not_taken_by_another_key():
    earlier = pa.table({"key": ["x/a.jpg"], "output_uri": ["s3://out/up/b/a.png"]})
    with pytest.raises(ConfigError, match=r"earlier source of 'x/a.jpg'"):
        plan.refuse(
            items({"uri": "s3://b/a.png"}),
            earlier,
            output="s3://out/up",
            report="s3://out/up/_report",
        )
    mine = pa.table({"key": ["b/a.png"], "output_uri": ["s3://out/up/b/a.png"]})
    plan.refuse(
        items({"uri": "s3://b/a.png"}), mine, output="s3://out/up", report="s3://out/up/_report"
    )


def test_nothing_is_written_into_the_report_or_over_its_source():
    inside = items({"uri": "s3://b/x.png", "key": "_report/log/x.png"})
    with pytest.raises(ConfigError, match="lies in the report"):
        plan.refuse(inside, NOTHING, output="s3://out/up", report="s3://out/up/_report")
    itself = items({"uri": "s3a://out/up/x.png", "key": "y.png"})
    with pytest.raises(ConfigError, match="lies in the output"):
        plan.refuse(itself, NOTHING, output="s3://out/up", report="s3://out/up/_report")


@pytest.mark.parametrize(
    ("output", "uri"),
    [
        ("s3://box/up", "s3a://box/up/x.png"),
        ("gs://box/up", "gcs://box/up/x.png"),
        ("az://box/up", "abfs://box/up/x.png"),
        ("abfs://box@account.example/up", "az://box@account.example/up/x.png"),
        ("/data/up", "file:///data/up/x.png"),
        ("/data/up", "local:///data/up/x.png"),
    ],
)
def test_a_source_in_the_output_is_found_under_each_scheme_of_its_store(output, uri):
    table = plan.identify(sources({"uri": uri, "key": "y.png"}), output=output, format="auto")
    with pytest.raises(ConfigError, match="lies in the output"):
        plan.refuse(table, NOTHING, output=output, report=f"{output}/_report")


def test_done_items_are_not_done_again_and_changed_ones_are():
    table = items({"uri": "s3://b/a.png", "version": "1"}, {"uri": "s3://b/b.png", "version": "1"})
    latest = outcomes(table)
    assert left(table, latest).todo.num_rows == 0
    assert left(table, latest).done == 2
    newer = items({"uri": "s3://b/a.png", "version": "2"}, {"uri": "s3://b/b.png", "version": "1"})
    again = left(newer, latest).todo
    assert again["uri"].to_pylist() == ["s3://b/a.png"]
    assert again["attempts"].to_pylist() == [0]


@pytest.mark.parametrize(
    ("retry_failed", "transient", "permanent"),
    [("transient", 1, 0), ("all", 1, 1), ("none", 0, 0)],
)
def test_failed_items_are_tried_again_by_class(retry_failed, transient, permanent):
    table = items({"uri": "s3://b/a.png"})
    for error_class, tried in (("transient", transient), ("permanent", permanent)):
        latest = outcomes(table, status="failed", error_class=error_class, attempts=3)
        found = left(table, latest, retry_failed=retry_failed)
        assert (found.todo.num_rows, found.failed) == (tried, 1 - tried)
        assert found.todo["attempts"].to_pylist() == [3] * tried


def test_what_the_plan_refused_is_tried_when_it_does_not_any_more():
    table = items({"uri": "s3://b/a.png"})
    latest = outcomes(table, status="failed", error_class="permanent", error_stage="plan")
    assert left(table, latest).todo.num_rows == 1
    assert left(table, latest, refused=table["item_id"].to_pylist()).failed == 1
    fetched = outcomes(table, status="failed", error_class="permanent", error_stage="fetch")
    assert left(table, fetched).failed == 1


def test_failures_by_a_limit_are_tried_where_it_has_been_raised():
    table = items({"uri": "s3://b/a.png"}, {"uri": "s3://b/b.png"}, {"uri": "s3://b/c.png"})
    rows = outcomes(table, status="failed", error_class="permanent", error_stage="decode")
    codes = ("too_many_pages", "decode_timeout", "decode_failed")
    rows = pa.Table.from_pylist(
        [
            row | {"error_code": code, "run_id": "one"}
            for row, code in zip(rows.to_pylist(), codes, strict=True)
        ],
        schema=OUTCOME_SCHEMA,
    )
    asked = []

    def raised(run_id):
        asked.append(run_id)
        return {"too_many_pages"} if run_id == "one" else {"decode_timeout"}

    found = left(table, rows, raised=raised)
    assert (found.todo["uri"].to_pylist(), found.failed) == (["s3://b/a.png"], 2)
    assert asked == ["one"]
    assert left(table, rows).failed == 3


def test_what_is_done_again_knows_the_result_that_the_report_has_in_its_place():
    table = items({"uri": "s3://b/a.png", "version": "1"})
    assert left(table, NOTHING).todo["made_sha256"].to_pylist() == [None]
    latest = outcomes(table, recipe="older")

    def known(latest, table=table):
        return left(table, latest, on_change="redo").todo["made_sha256"].to_pylist()

    def saying(**values):
        rows = [row | values for row in latest.to_pylist()]
        return pa.Table.from_pylist(rows, schema=OUTCOME_SCHEMA)

    here = table["output_uri"][0].as_py()
    assert known(saying(output_uri=here, output_sha256="ab")) == ["ab"]
    newer = items({"uri": "s3://b/a.png", "version": "2"})
    assert known(saying(output_uri=here, output_sha256="ab"), newer) == ["ab"]
    assert known(saying(output_uri=f"{here}.tif", output_sha256="ab")) == [None]


def test_skipped_items_are_still_to_do():
    table = items({"uri": "s3://b/a.png"})
    assert left(table, outcomes(table, status="skipped")).todo.num_rows == 1


def test_results_of_another_recipe_mean_what_on_change_says():
    table = items({"uri": "s3://b/a.png"})
    latest = outcomes(table, recipe="older")
    with pytest.raises(ConfigError, match=r"1 results .* otherwise \(recipe older\)"):
        left(table, latest)
    assert left(table, latest, on_change="keep").done == 1
    assert left(table, latest, on_change="redo").todo.num_rows == 1


names = st.lists(st.integers(0, 400), min_size=1, max_size=40, unique=True)


@exact
@given(names, st.floats(0.01, 0.99) | st.integers(1, 50))
def test_a_sample_is_a_stable_part(numbers, sample):
    table = items(*({"uri": f"s3://b/{number}.png"} for number in numbers))
    chosen = plan.choose(table, sample)
    kept = set(chosen["uri"].to_pylist())
    assert [uri for uri in table["uri"].to_pylist() if uri in kept] == chosen["uri"].to_pylist()
    if sample >= 1:
        assert chosen.num_rows == min(int(sample), len(numbers))
    else:
        fewer = plan.choose(table.slice(0, len(numbers) // 2), sample)
        assert set(fewer["uri"].to_pylist()) <= kept


def test_a_share_of_many_items_is_about_that_share():
    table = items(*({"uri": f"s3://b/{number}.png"} for number in range(2000)))
    assert 400 < plan.choose(table, 0.25).num_rows < 600


@exact
@given(st.integers(1, 5000), st.integers(1, 512), st.none() | st.floats(1e-4, 1e4))
def test_blocks_are_small_enough_for_everyone_and_never_empty(count, workers, seconds):
    todo = pa.table({"size": pa.nulls(count, pa.int64())})
    rows = plan.block_rows(todo, workers, seconds_per_item=seconds)
    assert 1 <= rows <= 1024
    assert rows == 1 or (rows - 1) * 4 * workers < count
    assert seconds is None or rows == 1 or rows * seconds < 20 + seconds


@pytest.mark.parametrize(("size", "rows"), [(None, 16), (20_000, 419), (2_000_000, 4), (10**9, 1)])
def test_blocks_of_small_files_are_longer_until_their_work_is_known(size, rows):
    todo = pa.table({"size": pa.array([size] * 5000, pa.int64())})
    assert plan.block_rows(todo, 1) == rows
    assert plan.block_rows(todo, 1, seconds_per_item=2.0) == 10


@exact
@given(st.integers(1, 60), st.integers(1, 3))
def test_shards_cover_the_work_once_in_order(count, rows):
    table = items(*({"uri": f"s3://b/{number}.png"} for number in range(count)))
    parts = list(plan.shards(table, rows))
    assert pa.concat_tables([part for _, part in parts])["uri"].equals(table["uri"])
    assert all(set(part["shard"].to_pylist()) == {name} for name, part in parts)
