# Daily work. The same commands run in scripts/test.sh and in CI.
BIN := .envs/train/bin
.DEFAULT_GOAL := help
.PHONY: help envs format check test test-fast e2e docs quickstart clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

envs: ## make both environments with the tools for checks
	./scripts/setup_envs.sh --dev

format: ## rewrite the sources in the house format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

check: ## format check, lint, types, shell scripts
	./scripts/test.sh format lint types shell

test: ## everything that CI runs, real model included
	./scripts/test.sh

test-fast: ## the tests that start no real model
	./scripts/test.sh fast

e2e: ## only the tests with the real model on CPU
	./scripts/test.sh model e2e

docs: ## write docs/cli.md from the commands' own help
	$(BIN)/python -m optima.cli.reference

quickstart: ## the demonstration, with SEED=n if wanted
	./scripts/quickstart.sh $(if $(SEED),seed=$(SEED))

clean: ## remove caches and build products; environments, models and runs stay
	find . \( -path ./.envs -o -path ./runs -o -path ./models -o -path ./.git \) -prune -o \
	  \( -name __pycache__ -o -name '*.egg-info' \) -prune -exec rm -rf {} +
	rm -rf .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist
