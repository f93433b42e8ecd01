"""What the driver settles before it starts workers; the rest is in `test_train.py`."""

import os

import pytest
from small import config

from pipeline.cluster import Cluster
from pipeline.errors import ConfigError
from pipeline.training import loop


def test_workers_find_the_drivers_files_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.pth").touch()
    asked = config(
        output="out/",
        start="mine.pth",
        start_discriminator="s3://models/netD.pth",
        losses={"vgg19": "vgg19.pth"},
    )
    found = loop.located(asked)
    assert found.output == str(tmp_path / "out")
    assert found.start == str(tmp_path / "mine.pth")
    assert found.start_discriminator == "s3://models/netD.pth"
    assert found.losses.vgg19 == str(tmp_path / "vgg19.pth")


def test_a_name_of_the_zoo_stays_a_name():
    assert not os.path.exists("realesr-animevideov3")
    assert loop.located(config(start="realesr-animevideov3")).start == "realesr-animevideov3"


@pytest.mark.parametrize(
    ("workers", "device", "room"),
    [({"count": 4}, "cpu", 2), ({"cpus": 3}, "cpu", 0), ({}, "cuda", 0)],
)
def test_workers_that_a_machine_cannot_hold_are_refused_and_a_cluster_may_grow(
    workers, device, room, capsys
):
    asked = config(workers=workers, batch=8)
    with pytest.raises(ConfigError, match=rf"2 CPUs and 0 GPUs are there, room for {room} \("):
        loop.scaling(asked, device, Cluster(local=True, nodes=((2.0, 0.0),)))
    loop.scaling(asked, device, Cluster(local=False, nodes=((2.0, 0.0),)))
    assert f"room for {room}: waiting" in capsys.readouterr().out


def test_ray_is_asked_for_what_there_is_room_for(capsys):
    two_nodes = Cluster(local=False, nodes=((8.0, 1.0), (8.0, 1.0)))
    asked = loop.scaling(config(workers={"count": 2}), "cuda", two_nodes)
    assert (asked.num_workers, asked.resources_per_worker) == (2, {"CPU": 1.0, "GPU": 1.0})
    assert capsys.readouterr().out == ""
