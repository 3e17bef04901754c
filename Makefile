# Everything runs in .venv, which sets itself up; nothing outside of this folder is touched.
PYTHON ?= python3
BIN := .venv/bin
SUITE := $(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder
# Compiled code is kept, whatever the shell says: the suite starts hundreds of processes, each of which would compile all
# that it imports, and each worker of pytest would rewrite every assertion.
unexport PYTHONDONTWRITEBYTECODE
# Which Python that is; a .venv of another one is made anew.
IDENTITY := $(shell $(PYTHON) -c 'import sys; print(sys.version.split()[0], sys.base_prefix)' 2>/dev/null)
ifneq ($(IDENTITY),$(shell cat .venv/python 2>/dev/null))
.PHONY: .venv/ready
endif

.DEFAULT_GOAL := help
.PHONY: help demo test unit matrix receivers postgres bounds central fleet frozen outage years hammer backfill kills beside starts upgrade arrangements versions locks fuzz flips secrets lint types walls minutes wheel check bench lock clean

help:  ## What can be made
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

.venv/ready: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Python 3.11 or newer is needed, this is " + sys.version.split()[0] + ". Name another one: make PYTHON=python3.12 ...")'
	@echo "Setting up .venv (once, about a minute) ..."
	@$(PYTHON) -m venv --clear .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@echo '$(IDENTITY)' >.venv/python
	@touch $@

demo: .venv/ready  ## Play a recorded session through hook, queue and worker into a local receiver
	@$(BIN)/python -m tests.system.demo

test: .venv/ready  ## The whole suite; drives the real OpenCode where npm is there
	@$(SUITE) -m 'not matrix and not receivers'

receivers: .venv/ready  ## The real Phoenix and MLflow, installed from PyPI: read back, killed, locked; RECEIVERS=phoenix for one (minutes)
	@$(BIN)/python -m pytest -p no:randomly $(patsubst %,tests/receivers/test_%*.py,$(or $(RECEIVERS),phoenix mlflow))

matrix: .venv/ready  ## What `make test` has no time for: more versions and configurations of OpenCode, more orders of the same
	@$(BIN)/python -m pytest -n 3 -m matrix

postgres: .venv/ready  ## The suites of ledger and delivery on a PostgreSQL server, and what only that has; needs its packages (minutes)
	@$(BIN)/python -m pytest -n 2 --dist loadfile --postgres tests/ledger tests/delivery tests/fleet tests/database/test_postgres.py tests/cli/test_fleet.py

fleet: .venv/ready  ## Two laptops through two intakes to four workers, all killed at random, the server too; a token revoked (minutes)
	@$(BIN)/python -m tests.stress.fleet

bounds: .venv/ready  ## The centre's bounds: ten minutes without its database, a full and slow tenant, a rate, a wrong clock (20 minutes)
	@$(BIN)/python -m tests.stress.bounds

central: .venv/ready  ## Eight consumers on one PostgreSQL ledger, killed at random, the server with them (minutes)
	@$(BIN)/python -m tests.stress.central

frozen: .venv/ready  ## The whole suite, the program's clock standing still in each test that runs in one process
	@$(SUITE) -m 'not matrix and not receivers' --frozen-clock

secrets: .venv/ready  ## What the built-in rules catch of what gitleaks finds, and what they hit by mistake (a minute)
	@$(BIN)/python -m tests.stress.gitleaks

lint: .venv/ready  ## Style
	@$(BIN)/ruff check . && $(BIN)/ruff format --check .

types: .venv/ready  ## Types, strict
	@$(BIN)/mypy

walls: .venv/ready  ## Which module may import which
	@$(BIN)/lint-imports

outage: .venv/ready  ## Four days without Helicone, a refused key, 20 machines, 30 days in 5 MB, on a clock of their own (minutes)
	@$(BIN)/python -m tests.stress.outage

years: .venv/ready  ## Three years of use, simulated: the size of the spool (minutes)
	@$(BIN)/python -m tests.stress.years

minutes: .venv/ready  ## A user's first fifteen minutes from the wheel: install, setup, the real OpenCode, the page, uninstall (minutes)
	@$(BIN)/python -m tests.system.first_minutes $(INSTALLERS)

wheel: .venv/ready  ## Build the wheel into dist/ and try it in a clean environment (a minute)
	@$(BIN)/python -m tests.system.wheel

unit: .venv/ready  ## The tests of values and single modules: they start no process
	@$(SUITE) -q --ignore=tests/system -m 'not slow'

check: lint types walls unit  ## Before each commit: style, types, layers, unit tests

hammer: .venv/ready  ## Kill workers and enqueuers at random by the hundred: nothing lost, nothing doubled (minutes)
	@$(BIN)/python -m tests.stress.hammer

backfill: .venv/ready  ## 10,000 turns of history, the backfill killed 20 times: all arrive once, live turns first (minutes)
	@$(BIN)/python -m tests.stress.backfill

versions: .venv/ready  ## Both forms of the plugin in eleven versions of the real OpenCode (minutes)
	@$(BIN)/python -m tests.stress.versions

locks: .venv/ready  ## A ledger that is locked most of the time: 18 jobs are delivered, no worker's death is charged (a minute)
	@$(BIN)/python -m tests.stress.locks

kills: .venv/ready  ## Kill the real OpenCode in mid-turn by each signal, run it without us, and two at a time; VERSIONS names others (minutes)
	@$(BIN)/python -m tests.stress.kills $(VERSIONS)

beside: .venv/ready  ## The real OpenCode with our plugin and each of three that many people have (minutes)
	@$(BIN)/python -m tests.stress.beside

starts: .venv/ready  ## 200 starts of the real OpenCode while its store is read all the time, 20 of them killed (minutes)
	@$(BIN)/python -m tests.stress.pairs
	@$(BIN)/python -m tests.stress.starts

upgrade: .venv/ready  ## Replace an earlier commit's wheel by today's while hook and worker run; REVISION names another (minutes)
	@$(BIN)/python -m tests.stress.upgrade $(REVISION)

arrangements: .venv/ready  ## Each option in twelve places of OpenCode's configuration, on three OpenCodes; VERSIONS names others (minutes)
	@$(BIN)/python -m tests.stress.arrangements $(VERSIONS)

bench: .venv/ready  ## Measure; fails where a goal is missed
	@for name in journal known_values latency notice reading redaction; do echo "== $$name"; $(BIN)/python "benchmarks/$$name.py" || exit 1; done
	@$(BIN)/python -m benchmarks

fuzz: .venv/ready  ## 50,000 broken recordings through hook and import (several minutes)
	@$(BIN)/python -m tests.stress.fuzz

flips: .venv/ready  ## 500 random faults in the files of a spool; FAULTS and SEED change that
	@$(BIN)/python -m tests.stress.flips $(or $(FAULTS),500) $(SEED)

lock: .venv/ready  ## Resolve the dependencies anew (needs uv)
	uv pip compile --universal --python-version 3.11 --generate-hashes --group dev --extra web --extra fleet pyproject.toml -o requirements.lock -q --custom-compile-command "make lock"

clean:  ## Remove what was made, OpenCode's cache included
	rm -rf .venv .cache dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
