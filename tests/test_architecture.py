"""Who may import whom, as the design says; and what a module may not be called."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MODULES = sorted((ROOT / "pipeline").rglob("*.py"))

# What is timed beside the runs themselves.
TIMED = {"benchmark/contender", "benchmark/survey", "benchmark/training"}
# Top-level packages, and the modules (or folders) below pipeline/ that may import them.
ONLY_IN = {
    "ray": {"flow", "cluster", "training/loop"},
    # A benchmark's plain loop is what people write with torch and Pillow, around our code.
    "torch": {"engine", "models", "worker", "training", *TIMED},
    "safetensors": {"models", "training/state"},
    "tensorboardX": {"training/record"},
    "scipy": set(),
    "isal": {"images"},
    "imagecodecs": {"images"},
    "tifffile": {"images"},
    "PIL": {"images", "samples", "benchmark/contender", "training/sheet"},
    "fsspec": {"storage", "s3", "azure", "web", "uris"},
    "aiohttp": {"web"},
    "botocore": {"storage"},
    "pydantic": {"config", "settings", "training/config", "report/config"},
    "pydantic_settings": {"settings"},
}
# Pure modules: nothing of ours but these.
PURE = {
    "errors": set(),
    "records": set(),
    "models/graph": set(),
    "engine/sweep": {"models"},  # models/graph
    "engine/canvas": set(),
    "plan": {"errors", "records", "uris"},
    "attempts": set(),
    "uris": {"errors"},
    "store_errors": {"errors", "uris"},
    "s3": {"errors", "store_errors", "uris"},
    "gcs": {"store_errors", "uris"},
    "azure": {"store_errors", "uris"},
    "web": {"store_errors", "uris"},
    "local": set(),
    "storage": {"azure", "errors", "gcs", "local", "s3", "store_errors", "uris", "web"},
    "images/image": set(),
    "images/decode": {"config", "errors", "images"},
    "images/header": {"errors", "images"},
    "images/limits": {"errors", "images"},  # images/image
    "images/page": {"images"},  # image
    "images/child": {"config", "errors", "images"},
    "images/wire": {"errors", "images"},
    "images/sandbox": {"config", "errors", "images"},
    "images/png": set(),
    "images/tiff": {"images"},  # exif, image, page
    "images/delta_e": set(),
    "images/consistency": {"images"},  # images/image, images/delta_e
    "report/summary": set(),
    "benchmark/figures": set(),
}


# Planning in integers: no torch, not even by way of others of ours.
PLANNING = ("engine/sweep", "engine/canvas", "models/graph", "plan", "records", "errors")


def name_of(path):
    return path.relative_to(ROOT / "pipeline").with_suffix("").as_posix()


def imports(path):
    """Full names of everything imported anywhere in a file."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def allowed(path, places):
    name = name_of(path)
    return name in places or name.split("/")[0] in places


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_libraries_are_imported_only_where_they_belong(path):
    found = {full.split(".")[0] for full in imports(path)}
    astray = [
        name for name, places in ONLY_IN.items() if name in found and not allowed(path, places)
    ]
    assert astray == []


@pytest.mark.parametrize("name", PURE)
def test_pure_modules_know_only_what_is_below_them(name):
    path = ROOT / "pipeline" / f"{name}.py"
    ours = {full.split(".")[1] for full in imports(path) if full.startswith("pipeline.")}
    assert ours - PURE[name] == set()


@pytest.mark.parametrize("name", PLANNING)
def test_planning_needs_no_torch(name):
    module = f"pipeline.{name.replace('/', '.')}"
    code = f"import sys, {module}; sys.exit('torch' in sys.modules or 'ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_names_say_what_a_module_does(path):
    name = path.stem
    assert name not in {"utils", "common", "base", "core", "helpers", "misc"}
    assert name.startswith("__") or name not in sys.stdlib_module_names


def test_the_package_list_is_complete():
    listed = (ROOT / "pyproject.toml").read_text()
    for folder in {path.parent for path in MODULES}:
        package = folder.relative_to(ROOT).as_posix().replace("/", ".")
        assert f'"{package}",' in listed


@pytest.mark.parametrize("path", sorted((ROOT / "jobs").glob("*.py")), ids=lambda path: path.name)
def test_jobs_are_short_and_executable(path):
    assert len(path.read_text().splitlines()) <= 60
    assert path.stat().st_mode & 0o111
    assert path.read_text().startswith("#!/usr/bin/env python3\n")
