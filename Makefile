# Two commands on a fresh machine with Python 3.11 or newer: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help demo test check format bench clean

help:
	@echo "make demo    three jobs from queued rows to finished rows, offline: bars, lines, files"
	@echo "make test    run all tests"
	@echo "make check   format, lint, types, layers"
	@echo "make format  put the code into its format"
	@echo "make bench   measure both halves; takes half an hour on an idle machine"

$(PY):
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; set PYTHON=")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.worker: pyproject.toml | $(PY)
	@echo "Installing both halves into $(VENV) (no torch, about a minute) ..."
	$(PY) -m pip install --quiet --editable '.[worker,local]'
	@touch $@

$(VENV)/.dev: pyproject.toml | $(PY)
	@echo "Installing both halves and the test tools into $(VENV) ..."
	$(PY) -m pip install --quiet --editable '.[worker,local,dev]'
	$(PY) -m pip install --quiet 'torch==2.13.0'
	# Without its dependencies: it asks for torchaudio, of which it needs the import only.
	$(PY) -m pip install --quiet --no-deps 'stable-ts-whisperless>=2.19,<3'
	@touch $@ $(VENV)/.worker

demo: $(VENV)/.worker
	@echo "PostgreSQL, a RunPod endpoint and its worker on this machine, offline, nano model ..."
	$(PY) tools/demo.py

test: $(VENV)/.dev
	# Most tests wait for processes: three files at once make the best of two cores.
	$(PY) -m pytest -n 3 --dist loadfile

check: $(VENV)/.dev
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .
	$(PY) -m mypy
	$(PY) -m mypy handler.py
	$(VENV)/bin/lint-imports

format: $(VENV)/.dev
	$(PY) -m ruff format .
	$(PY) -m ruff check --fix .

bench: $(VENV)/.dev
	$(PY) -m bench

clean:
	rm -rf $(VENV) out .lyricpod/demo .mypy_cache .ruff_cache .pytest_cache .hypothesis
