# ckptstore: `make test` and `make demo` set up everything they need; Python 3.11+ and make are enough.
# Environments: .venv (development), .cache/venv-tf (TensorFlow, for comparison only) and .cache/venv-moto, all filled
# from the locks in requirements/ and brought in line again when a lock changes. Servers: .cache/servers.
# .cache/venv-frameworks: torch, JAX, TensorFlow, Keras, Lightning, Ray and MPI (8 GB).

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
# One lane after the other: the cheapest failure first, and output that can be read.
.NOTPARALLEL:

# The first interpreter that runs (a pyenv shim may exist and not run), is new enough and can make environments.
usable = $(shell for p in $(1); do "$$p" -c 'import sys, venv, ensurepip; sys.exit(not $(2))' >/dev/null 2>&1 && { command -v "$$p"; break; }; done)
PYTHON    ?= $(call usable,python3 python3.13 python3.12 python3.11,sys.version_info >= (3, 11))
# TensorFlow 2.21 has no wheels for Python 3.14.
PYTHON_TF ?= $(call usable,$(PYTHON) python3.13 python3.12 python3.11,(3, 11) <= sys.version_info < (3, 14))

# The oldest releases that pyproject.toml allows have no wheels for Python 3.13 and later.
PYTHON_MIN ?= $(call usable,python3.11 $(PYTHON) python3.12,(3, 11) <= sys.version_info < (3, 13))

VENV    := .venv
VENV_TF := .cache/venv-tf
VENV_MOTO := .cache/venv-moto
VENV_FRAMEWORKS := .cache/venv-frameworks
VENV_DIST := .cache/venv-dist
VENV_MIN := .cache/venv-min-deps
VENV_UPSTREAM := .cache/venv-upstream
BIN     := $(VENV)/bin
# The checkout on the path: TensorFlow's environment holds our dependencies, not ckptstore itself.
IN_TF   := PYTHONPATH="$(CURDIR)" $(VENV_TF)/bin/python
PYTEST  := $(BIN)/python -m pytest

# Cheapest first. Each needs tests: pytest's "nothing collected" (exit code 5) fails the lane.
LANES := unit meta typing conformance cli lifecycle scale crash hostile simulation contract wire backends races ranks

# Two workers where they win more than they take to start.
WORKERS := -n 2 --dist worksteal
FLAGS_hostile    := $(WORKERS)
FLAGS_crash      := $(WORKERS)
FLAGS_unit       := $(WORKERS)
FLAGS_simulation := $(WORKERS)
FLAGS_contract   := $(WORKERS)
FLAGS_lifecycle  := $(WORKERS)
FLAGS_backends   := -n 3 --dist worksteal
# What is frozen, stalled or waited for takes time and nothing else.
FLAGS_wire       := -n 4 --dist worksteal
FLAGS_ranks      := -n 4 --dist worksteal
ARGS ?=

.PHONY: help setup setup-tf setup-frameworks servers minio test quick lint format $(LANES) min-deps run-min-deps upstream dist interop frameworks engines preemptions histories schedules many-ranks cache-kills followers campaign demo demo-serving bench bench-setup bench-quick bench-cold bench-page docs protos lock clean clean-all

help:  ## show this list
	@sed -n 's/^\([a-z][a-z-]*\):[^#]*## \(.*\)/make \1#\2/p' Makefile | awk -F'#' '{ printf "  %-17s %s\n", $$1, $$2 }'
	@echo '  make LANE         one lane of tests (ARGS="-k name" goes to pytest): $(LANES)'

# ------------------------------------------------------------------------------------------------ environments

setup: $(VENV)/.ready  ## make or update the development environment, .venv
setup-tf: $(VENV_TF)/.ready  ## make or update TensorFlow's environment, .cache/venv-tf
setup-frameworks: $(VENV_FRAMEWORKS)/.ready  ## the same for torch, JAX, TensorFlow, Ray, MPI and more (8 GB), .cache/venv-frameworks

export PIP_DISABLE_PIP_VERSION_CHECK := 1

