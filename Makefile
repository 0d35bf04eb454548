# Everything starts here: `make` alone says what there is.
# Needs Python 3.11, 3.12 or 3.13 (another one: make PYTHON=/path/to/python3.12 …).
# More arguments for pip, such as another package index: make PIP_ARGS="--index-url …" …
PYTHON   ?=
PIP_ARGS ?=
VENV     := .venv
PY       := $(VENV)/bin/python
READY    := $(VENV)/.ready
PIP      := $(PY) -m pip install -q --disable-pip-version-check -c constraints.txt $(PIP_ARGS)
TEST_ENV := HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1
# Solutions must pass their own checks, and leave the progress of whoever runs them alone.
CHECKED  := DISTILLKIT_CHECK=raise DISTILLKIT_HOME=$(CURDIR)/build/home
NOTEBOOKS = $(wildcard chapters/*.ipynb solutions/*.ipynb)

.DEFAULT_GOAL := help
.PHONY: help run lab test test-all test-peers lint check-notebooks chapters exercises results stamp clean

help: ## say what there is
	@echo "Distilling Dialogue. The first command sets up $(VENV) (some minutes, once)."
	@grep -hE '^[a-z-]+:.*## ' Makefile | sort | sed -E 's/^([a-z-]+):.*## /  make \1|/' | \
		awk -F'|' '{ printf "%-18s %s\n", $$1, $$2 }'

run: $(READY) ## execute the chapters offline on the CPU; table of results and HTML pages
	@$(PY) -m distillkit.cli run

lab: $(READY) ## open chapters and exercises in JupyterLab
	@echo "JupyterLab opens in your browser; Ctrl-C here ends it."
	@$(PY) -m jupyterlab

test: $(READY) lint ## format, types, tests, every notebook at level smoke (under 10 minutes)
	@echo "Tests (without the slow ones):"
	@$(TEST_ENV) $(PY) -m pytest -q -m "not slow" -n 2 --dist loadscope tests
	@$(MAKE) --no-print-directory check-notebooks

test-all: $(READY) lint ## the same with the slow tests
	@echo "Tests (all of them):"
	@$(TEST_ENV) $(PY) -m pytest -q -n 2 --dist loadscope tests
	@$(MAKE) --no-print-directory check-notebooks

test-peers: $(READY) ## compare losses and trainer with TRL, Liger, torchtune (installs them into .venv)
	@echo "Peers:"
	@$(PIP) --no-deps trl liger-kernel torchtune
	@$(TEST_ENV) $(PY) -m pytest -q tests/peers

lint: $(READY) ## ruff and mypy
	@echo "Format, lint and types:"
	@$(PY) -m ruff check -q .
	@$(PY) -m ruff format --check -q .
	@$(PY) -m mypy

check-notebooks: $(READY)
ifneq ($(NOTEBOOKS),)
	@echo "Notebooks, every cell, at level smoke:"
	@$(TEST_ENV) $(CHECKED) DISTILLKIT_RUN=smoke $(PY) -m pytest -q --nbval-lax --nbval-current-env \
		--nbval-cell-timeout=120 -n 2 --dist loadscope $(NOTEBOOKS)
endif

chapters: $(READY) ## execute the chapters at level cpu and keep their outputs in place
	@$(PY) -m distillkit.cli run --level cpu --in-place

exercises: $(READY) ## execute the solutions, and derive the exercises from them
	@$(PY) -m distillkit.course.stamp
	@$(CHECKED) $(PY) -m distillkit.cli run --folder solutions --pages build/pages/solutions \
		--level cpu --in-place
	@$(PY) -m distillkit.course.building

results: $(READY) ## make what is missing of the long experiments (hours; a result file that is removed is made anew)
	@set -e; for script in experiments/[0-9]*.py; do \
		echo "$$script …"; $(PY) "$$script"; done

stamp: $(READY) ## write the repository's address into the README and the notebooks
	@$(PY) -m distillkit.course.stamp

clean: ## remove what the commands above made, except .venv
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find distillkit tests experiments chapters solutions exercises -name __pycache__ -type d -prune -exec rm -rf {} +

# The file .ready is written last, so an interrupted set-up starts again, and a finished one costs nothing.
$(READY): pyproject.toml constraints.txt
	@found="$(PYTHON)"; \
	if [ -z "$$found" ]; then \
		for name in python3.11 python3.12 python3.13 python3; do \
			if $$name -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' \
				>/dev/null 2>&1; then found=$$name; break; fi; \
		done; \
	fi; \
	if [ -z "$$found" ]; then \
		echo "No Python 3.11, 3.12 or 3.13 with venv was found: install one, or say make PYTHON=/path/to/python3.12 …" >&2; \
		exit 2; \
	fi; \
	if $(PY) -m pip --version >/dev/null 2>&1; then \
		echo "The requirements have changed: bringing $(VENV) up to date."; \
	else \
		echo "Setting up $(VENV) with $$found: 1 to 2 GB, 3 to 10 minutes, once."; \
		"$$found" -m venv --clear $(VENV); \
	fi
	@echo "  1/2 PyTorch …"
	@$(PIP) torch
	@echo "  2/2 everything else …"
	@$(PIP) -e ".[lab,test,export,dev]"
	@touch $@
	@echo "  done."
