"""Steps of a training: that they learn, and that nothing but their number and the data counts."""

import json

import numpy as np
import pytest
import torch
import torch.distributed
import torch.multiprocessing
from hypothesis import given, settings
from hypothesis import strategies as st
from small import GENERATOR, advance, config, crops, everything, trainer

from pipeline.errors import ConfigError, FatalError
from pipeline.models import checkpoints
from pipeline.storage import Store
from pipeline.training import assembly, state
from pipeline.training.degradation import Params, apply, draw
from pipeline.training.sharpen import sharpen
from pipeline.training.state import Checkpoints
from pipeline.training.trainer import Place

STAGES = ("net", "gan")


def equal(one, other):
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


# ------------------------------------------------------------------------------------- learning


@pytest.mark.parametrize("stage", STAGES)
def test_thirty_steps_on_one_batch_halve_the_reconstruction_loss(stage):
    """Pictures that come out too dark by degradation have to be made light again."""
    asked = config(
        stage=stage,
        pool=0,
        batch=2,
        adam={"rate": 3e-3},
        losses={"sharpen": False, "gan": 0.01, "perceptual": 0.01},
        generator={"architecture": "SRVGGNetCompact", "features": 16, "convs": 2, "scale": 2},
        crops={"side": 32, "target": 32},
    )
    learning = trainer(asked)
    targets = crops(asked, 0, 0).targets
    inputs = 255 - targets[:, ::2, ::2]
    batch = type(crops(asked, 0, 0))(targets, inputs)
    seen = [learning.advance(iter([batch]))[0]["l1"].item() for _ in range(30)]
    assert seen[-1] < seen[0] / 2


def test_the_second_stage_tells_what_each_part_of_it_says():
    learning = trainer(config(stage="gan"))
    lanes = [crops(learning.config, 0, lane) for lane in learning.pools]
    said, stop = learning.advance(iter(lanes))
    names = {"l1", "perceptual", "gan", "d_real", "d_fake", "out_d_real", "out_d_fake"}
    assert said.keys() == names
    assert all(value.isfinite() for value in said.values())
    assert not stop


@pytest.mark.parametrize("stage", STAGES)
def test_the_first_stage_learns_from_sharpened_pictures_and_the_second_sharpens_crops(stage):
    """As in the released code: the discriminator sees the targets as they are."""
    asked = config(stage=stage, pool=0)
    learning = trainer(asked)
    lane = crops(asked, 0, 0)
    ((gt, _), *_) = learning.pairs(iter([lane, lane]))
    whole = torch.from_numpy(lane.targets).permute(0, 3, 1, 2) / 255
    wanted = (sharpen(whole) if stage == "net" else whole) * 255
    windows = wanted.round().unfold(2, 32, 2).unfold(3, 32, 2).permute(2, 3, 0, 1, 4, 5)
    assert any(torch.allclose(gt * 255, window) for row in windows for window in row)
    assert not torch.equal(sharpen(whole), whole)


@pytest.mark.parametrize("stage", STAGES)
def test_a_generator_that_is_not_told_of_sharpening_sees_the_targets_as_they_are(stage):
    plain, sharp = (
        trainer(config(stage=stage, losses={"sharpen": wanted})) for wanted in (False, True)
    )
    for learning in (plain, sharp):
        advance(learning, 1)
    assert not torch.equal(*(everything(t)["generator.body.0.weight"] for t in (plain, sharp)))


def test_averaged_weights_follow_by_their_decay():
    learning = trainer(config(ema=0.75))
    before = {k: v.clone() for k, v in learning.averaged.state_dict().items()}
    advance(learning, 1)
    now = learning.generator.state_dict()
    for name, value in learning.averaged.state_dict().items():
        torch.testing.assert_close(value, before[name] * 0.75 + now[name] * 0.25)


