"""From what a person types to verified files on a node, against a web server on the loopback."""

import hashlib
import io
import json
import os
import pickle
import shutil
import subprocess
import sys
import threading
import time
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from fnmatch import fnmatch
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import safetensors
import torch
import yaml

from pipeline.errors import ConfigError
from pipeline.models import checkpoints, layouts, zoo
from pipeline.models.files import ModelFile
from pipeline.models.srvgg import SRVGGNetCompact, SRVGGShape
from pipeline.models.zoo import ZOO, ModelSpec
from pipeline.storage import Store

ROOT = Path(__file__).parents[2]
STORE = Store()
SHAPE = SRVGGShape(features=4, convs=1, scale=2)


def weights_file(seed: int = 0, shape: SRVGGShape = SHAPE) -> bytes:
    torch.manual_seed(seed)
    file = io.BytesIO()
    torch.save({"params": SRVGGNetCompact(shape).state_dict()}, file)
    return file.getvalue()


WEIGHTS = weights_file()
SHA256 = hashlib.sha256(WEIGHTS).hexdigest()


def spec_of(*uris: str, data: bytes = WEIGHTS) -> ModelSpec:
    sha256 = hashlib.sha256(data).hexdigest()
    file = ModelFile(name="small.pth", uris=uris, sha256=sha256, bytes=len(data))
    return ModelSpec(name="small", files=(file,), scale=2)


# ---------------------------------------------------------------------------------------- facts


OURS = ZOO["remaster-compact-x4"]
RELEASED = {name: entry for name, entry in ZOO.items() if entry is not OURS}


def test_the_zoo_is_consistent() -> None:
    assert len(ZOO) == 10
    assert len({entry.sha256 for entry in ZOO.values()}) == 10
    for name, entry in RELEASED.items():
        assert entry.name == name
        assert entry.file == f"{name}.pth"
        assert entry.uri.startswith("https://github.com/xinntao/Real-ESRGAN/releases/download/v0.")
        assert len(bytes.fromhex(entry.sha256)) == 32
        assert entry.licence == "BSD-3-Clause"
        # A file is its float32 weights and 4 to 60 KB of names.
        assert 2_000 < entry.bytes - 4 * entry.parameters < 300_000


def test_the_model_in_the_box_needs_nothing_but_the_package(tmp_path: Path) -> None:
    """Wherever it is installed, in whichever directory, without a cache."""
    script = f"""if True:
        import pickle, sys
        from pathlib import Path
        from pipeline.models import zoo
        from pipeline.storage import Store
        spec = pickle.loads(bytes.fromhex(sys.argv[1]))
        net = zoo.load_generator(spec, store=Store(), cache_dir={str(tmp_path / "cache")!r})
        assert net.shape.scale == 4
        assert sum(p.numel() for p in net.parameters()) == {OURS.parameters}
        print(*zoo.materialise(spec, store=Store(), cache_dir="/nowhere"))
    """
    installed = tmp_path / "elsewhere"
    shutil.copytree(ROOT / "pipeline", installed / "pipeline")
    spec = pickle.dumps(zoo.resolve(OURS.name, store=STORE)).hex()
    made = subprocess.run(
        [sys.executable, "-c", script, spec],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(installed)},
        check=True,
        capture_output=True,
        text=True,
    )
    path = Path(made.stdout.strip())
    assert path.parent == installed / "pipeline/models/weights"
    assert path.stat().st_size == OURS.bytes <= 1_500_000
    assert not (tmp_path / "cache").exists()


def test_the_model_in_the_box_says_what_it_is() -> None:
    (path,) = zoo.materialise(
        zoo.resolve(OURS.name, store=STORE), store=STORE, cache_dir="/nowhere"
    )
    with safetensors.safe_open(path, "pt") as file:
        said = file.metadata()
    assert said["architecture"] == '"SRVGGNetCompact"'
    assert OURS.licence == said["licence"] == "Apache-2.0"
    asked = yaml.safe_load((ROOT / "configs" / "train" / "compact-x4-large.yaml").read_text())
    made = yaml.safe_load(said["recipe"])
    assert {"stage", "generator", "batch", "adam", "degradation"} <= asked.keys() & made.keys()
    assert contains(made, {name: asked[name] for name in asked.keys() & made.keys()})
    card = path.with_suffix(".md").read_text()
    assert OURS.sha256 in card
    assert said["step"] in card.replace(",", "")
    assert str(ROOT) not in repr(said)


