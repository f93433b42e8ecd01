"""The commands as people and scripts meet them: output, and exit codes."""

import sys

import pytest
from running import ROOT

from pipeline import cli
from pipeline.models import zoo


def test_the_zoo_is_listed(capsys):
    assert cli.run("models", ["list"]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in zoo.ZOO)


def test_a_checkpoint_is_described_and_anything_else_is_said_to_be_none(small_model, capsys):
    assert cli.run("models", ["inspect", str(small_model)]) == 0
    shown = capsys.readouterr().out
    assert "SRVGGNetCompact" in shown
    assert "features 8, convs 2" in shown
    for file in (ROOT / "README.md", ROOT / "nowhere.pth"):
        assert cli.run("models", ["inspect", str(file)]) == 2
        assert len(capsys.readouterr().err.strip().splitlines()) == 1


def test_weights_are_brought_from_a_folder_and_only_the_right_ones(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("REMASTER_MODELS", str(tmp_path))
    entry = zoo.ZOO["realesr-animevideov3"]
    (tmp_path / entry.file).write_bytes(b"something else")
    assert cli.run("models", ["fetch", entry.name]) == 2
    assert entry.sha256 in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [[], ["upscayl"]])
def test_the_console_command_names_its_commands(arguments, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["remaster", *arguments])
    with pytest.raises(SystemExit) as left:
        cli.main()
    assert left.value.code == 2
    assert "upscale|report|train|evaluate|models|benchmark" in capsys.readouterr().err
