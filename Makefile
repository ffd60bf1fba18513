# Everything is run from here, the same on a laptop and in CI.
SHELL := /bin/bash
.DEFAULT_GOAL := help
STARTED := $(shell date +%s)
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
READY := .venv/ready
PAGE := services/console/page
PAGE_READY := .venv/page/ready
TSC = PATH="$(CURDIR)/$(BIN):$$PATH" .venv/page/node_modules/.bin/tsc -p $(PAGE)
PROTOS := $(shell find protos -name '*.proto')
INCLUDES := -I protos -I third_party/protovalidate
GENERATED ?= libs
COMPILE := $(BIN)/uv pip compile -q --generate-hashes --python-version 3.11 \
	--custom-compile-command "make lock" pyproject.toml
DEMO_TEST_SECONDS ?= 30

help: ## show this
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(READY) ## make .venv with everything that is needed (the other targets do it for you)

$(READY): requirements-dev.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Sightline needs Python 3.11 or newer; say which: make PYTHON=…")'
	@echo "setting up .venv (once; about a minute)"
	@rm -rf .venv && $(PYTHON) -m venv .venv
	@$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes --only-binary :all: -r requirements-dev.lock
	@printf '%s\n' "$(CURDIR)" "$(CURDIR)/libs" > "$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/sightline.pth"
	@printf '#!/bin/sh\nexec "%s" -m tools.cli "$$@"\n' "$(CURDIR)/$(BIN)/python" > $(BIN)/sightline && chmod +x $(BIN)/sightline
	@touch $@

# The page's compiler, and a browser to test it in.
$(PAGE_READY): $(READY) $(PAGE)/package-lock.json
	@rm -rf .venv/page && mkdir .venv/page && cp $(PAGE)/package.json $(PAGE)/package-lock.json $(PAGE)/.npmrc .venv/page/
	@cd .venv/page && PATH="$(CURDIR)/$(BIN):$$PATH" npm ci --silent
	@touch $@

demo: $(READY) ## bring everything up, press buttons, show what comes of it (DEMO_SECONDS=30 ends by itself)
	@DEMO_STARTED=$(STARTED) $(BIN)/sightline demo

test: lint ## set up and run everything: linters, all tests on real servers, a short demo
	@$(BIN)/pytest -m 'not slow'
	@$(MAKE) --no-print-directory fault-share
	@DEMO_SECONDS=$(DEMO_TEST_SECONDS) $(BIN)/sightline --plain demo

intake: $(READY) ## 10,000 presses and 10,000 camera reports with arbitrary values and a valid identity: all are taken (some minutes)
	@INTAKE_MESSAGES=10000 $(BIN)/pytest --timeout 1200 tests/integration/test_intake.py

fault-share: $(READY) ## CI's share of the fault tests, some minutes: a stack whose parts are killed, frozen and cut off
	@$(BIN)/pytest -m 'not slow' --timeout 600 tests/faults

fault-nightly: $(READY) ## 20,000 presses with 200 faults, three brokers, every point of death: about two and a half hours
	@$(BIN)/pytest -m slow --timeout 1200 libs/chassis
	@$(BIN)/pytest -m slow --timeout 1200 tests/faults
	@$(BIN)/python -m testkit.trial --only F3 --presses 1500 --faults 200 --rate 1
	@$(BIN)/python -m testkit.trial --brokers 3 --presses 4000 --faults 40 --rate 6
	@$(BIN)/python -m testkit.trial --presses 20000 --faults 200 --rate 10

lint: $(READY) $(PAGE_READY) ## formats, types, import rules, schemas, and that generated code is current
	@$(BIN)/ruff format --check --quiet . || { echo "run: make format"; exit 1; }
	@$(BIN)/ruff check --quiet .
	@$(BIN)/mypy --no-error-summary libs services tools bench tests conftest.py
	@PYTHONPATH=libs:. $(BIN)/lint-imports > .venv/imports.log || { cat .venv/imports.log; exit 1; }
	@$(BIN)/buf lint && $(BIN)/buf format --diff --exit-code protos
	@rm -rf .venv/generated && mkdir .venv/generated && $(MAKE) --no-print-directory GENERATED=.venv/generated generate
	@$(TSC) --outDir .venv/generated && diff -q .venv/generated/player.js $(PAGE)/player.js || { echo "run: make page"; exit 1; }
	@for part in sightline buf; do diff -rq -x __pycache__ .venv/generated/$$part libs/$$part || { echo "run: make proto"; exit 1; }; done

format: $(READY) ## format Python and protos
	@$(BIN)/ruff check --quiet --fix . ; $(BIN)/ruff format --quiet . ; $(BIN)/buf format --write protos

proto: $(READY) ## generate libs/sightline and libs/buf from protos/
	@rm -rf libs/sightline libs/buf
	@$(MAKE) --no-print-directory generate

generate:
	@$(BIN)/python -m grpc_tools.protoc $(INCLUDES) --plugin=protoc-gen-mypy=$(BIN)/protoc-gen-mypy \
		--python_out=$(GENERATED) --mypy_out=quiet:$(GENERATED) $(PROTOS:protos/%=%) buf/validate/validate.proto
	@$(BIN)/python -m grpc_tools.protoc $(INCLUDES) --plugin=protoc-gen-mypy_grpc=$(BIN)/protoc-gen-mypy_grpc \
		--grpc_python_out=$(GENERATED) --mypy_grpc_out=quiet:$(GENERATED) $(patsubst protos/%,%,$(filter %_service.proto,$(PROTOS)))

page: $(PAGE_READY) ## compile the console's page from TypeScript
	@$(TSC)

chart: $(READY) ## render and check the Helm chart (needs helm on the PATH)
	@deploy/helm/check

bench: $(READY) $(PAGE_READY) ## measure the path on this machine beside the least it could take, live video, the audit log, positions (about twenty minutes)
	@$(BIN)/python -m bench
	@$(BIN)/python -m bench.media
	@$(BIN)/python -m bench.audit
	@$(BIN)/python -m bench.location

lock: $(READY) ## resolve the lock files anew
	@$(COMPILE) --upgrade -o requirements.lock
	@$(COMPILE) --upgrade --extra tools --extra dev -o requirements-dev.lock

clean: ## stop the local stack and remove its data, the environment and caches
	@[ ! -x $(BIN)/sightline ] || $(BIN)/sightline stack down --purge
	@rm -rf .venv .local .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

.PHONY: help setup demo test intake fault-share fault-nightly lint format proto generate chart bench lock clean
