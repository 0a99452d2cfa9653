# Two commands do everything on a machine with Python 3.11 or later: `make demo`, of the task TASK (video, captions or
# images), and `make test`.
# `make docs` makes the site of README's documents in site/, and `make docs-test` looks at it in a browser, and runs what they say.
# `make fuzz` reads a million damaged files of every kind, guided by coverage where atheris can be installed.
# `make bench` times BTLSTM against both of torch's kernels in two minutes, on a machine that does nothing else,
# and a linear layer against another library's where that is installed in PEERS.
# `make paper` makes the tables and figures of docs/paper.md anew in PAPER, overnight; run again, it goes on where it was.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# The demonstration needs less than the tests, which have all of it.
DEMO_READY := $(if $(wildcard $(READY)),$(READY),$(VENV)/.demo-ready)
CASES ?= 1000000
SEED ?= 0
PEERS ?= .peers
PAPER ?= paper
TASK ?= video

.PHONY: demo test docs docs-test bench figures paper fuzz kills lint smoke

demo: $(DEMO_READY)
	$(BIN)/btcompress demo --task $(TASK) --output demo --force

# One process for each core, with one thread each.
test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto

# Every warning is an error: a link or an anchor that leads nowhere, a page in no list, a public name without a docstring.
# All is read anew each time, as the references come from the code.
docs: $(READY)
	$(BIN)/python -m sphinx --builder html --fresh-env --fail-on-warning --keep-going --quiet docs site

docs-test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile tests/documents

bench: $(READY)
	-$(BIN)/python tests/benchmarks/lstm_speed.py --short --table --check
	if [ -d "$(PEERS)" ]; then $(BIN)/python tests/benchmarks/peers.py --peers "$(PEERS)"; fi

# The figures of docs/math.md, of what docs/figures/measure.py measured.
figures: $(READY)
	$(BIN)/python docs/figures/draw.py

# Two processes, which share the work, with one thread each.
paper: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python tests/benchmarks/paper.py "$(PAPER)" --processes 2

fuzz: $(READY)
	-$(BIN)/python $(INSTALL) ".[fuzz]"
	PYTHONPATH=tests $(BIN)/python -m fuzz --cases $(CASES) --seed $(SEED)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Kills every command that writes at 1,000 moments.
kills: $(READY)
	$(BIN)/python tests/kill_moments.py --trials 1000

# Builds wheel and sdist, looks into them, and tries the wheel in fresh environments on every Python found.
smoke: $(READY)
	$(BIN)/python $(INSTALL) ".[smoke]"
	PYTHONPATH=tests $(BIN)/python -m smoke

INSTALL := -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable

# Installed anew only when what is to be installed has changed.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python $(INSTALL) ".[test]"
	touch $(READY)

$(VENV)/.demo-ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python $(INSTALL) ".[demo]"
	touch $@