# uv is fast. pip is the fallback where only pip's configuration names the package index (a mirror).
# Both check the hashes. $(1): environment, $(2): lock
define fill
@echo 'filling $(1) from $(2)'
@$(BIN)/python -m uv pip sync --quiet --system-certs --require-hashes --python $(1)/bin/python $(2) \
	|| { echo 'uv could not; trying pip' >&2; \
	     $(BIN)/python -m pip --python $(1)/bin/python install --quiet --require-hashes -r $(2); }
endef

# $(1): environment, $(2): interpreter, $(3): what it must be, $(4): options
define make_environment
@test -n "$(2)" || { echo "No Python that is $(3) and has the modules venv and ensurepip (on Debian: python3-venv) was\
	found. Name one: make PYTHON=/path/to/python" >&2; exit 1; }
@$(1)/bin/python -c '' >/dev/null 2>&1 || { echo 'making $(1) with $(2)'; "$(2)" -m venv --clear $(4) $(1); }
endef

$(VENV)/.uv: requirements/uv.txt
	$(call make_environment,$(VENV),$(PYTHON),3.11 or newer)
	@$(BIN)/python -m pip install --quiet --require-hashes -r requirements/uv.txt
	@touch $@

# Our own package last: filling an environment removes what its lock does not name.
$(VENV)/.ready: $(VENV)/.uv requirements/dev.txt pyproject.toml
	$(call fill,$(VENV),requirements/dev.txt)
	@$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --no-index --editable .
	@touch $@

$(VENV_TF)/.ready: $(VENV)/.uv requirements/tensorflow.txt
	$(call make_environment,$(VENV_TF),$(PYTHON_TF),3.11 to 3.13,--without-pip)
	$(call fill,$(VENV_TF),requirements/tensorflow.txt)
	@touch $@

$(VENV_FRAMEWORKS)/.ready: $(VENV)/.uv requirements/frameworks.txt
	$(call make_environment,$(VENV_FRAMEWORKS),$(PYTHON_TF),3.11 to 3.13,--without-pip)
	$(call fill,$(VENV_FRAMEWORKS),requirements/frameworks.txt)
	@touch $@

$(VENV_MOTO)/.ready: $(VENV)/.uv requirements/moto.txt
	$(call make_environment,$(VENV_MOTO),$(PYTHON),3.11 or newer,--without-pip)
	$(call fill,$(VENV_MOTO),requirements/moto.txt)
	@touch $@

$(VENV_DIST)/.ready: $(VENV)/.uv requirements/runtime.txt
	$(call make_environment,$(VENV_DIST),$(PYTHON),3.11 or newer,--without-pip)
	$(call fill,$(VENV_DIST),requirements/runtime.txt)
	@touch $@

$(VENV_MIN)/.ready: $(VENV)/.uv requirements/min-deps.txt
	$(call make_environment,$(VENV_MIN),$(PYTHON_MIN),3.11 or 3.12,--without-pip)
	$(call fill,$(VENV_MIN),requirements/min-deps.txt)
	@touch $@

# Without Go the server lanes skip and say so; with CI=true they fail.
servers: $(VENV)/.ready $(VENV_MOTO)/.ready  ## build the object stores that the tests run against (needs Go)
	@$(BIN)/python -m tests.servers.build

minio: $(VENV)/.ready  ## build MinIO alone (needs Go) and run it with a bucket; prints what to export
	@$(BIN)/python -m tests.servers.build minio
	@$(BIN)/python -m tests.servers.run_minio

# ------------------------------------------------------------------------------------------------ checks

test: lint $(LANES) min-deps dist interop frameworks engines  ## everything: lint, every lane of tests, TensorFlow, the frameworks and the engines included

define read_sources
$(BIN)/ruff check .
$(BIN)/ruff format --check .
$(BIN)/codespell
$(BIN)/mypy
endef

# A test that cannot be imported would otherwise show after half an hour, in the last lane.
lint: $(VENV)/.ready  ## ruff, codespell, mypy, and whether every test can be imported
	@echo '== lint'
	$(read_sources)
	@mkdir -p .cache
	$(PYTEST) tests --ignore tests/interop --ignore tests/engines --ignore tests/frameworks --collect-only -qq >.cache/collected || { cat .cache/collected; exit 1; }

