# Needs only python3 (3.11 or newer), pip and make. `make` alone lists the verbs.

PYTHON  ?= python3
VENV    ?= .venv
WORKDIR ?= demo
MODEL   ?= smollm2
CONFIG  ?= configs/core_removal.py:$(MODEL)
TESTS   ?= tests
WORKERS ?= 2
COUNT   ?= 20000
NUMERICAL := tests/test_parity.py tests/test_scoring.py tests/test_loss.py tests/test_mesh.py tests/test_freeze.py tests/test_train.py \
  --deselect tests/test_train.py::test_twenty_kills_change_no_bit
BIN     := $(VENV)/bin
PARITY  := .venv-parity
NEWEST   = $(shell for each in $(wildcard $(HOME)/.pyenv/versions/*/bin/python3) python3.12 python3.13 python3.14 python3.15; do \
  "$$each" -c 'import sys; sys.version_info[:2] > (3, 11) and print(sys.version_info[1], sys.executable)' 2>/dev/null; \
  done | sort -n | tail -1 | cut -d ' ' -f 2)
RECENT   = PYTHON="$(NEWEST)" VENV=.venv-newest
NONE    := --> no Python newer than 3.11 is here: nothing to do
SETS    := report test dev docs audit
COMPILE  = $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --no-emit-index-url --no-emit-find-links \
  --no-annotate --no-header pyproject.toml
say      = @printf '%s\n' '--> $(1)'

# Where containers set it, every process would compile all that it imports anew: two of the four seconds of a start.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test newest setup coverage fuzz lint check parity bench docs wheel-test lock audit clean

help:  ## list the verbs
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(VENV)/.report  ## score SmolLM2 in six languages, remove its core region, write demo/report.html (MODEL=thirty: our own, no download)
	$(call say,running $(CONFIG) in $(WORKDIR))
	@$(BIN)/lingregions run --config=$(CONFIG) --workdir=$(WORKDIR)
	$(call say,the report is $(abspath $(WORKDIR))/report.html)

test: $(VENV)/.test  ## run all tests that need no torch (TESTS= for some, WORKERS= processes of about 2 GB)
	$(call say,running $(TESTS) without torch)
	@$(BIN)/python -m pytest -q -m 'not parity' -n $(WORKERS) --max-worker-restart=0 --dist loadfile --no-loadscope-reorder --durations=10 $(TESTS)

newest:  ## run the numerical tests on the newest Python that is here, with the JAX that it gets, in a venv of its own
	@$(if $(NEWEST),$(MAKE) --no-print-directory test $(RECENT) TESTS="$(NUMERICAL)",printf '%s\n' '$(NONE)')

setup: $(PARITY)/.parity  ## make what `make parity` and `make newest` run in
	@$(if $(NEWEST),$(MAKE) --no-print-directory .venv-newest/.test $(RECENT),printf '%s\n' '$(NONE)')

coverage: $(VENV)/.dev  ## run all tests of `make test` and say which lines and branches none reaches
	$(call say,running $(TESTS) without torch and counting branches)
	@$(BIN)/coverage erase
	@$(BIN)/coverage run -m pytest -q -m 'not parity' -n $(WORKERS) --max-worker-restart=0 --dist loadfile --no-loadscope-reorder $(TESTS)
	@$(BIN)/coverage combine --quiet
	@$(BIN)/coverage report

fuzz: $(VENV)/.test  ## read COUNT damaged files of each kind: each is read as its format says or refused in a sentence
	$(call say,reading $(COUNT) damaged files of each kind)
	@$(BIN)/python benchmarks/fuzz.py --count $(COUNT)

lint: $(VENV)/.dev  ## check format, lint, shell scripts and types
	$(call say,checking format)
	@$(BIN)/ruff format --check .
	$(call say,checking lint)
	@$(BIN)/ruff check .
	$(call say,checking shell scripts)
	@$(BIN)/shellcheck --external-sources tpu_scripts/*.sh .ci/run
	$(call say,checking types)
	@$(BIN)/mypy

check: lint test  ## lint, then test

parity: $(PARITY)/.parity  ## compare with torch and transformers, live (installs torch into a venv of its own)
	$(call say,comparing with torch)
	@JAX_DISABLE_MOST_OPTIMIZATIONS=0 $(PARITY)/bin/python -m pytest -q -m parity --durations=10 $(TESTS)

bench: $(PARITY)/.parity  ## time the main jobs against torch and plain loops, into bench.md (QUICK=1: small sizes, ONLY= some)
	$(call say,timing)
	@$(PARITY)/bin/python benchmarks/bench.py $(if $(QUICK),--quick) $(if $(ONLY),--only $(ONLY))

docs: $(VENV)/.docs  ## build the pages of docs/ into site/, strictly and without network
	$(call say,building site/index.html)
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

wheel-test: $(VENV)/.test  ## build a wheel, install it in an empty venv, and run it without the checkout
	$(call say,building and trying the wheel)
	@$(BIN)/python tests/wheel.py

lock: $(VENV)/.dev  ## renew requirements.lock from pyproject.toml
	$(call say,resolving for Python 3.11 and newer on every platform)
	@echo 'setuptools>=77' | $(COMPILE) --upgrade --generate-hashes $(SETS:%=--extra %) - -o requirements.resolved
	@for set in $(SETS); do \
	  echo 'setuptools>=77' | $(COMPILE) -c requirements.resolved --extra $$set - > requirements.one || exit; \
	  sed -E "s/==.*/ $$set/" requirements.one | sort -u; \
	done > requirements.sets
	@{ printf '%s\n' '# Versions that the tests ran with, and the hashes of their files, for Python 3.11 and newer; no torch, no accelerator' \
	  '# plugins. Each stands below the extras that need it: make installs those of one by pip install --require-hashes.' \
	  '# uv takes the whole and checks what it installs: uv pip install -c requirements.lock -e ".[test]". Renew with: make lock'; \
	  awk 'NR == FNR { sets[$$1] = sets[$$1] " " $$2; next } split($$0, name, "==") > 1 { print "# for" sets[name[1]] } 1' \
	    requirements.sets requirements.resolved; } > requirements.lock
	@rm requirements.resolved requirements.one requirements.sets

audit: $(VENV)/.audit  ## ask the database of known vulnerabilities about every version in requirements.lock
	$(call say,asking about requirements.lock)
	@$(BIN)/pip-audit --requirement requirements.lock --require-hashes --disable-pip --strict --progress-spinner off

clean:  ## remove virtual environments and caches; work directories stay
	$(call say,removing $(VENV) $(PARITY) and caches)
	@rm -rf $(VENV) $(PARITY) .venv-newest build dist site .cache .hypothesis .mypy_cache .pytest_cache .ruff_cache *.egg-info
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

# One stamp a set of extras: it is renewed when what to install changes. What the lock holds for the set is installed by
# hash, then lingregions, for which nothing may be missing; torch, which the lock leaves out, comes without.
define install
	$(call say,looking for Python 3.11 or newer)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  printf '%s\n' 'Python 3.11 or newer is needed; $(PYTHON) is '"$$($(PYTHON) --version 2>&1)"'. Say which to use: make PYTHON=python3.12 ...' >&2; exit 1; }
	$(call say,making $(1))
	@test -x $(1)/bin/python || $(PYTHON) -m venv $(1)
	$(call say,installing lingregions[$(3)] into $(1) (one to three minutes the first time))
	@awk '/^# for/ { keep = index($$0 " ", " $(2) ") } keep' requirements.lock > $@.lock
	@$(1)/bin/python -m pip install -qq --no-compile --disable-pip-version-check --require-hashes -r $@.lock
	@$(1)/bin/python -m pip install -qq --no-compile --disable-pip-version-check --no-build-isolation $(4) -e '.[$(3)]'
	@touch $@
endef

$(VENV)/.report: pyproject.toml requirements.lock
	$(call install,$(VENV),report,report,--no-index)

$(VENV)/.test: pyproject.toml requirements.lock
	$(call install,$(VENV),test,test,--no-index)

$(VENV)/.dev: pyproject.toml requirements.lock
	$(call install,$(VENV),dev,dev,--no-index)

$(VENV)/.docs: pyproject.toml requirements.lock
	$(call install,$(VENV),docs,docs,--no-index)

$(VENV)/.audit: pyproject.toml requirements.lock
	$(call install,$(VENV),audit,audit,--no-index)

$(PARITY)/.parity: pyproject.toml requirements.lock
	$(call install,$(PARITY),test,test$(comma)parity)

comma := ,
