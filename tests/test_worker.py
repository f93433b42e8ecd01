"""The worker by itself: what becomes of each kind of input, in company and alone."""

import hashlib
import os
import threading

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from running import opened, picture, pictures, sha256

from pipeline.attempts import AttemptLedger
from pipeline.config import Encode, Limits
from pipeline.delivery import Delivery
from pipeline.errors import PublishError
from pipeline.models import zoo
from pipeline.records import ITEM_SCHEMA, OUTCOME_SCHEMA, Item, Outcome
from pipeline.storage import Store
from pipeline.turns import Budget, Company
from pipeline.worker import Job, Worker


@pytest.fixture
def worker(tmp_path, small_model):
    def make(attempts=None, **changes):
        model = zoo.resolve(str(small_model), store=Store(), models_uri=None)
        job = {
            "run_id": "run",
            "recipe": "recipe",
            "model": model,
            "precision": "fp32",
            "device": "cpu",
            "scale": None,
            "long_side": None,
            "encode": Encode(),
            "limits": Limits(max_input_pixels=5000, max_output_pixels=15_000),
            "source": Store(),
            "output": Store(staging=str(tmp_path / "out" / ".staging" / "run")),
            "models": Store(),
            "in_flight": 4,
            "fetches": 2,
            "in_flight_bytes": 10_000,
            "max_crashes": 2,
            "threads": 1,
            "workers_on_node": 1,
        }
        return Worker(Job(**{**job, **changes}), attempts or AttemptLedger())

    return make


@pytest.fixture
def item(tmp_path):
    def make(path, **changes):
        row = dict.fromkeys(ITEM_SCHEMA.names)
        row |= {"item_id": sha256(str(path).encode()), "key": path.name, "uri": str(path)}
        row |= {"output_uri": str(tmp_path / "out" / f"{path.stem}.png"), "output_format": "png"}
        return row | {"shard": "00000", "attempts": 0} | changes

    return make


def outcomes(worker, rows):
    table = worker(pa.Table.from_pylist(rows, schema=ITEM_SCHEMA))
    assert table.schema.equals(OUTCOME_SCHEMA)
    assert table["item_id"].to_pylist() == [row["item_id"] for row in rows]
    return table.to_pylist()


def test_a_picture_is_fetched_upscaled_and_published(tmp_path, worker, item):
    (path,) = pictures(tmp_path / "in", 1)
    (row,) = outcomes(worker(), [item(path, attempts=2)])
    made = (tmp_path / "out" / "p000.png").read_bytes()
    assert row["status"] == "done"
    assert (row["output_sha256"], row["output_bytes"]) == (sha256(made), len(made))
    assert (row["source_sha256"], row["source_bytes"]) == (
        sha256(path.read_bytes()),
        path.stat().st_size,
    )
    assert (row["source_width"], row["source_height"]) == (32, 24)
    assert (row["output_width"], row["output_height"], row["scale"]) == (64, 48, 2.0)
    assert (row["source_format"], row["source_mode"], row["source_bit_depth"]) == ("png", "RGB", 8)
    assert (row["attempts"], row["run_id"], row["last_run_id"]) == (3, "run", "run")
    assert all(row[f"{stage}_s"] >= 0 for stage in ("fetch", "decode", "upscale", "encode"))
    assert row["started_at"] <= row["finished_at"]
    assert row["worker"].endswith(str(os.getpid()))


def test_everything_that_can_be_wrong_with_an_input_has_its_code(tmp_path, worker, item):
    good, cut, wide, tall = pictures(tmp_path / "in", 4)
    cut.write_bytes(cut.read_bytes()[:70])
    picture(0, 101, 50).save(wide)
    picture(0, 70, 60).save(tall)
    size = good.stat().st_size
    gone = tmp_path / "in" / "gone.png"
    rows = {
        "not_found": item(gone),
        "decode_failed": item(cut),
        "input_too_large": item(wide),
        "output_too_large": item(tall),
        "source_changed": item(good, size=size + 1),
        "fetch_failed": item(good, offset=size - 5, length=10),
        "source_too_large": item(good, length=2**40),
        "bad_uri": item(good, uri="/in/\0.png"),
    }
    found = outcomes(worker(), list(rows.values()))
    assert [row["error_code"] for row in found] == list(rows)
    assert {row["status"] for row in found} == {"failed"}
    assert all(row["error_message"] and row["finished_at"] for row in found)
    assert not (tmp_path / "out").exists()
    (row,) = outcomes(worker(), [item(good, sha256=hashlib.sha256(b"other").hexdigest())])
    assert row["error_code"] == "source_changed"