quick: $(VENV)/.ready  ## the inner loop, in under a minute: ruff, codespell, mypy, unit tests with fewer random examples
	$(read_sources)
	HYPOTHESIS_PROFILE=quick $(PYTEST) tests/unit -q $(FLAGS_unit) $(ARGS)

format: $(VENV)/.ready  ## rewrite the sources as `make lint` wants them
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(LANES): $(VENV)/.ready
	@echo '== $@'
	$(PYTEST) tests/$@ -q $(FLAGS_$@) $(ARGS)

contract wire backends races ranks lifecycle scale: servers

# A skipped comparison proves nothing, so here a skip is a failure.
interop: $(VENV)/.ready $(VENV_TF)/.ready servers  ## the tests against TensorFlow itself; a skipped one fails
	@echo '== interop'
	$(IN_TF) -m pytest tests/interop -q -p tests.forbid_skips $(ARGS)
	$(PYTEST) tests/interop_crash -q $(WORKERS) -p tests.forbid_skips $(ARGS)

# Four processes of each engine that runs a training job; here, too, a skip is a failure.
IN_FRAMEWORKS := PYTHONPATH="$(CURDIR)" $(VENV_FRAMEWORKS)/bin/python -m pytest -q -p tests.forbid_skips
IN_ENGINES := $(IN_FRAMEWORKS) tests/engines

engines: $(VENV)/.ready $(VENV_FRAMEWORKS)/.ready  ## real processes under torch, JAX, Ray and MPI; a skipped test fails
	@echo '== engines'
	$(IN_ENGINES) $(ARGS)

frameworks: $(VENV)/.ready $(VENV_FRAMEWORKS)/.ready servers  ## the adapters with the frameworks themselves; a skipped test fails
	@echo '== frameworks'
	$(IN_FRAMEWORKS) tests/frameworks $(WORKERS) $(ARGS)

# The lane engines sends three, and one to torchrun.
preemptions: $(VENV_FRAMEWORKS)/.ready  ## 20 real signals to the job of each engine; not part of `make test`
	@echo '== preemptions'
	CKPTSTORE_PREEMPTIONS=20 CKPTSTORE_TORCHRUNS=20 $(IN_ENGINES) -k 'signal or sync_point' $(ARGS)

# The lane interop tries 150 of them.
histories: $(VENV_TF)/.ready  ## 2 000 random histories of one directory, in TensorFlow and here; not part of `make test`
	@echo '== histories'
	CKPTSTORE_HISTORIES=2000 $(IN_TF) -m pytest tests/interop/test_histories.py -q -p tests.forbid_skips $(ARGS)

# The lane races kills six of them.
cache-kills: $(VENV)/.ready  ## 200 processes killed that share a cache, bytes flipped in it meanwhile; not part of `make test`
	@echo '== cache-kills'
	CKPTSTORE_CACHE_KILLS=200 $(PYTEST) tests/races/test_host_cache.py -q -k killed $(ARGS)

# The lane simulation tries 1 000 of each scenario, and 250 of many ranks.
schedules: $(VENV)/.ready  ## 10 000 schedules of each scenario of the simulation; not part of `make test`
	@echo '== schedules'
	CKPTSTORE_SIMULATION_SEEDS=10000 CKPTSTORE_SIMULATION_RANK_SEEDS=10000 $(PYTEST) tests/simulation -q $(WORKERS) -k schedule $(ARGS)

# The lane scale plays 128.
many-ranks: $(VENV)/.ready  ## 1 024 ranks in one process, and what the chief of so many pays; not part of `make test`
	@echo '== many-ranks'
	CKPTSTORE_PLAYED_RANKS=1024 $(PYTEST) tests/scale/test_many_ranks.py -q $(ARGS)
	$(BIN)/python -m benchmarks.many_ranks

# The lanes wire and races have shorter ones.
followers: $(VENV)/.ready servers  ## a hundred killed writers, outages of a minute, large models; not part of `make test`
	@echo '== followers'
	CKPTSTORE_FOLLOWERS=1 $(PYTEST) tests/wire/test_followers.py tests/races/test_followers.py -q $(ARGS)

