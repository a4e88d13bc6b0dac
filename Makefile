# Every target works alone on a fresh clone that has Python 3.11 or newer and pip: it makes .venv first.
# pip obeys its usual environment variables (PIP_INDEX_URL, PIP_FIND_LINKS, …), for instance to take a CPU-only torch.

PYTHON ?= python3
BENCH  ?= full-pass
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
PIN     = $$(grep '^torch==' constraints.txt)
RECENT := import sys; print(sys.version_info >= (3, 11))

.DEFAULT_GOAL := help
.PHONY: help demo test lint docs package bench clean FORCE

help: ## what can be made
	@echo "make <target>, each alone on a fresh clone:"
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  %-6s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

demo: $(VENV)/.run ## train a wide network on real data; model, report and predictions go to runs/
	@mkdir -p runs
	$(BIN)/widefit train digits --out runs/digits.widefit --report runs/digits.html
	$(BIN)/widefit predict runs/digits.widefit digits --out runs/digits.csv
	@echo "open runs/digits.html in a browser to see how the training went"

test: $(VENV)/.dev ## run the tests
	$(BIN)/python -m pytest $(ARGS)

lint: $(VENV)/.dev ## check style, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

docs: $(VENV)/.docs ## build the documentation into site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@! grep -rlE '<(script|img|iframe)[^>]+src="?https?:' site --include='*.html' || { echo "these pages load from elsewhere" >&2; exit 1; }
	@echo "the documentation is in site/index.html"

package: ## build wheel and sdist, and try the wheel in an empty environment
	PYTHON="$(PYTHON)" .ci/package

bench: $(VENV)/.bench ## measure on this machine, in under a minute; BENCH=name for another one
	$(BIN)/widefit bench $(BENCH) --quick

clean: ## remove what was built and installed here
	rm -rf $(VENV) build dist site .numba_cache .pytest_cache .ruff_cache .hypothesis

# The environment is made anew when its interpreter no longer runs or is too old; torch goes in first, by its pin.
ifneq ($(shell $(BIN)/python -c '$(RECENT)' 2>/dev/null),True)
$(VENV)/pyvenv.cfg: FORCE
endif
$(VENV)/pyvenv.cfg:
	@$(PYTHON) -c '$(RECENT)' | grep -q True || { echo "widefit needs Python 3.11 or newer: make PYTHON=python3.12 …" >&2; exit 1; }
	@echo "making $(VENV) with $$($(PYTHON) --version)"
	@rm -rf $(VENV)
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }

$(VENV)/.torch: $(VENV)/pyvenv.cfg constraints.txt
	@echo "installing $(PIN), the largest part: some minutes on a slow connection"
	@$(PIP) "$(PIN)"
	@touch $@

$(VENV)/.run: $(VENV)/.torch pyproject.toml
	@echo "installing widefit"
	@$(PIP) -e .
	@touch $@

$(VENV)/.dev: $(VENV)/.torch pyproject.toml
	@echo "installing widefit and what its tests need"
	@$(PIP) -e '.[dev]'
	@touch $@ $(VENV)/.run

$(VENV)/.bench: $(VENV)/.torch pyproject.toml
	@echo "installing widefit and what its benches draw with"
	@$(PIP) -e '.[bench]'
	@touch $@ $(VENV)/.run

$(VENV)/.docs: $(VENV)/.torch pyproject.toml
	@echo "installing widefit and what its documentation needs"
	@$(PIP) -e '.[docs]'
	@touch $@
