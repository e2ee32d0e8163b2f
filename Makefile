# One word per task. `make run` and `make test` need only Python >= 3.11, make and git.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip install --quiet --disable-pip-version-check
JOBS ?= 2
.DEFAULT_GOAL := help

.PHONY: help
help: ## These words
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.run: requirements/run.txt requirements/tools.txt pyproject.toml | $(BIN)/python
	$(PIP) --require-hashes -r requirements/tools.txt
	$(PIP) --require-hashes -r requirements/run.txt
	$(PIP) --no-deps --no-build-isolation --editable .
	@touch $@

$(VENV)/.dev: requirements/dev.txt $(VENV)/.run
	$(PIP) --require-hashes -r requirements/dev.txt
	@touch $@

tests/clients/js/node_modules/.done: tests/clients/js/package-lock.json
	@if command -v npm >/dev/null; then cd tests/clients/js && npm ci --silent && touch node_modules/.done; \
	else echo "npm is missing: tests with tus-js-client and Uppy are skipped"; fi

.PHONY: install dev
install: $(VENV)/.run ## Build .venv with the packhorse command
dev: $(VENV)/.dev tests/clients/js/node_modules/.done ## Build .venv with what the tests need

.PHONY: run
run: install ## Start the server on this machine (ARGS="--config my.toml")
	@exec $(BIN)/packhorse serve $(ARGS)

.PHONY: setup-peers
setup-peers: ## Install the programs that tests talk to (the only word that touches the system)
	@missing=""; \
	command -v storescu >/dev/null && command -v storescp >/dev/null && command -v echoscu >/dev/null || missing="dcmtk"; \
	command -v chromium >/dev/null && command -v chromedriver >/dev/null || missing="$$missing chromium chromium-driver"; \
	if [ -n "$$missing" ] && [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then apt-get update -qq; \
	  for name in $$missing; do DEBIAN_FRONTEND=noninteractive apt-get install -y -qq $$name >/dev/null || \
	    echo "$$name cannot be installed; tests that need it are skipped"; done; \
	elif [ -n "$$missing" ]; then \
	  echo "Missing here: $$missing. Install these packages of your system; tests that need them are skipped"; fi

.PHONY: test test-fast
test: dev setup-peers ## Every test, with real peers
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile $(ARGS)
test-fast: dev ## The tests that need no system packages, within a minute
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile -m "not peers and not slow" $(ARGS)

.PHONY: evidence
evidence: dev setup-peers ## The long campaigns; fails if fewer ran than asked (SEED=..., SCALE=1.0)
	$(BIN)/python -m tests.evidence

benchmarks/peers/.venv/.done: benchmarks/peers/requirements.txt
	$(PYTHON) -m venv benchmarks/peers/.venv
	benchmarks/peers/.venv/bin/pip install --quiet --disable-pip-version-check --require-hashes -r $<
	@touch $@

benchmarks/peers/node_modules/.done: benchmarks/peers/package-lock.json
	@if command -v npm >/dev/null; then cd benchmarks/peers && npm ci --silent && touch node_modules/.done; \
	else echo "npm is missing: @tus/server is not measured"; fi

.PHONY: bench-uploads
bench-uploads: install benchmarks/peers/.venv/.done benchmarks/peers/node_modules/.done ## Packhorse beside other tus servers (SCALE=0.1 ROUNDS=3 WORKERS=2)
	$(BIN)/python -m benchmarks.uploads

.PHONY: demo
demo: dev setup-peers ## The story of one CT, told in the terminal
	@$(BIN)/python -m tests.demo

.PHONY: lint
lint: dev ## ruff, mypy --strict, the floors
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

.PHONY: lock
lock: install ## Lock requirements anew, with hashes and without host names
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --upgrade --generate-hashes --no-emit-index-url \
	  --no-annotate --no-header benchmarks/peers/requirements.in -o benchmarks/peers/requirements.txt
	for name in tools run dev; do $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --upgrade \
	  --generate-hashes --no-emit-index-url --no-annotate --no-header requirements/$$name.in -o requirements/$$name.txt; done

.PHONY: clean
clean: ## Forget .venv and caches; data/ stays
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis demo-out *.egg-info