# Only more of the same: the lanes have each kind of case.
campaign: schedules histories servers  ## all that chance decides, many times as often: those two, kills and races; an hour
	@echo '== campaign'
	CKPTSTORE_KILLS=100 CKPTSTORE_RACES=5 CKPTSTORE_CACHE_KILLS=200 $(PYTEST) tests/crash/test_kill.py tests/backends/test_kill.py tests/races -q $(ARGS)

# The checkout on the path: these environments hold its dependencies and the tools of the tests, not ckptstore itself.
# Fewer random examples: another release of a package has another way to call it, not other rare bytes.
# $(1): environment
define run_on_dependencies
HYPOTHESIS_PROFILE=quick PYTHONPATH="$(CURDIR)" $(1)/bin/python -m pytest -q -p no:cacheprovider $(WORKERS) $(DEPENDENCY_TESTS) $(ARGS)
endef

# Where ckptstore meets other packages: protobuf, numpy, ml_dtypes, click, and the clients of object stores.
DEPENDENCY_TESTS := tests/unit/format tests/unit/graph tests/unit/trackable tests/unit/train tests/unit/view \
	tests/conformance tests/cli $(addprefix tests/contract/test_,minio_contract.py gcs_contract.py generic_contract.py)

min-deps: $(VENV)/.ready servers  ## tests on the oldest dependencies that pyproject.toml allows
	@echo '== min-deps'
	@if test -n "$(PYTHON_MIN)$$CI"; then $(MAKE) --no-print-directory run-min-deps; \
		else echo 'not run: it needs Python 3.11 or 3.12 (make PYTHON_MIN=/path/to/python)'; fi

run-min-deps: $(VENV_MIN)/.ready
	$(call run_on_dependencies,$(VENV_MIN))

# Nothing is locked here, so it is made anew each time and is no part of `make test`: a failure says what the next
# releases bring, not that this tree is wrong.
upstream: $(VENV)/.ready servers  ## the same on the newest release of everything; not part of `make test`
	@echo '== upstream'
	@rm -rf $(VENV_UPSTREAM)
	$(call make_environment,$(VENV_UPSTREAM),$(PYTHON),3.11 or newer,--without-pip)
	@$(BIN)/python .ci/upstream.py requirements > $(VENV_UPSTREAM)/requirements.txt
	@$(BIN)/python -m uv pip install --quiet --system-certs --upgrade --python $(VENV_UPSTREAM)/bin/python \
		-r $(VENV_UPSTREAM)/requirements.txt \
		|| { echo 'uv could not; trying pip' >&2; \
		     $(BIN)/python -m pip --python $(VENV_UPSTREAM)/bin/python install --quiet --upgrade \
		     -r $(VENV_UPSTREAM)/requirements.txt; }
	@$(VENV_UPSTREAM)/bin/python .ci/upstream.py report
	$(call run_on_dependencies,$(VENV_UPSTREAM))

