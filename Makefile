# Everything is run from here, the same on a laptop and in CI.
SHELL := /bin/bash
.DEFAULT_GOAL := help
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
READY := .venv/ready
PROTOS := $(shell find protos -name '*.proto')

help: ## show this
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(READY) ## make .venv with everything that is needed

$(READY): requirements-dev.lock
	@echo "setting up .venv (once; about a minute)"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Sightline needs Python 3.11 or newer")'
	@rm -rf .venv && $(PYTHON) -m venv .venv
	@$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes --only-binary :all: -r requirements-dev.lock
	@printf '%s\n%s\n' "$(CURDIR)" "$(CURDIR)/libs" > $$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')/sightline.pth
	@printf '#!%s\nfrom tools.cli import main\nmain()\n' "$(CURDIR)/$(BIN)/python" > $(BIN)/sightline && chmod +x $(BIN)/sightline
	@touch $@

proto: $(READY) ## generate libs/sightline and libs/buf from protos/
	@rm -rf libs/sightline libs/buf
	@$(BIN)/python -m grpc_tools.protoc -I protos -I third_party/protovalidate \
		--plugin=protoc-gen-mypy=$(BIN)/protoc-gen-mypy --plugin=protoc-gen-mypy_grpc=$(BIN)/protoc-gen-mypy_grpc \
		--python_out=libs --mypy_out=quiet:libs $(PROTOS:protos/%=%) buf/validate/validate.proto
	@$(BIN)/python -m grpc_tools.protoc -I protos -I third_party/protovalidate \
		--plugin=protoc-gen-mypy_grpc=$(BIN)/protoc-gen-mypy_grpc \
		--grpc_python_out=libs --mypy_grpc_out=quiet:libs $(patsubst protos/%,%,$(filter %_service.proto,$(PROTOS)))

lock: $(READY) ## resolve the lock files anew
	@$(BIN)/uv pip compile -q --upgrade --generate-hashes --no-emit-index-url --no-emit-find-links --python-version 3.11 \
		--custom-compile-command "make lock" pyproject.toml -o requirements.lock
	@$(BIN)/uv pip compile -q --upgrade --generate-hashes --no-emit-index-url --no-emit-find-links --python-version 3.11 \
		--extra tools --extra dev --custom-compile-command "make lock" pyproject.toml -o requirements-dev.lock

.PHONY: help setup proto lock