def test_a_wheel_has_the_model_in_the_box() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    wanted = settings["package-data"]["pipeline"]
    assert any(fnmatch(f"models/weights/{OURS.file}", pattern) for pattern in wanted)


def contains(made: object, asked: object) -> bool:
    """Whether all that is asked for is so in what was made, which has defaults besides."""
    if isinstance(made, dict) and isinstance(asked, dict):
        return all(contains(made[name], value) for name, value in asked.items())
    return made == asked


SHAPES = {
    "RRDBNet 64/23": layouts.RRDBNetShape(),
    "RRDBNet 64/6": layouts.RRDBNetShape(blocks=6),
    "SRVGG 64/16": SRVGGShape(convs=16),
    "SRVGG 64/32": SRVGGShape(convs=32),
}


@pytest.mark.parametrize("name", ZOO)
def test_architecture_scale_and_parameters_fit_together(name: str) -> None:
    entry = ZOO[name]
    shape = SHAPES[entry.architecture]
    if isinstance(shape, SRVGGShape):
        shape = replace(shape, scale=entry.scale)
    elif entry.scale == 2:
        shape = replace(shape, unshuffle=2)
    network = layouts.build_empty(shape)
    assert shape.scale == entry.scale
    assert sum(parameter.numel() for parameter in network.parameters()) == entry.parameters


def test_table_lists_every_model_in_columns() -> None:
    heading, *lines = zoo.table().splitlines()
    assert [line.split()[0] for line in lines] == list(ZOO)
    start = heading.index("LICENCE")
    assert lines[0][start:].startswith("Apache-2.0")
    assert all(line[start:].startswith("BSD-3-Clause") for line in lines[1:])
    assert "realesr-animevideov3          x4     SRVGG 64/16       621,424   2.5" in zoo.table()


def test_importing_the_zoo_does_not_import_torch() -> None:
    script = "import sys, pipeline.models.zoo; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True)