def test_a_result_that_cannot_be_stored_is_a_failed_row(tmp_path, worker, item):
    (path,) = pictures(tmp_path / "in", 1)
    (tmp_path / "out").write_text("a file where the folder should be")
    (row,) = outcomes(worker(), [item(path)])
    assert (row["error_code"], row["error_stage"]) == ("publish_failed", "publish")


@pytest.fixture
def bucket(request, swift):
    name = "worker-" + hashlib.sha256(request.node.name.encode()).hexdigest()[:12]
    return swift.make_bucket(name), Store(swift.options)


def test_a_result_that_is_there_already_is_adopted(tmp_path, worker, item, bucket):
    uri, output = bucket
    first, second = pictures(tmp_path / "in", 2)
    rows = [item(path, output_uri=f"{uri}/{path.name}") for path in (first, second)]
    (made,) = outcomes(worker(output=output), rows[:1])
    assert "adopted" not in made["warnings"]
    version = output.stat(rows[0]["output_uri"]).version
    adopted, other = outcomes(worker(output=output), rows)
    assert (adopted["status"], adopted["warnings"]) == ("done", ["adopted"])
    assert adopted["upscale_s"] is None
    assert output.stat(rows[0]["output_uri"]).version == version
    names = [name for name in made if name.startswith(("source", "output")) or name == "scale"]
    assert {name: adopted[name] for name in names} == {name: made[name] for name in names}
    assert other["status"] == "done"
    assert "adopted" not in other["warnings"]


def test_older_results_are_replaced_and_foreign_objects_are_not(tmp_path, worker, item, bucket):
    uri, output = bucket
    (path,) = pictures(tmp_path / "in", 1)
    row = item(path, output_uri=f"{uri}/p.png")
    older, newer = worker(output=output), worker(output=output, recipe="newer", scale=3)
    for one, width in ((older, 64), (newer, 96)):
        (made,) = outcomes(one, [row])
        assert (made["status"], made["output_width"]) == ("done", width)
        assert sha256(output.read(row["output_uri"])) == made["output_sha256"]
    output.publish(row["output_uri"], b"precious")
    (failed,) = outcomes(older, [row])
    assert (failed["error_code"], failed["error_class"]) == ("output_exists", "transient")
    assert "is no result of ours" in failed["error_message"]
    assert "fetch_s" not in {name for name, value in failed.items() if value is not None}
    assert output.read(row["output_uri"]) == b"precious"


def test_whoever_publishes_first_wins(tmp_path, item, bucket):
    uri, output = bucket
    one = Item.from_row(item(tmp_path / "a.png", output_uri=f"{uri}/a.png"))
    mine, theirs = Delivery(output, "mine"), Delivery(output, "theirs")
    there = mine.there(one)
    assert mine.publish(one, b"first", there) == (b"first", ())
    assert mine.publish(one, b"second", there) == (b"first", ("adopted",))
    with pytest.raises(PublishError, match="wanted nothing there") as caught:
        theirs.publish(one, b"third", there)
    assert caught.value.code == "output_changed"
    assert theirs.publish(one, b"fourth", theirs.there(one)) == (b"fourth", ())
    assert output.read(one.output_uri) == b"fourth"


def test_a_name_that_disagrees_with_the_header_is_recorded(tmp_path, worker, item):
    path = tmp_path / "in.png"
    picture(0).save(path, "JPEG")
    (row,) = outcomes(worker(), [item(path)])
    assert row["status"] == "done"
    assert "format_mismatch" in row["warnings"]
    assert opened(tmp_path / "out" / "in.png").format == "PNG"
    jpeg = tmp_path / "in.jpg"
    picture(0).save(jpeg)
    (row,) = outcomes(worker(), [item(jpeg, key="in.png")])
    assert "format_mismatch" not in row["warnings"], "the source's own name goes before its key"


