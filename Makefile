# The whole developer interface. Each target makes the environment first, if it is missing or out of date.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
PROTOS := $(wildcard proto/ditcast/v1/*.proto)
RELEASED := proto/released.json

.DEFAULT_GOAL := help
.PHONY: help demo test test-kinds test-mesh check bench soak docs starter proto proto-check proto-release clean

help: ## Show this list.
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(INSTALLED) ## Serve the embedded model, make one picture, say where it is, stop.
	@$(BIN)/python -m ditcast_service.demo

test: $(INSTALLED) ## Run all tests (ARGS="-k name" narrows them down).
	$(BIN)/python -m pytest $(ARGS)

check: $(INSTALLED) proto-check ## Lint, types, import rules, contract, and that it breaks nothing released.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pyright
	$(BIN)/lint-imports
	$(BIN)/buf lint
	$(BIN)/buf breaking --against $(RELEASED)

bench: $(INSTALLED) ## Measure what the service adds, beside others; prints, and stores JSON in benchmarks/results/.
	$(BIN)/python -m benchmarks $(ARGS)

soak: $(INSTALLED) ## Run the tests marked `soak`, which take long.
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[fuzz]'
	$(BIN)/python -m pytest -m soak $(ARGS)

test-kinds: $(INSTALLED) ## Serve every kind of pipeline, and write docs/PIPELINES.md.
	$(BIN)/python -m pytest -m kinds tests/kinds $(ARGS)

test-mesh: $(INSTALLED) ## Run the tests with real parts around the service: promtool, proxies, hosts.
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[mesh]'
	$(BIN)/python -m pytest -m mesh $(ARGS)

# grpcio-tools is pinned to the oldest grpcio that clients may have: generated code refuses an older one than
# made it. Only one file has a service, so only that one gets stubs. $(1) is the folder to write to.
define generate
PATH="$(BIN):$$PATH" $(BIN)/python -m grpc_tools.protoc -Iproto --python_out=$(1) --mypy_out=quiet:$(1) $(PROTOS)
PATH="$(BIN):$$PATH" $(BIN)/python -m grpc_tools.protoc -Iproto --grpc_python_out=$(1) --mypy_grpc_out=quiet:$(1) \
	proto/ditcast/v1/diffusion_service.proto
endef

docs: $(INSTALLED) ## Write the references in docs/ that are made of the code and the contract.
	$(BIN)/python -m tests.docs.reference

starter: $(INSTALLED) ## Train the embedded model anew, into build/starter: hours (ARGS=--tiny: a minute).
	$(BIN)/python -m ditcast_runtime.starter.train $(ARGS)

proto: $(INSTALLED) ## Generate the Python code of the contract again.
	rm -f proto/gen/ditcast/v1/*_pb2*
	$(call generate,proto/gen)

proto-check: $(INSTALLED) ## Fail if the committed code of the contract is not what `make proto` makes.
	@rm -rf $(VENV)/proto-check && mkdir -p $(VENV)/proto-check
	@$(call generate,$(VENV)/proto-check)
	@diff -r --exclude=__init__.py --exclude=py.typed --exclude=__pycache__ proto/gen $(VENV)/proto-check \
		|| { echo "proto/gen is not what the .proto files say: run 'make proto' and commit the result."; exit 1; }

proto-release: $(INSTALLED) ## Take the contract for released: from then on, `make check` refuses what breaks it.
	$(BIN)/buf build --exclude-source-info -o $(RELEASED)

clean: ## Remove the environment and all caches.
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "ditcast needs Python 3.11 or newer; name one with 'make PYTHON=...'."; exit 1; }
	@echo "Installing into $(VENV) (torch is the large part, this takes minutes) ..."
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check --constraint constraints.txt --editable '.[server,otel,train,bench,dev]'
	@touch $@
