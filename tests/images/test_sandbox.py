"""The sandbox: whatever a file does to its decoder costs one row, and leaves nothing behind."""

import ast
import gc
import io
import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import fields
from pathlib import Path

import camera
import hostile
import numpy as np
import PIL.Image
import pytest
import tifffile

from pipeline.config import Limits, Policy
from pipeline.errors import DecodeError, FatalError, ItemError, TooLargeError
from pipeline.images import wire
from pipeline.images.decode import decode, probe
from pipeline.images.sandbox import Sandbox
from pipeline.images.wire import FRAME

LIMITS = Limits(decode_s=20, decode_bytes=2**28)


@pytest.fixture(scope="module")
def sandbox():
    with closing(Sandbox(1, LIMITS, Policy(), decoder="hostile")) as one:
        yield one


@pytest.fixture
def impatient():
    with closing(Sandbox(1, Limits(decode_s=0.5), Policy(), decoder="hostile")) as one:
        yield one


def failure(sandbox, data, read="decode"):
    with pytest.raises(ItemError) as caught:
        getattr(sandbox, read)(data)
    return caught.value


def told(sandbox):
    return json.loads(str(failure(sandbox, b"tells:")))


def alive(pid):
    """Whether there is such a process, and not only its exit status."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def ends(pid, within=10):
    deadline = time.monotonic() + within
    while alive(pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not alive(pid)


def test_pictures_are_what_they_are_without_it(tmp_path):
    rng = np.random.default_rng(0)
    with closing(Sandbox(1, Limits(), Policy())) as sandbox:
        for kind, channels in (("PNG", 4), ("JPEG", 3), ("WEBP", 3), ("TIFF", 1)):
            samples = rng.integers(0, 256, (300, 400, channels), dtype=np.uint8)
            path = tmp_path / f"picture.{kind}"
            PIL.Image.fromarray(samples.squeeze()).save(path, kind, dpi=(300, 300))
            data = path.read_bytes()
            there, here = sandbox.decode(data), decode(data, Limits(), Policy())
            assert np.array_equal(there.pixels, here.pixels)
            assert (there.facts, there.metadata) == (here.facts, here.metadata)
            assert there.warnings == here.warnings
            assert there.pixels.flags.writeable
            assert sandbox.probe(data) == probe(data, Limits(), Policy())
            assert sandbox.probe_pages(data) == (sandbox.probe(data),)


def open_files_of_children():
    for task in Path("/proc/self/task").iterdir():
        for pid in (task / "children").read_text().split():
            if b"pipeline.images.child" in Path(f"/proc/{pid}/cmdline").read_bytes():
                yield len(os.listdir(f"/proc/{pid}/fd"))


def pages(count):
    """A TIFF of small pages, each of another level."""
    file = io.BytesIO()
    with tifffile.TiffWriter(file) as writer:
        for index in range(count):
            page = np.full((3, 5), index % 256, np.uint8)
            writer.write(page, metadata=None, contiguous=False, software=False)
    return file.getvalue()


def test_metadata_are_those_of_all_pages_together():
    """Pages may name the same bytes: what a file of them says is many times as large as it is."""
    profile = camera.icc("gray")
    file = io.BytesIO()
    with tifffile.TiffWriter(file) as writer:
        for _ in range(3):
            page = np.zeros((3, 5), np.uint8)
            writer.write(page, metadata=None, contiguous=False, software=False, iccprofile=profile)
    limits = Limits(max_metadata_bytes=2 * len(profile))
    with closing(Sandbox(1, limits, Policy())) as sandbox:
        opened = sandbox.file(file.getvalue())
        for page in (0, 1, 1):
            assert opened.decode(page).metadata.icc_profile == profile
        both = (
            rf"{3 * len(profile):,} bytes .* 3 pages, limit {2 * len(profile):,} \(limits.max_meta"
        )
        with pytest.raises(TooLargeError, match=both) as caught:
            opened.decode(2)
        assert caught.value.code == "metadata_too_large"


def test_a_file_of_many_pages_is_handed_over_once(tmp_path):
    """And the chain of its pages is followed once: each page costs as much as that of a few."""
    few, many = pages(100), pages(8000)
    limits = Limits(max_pages=10_000)
    with closing(Sandbox(1, limits, Policy())) as sandbox:
        took = {}
        for data in (few, many):
            file = sandbox.file(data)
            count = len(file.probe_pages())
            chosen = range(count // 20, count, count // 20 - 1)
            for index in chosen:  # a warm child, and the right pages
                found = file.decode(index)
                assert (found.facts.frames, *np.unique(found.pixels)) == (count, index % 256)
            times = []
            for index in chosen:
                start = time.monotonic()
                file.decode(index)
                times.append(time.monotonic() - start)
            took[count] = min(times)
            assert max(open_files_of_children()) < 12, "a map ends with its request"
        assert took[8000] < 3 * took[100], took


def test_no_child_can_change_a_file_for_the_next():
    shared = wire.Shared(b"pages")
    with pytest.raises(OSError, match="not permitted"):
        os.pwrite(shared.descriptor, b"x", 0)
    for size in (1, 99):
        with pytest.raises(OSError, match="not permitted"):
            os.truncate(shared.descriptor, size)
    assert os.pread(shared.descriptor, 9, 0) == b"pages"
    descriptor = shared.descriptor
    del shared
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(descriptor)


def test_everything_that_a_picture_is_arrives(sandbox):
    found = sandbox.decode(b"good:", page=7)
    assert (found.facts, found.metadata) == (hostile.FACTS, hostile.METADATA)
    assert found.warnings == hostile.WARNINGS
    assert found.pixels.dtype == np.uint16
    assert np.array_equal(found.pixels, np.full((5, 4, 3), 7))
    assert sandbox.probe(b"good:") == hostile.FACTS
    assert sandbox.probe_pages(b"good:") == (hostile.FACTS,) * 3
    for ask in (b"columns:", b"large:5000000"):
        what, _, rest = ask.partition(b":")
        assert np.array_equal(sandbox.decode(ask).pixels, getattr(hostile, what.decode())(rest))


@pytest.mark.parametrize(
    ("does", "error", "code", "said"),
    [
        (b"segfault:", DecodeError, "decoder_crash", "SIGSEGV"),
        (b"abort:", DecodeError, "decoder_crash", "SIGABRT"),
        (b"leave:3", DecodeError, "decoder_crash", "ended with 3"),
        (b"system_exit:", DecodeError, "decoder_crash", "ended with 3"),
        (b"killed:", TooLargeError, "decode_memory", "SIGKILL"),
        (b"eat:", TooLargeError, "decode_memory_limit", "268,435,456 (limits.decode_bytes)"),
        (b"raises:", DecodeError, "decode_failed", "RuntimeError: a codec's own"),
        (b"refuses:", DecodeError, "decode_failed", "as a decoder says it: ü"),
    ],
)
def test_each_end_costs_one_file_and_has_its_code(sandbox, does, error, code, said):
    found = failure(sandbox, does)
    assert (type(found), found.code) == (error, code)
    assert said in str(found)
    assert sandbox.probe(b"good:") == hostile.FACTS


def test_a_decoder_that_hangs_is_killed(impatient):
    start = time.monotonic()
    for read in ("decode", "probe"):
        found = failure(impatient, b"hang:", read)
        assert (found.code, found.transient) == ("decode_timeout", False)
        assert "limit 0.5 s (limits.decode_s)" in str(found)
    assert time.monotonic() - start < 30
    pid = told(impatient)["pid"]
    assert failure(impatient, b"closes:").code == "decoder_crash"
    assert ends(pid)
    assert impatient.probe(b"good:") == hostile.FACTS


def test_all_that_is_read_of_a_file_has_one_limit_of_time():
    with closing(Sandbox(1, Limits(decode_s=1), Policy(), decoder="hostile")) as sandbox:
        file = sandbox.file(b"slow:0.4")
        file.probe()
        with pytest.raises(TooLargeError, match=r"limit 1 s \(limits.decode_s") as caught:
            [file.decode(page) for page in range(2)]
        assert caught.value.code == "decode_timeout"
        assert failure(file, 0).code == "decode_timeout"
        assert sandbox.file(b"slow:0.4").probe() == hostile.FACTS


def test_pages_have_time_for_their_pixels():
    pixels = hostile.FACTS.width * hostile.FACTS.height
    limits = Limits(decode_s=2, max_input_pixels=pixels)
    with closing(Sandbox(1, limits, Policy(), decoder="hostile")) as sandbox:
        file = sandbox.file(b"slow:0.8")
        assert len(file.probe_pages()) == 3
        for page in range(3):
            assert file.decode(page).pixels.max() == page
        many = sandbox.file(b"slow:0.8")
        many.probe_pages()
        with pytest.raises(TooLargeError, match=r"limit 6 s \(limits.decode_s, for limits.max_in"):
            [many.decode(page) for page in range(7)]


@pytest.mark.parametrize(
    "answer",
    [
        b"<html>",
        FRAME.pack(2**31, 0),
        FRAME.pack(2, 0) + b"{}",
        FRAME.pack(2, 0) + b"17",
        FRAME.pack(4, 9) + b"null" + b"x" * 9,
        *(
            FRAME.pack(len(head), body) + head
            for body, head in (
                (2**60, b'{"samples": {"shape": [1073741824, 1073741824, 1], "dtype": "uint8"}}'),
                (8, b'{"samples": {"shape": [1, 1, 1], "dtype": "object"}}'),
                (9, b'{"samples": {"shape": [1, 1, 1], "dtype": "uint8"}}'),
                (0, b'{"facts": {"width": 1}, "metadata": {}}'),
                (0, b'{"error": {"type": "FatalError", "code": "decode_failed", "message": ""}}'),
                (0, b'{"error": {"type": "DecodeError", "code": "none", "message": ""}}'),
            )
        ),
    ],
)
def test_no_answer_of_a_child_does_more_than_fail_its_file(sandbox, answer):
    assert failure(sandbox, b"garbage:" + answer).code == "decoder_crash"


@pytest.mark.parametrize(
    "said",
    [
        *("width=0", "height='x'", "channels=5", "orientation=9", "pages"),
        *(
            "width=1.5",
            "frames=True",
            "stored_channels=-1",
            "mode=1",
            "format=None",
            "colour='red'",
            "alpha=[]",
        ),
    ],
)
def test_no_facts_are_taken_that_no_picture_has(sandbox, said):
    pages, (name, _, value) = [], said.partition("=")
    if value:
        wrong = {name: ast.literal_eval(value)}
        pages = [{f.name: getattr(hostile.FACTS, f.name) for f in fields(hostile.FACTS)} | wrong]
    head = json.dumps({"pages": pages, "facts": pages[0] if pages else {}}).encode()
    for read in ("probe", "probe_pages"):
        found = failure(sandbox, b"garbage:" + FRAME.pack(len(head), 0) + head, read)
        assert found.code == "decoder_crash"


def an_image(**wrong):
    """The head of a child's answer of one gray pixel."""
    facts = {f.name: getattr(hostile.FACTS, f.name) for f in fields(hostile.FACTS)}
    facts |= {"width": 1, "height": 1, "channels": 1, "bit_depth": 8}
    head = {"facts": facts | wrong.pop("facts", {}), "metadata": {}, "warnings": []}
    head |= {"samples": {"shape": [1, 1, 1], "dtype": "uint8"}} | wrong
    return json.dumps(head).encode()


