"""What the driver settles before it starts workers; the rest is in `test_train.py`."""

import os

from small import config

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
