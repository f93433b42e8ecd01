"""Rows that the plan refuses one by one, and what it says of them."""

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import admission, plan
from pipeline.admission import Rules
from pipeline.config import Limits, SourceSide
from pipeline.errors import ConfigError
from pipeline.records import OUTCOME_SCHEMA, SOURCE_SCHEMA

GOOD = {"uri": "s3://b/good.png"}
RUN = dict.fromkeys(
    ("model", "model_sha256", "model_licence", "recipe", "precision", "device"), "x"
)
RUN |= {"run_id": "r", "last_run_id": "r"}


def identified(*rows, output="s3://out/up", format="auto"):
    table = pa.Table.from_pylist([dict(row) for row in rows], schema=SOURCE_SCHEMA)
    return plan.identify(table, output=output, format=format)


def refused(*rows, output="s3://out/up", format="auto", **changes):
    """The refusals of these rows beside a good one, in their order."""
    rules = {"output": output, "families": frozenset({"s3", "file"}), "factor": 4.0}
    rules |= {"long_side": None, "limits": Limits(), **changes}
    table = identified(*rows, GOOD, output=output, format=format)
    found = admission.refusals(table, Rules(**rules))
    return [found.get(item_id) for item_id in table["item_id"].to_pylist()[:-1]]


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("../a.png", "the key '../a.png' has a part . or .."),
        ("a/../b.png", "has a part . or .."),
        ("a/..", "has a part . or .."),
        ("..", "has a part . or .."),
        ("./a.png", "has a part . or .."),
        ("a//b.png", "has an empty part"),
        ("a/", "has an empty part"),
        ("a.png?versionId=1", "names a version, which belongs into the column version"),
        ("/a.png", "begins with a slash"),
        ("//server/share/a.png", "begins with a slash"),
        ("C:/a.png", "begins with a drive"),
        ("c:a.png", "begins with a drive"),
        ("\\\\server\\a.png", "holds a backslash"),
        ("a\\..\\b.png", "holds a backslash"),
        ("a\n.png", r"the key 'a\n.png' holds a control character"),
        ("a\0.png", r"the key 'a\x00.png' holds a control character"),
        ("a\x85.png", r"the key 'a\x85.png' holds a control character"),
        ("é" * 513, "has 1,026 bytes"),
        ("x/" * 509 + "a.png", "makes an object's name of 1,026 bytes"),
    ],
)
def test_a_key_that_no_store_should_hold_is_one_bad_row(key, said):
    (error,) = refused({"uri": "s3://b/x.png", "key": key})
    assert error.code == "bad_key"
    assert said in str(error)
    assert str(error).isprintable()


def test_odd_names_are_names():
    """Reserved on Windows, or odd there: archives hold such names, and nothing here is Windows."""
    keys = ["aux.png", "CON.tif", "1:b/12:30.png", "a?.png", " a .png", "..a/b...png", "é😀.png"]
    assert refused(*({"uri": "s3://b/x.png", "key": key} for key in keys)) == [None] * len(keys)


def test_a_file_has_a_name_of_at_most_255_bytes():
    row = {"uri": "s3://b/x.png", "key": "é" * 128 + ".png"}
    assert refused(row) == [None]
    (error,) = refused(row, output="/out")
    assert "makes a file name of 260 bytes" in str(error)


parts = st.text(st.sampled_from("ab.é/\\:\0\u0301"), max_size=8)


@settings(deadline=None, derandomize=True, max_examples=200)
@given(parts, st.sampled_from(["s3://out/up", "/out/up"]))
def test_whatever_is_admitted_lies_below_the_output(key, output):
    rules = Rules(
        output=output, families=frozenset({"s3"}), factor=2, long_side=None, limits=Limits()
    )
    table = identified({"uri": "s3://b/x.png", "key": key or None}, GOOD, output=output)
    found = admission.refusals(table, rules)
    for row in table.to_pylist():
        if row["item_id"] not in found:
            place = row["output_uri"].removeprefix(f"{output}/")
            assert place != row["output_uri"]
            assert not {"", ".", ".."} & set(place.split("/"))


@pytest.mark.parametrize(
    ("uri", "allow", "said"),
    [
        ("/data/a.png", (), "storage.source.allow: file"),
        ("https://host/a.png", (), "storage.source.allow: http"),
        ("http://169.254.169.254/latest", ("sftp",), "storage.source.allow: http"),
        ("sftp://host/a.png", ("http",), "behind sftp://"),
        ("https://host/a.png", ("http",), None),
        ("http://host/a.png", ("https", "private"), None),
        ("s3a://b/a.png", (), None),
        ("foo://b/a.png", (), "no driver knows the scheme foo://"),
        ("S3://b/a.png", (), "no driver knows the scheme S3://"),
        ("s3:///a.png", (), "wanted s3://<bucket or host>/<key>"),
        ("file:a.png", (), "wanted file:///<absolute path>"),
    ],
)
def test_places_are_refused_unless_allowed(uri, allow, said):
    (error,) = refused({"uri": uri}, families=SourceSide(allow=allow).families)
    assert (error is None) == (said is None)
    if error:
        assert error.code == "source_refused"
        assert said in str(error)


def test_sizes_that_the_manifest_tells_are_refused_without_a_fetch():
    rows = [
        {"uri": "s3://b/1.jpg", "width": 20_000, "height": 10},
        {"uri": "s3://b/2.webp", "width": 10, "height": 5_000},
        {"uri": "s3://b/3.png", "width": 20_000, "height": 10_000},
        {"uri": "s3://b/4.png", "width": 9_000, "height": 9_000},
        {"uri": "s3://b/5.png", "width": 20_000, "height": 10},
        {"uri": "s3://b/6.jpg", "width": 0, "height": None},
    ]
    found = refused(*rows)
    codes = [error and error.code for error in found]
    assert codes[:4] == ["output_too_large"] * 2 + ["input_too_large", "output_too_large"]
    assert codes[4:] == [None, None]
    assert "jpeg holds 65,500 a side (format: png or tiff)" in str(found[0])
    assert "limits.max_input_pixels" in str(found[2])
    assert refused(rows[0], factor=None) == [None]
    assert refused(rows[0], factor=None, long_side=500) == [None]
    assert refused(rows[0], format="tiff") == [None]


def test_all_of_many_refused_is_a_wrong_setting():
    table = identified(*({"uri": f"/{number}.png"} for number in range(10)))
    rules = Rules(
        output="s3://out", families=frozenset({"s3"}), factor=1, long_side=None, limits=Limits()
    )
    with pytest.raises(ConfigError, match=r"all 10 sources .* first is /0.png: .*allow: file"):
        admission.refusals(table, rules)
    assert admission.refusals(table.slice(0, 0), rules) == {}
    assert len(admission.refusals(table.slice(1), rules)) == 9, "rows, where there are few"


def test_a_refused_row_says_why():
    table = identified({"uri": "s3://b/x.png", "key": "../x", "extra": "{}"}, GOOD)
    rules = Rules(
        output="s3://out", families=frozenset({"s3"}), factor=1, long_side=None, limits=Limits()
    )
    made = admission.rows(table, admission.refusals(table, rules), RUN)
    assert made.schema.equals(OUTCOME_SCHEMA)
    (row,) = made.to_pylist()
    assert (row["key"], row["status"], row["error_code"]) == ("../x", "failed", "bad_key")
    assert (row["error_class"], row["error_stage"], row["extra"]) == ("permanent", "plan", "{}")