@pytest.mark.parametrize(
    ("asked", "size"),
    [({"scale": 1.3}, (42, 31)), ({"long_side": 100}, (100, 75)), ({"scale": 0.01}, (1, 1))],
)
def test_the_final_size_is_as_asked(tmp_path, worker, item, asked, size):
    (path,) = pictures(tmp_path / "in", 1)
    (row,) = outcomes(worker(**asked), [item(path)])
    assert (row["output_width"], row["output_height"]) == size
    assert opened(row["output_uri"]).size == size


def test_company_and_order_change_nothing(tmp_path, worker, item):
    rows = [item(path) for path in pictures(tmp_path / "in", 12)]
    alone = [outcomes(worker(in_flight=1), [row])[0]["output_sha256"] for row in rows]
    busy = worker()
    together = [row["output_sha256"] for row in outcomes(busy, rows)]
    backwards = [row["output_sha256"] for row in outcomes(busy, rows[::-1])]
    assert together == alone == backwards[::-1]


def test_two_blocks_at_once_do_not_mix(tmp_path, worker, item):
    rows = [item(path) for path in pictures(tmp_path / "in", 12)]
    one, found = worker(), {}
    threads = [
        threading.Thread(
            target=lambda part=part: found.update({part: outcomes(one, rows[part::2])})
        )
        for part in (0, 1)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(row["status"] == "done" for part in found.values() for row in part)
    assert len({row["output_sha256"] for part in found.values() for row in part}) == 12


def test_a_suspect_runs_alone_and_its_count_ends_when_it_lives(tmp_path, worker, item):
    rows = [item(path) for path in pictures(tmp_path / "in", 4)]
    suspect, convict = rows[1]["item_id"], rows[2]["item_id"]
    attempts = Recorded()
    for _ in range(2):
        attempts.begin(convict)
    attempts.begin(suspect)
    attempts.events.clear()
    found = outcomes(worker(attempts), rows)
    assert [row["status"] for row in found] == ["done", "done", "failed", "done"]
    assert (found[2]["error_code"], found[2]["error_class"]) == ("worker_crash", "transient")
    assert "2 times" in found[2]["error_message"]
    begun = attempts.events.index(("begin", suspect))
    assert attempts.events[begun + 1] == ("end", suspect), "nothing else began or ended meanwhile"
    ids = [row["item_id"] for row in rows]
    assert attempts.crashes(ids) == {convict: 2}, "a verdict does not clear the count"


class Recorded(AttemptLedger):
    """The ledger, and in which order it was called."""

    def __init__(self):
        super().__init__()
        self.events = []

    def begin(self, item_id):
        super().begin(item_id)
        self.events.append(("begin", item_id))

    def end(self, item_id):
        super().end(item_id)
        self.events.append(("end", item_id))


@settings(deadline=None, derandomize=True, max_examples=30)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=12), st.integers(5, 20))
def test_a_budget_is_kept_and_what_is_larger_goes_alone(amounts, limit):
    budget, lock, held, peaks = Budget(limit), threading.Lock(), [], []

    def take(amount):
        with budget.held(amount):
            with lock:
                held.append(amount)
                peaks.append((sum(held), len(held)))
            with lock:
                held.remove(amount)

    threads = [threading.Thread(target=take, args=(amount,)) for amount in amounts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert len(peaks) == len(amounts)
    assert all(total <= limit or count == 1 for total, count in peaks)


def test_one_who_is_alone_has_no_company():
    company, inside, seen = Company(), [], []

    def stay(kind, name):
        with getattr(company, kind)():
            inside.append(name)
            seen.append((kind, len(inside)))
            inside.remove(name)

    kinds = ["joined", "alone", "joined", "joined", "alone", "joined"] * 5
    threads = [
        threading.Thread(target=stay, args=pair) for pair in zip(kinds, range(30), strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert len(seen) == 30
    assert all(count == 1 for kind, count in seen if kind == "alone")


def test_rows_are_strict_in_both_directions(tmp_path, item):
    row = item(tmp_path / "a.png")
    assert Item.from_row(row).to_row() == row
    with pytest.raises(ValueError, match=r"missing \['key'\], unknown \['kee'\]"):
        Item.from_row({**{name: value for name, value in row.items() if name != "key"}, "kee": 1})
    assert np.array_equal(sorted(OUTCOME_SCHEMA.names), sorted(Outcome.__dataclass_fields__))