def taken(said):
    head = wire.read(said)
    return wire.image_of(head, wire.samples_of(head, 1))


@pytest.mark.parametrize(
    "wrong",
    [
        {"facts": {"width": 9}},
        {"facts": {"channels": 4}},
        {"facts": {"bit_depth": 16}},
        *({"metadata": {"exif": value}} for value in ("text", 1, [1])),
        *({"metadata": {"dpi": value}} for value in ("x", [1], [1, "x"], [0, 1], [1e999, 1])),
        *({"warnings": value} for value in ([1], "text", None, {"a": 1})),
        {"samples": {"shape": [1, 1], "dtype": "uint8"}},
    ],
)
def test_no_picture_is_taken_that_is_not_what_its_facts_say(wrong):
    assert taken(an_image()).pixels.shape == (1, 1, 1)
    with pytest.raises((ValueError, TypeError)):
        taken(an_image(**wrong))


def test_a_picture_that_is_not_what_its_facts_say_costs_one_file(sandbox):
    for wrong, found in ({}, None), ({"metadata": {"exif": "text"}}, "decoder_crash"):
        said = an_image(**wrong)
        answer = b"garbage:" + FRAME.pack(len(said), 1) + said + b"\7"
        if found:
            assert failure(sandbox, answer).code == found
        else:
            assert sandbox.decode(answer).pixels.tolist() == [[[7]]]


