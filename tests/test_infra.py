"""The deployment files: valid for whoever reads them, and in step with what the tests ran with."""

import gzip
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft7Validator
from ray.runtime_env import RuntimeEnv, RuntimeEnvConfig

from pipeline.config import UpscaleConfig

ROOT = Path(__file__).parent.parent
INFRA = ROOT / "infra"
CRD = ROOT.parent / "shared/data/schemas/ray.io_rayjobs.yaml.gz"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def _name(requirement: str) -> str:
    return re.split(r"[\[<>=!~; ]", requirement, maxsplit=1)[0]


def _pins(lines: list[str]) -> dict[str, str]:
    return dict(line.split("==") for line in lines if line and not line.startswith("#"))


@pytest.fixture(scope="module")
def tested() -> dict[str, str]:
    """name: version that the tests run with."""
    return _pins((ROOT / "constraints.txt").read_text().splitlines())


@pytest.fixture(scope="module")
def runtime_env() -> dict[str, Any]:
    return yaml.safe_load((INFRA / "runtime-env.yaml").read_text())


@pytest.fixture
def rayjob() -> dict[str, Any]:
    return yaml.safe_load((INFRA / "kuberay/rayjob.yaml").read_text())


# The image ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def instructions() -> list[list[str]]:
    """The Dockerfile's instructions, each split into words as a shell does it."""
    text = (INFRA / "docker/Dockerfile").read_text()
    code = "\n".join(line for line in text.splitlines() if not line.startswith("#"))
    lines = code.replace("\\\n", " ").splitlines()
    return [shlex.split(line) for line in lines if line.strip()]


def test_every_ray_image_named_is_the_tested_ray_and_a_python_of_ours(tested):
    tags = [
        tag
        for file in INFRA.rglob("*")
        if file.is_file()
        for tag in re.findall(r"rayproject/ray:([\w.-]+)", file.read_text())
    ]
    assert {f"{tested['ray']}-py311", f"{tested['ray']}-py311-gpu"} == set(tags)
    assert PROJECT["requires-python"] == ">=3.11"


def test_every_image_of_ours_has_the_version_of_the_project():
    text = "".join(file.read_text() for file in INFRA.rglob("*") if file.is_file())
    assert set(re.findall(r"remaster-ray:(\d[\d.]*\d)", text)) == {PROJECT["version"]}


def test_the_base_image_is_an_argument(instructions):
    assert instructions[0][0] == "ARG"
    assert instructions[0][1].startswith("BASE=rayproject/ray:")
    assert instructions[1] == ["FROM", "${BASE}"]


def test_the_image_copies_what_exists_and_as_its_user(instructions):
    copies = [words[1:] for words in instructions if words[0] == "COPY"]
    assert all(owner == "--chown=1000:100" for owner, *_ in copies)
    assert not any(words[0] == "USER" for words in instructions)
    sources = [source for _, *sources, _ in copies for source in sources]
    assert {"pyproject.toml", "constraints.txt", "pipeline", "jobs", "configs"} <= set(sources)
    missing = [source for source in sources if not (ROOT / source).exists()]
    assert not missing