@pytest.mark.parametrize(
    ("variable", "folder"), [("/x/cache", "/x/cache"), ("", "/home/me/.cache")]
)
def test_cache_is_where_the_desktop_standard_says(
    variable: str, folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", variable)
    monkeypatch.setenv("HOME", "/home/me")
    assert zoo.default_cache_dir() == Path(folder) / "remaster/models"


# -------------------------------------------------------------------------------------- resolving


def test_a_zoo_name_is_resolved_by_facts_alone() -> None:
    entry = ZOO["RealESRGAN_x2plus"]
    spec = zoo.resolve("RealESRGAN_x2plus", store=STORE)
    assert (spec.name, spec.scale, spec.licence) == ("RealESRGAN_x2plus", 2, "BSD-3-Clause")
    assert spec.sha256 == entry.sha256
    assert spec.files == (
        ModelFile(
            name="RealESRGAN_x2plus.pth",
            uris=(entry.uri,),
            sha256=entry.sha256,
            bytes=67_061_725,
        ),
    )
    assert spec == pickle.loads(pickle.dumps(spec))
    assert hash(spec) == hash(pickle.loads(pickle.dumps(spec)))


@pytest.mark.parametrize(
    ("models_uri", "first"),
    [
        ("s3://bucket/models/", "s3://bucket/models/RealESRGAN_x4plus.pth"),
        ("/models", "/models/RealESRGAN_x4plus.pth"),
        ("file:///models", "/models/RealESRGAN_x4plus.pth"),
    ],
)
def test_models_uri_is_looked_in_first(models_uri: str, first: str) -> None:
    spec = zoo.resolve("RealESRGAN_x4plus", store=STORE, models_uri=models_uri)
    assert spec.files[0].uris == (first, ZOO["RealESRGAN_x4plus"].uri)
    plain = zoo.resolve("RealESRGAN_x4plus", store=STORE)
    assert zoo.resolve("RealESRGAN_x4plus", store=STORE, models_uri="") == plain


def test_denoise_blends_the_two_general_models() -> None:
    general, weak = ZOO["realesr-general-x4v3"], ZOO["realesr-general-wdn-x4v3"]
    spec = zoo.resolve("realesr-general-x4v3", store=STORE, denoise=0.25)
    assert [file.sha256 for file in spec.files] == [general.sha256, weak.sha256]
    assert spec.weights == (0.25, 0.75)
    shares = f'[["{general.sha256}",0.25],["{weak.sha256}",0.75]]'
    assert spec.sha256 == hashlib.sha256(shares.encode()).hexdigest()
    assert spec.sha256 != zoo.resolve("realesr-general-x4v3", store=STORE, denoise=0.5).sha256


def test_the_ends_of_denoise_are_single_files() -> None:
    plain = zoo.resolve("realesr-general-x4v3", store=STORE)
    assert zoo.resolve("realesr-general-x4v3", store=STORE, denoise=1) == plain
    weak = zoo.resolve("realesr-general-x4v3", store=STORE, denoise=0)
    assert weak.sha256 == ZOO["realesr-general-wdn-x4v3"].sha256


@pytest.mark.parametrize("denoise", [-0.1, 1.1, float("nan")])
def test_denoise_outside_its_range_is_refused(denoise: float) -> None:
    with pytest.raises(ConfigError, match=f"strength from 0 to 1, not {denoise}"):
        zoo.resolve("realesr-general-x4v3", store=STORE, denoise=denoise)


@pytest.mark.parametrize("model", ["RealESRGAN_x4plus", "realesr-general-wdn-x4v3", "a/b.pth"])
def test_denoise_of_another_model_is_refused(model: str) -> None:
    with pytest.raises(ConfigError, match=rf"realesr-general-x4v3 alone, not of {model}"):
        zoo.resolve(model, store=STORE, denoise=0.5)


@pytest.mark.parametrize(
    ("model", "hint"),
    [
        ("realesrgan_x4plus", "did you mean RealESRGAN_x4plus or "),
        ("RealESRGAN-x2plus.pth", "did you mean RealESRGAN_x2plus or "),
        ("animevideov3", "did you mean realesr-animevideov3"),
        ("zzz", "'zzz' is no file here and no model of the zoo; `python jobs/models.py list`"),
    ],
)
def test_an_unknown_name_is_refused_with_the_closest(model: str, hint: str) -> None:
    with pytest.raises(ConfigError, match=hint) as raised:
        zoo.resolve(model, store=STORE)
    assert "`python jobs/models.py list` lists them" in str(raised.value)


def test_a_checkpoint_of_ones_own_is_pinned_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine").write_bytes(WEIGHTS)
    monkeypatch.chdir(tmp_path)
    for model in ("mine", "./mine", str(tmp_path / "mine"), f"file://{tmp_path}/mine"):
        spec = zoo.resolve(model, store=STORE)
        assert (spec.sha256, spec.scale, spec.licence) == (SHA256, None, "unknown")
        assert spec.files[0].bytes == len(WEIGHTS)
        assert spec.files[0].uris[0] == str(tmp_path / "mine")
        assert zoo.resolve(model, store=STORE, model_sha256=SHA256.upper()) == spec


def test_a_checkpoint_on_an_object_store_is_read_through_the_store() -> None:
    STORE.publish("memory://models/mine.pth", WEIGHTS)
    spec = zoo.resolve("memory://models/mine.pth", store=STORE)
    assert spec.sha256 == SHA256
    assert spec.files[0] == ModelFile(
        name="mine.pth", uris=("memory://models/mine.pth",), sha256=SHA256, bytes=len(WEIGHTS)
    )


def test_a_pinned_remote_checkpoint_is_left_to_the_nodes() -> None:
    spec = zoo.resolve("memory://models/later.pth", store=STORE, model_sha256=SHA256)
    assert (spec.sha256, spec.files[0].bytes) == (SHA256, None)


def test_another_hash_than_the_pinned_is_refused_with_both(tmp_path: Path) -> None:
    (tmp_path / "mine.pth").write_bytes(WEIGHTS)
    other = "0" * 64
    for model in (str(tmp_path / "mine.pth"), "RealESRGAN_x4plus"):
        found = SHA256 if "/" in model else ZOO[model].sha256
        with pytest.raises(ConfigError, match=f"has sha256 {found}, wanted is {other}"):
            zoo.resolve(model, store=STORE, model_sha256=other)
    with pytest.raises(ConfigError, match="model_sha256 must be 64 hexadecimal digits, not '12'"):
        zoo.resolve("RealESRGAN_x4plus", store=STORE, model_sha256="12")


@pytest.mark.parametrize(
    "model", ["models/none.pth", "/none.safetensors", "memory://models/none.pth", "none.yaml"]
)
def test_a_model_that_does_not_exist_is_refused(model: str) -> None:
    with pytest.raises(ConfigError, match=r"^no model at \S*none\.\w+$"):
        zoo.resolve(model, store=STORE)


def test_a_folder_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read .*: Is a directory"):
        zoo.resolve(str(tmp_path), store=STORE)


def test_credentials_in_a_uri_do_not_reach_names_and_messages() -> None:
    with pytest.raises(ConfigError) as raised:
        zoo.resolve("memory://me:secret@models/none.pth", store=STORE)
    assert "secret" not in str(raised.value)


# -------------------------------------------------------------------------------------- model YAML


def write_yaml(path: Path, **values: object) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return str(path)


def test_a_yaml_states_what_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights/mine.pth").write_bytes(WEIGHTS)
    values = {
        "architecture": "srvggnetcompact",
        "features": 4,
        "scale": 2,
        "checkpoint": "../weights/mine.pth",
        "sha256": SHA256,
        "licence": "CC-BY-4.0",
    }
    model = write_yaml(tmp_path / "configs/mine.yaml", **values)
    spec = zoo.resolve(model, store=STORE)
    assert spec.name == model
    assert (spec.sha256, spec.licence, spec.scale) == (SHA256, "CC-BY-4.0", 2)
    assert dict(spec.stated) == {"architecture": "SRVGGNetCompact", "features": 4, "scale": 2}
    assert hash(spec) == hash(pickle.loads(pickle.dumps(spec)))
    network = zoo.load_generator(spec, store=STORE, cache_dir=tmp_path / "cache")
    assert network.shape == SHAPE
    monkeypatch.chdir(tmp_path / "configs")
    relative = zoo.resolve("mine.yaml", store=STORE)
    assert relative.files[0].uris == (str(tmp_path / "weights/mine.pth"), "../weights/mine.pth")


def test_a_yaml_beside_its_checkpoint_on_an_object_store() -> None:
    STORE.publish("memory://zoo/mine.pth", WEIGHTS)
    STORE.publish("memory://zoo/mine.yml", b"checkpoint: mine.pth\nupsampling: [2, 2]\n")
    spec = zoo.resolve("memory://zoo/mine.yml", store=STORE)
    assert spec.files[0].uris == ("memory://zoo/mine.pth",)
    assert (spec.sha256, spec.stated) == (SHA256, (("upsampling", (2, 2)),))
    assert (spec.licence, spec.scale) == ("unknown", None)


def test_a_contradiction_between_yaml_and_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.pth").write_bytes(WEIGHTS)
    model = write_yaml(tmp_path / "mine.yaml", checkpoint="mine.pth", scale=4)
    spec = zoo.resolve(model, store=STORE)
    with pytest.raises(ConfigError, match="scale: 4 is stated, 2 is in the file"):
        zoo.load_generator(spec, store=STORE, cache_dir=tmp_path)


def test_hashes_of_yaml_command_line_and_file_must_agree(tmp_path: Path) -> None:
    (tmp_path / "mine.pth").write_bytes(WEIGHTS)
    other = "a" * 64
    wrong = write_yaml(tmp_path / "wrong.yaml", checkpoint="mine.pth", sha256=other)
    with pytest.raises(ConfigError, match=f"mine.pth has sha256 {SHA256}, wanted is {other}"):
        zoo.resolve(wrong, store=STORE)
    remote = write_yaml(tmp_path / "remote.yaml", checkpoint="memory://x/y.pth", sha256=SHA256)
    with pytest.raises(ConfigError, match=f"yaml has sha256 {SHA256}, wanted is {other}"):
        zoo.resolve(remote, store=STORE, model_sha256=other)
    assert zoo.resolve(remote, store=STORE).sha256 == SHA256


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1", "while parsing a flow sequence"),
        ("\x00", "unacceptable character"),
        ("- 1\n", "holds no keys but list"),
        ("", "holds no keys but NoneType"),
        ("licence: MIT\n", "checkpoint must be a path or URI, not None"),
        ("checkpoint: 5\n", "checkpoint must be a path or URI, not 5"),
        ("checkpoint: a.pth\nnum_block: 23\n", "unknown num_block; there are activation, arch"),
        ("checkpoint: a.pth\narchitecture: EDSR\n", "architecture 'EDSR' is none of RRDBNet"),
        ("checkpoint: a.pth\nsha256: 12\n", "sha256 must be 64 hexadecimal digits, not 12"),
        ("checkpoint: none.pth\n", r"no model at /.*/none\.pth"),
    ],
)
def test_a_broken_yaml_is_refused(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "broken.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=message):
        zoo.resolve(str(tmp_path / "broken.yaml"), store=STORE)


# ------------------------------------------------------------------------------ files of the node


def test_local_files_are_used_where_they_are(tmp_path: Path) -> None:
    (tmp_path / "mine.pth").write_bytes(WEIGHTS)
    spec = zoo.resolve(str(tmp_path / "mine.pth"), store=STORE)
    cache = tmp_path / "cache"
    assert zoo.materialise(spec, store=STORE, cache_dir=cache) == [tmp_path / "mine.pth"]
    assert not cache.exists()


def test_a_relative_path_also_means_the_nodes_own_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when Ray unpacks the job's folder elsewhere on the worker's node."""
    for folder in ("driver", "worker"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "mine.pth").write_bytes(WEIGHTS)
    monkeypatch.chdir(tmp_path / "driver")
    spec = zoo.resolve("mine.pth", store=STORE)
    (tmp_path / "driver/mine.pth").unlink()
    monkeypatch.chdir(tmp_path / "worker")
    paths = zoo.materialise(spec, store=STORE, cache_dir=tmp_path / "cache")
    assert paths == [tmp_path / "worker/mine.pth"]


def test_a_file_changed_since_it_was_resolved_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.pth").write_bytes(WEIGHTS)
    spec = zoo.resolve(str(tmp_path / "mine.pth"), store=STORE)
    (tmp_path / "mine.pth").write_bytes(weights_file(seed=1))
    other = hashlib.sha256(weights_file(seed=1)).hexdigest()
    with pytest.raises(ConfigError, match=f"has sha256 {other}, wanted is {SHA256}"):
        zoo.materialise(spec, store=STORE, cache_dir=tmp_path / "cache")


@pytest.mark.parametrize("kind", ["folder", "store"])
def test_another_file_in_the_models_folder_is_refused_not_skipped(
    kind: str, tmp_path: Path
) -> None:
    models_uri = {"folder": str(tmp_path), "store": "memory://wrong"}[kind]
    STORE.publish(f"{models_uri}/realesr-animevideov3.pth", WEIGHTS)
    spec = zoo.resolve("realesr-animevideov3", store=STORE, models_uri=models_uri)
    wanted = ZOO["realesr-animevideov3"].sha256
    with pytest.raises(ConfigError, match=f"has sha256 {SHA256}, wanted is {wanted}"):
        zoo.materialise(spec, store=STORE, cache_dir=tmp_path / "cache")
    assert not list((tmp_path / "cache").rglob("*.pth"))


def test_a_store_is_read_once_per_node(tmp_path: Path) -> None:
    STORE.publish("memory://once/small.pth", WEIGHTS)
    spec = spec_of("memory://once/small.pth")
    (path,) = zoo.materialise(spec, store=STORE, cache_dir=tmp_path)
    assert path == tmp_path / SHA256 / "small.pth"
    assert path.read_bytes() == WEIGHTS
    STORE.publish("memory://once/small.pth", b"another file by now")
    assert zoo.materialise(spec, store=STORE, cache_dir=tmp_path) == [path]


def test_a_damaged_cache_is_replaced(tmp_path: Path) -> None:
    STORE.publish("memory://again/small.pth", WEIGHTS)
    spec = spec_of("memory://again/small.pth")
    (path,) = zoo.materialise(spec, store=STORE, cache_dir=tmp_path)
    path.write_bytes(WEIGHTS[:-1])
    assert zoo.materialise(spec, store=STORE, cache_dir=tmp_path) == [path]
    assert path.read_bytes() == WEIGHTS


def test_a_missing_models_file_falls_through_to_the_next_place(tmp_path: Path) -> None:
    STORE.publish("memory://second/small.pth", WEIGHTS)
    spec = spec_of("/none/small.pth", "memory://first/small.pth", "memory://second/small.pth")
    (path,) = zoo.materialise(spec, store=STORE, cache_dir=tmp_path)
    assert path.read_bytes() == WEIGHTS


def test_a_file_that_is_nowhere_is_refused_with_all_places(tmp_path: Path) -> None:
    spec = spec_of("/none/small.pth", "memory://nowhere/small.pth")
    message = r"no small.pth at /none/small.pth nor at memory://nowhere/small.pth; .* REMASTER_MODE"
    with pytest.raises(ConfigError, match=message):
        zoo.materialise(spec, store=STORE, cache_dir=tmp_path)


class LockedStore(Store):
    """Refuses to hand out anything."""

    def read(self, uri: str, **_: object) -> bytes:
        raise PermissionError(13, "Access Denied", uri)


def test_a_store_that_refuses_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"read memory://x/small\.pth: Access Denied"):
        zoo.materialise(spec_of("memory://x/small.pth"), store=LockedStore(), cache_dir=tmp_path)


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    STORE.publish("memory://cache/small.pth", WEIGHTS)
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"cannot keep weights in .*/file/cache: Not a directory"):
        zoo.materialise(
            spec_of("memory://cache/small.pth"), store=STORE, cache_dir=tmp_path / "file/cache"
        )


# ----------------------------------------------------------------------------------- downloading


@dataclass
class Web:
    """A web server that answers as it is told, one answer per request, the last one for ever."""

    answers: list[str]
    requests: int = 0
    body: bytes = WEIGHTS
    lock: threading.Lock = field(default_factory=threading.Lock)
    url: str = ""
    delay_s: float = 0.0

    def next_answer(self) -> str:
        with self.lock:
            self.requests += 1
            return self.answers[min(self.requests, len(self.answers)) - 1]


def handler(web: Web) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answer, body = web.next_answer(), web.body
            time.sleep(web.delay_s)
            if answer.isdigit():
                self.send_error(int(answer))
                return
            if answer == "redirect":
                self.send_response(302)
                self.send_header("Location", "/elsewhere.pth")
                self.end_headers()
                return
            if answer == "other":
                body = weights_file(seed=1)
            if answer == "endless":
                body = body + b"x"
            self.send_response(200)
            if answer != "unannounced":
                self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            cut = answer in ("cut", "unannounced") and web.requests == 1
            self.wfile.write(body[: len(body) // 2] if cut else body)

        def log_message(self, *_: object) -> None:
            pass

    return Handler


@pytest.fixture
def web(monkeypatch: pytest.MonkeyPatch) -> Iterator[Web]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    made = Web(["ok"])
    with ThreadingHTTPServer(("127.0.0.1", 0), handler(made)) as server:
        made.url = f"http://127.0.0.1:{server.server_address[1]}/small.pth"
        serving = threading.Thread(target=server.serve_forever, args=(0.02,))
        serving.start()
        yield made
        server.shutdown()
        serving.join()


def left_in(folder: Path) -> list[str]:
    """All files below, but locks."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock")
    return sorted(str(path.relative_to(folder)) for path in files)


