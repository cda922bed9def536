# make demo: the main job on built-in scenes.   make test: the whole suite.   make lint: style and types.
# Each builds .venv by itself on a fresh machine.

PYTHON ?= python3
# Where PyTorch comes from besides PyPI: make demo TORCH_INDEX=https://download.pytorch.org/whl/cpu (see README.md).
TORCH_INDEX ?=
PIP := -m pip install --disable-pip-version-check $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))
BIN := .venv/bin
TASKS := $(patsubst %/train.py,%,$(wildcard */train.py))

SIZE := echo "installing into .venv: about 7 GB, 3 GB of it CUDA libraries; without a GPU, TORCH_INDEX in the Makefile saves them"

.PHONY: demo test lint clean

demo: .venv/run
	@for task in $(TASKS); do \
	  echo "== $$task"; \
	  $(BIN)/python $$task/train.py || exit; \
	  sh $$task/demo.sh $(BIN)/python || exit; \
	done

test: .venv/dev
	$(BIN)/python -m pytest -q

lint: .venv/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --strict common $(TASKS)

.venv/run: requirements.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(SIZE)
	$(BIN)/python $(PIP) -r requirements.txt
	touch $@

.venv/dev: requirements-dev.txt requirements.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(SIZE)
	$(BIN)/python $(PIP) -r requirements-dev.txt
	touch $@ .venv/run

clean:
	rm -rf .venv runs outputs data .pytest_cache .mypy_cache .ruff_cache
