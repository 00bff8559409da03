# Every target installs what it needs, once: system packages with apt (root), Python packages with uv into .venv, the rest into .cache.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
PYTHON ?= python3
RUN := .venv/bin/

.PHONY: help setup lint format test test-cluster demo bench bench-coldstart bench-hydrate bench-idle bench-images image proto clean

help: ## show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18

setup: .venv/.synced ## make .venv from uv.lock

.venv/.synced: pyproject.toml uv.lock tools/setup.sh
	@PYTHON=$(PYTHON) bash tools/setup.sh
	@touch $@

lint: setup ## ruff, mypy strict, import-linter
	$(RUN)ruff check .
	$(RUN)ruff format --check -q .
	$(RUN)mypy
	$(RUN)lint-imports --no-cache

format: setup ## let ruff write the code the way it checks it
	$(RUN)ruff format .
	$(RUN)ruff check --fix .

test: lint ## lint, and every test that needs no cluster
	@$(PYTHON) -m tests.bed.provision --s3 --gpu --images --prometheus
	$(RUN)pytest -n 3 --dist worksteal -m "not cluster" --cov --cov-report=term:skip-covered -r s

test-cluster: setup ## the tests on a real Kubernetes (root; builds it once)
	@$(PYTHON) -m tests.bed.provision --cluster --matrix --mirror --s3 --gpu
	$(RUN)pytest -m cluster -r s

demo: setup ## the main job on this machine: no cluster, no root
	@$(RUN)python -m bench.demo

bench: bench-coldstart bench-hydrate bench-images bench-idle ## every benchmark

bench-coldstart: setup ## cold against warm on the bed, five alternating rounds
	@$(PYTHON) -m tests.bed.provision --cluster --s3 --gpu
	$(RUN)python -m bench.coldstart

bench-hydrate: setup ## downloads: prewarm, its peers and what the machine can do, side by side
	@$(PYTHON) -m tests.bed.provision --bench
	@UV_COMPILE_BYTECODE=1 PYTHON=$(PYTHON) bash tools/setup.sh --group bench  # as the image has it
	$(RUN)python -m bench.hydrate $(BENCH)

bench-images: setup ## pods of warmed images: cold against warmed, lazy against whole
	@$(PYTHON) -m tests.bed.provision --lazy --matrix
	$(RUN)python -m bench.images plain
	$(RUN)python -m bench.images lazy

bench-idle: setup ## what the agent costs when nothing happens
	@$(PYTHON) -m tests.bed.provision --cluster --s3 --gpu --images
	$(RUN)python -m bench.idle

image: setup ## build the container image with buildah
	$(RUN)python -m tests.bed.images product

proto: setup ## regenerate agent/pb from proto/
	$(RUN)python -m tools.proto

clean: ## remove what was built (.cache, .venv)
	rm -rf .cache .venv