@pytest.mark.parametrize(
    ("answers", "requests"),
    [
        (["ok"], 1),
        (["redirect", "ok"], 2),
        (["503", "ok"], 2),
        (["cut", "ok"], 2),
        (["unannounced", "ok"], 2),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, list) else "",
)
def test_a_download_survives_what_time_cures(
    answers: list[str], requests: int, web: Web, tmp_path: Path
) -> None:
    web.answers = answers
    (path,) = zoo.materialise(spec_of(web.url), store=STORE, cache_dir=tmp_path)
    assert path.read_bytes() == WEIGHTS
    assert web.requests == requests
    assert left_in(tmp_path) == [f"{SHA256}/small.pth"]
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask()


def umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


@pytest.mark.parametrize(
    ("answer", "requests", "message"),
    [
        ("other", 1, "has sha256 [0-9a-f]{64}, wanted is " + SHA256),
        ("endless", 1, f"has more than the {len(WEIGHTS):,} bytes expected"),
        ("403", 1, "cannot download http://127.0.0.1:[0-9]+/small.pth: HTTP status 403 Forbidden$"),
        ("404", 1, "there is no small.pth at http://127.0.0.1"),
        ("500", 4, "HTTP status 500 .* at the last of 4 attempts; .* into REMASTER_MODELS"),
    ],
)
def test_a_download_that_cannot_succeed_leaves_nothing(
    answer: str, requests: int, message: str, web: Web, tmp_path: Path
) -> None:
    web.answers = [answer]
    with pytest.raises(ConfigError, match=message):
        zoo.materialise(spec_of(web.url), store=STORE, cache_dir=tmp_path)
    assert web.requests == requests
    assert left_in(tmp_path) == []