def test_what_an_earlier_file_did_is_not_blamed_on_the_next(sandbox):
    first = sandbox.decode(b"poisons:")
    assert np.array_equal(sandbox.decode(b"victim:").pixels, first.pixels)


def test_codecs_print_nothing(capfd, sandbox):
    assert sandbox.probe(b"flood:") == hostile.FACTS
    assert capfd.readouterr() == ("", "")


def test_a_child_has_nothing_of_its_parent(sandbox, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    ours, theirs = os.pipe()
    os.set_inheritable(theirs, True)
    failure(sandbox, b"abort:")  # the next one starts now
    found = told(sandbox)
    os.close(ours)
    os.close(theirs)
    assert "secret" not in found["environment"].values()
    links = list(found["descriptors"].values())
    assert links[:3] == ["/dev/null"] * 3
    assert [link.partition(":")[0] for link in links[3:]] == ["socket"]
    astray = {"torch", "ray", "botocore", "fsspec", "pyarrow", "pydantic_settings", "yaml"}
    assert not astray & set(found["modules"]), "they take longer to import than to decode"
    assert found["ignored"] == [True, True]
    assert LIMITS.decode_s < found["processor_s"] < 2 * LIMITS.decode_s + 20
    most = {"RLIMIT_CORE": 0, "RLIMIT_FSIZE": 0, "RLIMIT_NPROC": 0, "RLIMIT_NOFILE": 64}
    assert {name: found["limits"][name] for name in most} == {
        name: [each, each] for name, each in most.items()
    }
    assert found["no_new_privileges"] == "1"


def test_children_outlive_the_threads_that_they_are_started_for(sandbox):
    failure(sandbox, b"abort:")
    pids = []
    for _ in range(2):
        thread = threading.Thread(target=lambda: pids.append(told(sandbox)["pid"]))
        thread.start()
        thread.join()
    assert pids[0] == pids[1]


def test_signals_for_the_run_are_not_for_the_children(sandbox):
    pid = told(sandbox)["pid"]
    for number in (signal.SIGINT, signal.SIGTERM):
        os.kill(pid, number)
    assert told(sandbox)["pid"] == pid


def test_many_threads_share_a_few_children():
    pids, hosts = [], ThreadPoolExecutor(12)
    with closing(Sandbox(2, LIMITS, Policy(), decoder="hostile")) as sandbox, hosts:

        def one(number):
            if number % 10 == 0:
                return failure(sandbox, b"abort:").code
            samples = sandbox.decode(f"large:{number * 1000}".encode()).pixels
            return samples.size == number * 1000 and samples[-1] == (number * 1000 - 1) % 2**16

        found = list(hosts.map(one, range(60)))
        assert [index for index, each in enumerate(found) if each == "decoder_crash"] == list(
            range(0, 60, 10)
        )
        assert all(found)
        pids = {told(sandbox)["pid"] for _ in range(5)}
        assert len(pids) == 1, "one at a time, one child: the last that was free"
    assert all(ends(pid) for pid in pids)


def test_children_are_replaced_now_and_then():
    with closing(Sandbox(1, LIMITS, Policy(), decoder="hostile", lifetime=3)) as sandbox:
        pids = [told(sandbox)["pid"] for _ in range(7)]
    assert [pids.count(pid) for pid in dict.fromkeys(pids)] == [3, 3, 1]


def test_a_forgotten_sandbox_leaves_no_process():
    sandbox = Sandbox(1, LIMITS, Policy(), decoder="hostile")
    pid = told(sandbox)["pid"]
    del sandbox
    gc.collect()
    assert ends(pid)


def test_a_closed_sandbox_decodes_nothing():
    sandbox = Sandbox(1, LIMITS, Policy(), decoder="hostile")
    pid = told(sandbox)["pid"]
    sandbox.close()
    assert ends(pid)
    with pytest.raises(RuntimeError, match="closed"):
        sandbox.probe(b"good:")


def test_where_no_child_starts_the_run_ends_and_says_why():
    with closing(Sandbox(1, LIMITS, Policy(), decoder="no_such_module")) as sandbox:
        for _ in range(2):
            with pytest.raises(FatalError, match=r"status 1.*No module named 'no_such_module'"):
                sandbox.probe(b"good:")


@pytest.fixture
def starved(tmp_path, monkeypatch):
    """Makes a sandbox whose first processes end, in these ways, before they greet."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    with ExitStack() as opened:

        def make(*ways):
            (tmp_path / "starts").write_text(" ".join(ways))
            pauses = {"start_pauses_s": (0.1, 0.1)}
            one = Sandbox(1, LIMITS, Policy(), decoder="starved", **pauses)
            return opened.enter_context(closing(one))

        yield make


def test_a_start_that_finds_no_memory_is_tried_again(starved):
    assert starved("killed", "refused").probe(b"good:") == hostile.FACTS


@pytest.mark.parametrize(("way", "said"), [("killed", "status -9"), ("refused", "MemoryError")])
def test_a_node_without_memory_costs_the_file_and_not_the_run(starved, way, said):
    sandbox = starved(way, way, way)
    found = failure(sandbox, b"good:")
    assert (type(found), found.code, found.transient) == (TooLargeError, "decode_memory", True)
    assert re.search(rf"does not start .*{said}.*; tried 3 times", str(found))
    assert sandbox.probe(b"good:") == hostile.FACTS, "another night, or the next file"


def test_what_is_no_matter_of_memory_ends_the_run_at_once(starved, tmp_path):
    with pytest.raises(FatalError, match="no module named codec"):
        starved("killed", "broken", "killed").probe(b"good:")
    assert (tmp_path / "starts").read_text() == "killed"


def test_a_fork_that_the_system_refuses_is_tried_again():
    """EAGAIN, by a limit on the user's processes. Root has no such limit."""
    program = """
    import json, os, resource, sys
    from pipeline.config import Limits, Policy
    from pipeline.errors import ItemError
    from pipeline.images.sandbox import Sandbox

    def told(sandbox):
        try:
            sandbox.probe(b"tells:")
        except ItemError as error:
            return error.code, str(error)

    sandbox = Sandbox(1, Limits(), Policy(), decoder="hostile", start_pauses_s=(0.2, 0.2))
    os.kill(json.loads(told(sandbox)[1])["pid"], 9)
    if os.geteuid() == 0:
        os.setuid(65534)
    _, hard = resource.getrlimit(resource.RLIMIT_NPROC)
    resource.setrlimit(resource.RLIMIT_NPROC, (0, hard))
    told(sandbox)  # of the one that was killed
    print(*told(sandbox), flush=True)
    resource.setrlimit(resource.RLIMIT_NPROC, (hard, hard))
    if os.access(sys.executable, os.X_OK):
        print(*told(sandbox), flush=True)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    refused, *later = done.stdout.splitlines()
    assert refused.startswith("decode_memory a decoder process does not start (Resource temp")
    assert refused.endswith("tried 3 times")
    assert all(line.startswith("decode_failed") for line in later)


def test_a_killed_parent_leaves_no_child():
    """Neither an idle one, nor one that looks at its pipe no more."""
    program = """
    import threading, time
    from pipeline.config import Limits, Policy
    from pipeline.errors import ItemError
    from pipeline.images.sandbox import Sandbox

    sandbox = Sandbox(2, Limits(), Policy(), decoder="hostile")

    def tell():
        try:
            sandbox.probe(b"tells:")
        except ItemError as error:
            print(str(error), flush=True)

    tell()
    threading.Thread(target=sandbox.probe, args=(b"hang:",)).start()
    time.sleep(0.5)
    tell()
    time.sleep(100)
    """
    parent = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
    )
    with parent:
        pids = [json.loads(parent.stdout.readline())["pid"] for _ in range(2)]
        assert len(set(pids)) == 2
        assert all(map(alive, pids))
        os.kill(parent.pid, signal.SIGKILL)
    assert all(ends(pid, within=2) for pid in pids)
