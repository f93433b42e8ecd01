"""The worker by itself: what becomes of each kind of input, in company and alone."""

import hashlib
import os
import struct
import threading
from contextlib import contextmanager

import imagecodecs
import numpy as np
import PIL.Image
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from running import opened, outcomes, picture, pictures, sha256
from servers import start_rclone

from pipeline.attempts import AttemptLedger
from pipeline.config import Limits, Policy
from pipeline.delivery import Delivery
from pipeline.errors import PublishError
from pipeline.images.consistency import measure
from pipeline.images.decode import decode
from pipeline.records import OUTCOME_SCHEMA, Item, Outcome
from pipeline.storage import Store
from pipeline.turns import Budget, Company


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


@pytest.mark.parametrize(
    ("limits", "code", "knob"),
    [
        ({"decode_s": 0.05}, "decode_timeout", "limits.decode_s"),
        ({"decode_bytes": 2**26}, "decode_memory_limit", "limits.decode_bytes"),
    ],
)
def test_what_a_decode_may_take_is_limited(tmp_path, worker, item, limits, code, knob):
    small, bomb = pictures(tmp_path / "in", 2)
    PIL.Image.new("RGB", (6000, 6000)).save(bomb)
    one = worker(limits=Limits(**limits), scale=0.01)
    (row,) = outcomes(one, [item(bomb)])
    assert (row["error_code"], row["error_class"], row["error_stage"]) == (
        code,
        "permanent",
        "decode",
    )
    assert knob in row["error_message"]
    if "decode_bytes" in limits:  # on a busy machine 0.05 s may be too little for any picture
        (row,) = outcomes(one, [item(small)])
        assert row["status"] == "done"


def crashing_tiff():
    """Ends imagecodecs' LZW decoder, as of 2026.3.6, by SIGSEGV.

    The last strip begins with a code that was not defined yet: the decoder takes the length and
    the address of what it stands for from memory that it has not written to. What the strips
    before have behind their end was in that memory: lengths of 3 at address 16, which is nobody's.
    """
    count = 8
    bits = "".join(f"{code:09b}" for code in (256, 316, 65, 258, 66, 259, 257)).ljust(80, "0")
    whole = imagecodecs.lzw_encode(bytes(64)).ljust(32, b"\0") + struct.pack("<QQ", 3, 16) * 5000
    strips = [whole] * (count - 1) + [int(bits, 2).to_bytes(10, "big")]
    numbers = [8, 8 * count, 8, 5, 1, 0, 8, 0]
    at = 8 + 2 + 12 * len(numbers) + 4
    numbers[5], numbers[7] = at, at + 4 * count
    tags = zip((256, 257, 258, 259, 262, 273, 278, 279), numbers, strict=True)
    rows = (
        struct.pack("<HHII", tag, 4, count if tag in (273, 279) else 1, number)
        for tag, number in tags
    )
    sizes = [len(strip) for strip in strips]
    starts = [at + 8 * count + sum(sizes[:index]) for index in range(count)]
    head = b"II*\0" + struct.pack("<IH", 8, len(numbers)) + b"".join(rows) + bytes(4)
    return head + struct.pack(f"<{2 * count}I", *starts, *sizes) + b"".join(strips)


def test_a_file_that_ends_its_decoder_is_one_failed_row(tmp_path, worker, item):
    good, bad, other = pictures(tmp_path / "in", 3)
    bad.write_bytes(crashing_tiff())
    rows = outcomes(worker(), [item(good), item(bad), item(other)])
    assert [row["status"] for row in rows] == ["done", "failed", "done"]
    assert (rows[1]["error_code"], rows[1]["error_class"]) == ("decoder_crash", "permanent")
    assert "SIGSEGV" in rows[1]["error_message"]
    assert (rows[1]["source_format"], rows[1]["source_height"]) == ("tiff", 64)


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


@contextmanager
def served(folder):
    server = start_rclone(folder)
    try:
        yield server
    finally:
        server.stop()


def test_results_that_a_store_keeps_no_labels_of_are_known_by_the_report(
    tmp_path, tmp_path_factory, worker, item
):
    """rclone forgets what objects say of themselves when it is started again."""
    folder = tmp_path_factory.mktemp("forgetful")
    (path,) = pictures(tmp_path / "in", 1)
    with served(folder) as server:
        row = item(path, output_uri=f"{server.make_bucket('box')}/p.png")
        (older,) = outcomes(worker(output=Store(server.options)), [row])
    with served(folder) as server:
        _redo(worker, row, older, Store(server.options))


def _redo(worker, row, older, output):
    assert "remaster-item" not in output.labels(row["output_uri"]).metadata
    newer = worker(output=output, recipe="newer", scale=3)
    for known, said in ((None, "knows no result"), ("0" * 64, f"has {'0' * 64} there")):
        (failed,) = outcomes(newer, [row | {"made_sha256": known}])
        assert failed["error_code"] == "output_exists"
        assert said in failed["error_message"]
        assert "(output)" in failed["error_message"]
    assert sha256(output.read(row["output_uri"])) == older["output_sha256"]
    (made,) = outcomes(newer, [row | {"made_sha256": older["output_sha256"]}])
    assert (made["status"], made["output_width"]) == ("done", 96)
    assert sha256(output.read(row["output_uri"])) == made["output_sha256"]


