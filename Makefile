# make demo   set up and run the main job          make env    set up only
# make test   set up and run the whole suite       make lint   style and types
# PYTHON=python3.12 chooses an interpreter; PIP_FLAGS="--index-url ..." another package index (for example one with GPU builds of torch).
PYTHON ?= python3
PIP_FLAGS ?=
BIN := .venv/bin
export TOKENIZERS_PARALLELISM := false

.PHONY: env demo test test-real lint bench clean

env: .venv/ready

.venv/ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if v >= (3, 11) else f"Python {v[0]}.{v[1]} was found, 3.11 or later is needed: make PYTHON=python3.11")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet $(PIP_FLAGS) --constraint constraints.txt --editable '.[text,audio,vision,media,face,whisper,llm,serve,cluster,logging,dev]'
	@touch $@

demo: env
	$(BIN)/moodal demo

# As many processes as cores, each with one thread and whole files of tests.
test: env
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --dist loadfile

test-real: env
	$(BIN)/python -m pytest -m real

lint: env
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: env
	$(BIN)/moodal bench text_step

clean:
	rm -rf .venv build *.egg-info