def test_the_image_installs_the_dependencies_of_the_project(instructions):
    install = next(words for words in instructions if words[:2] == ["RUN", "python"])
    assert install[install.index("pip") :][:5] == [
        *("pip", "install", "--no-cache-dir", "--constraint", "constraints.txt"),
    ]
    said = subprocess.run(
        [sys.executable, *install[2:4]], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert said.splitlines() == PROJECT["dependencies"]


# The runtime environment ----------------------------------------------------------------------


def test_ray_accepts_the_runtime_environment(runtime_env):
    accepted = RuntimeEnv(**runtime_env)
    assert accepted["pip"]["packages"] == runtime_env["pip"]
    # Ray warns of names that it does not know and drops them.
    assert set(runtime_env) <= RuntimeEnv.known_fields
    assert set(runtime_env["config"]) <= RuntimeEnvConfig.known_fields


def test_it_installs_the_tested_versions(runtime_env, tested):
    pins = _pins(runtime_env["pip"])
    assert pins == {name: tested.get(name) for name in pins}


def test_it_installs_all_that_the_project_needs_but_ray(runtime_env):
    needed = {_name(each) for each in PROJECT["dependencies"]} - {"ray"}
    assert set(_pins(runtime_env["pip"])) == needed | {"pandas"}


def test_it_leaves_time_to_stop_and_uploads_what_a_job_needs(runtime_env):
    assert int(runtime_env["env_vars"]["RAY_JOB_STOP_WAIT_TIME_S"]) > 3
    assert {f"{top}/" for top in ("pipeline", "jobs", "configs")}.isdisjoint(
        runtime_env["excludes"]
    )


# KubeRay --------------------------------------------------------------------------------------


def _closed(schema: Any) -> Any:
    """An OpenAPI schema as JSON schema that refuses every property it does not name."""
    if isinstance(schema, list):
        return [_closed(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {key: _closed(value) for key, value in schema.items()}
    open_ended = "additionalProperties" in schema or schema.get(
        "x-kubernetes-preserve-unknown-fields"
    )
    if isinstance(schema.get("properties"), dict) and not open_ended:
        closed["additionalProperties"] = False
    if schema.get("x-kubernetes-int-or-string"):
        closed.pop("type", None)
    return closed


@pytest.fixture(scope="module")
def validator() -> Draft7Validator:
    if not CRD.exists():
        pytest.skip(f"the shared definition of KubeRay is not at {CRD}")
    crd = yaml.load(gzip.decompress(CRD.read_bytes()), Loader=yaml.CSafeLoader)
    version = next(each for each in crd["spec"]["versions"] if each["name"] == "v1")
    schema = _closed(version["schema"]["openAPIV3Schema"])
    schema["properties"]["metadata"] = {"type": "object"}
    return Draft7Validator(schema)


def test_kuberay_knows_every_field(rayjob, validator):
    assert [error.message for error in validator.iter_errors(rayjob)] == []


@pytest.mark.parametrize(
    ("path", "wrong"),
    [
        (("spec",), "bakoffLimit"),
        (("spec", "rayClusterSpec"), "rayversion"),
        (("spec", "rayClusterSpec", "workerGroupSpecs", 0), "maxReplica"),
        (("spec", "rayClusterSpec", "headGroupSpec", "template", "spec"), "serviceAcountName"),
    ],
)
def test_a_misspelt_field_is_seen(rayjob, validator, path, wrong):
    where = rayjob
    for step in path:
        where = where[step]
    where[wrong] = 1
    (error,) = validator.iter_errors(rayjob)
    assert list(error.absolute_path) == list(path)
    assert wrong in error.message


def test_the_job_runs_what_is_in_the_image_with_keys_that_we_know(rayjob, monkeypatch):
    python, script, *arguments = shlex.split(rayjob["spec"]["entrypoint"])
    assert (python, (ROOT / script).is_file()) == ("python", True)
    monkeypatch.chdir(ROOT)
    asked = UpscaleConfig.parse(arguments)
    (group,) = rayjob["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    assert (group["minReplicas"], group["maxReplicas"]) == (0, asked.workers.count)


def test_the_head_takes_no_work_and_the_workers_one_gpu_each(rayjob, tested):
    cluster = rayjob["spec"]["rayClusterSpec"]
    assert cluster["rayVersion"] == tested["ray"]
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    (group,) = cluster["workerGroupSpecs"]
    (worker,) = group["template"]["spec"]["containers"]
    assert worker["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert [each["key"] for each in group["template"]["spec"]["tolerations"]] == ["nvidia.com/gpu"]


def test_a_job_that_ended_leaves_no_cluster_and_starts_no_other(rayjob, runtime_env):
    spec = rayjob["spec"]
    assert spec["backoffLimit"] == 0
    assert spec["shutdownAfterJobFinishes"]
    assert spec["ttlSecondsAfterFinished"] < spec["activeDeadlineSeconds"]
    in_job = RuntimeEnv(**yaml.safe_load(spec["runtimeEnvYAML"]))
    assert in_job["env_vars"] == runtime_env["env_vars"]
