"""What there is to train on, however it is named."""

import io
import pickle
import tarfile

import numpy as np
import PIL.Image
import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import ConfigError
from pipeline.storage import Store
from pipeline.training.config import TrainConfig
from pipeline.training.pictures import File, UnusableError, find, read_rgb

NAMES = ["a.png", "b/c.png", "b/d.jpg"]
exact = settings(deadline=None, derandomize=True, max_examples=20)


def asked(images, **values):
    return TrainConfig.load(None, {"images": str(images), "output": "/elsewhere", **values})


def uris(files):
    return [file.uri for file in files]


def touch(folder, *names):
    """Files of these names; finding them reads none."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


@pytest.fixture
def folder(tmp_path):
    return touch(tmp_path / "high", *NAMES, "notes.md", ".hidden.png")


def as_folder(folder):
    return asked(folder)


def as_glob(folder):
    return asked(f"{folder}/**")


def as_list(folder):
    file = folder.parent / "meta_info.txt"
    file.write_bytes(b"\xef\xbb\xbfb/d.jpg (480,480,3)\r\na.png\r\n\r\nb/c.png\n")
    return asked(file, root=str(folder))


def as_csv(folder):
    file = folder.parent / "m.csv"
    file.write_text("uri,note\nhigh/b/d.jpg,x\nhigh/a.png,\nhigh/b/c.png,y\n")
    return asked(file)


def as_jsonl(folder):
    file = folder.parent / "m.jsonl"
    file.write_text("".join(f'{{"uri": "{folder}/{name}"}}\n' for name in reversed(NAMES)))
    return asked(file)


def as_parquet(folder):
    file = folder.parent / "m.parquet"
    pyarrow.parquet.write_table(pa.table({"uri": [f"{folder}/{name}" for name in NAMES]}), file)
    return asked(file)


@pytest.mark.parametrize("named", [as_folder, as_glob, as_list, as_csv, as_jsonl, as_parquet])
def test_all_ways_to_name_pictures_find_the_same(folder, named):
    found = find(named(folder))
    assert uris(found.targets) == [f"{folder}/{name}" for name in NAMES]
    assert found.inputs is None
    assert len(found) == 3
    assert pickle.loads(pickle.dumps(found)) == found


@exact
@given(lines=st.permutations(["c, x", "a, z", "b, y"]))
def test_the_order_of_a_list_changes_nothing(tmp_path_factory, lines):
    root = touch(tmp_path_factory.mktemp("root"), *"abcxyz")
    (root / "list.txt").write_text("\n".join(lines))
    found = find(asked(root / "list.txt", root=str(root)))
    assert uris(found.targets) == [f"{root}/{name}" for name in "abc"]
    assert uris(found.inputs) == [f"{root}/{name}" for name in "zyx"]


def test_stores_are_searched_as_folders_are():
    store = Store()
    for name in NAMES:
        store.publish(f"memory://pictures/{name}", b"")
    found = find(asked("memory://pictures"))
    assert uris(found.targets) == [f"memory://pictures/{name}" for name in NAMES]


def test_what_the_training_writes_is_not_trained_on(folder):
    touch(folder, "out/sheets/1.png")
    assert len(find(asked(folder, output=str(folder / "out")))) == 3


def test_members_of_an_archive_are_files(tmp_path):
    with tarfile.open(tmp_path / "t.tar", "w") as archive:
        for level in (10, 20):
            data = png(np.full((2, 2), level, np.uint8))
            info = tarfile.TarInfo(f"{level}.png")
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    with tarfile.open(tmp_path / "t.tar") as archive:
        rows = [f"t.tar,{member.offset_data},{member.size}" for member in archive]
    (tmp_path / "m.csv").write_text("\n".join(["uri,offset,length", *reversed(rows)]))
    found = find(asked(tmp_path / "m.csv"))
    assert [read_rgb(file, Store())[0, 0, 0] for file in found.targets] == [10, 20]
    assert str(found.targets[1]) == f"{tmp_path}/t.tar from byte 1536 on"


# ------------------------------------------------------------------------------------------ pairs


@pytest.mark.parametrize("named", [as_folder, as_list])
def test_inputs_are_matched_by_path_without_suffix(folder, named, tmp_path):
    low = touch(tmp_path / "low", "b/d.png", "a.jpg", "b/c.png")
    config = named(folder)
    found = find(config.model_copy(update={"pairs": str(low)}))
    assert uris(found.targets) == [f"{folder}/{name}" for name in NAMES]
    assert uris(found.inputs) == [f"{low}/{name}" for name in ("a.jpg", "b/c.png", "b/d.png")]


def test_a_table_is_matched_by_its_keys_or_else_by_the_files_names(folder, tmp_path):
    low = touch(tmp_path / "low", "one.png", "c.png")
    (tmp_path / "m.csv").write_text("uri,key\nhigh/a.png,one\nhigh/b/c.png,\n")
    found = find(asked(tmp_path / "m.csv", pairs=str(low)))
    assert uris(found.inputs) == [f"{low}/one.png", f"{low}/c.png"]


def test_a_list_of_pairs_has_two_roots(folder, tmp_path):
    (tmp_path / "l.txt").write_text("b/c.png, x y.png\na.png, z.png\n")
    found = find(asked(tmp_path / "l.txt", root=str(folder), pairs="memory://low"))
    assert uris(found.inputs) == ["memory://low/z.png", "memory://low/x y.png"]


def test_pictures_without_a_partner_are_refused(folder, tmp_path):
    low = touch(tmp_path / "low", "a.jpg", "b/e.png", "f.png")
    wanted = (
        r"2 of 3 targets have no input \(such as b/c, b/d\), "
        r"2 of 3 inputs no target \(such as b/e, f\).*\(images, pairs\)"
    )
    with pytest.raises(ConfigError, match=wanted):
        find(asked(folder, pairs=str(low)))


def test_names_that_match_twice_are_refused(folder, tmp_path):
    low = touch(tmp_path / "low", "a.jpg", "a.png", "b/c.png", "b/d.png")
    with pytest.raises(ConfigError, match=r"1 names are there more than once \(such as a\).*pairs"):
        find(asked(folder, pairs=str(low)))


# ----------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("images", "values", "said"),
    [
        ("nothing", {}, r"no file at or below .*/nothing \(images\)"),
        ("nothing.txt", {"root": "high"}, r"no list .*nothing\.txt \(images\)"),
        ("l.txt", {}, r"l\.txt is a list: .* \(root\)"),
        ("l.txt", {"root": "low"}, r"of the first 1 .* none is below .*low.*/low/a\.png \(root\)"),
        ("empty.txt", {"root": "high"}, r"empty\.txt is empty \(images\)"),
        ("out.txt", {"root": "high"}, r"'\.\./a\.png' is not a path below .*\(images, root\)"),
        ("mixed.txt", {"root": "high"}, r"1 of 2 lines hold ', '.*\(images\)"),
        ("three.txt", {"root": "high"}, r"1 of 1 lines hold ', '.*\(images\)"),
        ("latin.txt", {"root": "high"}, r"latin\.txt is not UTF-8.*\(images\)"),
        ("none.csv", {}, r"none\.csv names no pictures \(images\)"),
        ("high", {"pairs": "nowhere"}, r"no file at or below .*/nowhere \(pairs\)"),
        ("high/.hidden.png", {}, r"holds no images: 1 other files.*\(scan\.suffixes\)"),
        ("nowhere://a", {}, r"no driver knows the scheme nowhere://"),
    ],
)
def test_what_is_wrong_is_said_with_its_setting(
    folder, tmp_path, monkeypatch, images, values, said
):
    monkeypatch.chdir(tmp_path)
    lists = {
        "l.txt": b"a.png",
        "empty.txt": b"\n \n",
        "out.txt": b"../a.png",
        "mixed.txt": b"a.png\nb.png, c.png",
        "three.txt": b"a.png, b.png, c.png",
        "latin.txt": b"\xe9.png",
        "none.csv": b"uri\n",
    }
    for name, data in lists.items():
        (tmp_path / name).write_bytes(data)
    with pytest.raises(ConfigError, match=said):
        find(asked(images, **values))


# ---------------------------------------------------------------------------------------- reading


def png(pixels):
    file = io.BytesIO()
    PIL.Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def read(tmp_path, pixels):
    (tmp_path / "x.png").write_bytes(png(pixels))
    return read_rgb(File(str(tmp_path / "x.png")), Store())


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_gray_and_opaque_pictures_are_read_as_rgb(tmp_path, channels):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, channels), dtype=np.uint8)
    if channels in (2, 4):
        pixels[:, :, -1] = 255
    colour = pixels[:, :, :3] if channels > 2 else np.repeat(pixels[:, :, :1], 3, 2)
    np.testing.assert_array_equal(
        read(tmp_path, pixels[:, :, 0] if channels == 1 else pixels), colour
    )


def test_sixteen_bits_are_reduced_to_eight(tmp_path):
    levels = np.array([[0, 128], [129, 65_535]], np.uint16)
    np.testing.assert_array_equal(read(tmp_path, levels)[:, :, 0], [[0, 0], [1, 255]])


def test_transparency_is_unusable(tmp_path):
    with pytest.raises(UnusableError, match="has transparency"):
        read(tmp_path, np.full((2, 2, 4), 254, np.uint8))


@pytest.mark.parametrize("uri", ["/nowhere/x.png", "nowhere://b/x.png", "/x\0.png"])
def test_what_cannot_be_read_is_unusable(uri):
    with pytest.raises(UnusableError) as caught:
        read_rgb(File(uri), Store())
    assert caught.value.file == File(uri)
