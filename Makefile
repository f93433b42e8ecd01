# make env    .venv with the project in it, editable
# make demo   upscales sample pictures on a local Ray
# make test   formatting, lint, types and all tests
# make test-slow   large pictures: memory and exactness; an hour
# make ragged      small pictures of all sizes: a worker's speed against the engine's
# make png-speed   the PNG writer against Pillow's, on the photographs of PICTURES
PYTHON ?= python3
# For torch without CUDA: make env PIP_ARGS="--extra-index-url https://download.pytorch.org/whl/cpu"
PIP_ARGS ?=
BIN := .venv/bin
INSTALL := $(BIN)/python -m pip install --quiet $(PIP_ARGS) --constraint constraints.txt

.PHONY: env demo test test-slow ragged png-speed check s3-server reference clean

env: .venv/.env
.venv/.env: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(INSTALL) --editable .
	touch $@

.venv/.test: .venv/.env
	$(INSTALL) --editable '.[test]'
	touch $@

demo: env
	$(BIN)/python -m pipeline.samples demo/pictures
	$(BIN)/python jobs/upscale.py --manifest demo/pictures --output demo/upscaled

# Two at a time, each with one thread: most of a run's test is waiting, and teams of threads that
# share cores wait for each other.
test: check s3-server
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

test-slow: .venv/.test
	$(BIN)/python -m pytest -s tests/slow

ragged: .venv/.test
	$(BIN)/python tests/slow/ragged.py

PICTURES ?= ../shared/data/kodak
png-speed: .venv/.test
	OMP_NUM_THREADS=1 $(BIN)/python tests/slow/png_speed.py --pictures $(PICTURES)

check: .venv/.test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright

# An S3 server for the tests: OpenStack Swift, in an environment of its own.
s3-server: .venv-swift/.installed
.venv-swift/.installed:
	$(PYTHON) -m venv .venv-swift
	.venv-swift/bin/python -m pip install --quiet $(PIP_ARGS) swift==2.38.3
	touch $@

reference: env
	$(BIN)/python -c "from pipeline.config import UpscaleConfig; print(UpscaleConfig.reference(), end='')" \
		> configs/reference.yaml
	$(BIN)/python -c "from pipeline.report.config import ReportConfig; \
		print(ReportConfig.reference(), end='')" > configs/report/reference.yaml
	$(BIN)/python -c "from pipeline.training.config import TrainConfig; \
		print(TrainConfig.reference(), end='')" > configs/train/reference.yaml

clean:
	rm -rf .venv .venv-swift demo