def test_the_rate_falls_at_its_milestones():
    learning = trainer(config(adam={"rate": 0.01, "milestones": [2, 3], "gamma": 0.5}))
    rates = []
    for _ in range(5):
        advance(learning, 1)
        rates.append(learning.adam.param_groups[0]["lr"])
    assert rates == [0.01, 0.01, 0.005, 0.0025, 0.0025]


def test_half_precision_stays_near_the_truth():
    exact, half = (trainer(config(precision=name)) for name in ("fp32", "bf16"))
    for learning in (exact, half):
        advance(learning, 2)
    weights = [everything(learning)["generator.body.0.weight"] for learning in (exact, half)]
    assert not torch.equal(*weights)
    torch.testing.assert_close(*weights, rtol=0, atol=5e-3)


# --------------------------------------------------------------------------- going on, in parts


@pytest.mark.parametrize("stage", STAGES)
@settings(deadline=None, derandomize=True, max_examples=4)
@given(killed=st.integers(1, 5))
def test_a_resumed_training_is_bit_for_bit_the_uninterrupted_one(tmp_path_factory, stage, killed):
    folder = str(tmp_path_factory.mktemp("training"))
    asked = config(stage=stage, output=folder)
    whole = trainer(asked)
    advance(whole, 6)
    before, after = trainer(asked), trainer(asked)
    advance(before, killed)
    kept = Checkpoints(Store(), folder, keep=2)
    kept.complete(before.step, kept.save_part(before))
    assert Checkpoints(Store(), folder, keep=2).restore(after) == []
    assert after.step == killed
    equal(everything(after), everything(before))
    advance(after, 6 - killed)
    equal(everything(after), everything(whole))


def test_a_checkpoint_counts_when_all_of_it_is_there(tmp_path):
    kept = Checkpoints(Store(), str(tmp_path), keep=2)
    learning, restored = trainer(config()), trainer(config())
    assert kept.restore(restored) == []
    assert restored.step == 0
    saved = []
    for _ in range(3):
        advance(learning, 1)
        kept.complete(learning.step, kept.save_part(learning))
        saved.append(everything(learning))
    advance(learning, 1)
    kept.save_part(learning)  # and then the power fails
    kept.restore(restored)
    assert restored.step == 3
    equal(everything(restored), saved[-1])


@pytest.mark.parametrize("damage", ["changed", "lost"])
def test_a_checkpoint_that_was_damaged_is_passed_over_for_the_one_before(tmp_path, damage):
    kept, learning = Checkpoints(Store(), str(tmp_path), keep=2), trainer(config())
    saved = []
    for _ in range(3):
        advance(learning, 1)
        kept.complete(learning.step, kept.save_part(learning))
        saved.append(everything(learning))
    slots = [tmp_path / "checkpoints" / str(number) for number in (0, 1)]  # of steps 3 and 2
    harm(slots[0] / "networks.safetensors", damage)
    restored = trainer(config())
    (passed,) = kept.restore(restored)
    assert "step 3 is passed over" in passed
    assert restored.step == 2
    equal(everything(restored), saved[1])
    # The next one takes the place of the damaged one, and what is good stands until it is whole.
    advance(restored, 1)
    kept.save_part(restored)
    again = trainer(config())
    assert kept.restore(again) == []
    assert again.step == 2
    kept.complete(restored.step, kept.save_part(restored))
    harm(slots[0] / "networks.safetensors", damage)
    harm(slots[1] / "pools-0.safetensors", damage)
    with pytest.raises(FatalError, match=r"no checkpoint can be gone on from: .*step 3.*step 2"):
        kept.restore(restored)


def test_more_checkpoints_may_be_kept_than_before(tmp_path):
    learning = trainer(config())
    for keep in (2, 2, 2, 3, 3, 3):
        kept = Checkpoints(Store(), str(tmp_path), keep=keep)
        advance(learning, 1)
        kept.complete(learning.step, kept.save_part(learning))
    known = json.loads((tmp_path / "checkpoints" / "latest.json").read_text())
    assert [facts["step"] for facts in known] == [6, 5, 4]
    assert sorted(facts["slot"] for facts in known) == [0, 1, 2]


