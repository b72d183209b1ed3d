# Everything runs in .venv, which is made from the hash-pinned locks, and again when they change.
# GNU make 3.81 and the tools of macOS are enough.

PYTHON ?= python3
# Make 3.81 finds a command on the PATH below only if a shell of our choice starts it.
SHELL := /bin/bash
export VIRTUAL_ENV := $(CURDIR)/.venv
export PATH := $(VIRTUAL_ENV)/bin:$(PATH)
# As pip does; without it TensorFlow's first import takes three times as long.
export UV_COMPILE_BYTECODE := 1

.PHONY: help repro test test-quick bench seeds lint lock clean

help:  ## list the targets
	@awk -F ':.*  ## ' '/^[a-z-]+:.*  ## / { printf "make %-14s %s\n", $$1, $$2 }' Makefile

repro: .venv/pipeline.stamp  ## run the stages that are out of date
	dvc repro

test: .venv/tests.stamp  ## run all tests
	pytest -n auto

test-quick: .venv/tests.stamp  ## run the tests that take seconds
	pytest -n auto -m 'not slow'

bench: .venv/tests.stamp  ## compare speed with the notebook, and with PyTorch if PYTORCH names its Python
	python -m benchmarks.compare $(if $(PYTORCH),--pytorch $(PYTORCH))

seeds: .venv/tests.stamp  ## measure the accuracy of the default recipe over ten seeds
	python -m benchmarks.seeds

lint: .venv/tests.stamp  ## check style and types
	ruff check
	ruff format --check
	mypy

lock: .venv/pipeline.stamp  ## renew the locks from pyproject.toml
	uv pip compile -q --upgrade --universal --generate-hashes --no-header \
	    --extra s3 --extra ssh pyproject.toml -o requirements.lock
	uv pip compile -q --upgrade --universal --generate-hashes --no-header \
	    --group dev -c requirements.lock pyproject.toml -o requirements-dev.lock
	echo uv | uv pip compile -q --upgrade --universal --generate-hashes --no-header \
	    - -o requirements-uv.lock

clean:  ## remove .venv; data, model and DVC's cache stay
	rm -rf .venv

NO_GIT := error: not a Git repository, which DVC needs: clone the project, or run \
    `git init && git add .` here first

# uv installs the locks in a seventh of pip's time; its own lock is for pip, with hashes as well.
.venv/bin/uv: requirements-uv.lock
	@[ -e .git ] || git rev-parse 2>/dev/null || { echo '$(NO_GIT)' >&2; exit 1; }
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; (3, 11) <= v <= (3, 13) or sys.exit( \
	    "error: $(PYTHON) is Python %d.%d; this needs 3.11 to 3.13: make PYTHON=python3.12" % v)'
	$(PYTHON) -m venv .venv
	.venv/bin/pip install -q --disable-pip-version-check --require-hashes -r requirements-uv.lock
	@touch $@

.venv/pipeline.stamp: .venv/bin/uv requirements.lock
	uv pip install -q --require-hashes -r requirements.lock
	@touch $@

.venv/tests.stamp: .venv/pipeline.stamp requirements-dev.lock
	uv pip install -q --require-hashes -r requirements.lock -r requirements-dev.lock
	@touch $@

# DVC's pages of plots use this copy of their library, if it is there, and else the web's.
.venv/vega.js: .venv/tests.stamp
	python -c 'import vl_convert; print(vl_convert.javascript_bundle(vl_version="5.8"))' > $@

# What a team needs; docs/team.md shows when.

# The branch that the clone came with.
BASE ?= $(shell git rev-parse --abbrev-ref origin/HEAD)

.PHONY: verify verify-remote hooks smoke line-endings locked pushed report

verify: .venv/pipeline.stamp  ## check the bytes of workspace and cache, repair what can be
	@python -m tools.verify

verify-remote: .venv/pipeline.stamp  ## check the bytes of the remote, remove what is damaged
	@python -m tools.verify --remote

hooks: .venv/tests.stamp  ## let Git run ruff and DVC on commit, push and checkout
	@[ -z "$$(git rev-parse --show-prefix)" ] || { echo 'error: hooks run for a whole repository, and' \
	    "this is a folder of $$(git rev-parse --show-toplevel): run \`dvc checkout\` after" \
	    '`git checkout` and `dvc push` before `git push` yourself' >&2; exit 1; }
	@! path=$$(git config core.hooksPath) || { echo "error: core.hooksPath is set, so Git takes its" \
	    "hooks from $$path: remove that setting, or add the lines of docs/team.md to the hooks there" >&2; exit 1; }
	@pre-commit install --allow-missing-config

smoke: .venv/pipeline.stamp  ## run all stages on a few images, in a temporary folder
	dvc exp run --temp -S preprocess.max_images=2000

# DVC hashes what is in the folder, everybody else gets what is in Git.
line-endings:  ## fail if lines end in another way than in Git
	@files=$$(git ls-files --eol | awk -F '\t' '/^i\/lf *w\/(crlf|mixed)/ { printf " %s", $$2 }'); \
	[ -z "$$files" ] || { echo "error:$$files: lines end in CR LF here, but in LF in Git, so dvc.lock" \
	    "would match nowhere else: run \`git add$$files && rm$$files && git restore$$files\`," \
	    'then `dvc repro`' >&2; exit 1; }

locked: .venv/pipeline.stamp line-endings  ## fail unless dvc.lock matches what Git has; needs no data
	@files=$$(git ls-files --others --exclude-from=.dvcignore stages | tr '\n' ' '); \
	[ -z "$$files" ] || { echo "error: $${files% }: not in Git, but DVC hashes it: run" \
	    "\`git add\` or \`rm\`, then \`dvc repro\`" >&2; exit 1; }
	@dvc repro --dry --allow-missing | tee /dev/stderr | grep -q 'up to date' || \
	    { echo 'error: dvc.lock does not match; run `dvc repro` and commit' >&2; exit 1; }

pushed: .venv/pipeline.stamp  ## fail if the remote lacks data of dvc.lock
	@[ -n "$$(dvc remote list)" ] || { echo 'no remote: nothing to check'; exit; }; \
	found=$$(dvc status --cloud) && ! echo "$$found" | grep -E '^[[:space:]]*(new|missing):' || \
	    { echo 'error: the remote lacks data of dvc.lock; run `dvc push`' >&2; exit 1; }

report: .venv/pipeline.stamp  ## compare with BASE: Markdown here, plots in dvc_plots/index.html
	@echo '## Metrics' && dvc metrics diff --md $(BASE)
	@echo '## Parameters' && dvc params diff --md $(BASE)
	@echo '## Plots that differ' && git diff --name-only $(BASE) -- metrics | sed 's/.*/- `&`/'
	@dvc plots diff $(BASE) >/dev/null