def test_a_checkpoint_on_the_web_is_hashed_and_fetched(web: Web, tmp_path: Path) -> None:
    spec = zoo.resolve(web.url, store=STORE)
    assert (spec.sha256, spec.files[0].bytes, spec.files[0].name) == (
        *(SHA256, len(WEIGHTS), "small.pth"),
    )
    assert zoo.load_generator(spec, store=STORE, cache_dir=tmp_path).shape == SHAPE


MATERIALISE = """
import pickle, sys
from pipeline.models import zoo
from pipeline.storage import Store
spec, cache_dir = pickle.loads(bytes.fromhex(sys.argv[1]))
print(zoo.materialise(spec, store=Store(), cache_dir=cache_dir)[0])
"""


def test_processes_of_a_node_download_once(web: Web, tmp_path: Path) -> None:
    web.delay_s = 0.3
    argument = pickle.dumps((spec_of(web.url), tmp_path)).hex()
    command = [sys.executable, "-c", MATERIALISE, argument]
    started = [
        subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(4)
    ]
    paths = {process.communicate()[0].strip() for process in started}
    assert paths == {str(tmp_path / SHA256 / "small.pth")}
    assert [process.returncode for process in started] == [0] * 4
    assert web.requests == 1
    assert left_in(tmp_path) == [f"{SHA256}/small.pth"]
    assert (tmp_path / SHA256 / "small.pth").read_bytes() == WEIGHTS


