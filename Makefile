# The words a person types. What each one does is in the script it names.
.DEFAULT_GOAL := help
.PHONY: help build demo test check bench mcpb clean

help: ## this list
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1\t\2/p' Makefile

build: ## the release binaries and the session image
	@scripts/setup --for demo
	@scripts/build
	@target/release/baton image build

demo: build ## one real orchestration, from nothing to merged code; ends by itself
	@scripts/demo

test: ## everything: installs what is missing, then runs the whole suite
	@scripts/test

check: ## format, lints, dependency policy and the tests that need no Docker
	@scripts/check

bench: build ## the benchmarks, beside their baselines
	@scripts/bench

mcpb: ## the bundle for Claude Desktop: `baton mcp` with a form for address and token
	@scripts/setup --for demo
	@scripts/build
	@scripts/mcpb

clean: ## what was built; the session image and fetched packages stay
	@cargo clean