def harm(file, damage):
    if damage == "lost":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:-1] + b"!")


def test_an_output_holds_one_training(tmp_path):
    kept = Checkpoints(Store(), str(tmp_path), keep=2)
    assert kept.changes(config(seed=1)) == []
    kept.note(config(seed=1))
    kept.complete(0, kept.save_part(trainer(config())))
    other = {"images": "https://me:secret@host/more", "adam": {"rate": 0.5}}
    changed = kept.changes(config(seed=1, iterations=99, workers={"count": 2}, **other))
    assert [text.partition(" ")[0] for text in changed] == ["adam.rate:", "images:", "iterations:"]
    assert "iterations: 10 before, 99 now" in changed
    assert "secret" not in repr(changed)
    for wrong, words in (
        ({"seed": 2}, "seed: 1 before, 2 now"),
        ({"seed": 1, "pairs": "low"}, "paired: False before, True now"),
        ({"seed": 1, "adam": {"betas": [0.5, 0.9]}}, "adam.betas"),
    ):
        with pytest.raises(ConfigError, match=words):
            kept.changes(config(**wrong))


def test_nothing_temporary_is_left_behind(tmp_path):
    asked = config(output=str(tmp_path))
    kept = Checkpoints.of(asked)
    kept.complete(0, kept.save_part(trainer(asked)))
    killed = tmp_path / ".staging" / f"{0:032x}.part"
    killed.write_bytes(b"half of a checkpoint")
    Checkpoints.of(asked).store.sweep()
    assert sorted(file.name for file in tmp_path.rglob(".*")) == []
    assert Checkpoints.of(asked).restore(trainer(asked)) == []


def in_a_group(rank, world, folder, stage):
    """One of the workers; the first one leaves its networks behind."""
    torch.set_num_threads(1)
    file = f"file://{folder}/meeting"
    torch.distributed.init_process_group("gloo", file, rank=rank, world_size=world)
    learning = trainer(config(stage=stage), Place(torch.device("cpu"), rank, world))
    advance(learning, 10)
    if rank == 0:
        torch.save(state.networks(learning), f"{folder}/networks")
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("stage", STAGES)
def test_two_workers_are_one_with_twice_the_lanes(tmp_path, stage):
    torch.multiprocessing.spawn(in_a_group, (2, str(tmp_path), stage), nprocs=2)
    alone = trainer(config(stage=stage))
    advance(alone, 10)
    together = torch.load(tmp_path / "networks")
    for name, value in state.networks(alone).items():
        if name.startswith(("generator.", "averaged.", "discriminator.")):
            scale = value.abs().max().item()
            assert (together[name] - value).abs().max().item() <= 1e-4 * scale, name


# ----------------------------------------------------------------------- what it begins and ends


def test_lanes_may_be_clean():
    asked = config(degradation={"clean": 1})
    size = {"count": 2, "height": 48, "width": 40, "scale": 4}
    params = draw(np.random.default_rng(0), asked.degradation, **size)
    assert Params.from_json(params.to_json()) == params
    x = torch.rand(2, 3, 48, 40)
    wanted = torch.nn.functional.interpolate(x, (12, 10), mode="bicubic", antialias=True)
    torch.testing.assert_close(apply(x, params), wanted.clamp(0, 1), rtol=0, atol=0.51 / 255)


def test_the_export_is_read_by_the_run_in_both_layouts(tmp_path):
    learning = trainer(config())
    advance(learning, 2)
    for name, data in state.export(learning, {"licence": "CC0-1.0"}).items():
        (tmp_path / name).write_bytes(data)
        found = checkpoints.load(tmp_path / name)
        assert found.shape == learning.averaged.shape
        equal(dict(found.state_dict), dict(learning.averaged.state_dict()))