# The wheel is built from the source archive, as an installer would; nothing is fetched.
dist: $(VENV)/.ready $(VENV_DIST)/.ready  ## build sdist and wheel into dist/, install the wheel, and test both
	@echo '== dist'
	rm -rf dist
	$(BIN)/python -m uv build --quiet --offline --no-build-isolation --python $(BIN)/python --out-dir dist
	@$(BIN)/python -m pip --python $(VENV_DIST)/bin/python install --quiet --force-reinstall --no-deps --no-index dist/*.whl
	$(PYTEST) tests/dist -q -p tests.forbid_skips $(ARGS)

# ------------------------------------------------------------------------------------------------ the rest

demo: $(VENV)/.ready  ## the story in the terminal, in under a minute
	$(BIN)/python demo/run.py

# In MinIO where that was built, else on the local disk.
demo-serving: $(VENV)/.ready  ## a host that serves what a job saves, in half a minute
	PYTHONPATH="$(CURDIR)" $(BIN)/python demo/serve.py

# One environment for each family of contenders; the directory is one of them.
BENCH_GROUPS := bench bench-clients bench-tensorflow bench-torch bench-jax
BENCH_READY  := $(BENCH_GROUPS:%=.cache/venv-%/.ready) $(VENV_FRAMEWORKS)/.ready
BENCH        := .cache/venv-bench/bin/python -m benchmarks
RESULTS      ?= .cache/bench/results.json

# TensorFlow's wheels decide which Python; a contender whose environment cannot be filled is reported as missing.
.cache/venv-bench%/.ready: $(VENV)/.uv requirements/bench%.txt
	$(call make_environment,$(@D),$(PYTHON_TF),3.11 to 3.13,--without-pip)
	$(call fill,$(@D),requirements/bench$*.txt)
	@touch $@

.cache/venv-bench/.ready: $(VENV)/.uv requirements/bench.txt
	$(call make_environment,$(@D),$(PYTHON_TF),3.11 to 3.13,--without-pip)
	$(call fill,$(@D),requirements/bench.txt)
	@touch $@

bench-setup: .cache/venv-bench/.ready servers  ## make the environments of the benchmarks (torch takes gigabytes)
	@$(MAKE) --no-print-directory --keep-going $(BENCH_READY) \
		|| echo 'An environment could not be made: its contenders will be reported as missing.' >&2

bench: bench-setup  ## all contenders in alternation (ARGS="--only minio-save"); 25 minutes
	$(BENCH) run --json $(RESULTS) $(ARGS)

bench-quick: .cache/venv-bench/.ready .cache/venv-bench-clients/.ready .cache/venv-bench-tensorflow/.ready servers
bench-quick:  ## a smaller run: W of 256 MiB, fewer rounds, fewer contenders
	$(BENCH) run --quick --json $(RESULTS) $(ARGS)

bench-cold: .cache/venv-bench/.ready .cache/venv-bench-clients/.ready .cache/venv-bench-jax/.ready servers
bench-cold:  ## from the start of a process to its first tensor, beside obstore, TensorStore and boto3
	$(BENCH).cold_start $(ARGS)

bench-page: .cache/venv-bench/.ready  ## docs/performance.md and its plots, from the results of the last run
	$(BENCH) page $(RESULTS) $(ARGS)

docs: $(VENV)/.ready  ## renew what the pages take from the code: guarantees, floors, errors
	$(BIN)/python -m tests.meta.guarantees
	$(BIN)/python -m tests.meta.architecture
	$(BIN)/python -m tests.meta.reference

protos: $(VENV)/.ready  ## renew the descriptors of TensorFlow's messages from ckptstore/format/schemas/*.proto
	$(BIN)/python -m tests.meta.schemas

# Versions and hashes only, whatever index this machine is set up to use; one lock for every Python from 3.11 on.
COMPILE = $(BIN)/python -m uv pip compile --quiet --system-certs --universal --python-version 3.11 --generate-hashes \
	--no-emit-index-url --no-emit-find-links --no-header --no-annotate $(ARGS)

lock: $(VENV)/.uv  ## renew the locks from pyproject.toml (ARGS=--upgrade for newer releases)
	$(COMPILE) --group bootstrap --output-file requirements/uv.txt
	$(COMPILE) pyproject.toml --group dev --constraint requirements/uv.txt --output-file requirements/dev.txt
	$(COMPILE) pyproject.toml --group tensorflow --output-file requirements/tensorflow.txt
	$(COMPILE) pyproject.toml --constraint requirements/dev.txt --output-file requirements/runtime.txt
	$(COMPILE) pyproject.toml --extra all --group test --resolution lowest-direct --output-file requirements/min-deps.txt
	$(COMPILE) pyproject.toml --extra all --group frameworks --output-file requirements/frameworks.txt
	$(COMPILE) --group moto --output-file requirements/moto.txt
	$(COMPILE) pyproject.toml --extra s3 --group bench --output-file requirements/bench.txt
	$(COMPILE) --group bench-clients --output-file requirements/bench-clients.txt
	$(COMPILE) --group bench-tensorflow --output-file requirements/bench-tensorflow.txt
	$(COMPILE) --group bench-torch --output-file requirements/bench-torch.txt
	$(COMPILE) --group bench-jax --output-file requirements/bench-jax.txt

clean:  ## remove what tools and builds left, keep the environments
	rm -rf build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis demo-run
	find ckptstore tests demo benchmarks -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true

clean-all: clean  ## remove the environments too
	rm -rf $(VENV) .cache
