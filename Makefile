# Longtide's commands. `make help` lists them.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PROTOS := $(sort $(shell find proto -name '*.proto'))
# Given on the command line, not taken from the environment (shells like to export COLUMNS, for one).
DATA =
MAPPING =
ITEMS =
LOG = $(if $(DATA),"$(DATA)")
LOG_OPTIONS = $(if $(MAPPING),--columns "$(MAPPING)") $(if $(ITEMS),--items "$(ITEMS)")
LISTEN = 127.0.0.1:50051
SNAPSHOT = .longtide/snapshot
STORE = .longtide/server

.DEFAULT_GOAL := help
.PHONY: help setup run test check lint types imports proto format train serve bench bench-accuracy bench-ablation bench-content bench-events bench-gpu bench-serving bench-wanted clean

help:  ## List the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-15s %s\n", $$1, $$2}'

setup: $(VENV)/.installed  ## Make the virtual environment and install everything into it

$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Longtide needs Python 3.11 or newer: make setup PYTHON=python3.12"; exit 1; }
	@test -x $(BIN)/pip || $(PYTHON) -m venv --clear $(VENV) || { rm -rf $(VENV); exit 1; }
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[server,dev,otel,plot,tensorboard,text,wandb]'
	@touch $@

run: setup  ## Train, publish, serve and show recommendations (DATA=my_log.csv MAPPING=user_id=userId,... for your own log)
	@# On a terminal the command gets a process group of its own: Ctrl-C is for it alone, and make ends as it does.
	@[ -t 0 ] && set -m; $(BIN)/longtide quickstart $(LOG) $(LOG_OPTIONS) --listen $(LISTEN); exit $$?

test: setup  ## Run every test, the end-to-end ones against the real TorchServe included
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

check: lint types imports test  ## Lint, types, import rules, proto drift, tests

lint: setup  ## Style of the code and of the protos
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	cd proto && ../$(BIN)/buf lint

types: setup  ## Types, strictly
	$(BIN)/mypy
	$(BIN)/mypy tests/bench/*.py

imports: setup  ## Which way imports point
	$(BIN)/lint-imports

proto: setup  ## Generate the Python code of the protocol buffers
	$(BIN)/python -m grpc_tools.protoc -Iproto --plugin=protoc-gen-mypy=$(BIN)/protoc-gen-mypy \
	  --plugin=protoc-gen-mypy_grpc=$(BIN)/protoc-gen-mypy_grpc \
	  --python_out=sdk --mypy_out=sdk --grpc_python_out=sdk --mypy_grpc_out=sdk $(PROTOS)
	@rm -f sdk/longtide/internal/v1/*_grpc.py*
	$(BIN)/python -m grpc_tools.protoc -Iserver --plugin=protoc-gen-mypy=$(BIN)/protoc-gen-mypy \
	  --python_out=server --mypy_out=server server/longtide_server/torchserve/torchserve.proto

format: setup  ## Format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

train: setup  ## Train on DATA and publish to SNAPSHOT
	$(BIN)/longtide train $(LOG) --out $(SNAPSHOT) $(LOG_OPTIONS)

serve: setup  ## Serve SNAPSHOT, what `make train` made
	@[ -t 0 ] && set -m; $(BIN)/longtide serve --snapshot $(SNAPSHOT) --data-dir $(STORE) --listen $(LISTEN); exit $$?

bench: setup  ## Measure accuracy on DATA (leave-one-out), next to the baselines
	$(BIN)/longtide evaluate $(LOG) $(LOG_OPTIONS)

# Real logs and their scorer, and where the pieces of a benchmark that are done are kept.
LOGS = ../shared/data
SCORER = ../shared/eval/score.py
JSON =
BENCH = .longtide/bench
ONLY =
# A snapshot of MovieLens-1M for bench-serving, where there is one already.
SERVED =

bench-accuracy: setup .venv-rectools/.installed  ## Measure the README's accuracy figures (hours; goes on where it was; ONLY=LOG for one log; JSON=FILE for machines)
	$(BIN)/python -m tests.bench.accuracy --data $(LOGS) --scorer $(SCORER) --work $(BENCH) \
	  --rectools .venv-rectools/bin/python $(if $(ONLY),--only $(ONLY)) $(if $(JSON),--json "$(JSON)")

bench-events: setup  ## Measure ingest, read-your-writes, long histories, import and kills (half an hour; JSON=FILE for machines)
	$(BIN)/python -m tests.bench.events --data $(LOGS) $(if $(JSON),--json "$(JSON)")

bench-serving: setup  ## Measure what an answer costs and what it survives (half an hour, and an hour of training; JSON=FILE for machines)
	$(BIN)/python -m tests.bench.serving --data $(LOGS) --scorer $(SCORER) --work $(BENCH) \
	  $(if $(SERVED),--snapshot "$(SERVED)") $(if $(JSON),--json "$(JSON)")

bench-content: setup  ## Measure what the content of items is worth (hours; goes on where it was; JSON=FILE for machines)
	$(BIN)/python -m tests.bench.content --data $(LOGS) --scorer $(SCORER) --work $(BENCH) \
	  $(if $(JSON),--json "$(JSON)")

bench-gpu: setup  ## Measure what a GPU is worth, where there is one (a quarter of an hour; JSON=FILE for machines)
	$(BIN)/python -m tests.bench.gpu --data $(LOGS) --scorer $(SCORER) --work $(BENCH) $(if $(JSON),--json "$(JSON)")

bench-wanted: setup  ## Measure what fine-tuning on purchases is worth, on clicks with made-up ones (an hour; JSON=FILE for machines)
	$(BIN)/python -m tests.bench.wanted --data $(LOGS) --work $(BENCH) $(if $(JSON),--json "$(JSON)")

bench-ablation: setup  ## Measure what each part of the encoder earns, on validation targets (hours; goes on where it was; JSON=FILE for machines)
	$(BIN)/python -m tests.bench.ablation --data $(LOGS) --work $(BENCH) $(if $(JSON),--json "$(JSON)")

.venv-rectools/.installed: constraints.txt
	$(PYTHON) -m venv --clear .venv-rectools
	.venv-rectools/bin/pip install --disable-pip-version-check -c constraints.txt 'rectools[torch]==0.19.0'
	@touch $@

clean:  ## Remove what the other targets made, `make serve`'s events included
	rm -rf $(VENV) .venv-rectools .longtide build dist