# ------------------------------------------------------------------------------------ generators


def test_a_blend_is_loaded_from_its_files(tmp_path: Path) -> None:
    files = []
    for seed in (0, 1):
        data = weights_file(seed)
        path = tmp_path / f"{seed}.pth"
        path.write_bytes(data)
        files += zoo.resolve(str(path), store=STORE).files
    spec = ModelSpec(name="blend", files=tuple(files), weights=(0.25, 0.75))
    network = zoo.load_generator(spec, store=STORE, cache_dir=tmp_path)
    one, two = (checkpoints.load(weights_file(seed)).state_dict for seed in (0, 1))
    for name, made in network.state_dict().items():
        assert torch.equal(made, 0.25 * one[name] + 0.75 * two[name])


def test_files_of_different_networks_do_not_blend(tmp_path: Path) -> None:
    (tmp_path / "0.pth").write_bytes(weights_file(0))
    (tmp_path / "1.pth").write_bytes(weights_file(1, replace(SHAPE, convs=2)))
    files = [zoo.resolve(str(tmp_path / f"{n}.pth"), store=STORE).files[0] for n in (0, 1)]
    spec = ModelSpec(name="blend", files=tuple(files), weights=(0.5, 0.5))
    with pytest.raises(ConfigError, match="cannot blend different networks"):
        zoo.load_generator(spec, store=STORE, cache_dir=tmp_path)


def test_what_is_no_checkpoint_is_refused_by_its_path(tmp_path: Path) -> None:
    (tmp_path / "page.pth").write_bytes(b"<html>Sign in</html>")
    spec = zoo.resolve(str(tmp_path / "page.pth"), store=STORE)
    with pytest.raises(ConfigError, match=r"page\.pth: not a checkpoint but an HTML or XML page"):
        zoo.load_generator(spec, store=STORE, cache_dir=tmp_path)


def test_identity_of_a_blend_is_canonical_json() -> None:
    spec = zoo.resolve("realesr-general-x4v3", store=STORE, denoise=0.1)
    shares = [[file.sha256, weight] for file, weight in zip(spec.files, spec.weights, strict=True)]
    text = json.dumps(shares, separators=(",", ":"))
    assert spec.weights == (0.1, 0.9)
    assert spec.sha256 == hashlib.sha256(text.encode()).hexdigest()