def test_the_export_is_half_as_large_on_request():
    whole, half = (
        state.export(trainer(config(export=dtype)), {})["model.safetensors"]
        for dtype in ("fp32", "fp16")
    )
    wanted, found = checkpoints.load(whole), checkpoints.load(half)
    assert (wanted.dtype, found.dtype) == ("float32", "float16")
    for name, tensor in found.state_dict.items():
        assert torch.equal(tensor, wanted.state_dict[name].half().float())


def test_a_start_of_another_shape_gives_what_fits(tmp_path):
    x4 = {"architecture": "RRDBNet", "features": 8, "blocks": 1, "growth": 4, "upsampling": [2, 2]}
    first = trainer(config(generator=x4, crops={"side": 48, "target": 48}))
    (tmp_path / "x4.pth").write_bytes(state.export(first, {})["model.pth"])
    x2 = assembly.generator(
        config(generator={**x4, "unshuffle": 2}, start=str(tmp_path / "x4.pth"))
    )
    assert x2.shape.scale == 2
    theirs, ours = first.averaged.state_dict(), x2.state_dict()
    del theirs["conv_first.weight"], ours["conv_first.weight"]
    equal(theirs, ours)
    with pytest.raises(ConfigError, match="another architecture"):
        assembly.generator(config(start=str(tmp_path / "x4.pth")))


@pytest.mark.parametrize("activation", ["prelu", "relu"])
def test_a_compact_generator_grows_out_of_a_smaller_one(tmp_path, activation):
    shape = {**GENERATOR, "activation": activation}
    first = trainer(config(generator=shape))
    advance(first, 3)
    file = tmp_path / "small.safetensors"
    file.write_bytes(state.export(first, {})["model.safetensors"])
    larger = {**shape, "features": 11, "convs": 5}
    grown = trainer(config(generator=larger, start=str(file)))
    x = torch.rand(1, 3, 9, 7)
    with torch.no_grad():
        torch.testing.assert_close(grown.generator(x), first.averaged(x), rtol=0, atol=1e-6)
    before = {name: tensor.clone() for name, tensor in grown.generator.state_dict().items()}
    advance(grown, 2)
    for name, tensor in grown.generator.state_dict().items():
        changed = (tensor != before[name]).flatten(1 if tensor.ndim > 1 else 0).any(-1)
        assert changed.float().mean() > 0.8, name  # what is new learns too; a ReLU can be dead


@pytest.mark.parametrize(
    ("smaller", "words"),
    [
        ({"features": 9}, "does not grow out of .*features=9"),
        ({"convs": 3}, "does not grow out of .*convs=3"),
        ({"scale": 4}, "nothing else may change"),
        ({"activation": "relu"}, "nothing else may change"),
    ],
)
def test_a_generator_does_not_grow_out_of_another_kind(tmp_path, smaller, words):
    first = trainer(config(generator={**GENERATOR, **smaller}, crops={"side": 48, "target": 32}))
    file = tmp_path / "other.safetensors"
    file.write_bytes(state.export(first, {})["model.safetensors"])
    with pytest.raises(ConfigError, match=words):
        assembly.generator(config(start=str(file)))


@pytest.mark.parametrize(
    ("generator", "sizes", "words"),
    [
        ({"scale": 4}, {"side": 48, "target": 34}, "crops.target 34 is no multiple of 4"),
        ({"scale": 3}, {"side": 400, "target": 33}, "crops.side 400 is no multiple of 3"),
        ({"in_channels": 1}, {}, "3 channels of 1; training is on RGB"),
    ],
)
def test_crops_that_a_generator_cannot_take_are_refused(generator, sizes, words):
    compact = {"architecture": "SRVGGNetCompact", "features": 8, "convs": 2, "scale": 2}
    asked = config(generator=compact | generator, crops={"side": 48, "target": 32} | sizes)
    with pytest.raises(ConfigError, match=words):
        assembly.build(asked, Place(torch.device("cpu")))


def test_who_says_neither_generator_nor_start_is_asked():
    with pytest.raises(ConfigError, match="what is to be trained"):
        assembly.generator(config(generator={}))
