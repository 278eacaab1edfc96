# transom's build. `make` alone prints the targets.
SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
MAKEFLAGS += --no-builtin-rules
.DEFAULT_GOAL := help

BUF := go tool -modfile=.tools/buf.mod buf

.PHONY: help
help: ## List the targets
	@awk 'BEGIN{FS=":.*## "} /^[a-z][a-z-]*:.*## /{printf "  %-14s %s\n",$$1,$$2}' $(MAKEFILE_LIST)

.PHONY: generate
generate: imports ## Regenerate the Go code beside the .proto files
	$(BUF) format -w proto
	$(BUF) generate

# Compares with a fresh copy, so that it is right in a tree with uncommitted work too.
.PHONY: checkgenerate
checkgenerate: imports ## Check that the .proto files are clean and the generated code is theirs
	$(BUF) format -d --exit-code proto
	$(BUF) lint
	rm -rf build/generated && $(BUF) generate -o build/generated
	diff <(cd build/generated && find . -name '*.pb.go' | sort) <(find . -name '*.pb.go' -not -path './build/*' | sort)
	cd build/generated && find . -name '*.pb.go' | while read -r f; do diff -q "$$f" "../../$$f"; done

# The public protos that ours import come out of Go modules.
.PHONY: imports
imports:
	@mkdir -p build/proto && go run ./.tools/exportprotos build/proto

.PHONY: build/bank.binpb
build/bank.binpb:
	@mkdir -p build && go run ./.tools/bankset $@