def test_whoever_publishes_first_wins(tmp_path, item, bucket):
    uri, output = bucket
    one = Item.from_row(item(tmp_path / "a.png", output_uri=f"{uri}/a.png"))
    mine, theirs = Delivery(output, "mine"), Delivery(output, "theirs")
    there = mine.there(one)
    assert mine.publish(one, "ab", b"first", there) == (b"first", ())
    assert mine.publish(one, "ab", b"second", there) == (b"first", ("adopted",))
    for who, source in ((theirs, "ab"), (mine, "cd")):  # another recipe, another source
        with pytest.raises(PublishError, match="wanted nothing there") as caught:
            who.publish(one, source, b"third", there)
        assert caught.value.code == "output_changed"
    assert theirs.publish(one, "ab", b"fourth", theirs.there(one)) == (b"fourth", ())
    assert output.read(one.output_uri) == b"fourth"


def test_what_a_store_cannot_name_is_a_row(tmp_path, item, bucket):
    uri, output = bucket
    one = Item.from_row(item(tmp_path / "a.png", output_uri=f"{uri}/a.png?versionId=1"))
    with pytest.raises(PublishError, match="a version belongs into") as caught:
        Delivery(output, "mine").there(one)
    assert caught.value.code == "publish_failed"


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


def test_16_bits_go_through_as_they_are_and_in_fp32(tmp_path, worker, item):
    ramp = np.linspace(0, 65_535, 24 * 32).astype(np.uint16).reshape(24, 32)
    path = tmp_path / "in.png"
    path.write_bytes(imagecodecs.png_encode(ramp))
    (small,) = pictures(tmp_path / "in", 1)
    deep, plain = outcomes(worker(precision="bf16"), [item(path), item(small)])
    assert (deep["source_mode"], deep["source_bit_depth"], deep["precision"]) == (
        "L;16",
        16,
        "fp32",
    )
    assert plain["precision"] == "bf16"
    found = imagecodecs.png_decode((tmp_path / "out" / "in.png").read_bytes())
    assert (found.shape, found.dtype) == ((48, 64), np.uint16)
    assert np.unique(found).size > 1500


def test_each_row_says_how_its_result_agrees_with_its_source(tmp_path, worker, item):
    (path,) = pictures(tmp_path / "in", 1)
    (row,) = outcomes(worker(), [item(path)])
    source = decode(path.read_bytes(), Limits(), Policy()).pixels
    result = decode((tmp_path / "out" / "p000.png").read_bytes(), Limits(), Policy()).pixels
    columns = measure(source, result).columns()
    assert {name: row[name] for name in columns} == columns
    assert columns["quality_psnr"] > 0


def tiff(path, *pages):
    path.parent.mkdir(exist_ok=True)
    with tifffile.TiffWriter(path) as writer:
        for page in pages:
            writer.write(page, metadata=None, contiguous=False)
    return path


def test_every_page_of_a_tiff_is_upscaled_by_itself(tmp_path, worker, item):
    rng = np.random.default_rng(0)
    pages = [np.asarray(picture(1)), rng.integers(0, 2**16, (9, 50), np.uint16)]
    pages += [np.asarray(picture(2, 20, 60))]
    path = tiff(tmp_path / "in" / "many.tiff", *pages)
    singles = [tiff(tmp_path / "in" / f"{n}.tiff", page) for n, page in enumerate(pages)]
    to_tiff = {"output_format": "tiff"}
    rows = [
        item(one, output_uri=str(tmp_path / "out" / one.name), **to_tiff)
        for one in (path, *singles)
    ]
    many, *alone = outcomes(worker(), rows)
    assert many["status"] == "done"
    assert (many["source_frames"], many["source_width"], many["source_height"]) == (3, 32, 24)
    assert (many["output_width"], many["output_height"], many["scale"]) == (64, 48, 2.0)
    assert (many["source_mode"], many["precision"]) == ("RGB", "fp32")
    assert many["warnings"] == ["icc_untagged"], "each once"
    assert many["quality_psnr"] == min(row["quality_psnr"] for row in alone)
    with tifffile.TiffFile(tmp_path / "out" / "many.tiff") as found:
        assert len(found.pages) == 3
        for index, page in enumerate(found.pages):
            single = tifffile.imread(tmp_path / "out" / f"{index}.tiff")
            assert page.dtype == pages[index].dtype
            np.testing.assert_array_equal(page.asarray(), single)


@pytest.mark.parametrize(
    ("changes", "sides", "code", "said"),
    [
        ({"output_format": "png"}, (20, 20), "output_pages", "2 pages, png holds 1 (format: tiff)"),
        ({}, (20, 65), "output_too_large", "130 x 130 = 16,900 pixels, limit 15,000"),
        ({}, (50, 50), "output_too_large", "2 pages of 20,000 pixels together, limit 15,000"),
        ({}, (20, 71), "input_too_large", "71 x 71"),
        ({}, (20, 0), "decode_failed", ""),
    ],
)
def test_a_page_that_cannot_be_done_fails_the_file_ahead(
    tmp_path, worker, item, changes, sides, code, said
):
    path = tiff(
        tmp_path / "in.tiff", *(np.zeros((side or 9, side or 9), np.uint8) for side in sides)
    )
    if not sides[1]:  # the second directory begins beyond the file's end
        data = bytearray(path.read_bytes())
        with tifffile.TiffFile(path) as opened:
            at = opened.pages[0].offset + 2 + 12 * len(opened.pages[0].tags)
        data[at : at + 4] = struct.pack("<I", len(data) + 5)
        path.write_bytes(data)
    (row,) = outcomes(worker(), [item(path, **{"output_format": "tiff", **changes})])
    assert row["error_code"] == code
    assert said in row["error_message"]
    assert row["upscale_s"] is None
    assert not (tmp_path / "out").exists()


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
