# transom's build. `make` alone prints the targets.
SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
MAKEFLAGS += --no-builtin-rules
.DEFAULT_GOAL := help

# No C compiler is needed but for the race detector; one setting everywhere, so that all targets share what is compiled.
export CGO_ENABLED := 0

# Without its trace pages grpc does not pull in html/template, whose calls by name keep every exported method in the binary:
# 36 MB instead of 60.
export GOFLAGS := $(strip $(shell go env GOFLAGS) -tags=grpcnotrace)

# Each tool is pinned in a module file of its own.
BUF := go tool -modfile=.tools/buf.mod buf
LINT := go tool -modfile=.tools/lint.mod golangci-lint

# The recorded profile takes 6 to 10 % off a request's CPU and compiles every dependency once more, for transom alone.
# PGO=auto builds with it: what is released and measured; tests and the demo do without.
PGO ?= off

# Packages for the targets that take some: make fuzz PKG=./transcoder/...
PKG ?= ./...
FUZZTIME ?= 30s
BENCH ?= .
BENCHTIME ?= 1s
CASES ?= 1000000
SOAK_DURATION ?= 10m
STREAM_DURATION ?= 60s

# The suites of `make test`, and how long each may take. The limits leave room for a cold start, where the tools are built.
LINT_BUDGET := 20m
GENERATE_BUDGET := 10m
UNIT_BUDGET := 10m
RACE_BUDGET := 15m
E2E_BUDGET := 15m
CONFORMANCE_BUDGET := 10m
DEPLOY_BUDGET := 10m

UNIT = $(shell go list ./... | grep -v /e2e)

.PHONY: help
help: ## List the targets
	@awk 'BEGIN{FS=":.*## "} /^[a-z0-9-]+:.*## /{printf "  %-14s %s\n",$$1,$$2}' $(MAKEFILE_LIST)

.PHONY: run
run: build ## Run the demo: three backends, the proxy, a page to click
	@exec bin/transom demo

.PHONY: build
build: ## Build bin/transom, static, and build/bank.binpb, the demo's descriptor set
	@mkdir -p bin build
	@go build -pgo=$(PGO) -ldflags='-s -w' -o bin/transom ./cmd/transom
	@go run ./.tools/bankset build/bank.binpb

# A suite's target stands alone too, without the budget. The last thing printed is what go test says.
.PHONY: test
test: ## Everything that must hold: lint, checkgenerate, unit, race, e2e, conformance (installs what it needs)
	@$(MAKE) --no-print-directory deps
	@suite() { \
	  echo "== $$1 (at most $$2)"; local start=$$SECONDS; \
	  timeout --foreground --kill-after=30s "$$2" $(MAKE) --no-print-directory "$$1" || { echo "== $$1 FAILED after $$((SECONDS-start)) s"; exit 1; }; \
	  echo "== $$1: $$((SECONDS-start)) s"; \
	}; \
	suite lint $(LINT_BUDGET); \
	suite checkgenerate $(GENERATE_BUDGET); \
	suite race $(RACE_BUDGET); \
	suite e2e $(E2E_BUDGET); \
	suite conformance-short $(CONFORMANCE_BUDGET); \
	suite interop $(CONFORMANCE_BUDGET); \
	suite checkdeploy $(DEPLOY_BUDGET); \
	echo "== unit (at most $(UNIT_BUDGET))"; \
	timeout --foreground --kill-after=30s $(UNIT_BUDGET) $(MAKE) --no-print-directory unit

.PHONY: unit
unit: deps ## Run the unit tests, with the allocation gates and each fuzz target's seeds
	@go test -vet=off -timeout $(UNIT_BUDGET) $(UNIT)

.PHONY: race
race: deps ## Run the unit tests under the race detector (needs a C compiler)
	@CGO_ENABLED=1 go test -vet=off -race -timeout $(RACE_BUDGET) $(UNIT)

.PHONY: web
web: deps ## Build and test the TypeScript client, and bundle the clients of others for the browser tests
	@cd clients/web && npm ci --silent --no-audit --no-fund && npm run --silent build && npm test --silent
	@cmp clients/web/build/transom-web.js cmd/transom/demo/page/transom-web.js || { echo "the demo's client is out of date: make demo-client" >&2; exit 1; }
	@cd e2e/browser/clients && npm ci --silent --no-audit --no-fund && npm run --silent build

.PHONY: demo-client
demo-client: deps ## Build the TypeScript client into the demo's page
	@cd clients/web && npm ci --silent --no-audit --no-fund && npm run --silent build
	@cp clients/web/build/transom-web.js cmd/transom/demo/page/

.PHONY: e2e
e2e: deps build imports ghz build/tools/h2spec build/tools/pebble web ## Run the end-to-end tests: real processes, real clients
	@go test -vet=off -count=1 -timeout $(E2E_BUDGET) ./e2e/...

.PHONY: soak
soak: build ## Run the mixed load under faults and reloads for SOAK_DURATION (`make e2e` has a short form)
	@SOAK_DURATION=$(SOAK_DURATION) go test -vet=off -count=1 -v -timeout 24h ./e2e/soak

.PHONY: lint
lint: ## Run the linters
	@$(LINT) run ./...

.PHONY: fmt
fmt: ## Format Go and proto files
	@$(LINT) fmt
	@$(BUF) format -w proto

.PHONY: generate
generate: imports ## Regenerate the Go code beside the .proto files, docs/configuration.md and the JSON Schema of configurations
	@$(BUF) format -w proto
	@$(BUF) generate
	@go run ./.tools/configdoc proto >build/configuration.md && mv build/configuration.md docs/configuration.md
	@go run ./.tools/configdoc -schema proto >build/schema.json && mv build/schema.json gateway/configfile/schema.json

# Compares with a fresh copy, so that it is right in a tree with uncommitted work too.
.PHONY: checkgenerate
checkgenerate: imports tidy ## Check that the .proto files are clean, that the generated code and reference are theirs, and go.mod
	@$(BUF) format -d --exit-code proto
	@$(BUF) lint
	@rm -rf build/.generated && $(BUF) generate -o build/.generated
	@diff <(cd build/.generated && find . -name '*.pb.go' | sort) <(find . -name '*.pb.go' -not -path './build/*' -not -path './e2e/benchproxy/*' | sort)
	@cd build/.generated && find . -name '*.pb.go' | while read -r f; do diff -q "$$f" "../../$$f"; done
	@go run ./.tools/configdoc proto | diff docs/configuration.md - >/dev/null || { echo "docs/configuration.md is not what the protos say: make generate" >&2; exit 1; }
	@go run ./.tools/configdoc -schema proto | diff gateway/configfile/schema.json - >/dev/null || { echo "gateway/configfile/schema.json is not what the protos say: make generate" >&2; exit 1; }

# Needs the modules of the tests of dependencies, which nothing else does: where they cannot be had there is no telling.
.PHONY: tidy
tidy:
	@mkdir -p build && { timeout 300 go mod tidy -diff >build/tidy.diff 2>build/tidy.log || \
	  { [ ! -s build/tidy.diff ] && echo "go.mod is not checked: $$(tail -n 1 build/tidy.log)"; } || \
	  { cat build/tidy.diff; echo "go.mod is not what the code imports: go mod tidy" >&2; exit 1; }; }

.PHONY: fuzz
fuzz: ## Fuzz every target of PKG for FUZZTIME each
	@for pkg in $$(go list $(PKG)); do \
	  for target in $$(go test -list '^Fuzz' "$$pkg" | grep '^Fuzz' || true); do \
	    echo "== $$pkg $$target"; go test -run='^$$' -fuzz="^$$target\$$" -fuzztime=$(FUZZTIME) -fuzzminimizetime=5x "$$pkg"; \
	  done; \
	done

.PHONY: bench
bench: ## Run the benchmarks of PKG that match BENCH, for benchstat
	@go test -vet=off -run='^$$' -bench='$(BENCH)' -benchmem -benchtime=$(BENCHTIME) $(PKG)

bench-proxy bench-policy bench-idle load: export PGO := auto

.PHONY: load
load: build ghz ## Load one server directly and through the proxy, with ghz
	@.tools/load

.PHONY: fresh
fresh: ## Play a newcomer on a minimal Debian, made in a folder: make run, what it prints, make test (root, debootstrap)
	@.tools/fresh

.PHONY: release
release: ## Make dist/: archives, Debian packages, an OCI image, lists of materials (VERSION=v1.2.3, or as git says)
	@go run ./.tools/release -out dist $(if $(VERSION),-version $(VERSION))

.PHONY: vuln
vuln: ## Look for known vulnerabilities in what transom calls (asks Go's vulnerability database; not a part of make test)
	@go tool -modfile=.tools/vuln.mod govulncheck ./...

.PHONY: clean
clean: ## Remove what was built
	@rm -rf bin build dist

# The programs that tests run.
.PHONY: deps
deps: build/deps
build/deps: .tools/deps
	@mkdir -p build && .tools/deps && touch $@

.PHONY: ghz
ghz: build/tools/ghz ## Build the load generator, build/tools/ghz
build/tools/ghz: .tools/ghz.mod .tools/ghz.sum
	@mkdir -p build/tools && go build -modfile=.tools/ghz.mod -o $@ github.com/bojand/ghz/cmd/ghz

.PHONY: h2spec
h2spec: build/tools/h2spec ## Run the HTTP/2 suite h2spec against transom and against net/http (make e2e does too)
	@go test -vet=off -count=1 -v ./e2e/h2spec
build/tools/h2spec: .tools/h2spec.mod .tools/h2spec.sum
	@mkdir -p build/tools && go build -modfile=.tools/h2spec.mod -o $@ github.com/summerwind/h2spec/cmd/h2spec

# Let's Encrypt's test authority.
build/tools/pebble: .tools/pebble.mod .tools/pebble.sum
	@mkdir -p build/tools && go build -modfile=.tools/pebble.mod -o $@ github.com/letsencrypt/pebble/v2/cmd/pebble

# The public protos that ours import come out of Go modules.
.PHONY: imports
imports:
	@mkdir -p build/proto && go tool exportprotos build/proto

.PHONY: bench-proxy
bench-proxy: build ## Compare the CPU of one call in each protocol: transom, a null proxy of the same shape, grpc-gateway for REST
	@cd e2e/benchproxy && go run . -transom ../../bin/transom

.PHONY: bench-policy
bench-policy: build ## Compare the CPU of one call with policies, metrics and access log, or the cache, and without
	@cd e2e/benchproxy && go run . -policies -rounds 6 -transom ../../bin/transom

.PHONY: profile
profile: build ## Record anew what PGO=auto builds with: transom's CPU under the loads of both comparisons
	@cd e2e/benchproxy && go run . -transom ../../bin/transom -record ../../cmd/transom/default.pgo

# Connect's conformance suite, a module of its own: its programs, and the launcher that puts transom in front of a backend.
CONFORMANCE = cd e2e/conformance && ../../.tools/conformance
LAUNCHER = ../../build/conformance/conformance -protos $$(go list -mod=mod -m -f '{{.Dir}}' connectrpc.com/conformance)/proto \
  -backend ../../build/conformance

CONFORMANCE_CLIENT = cd e2e/conformance && MODE=client ../../.tools/conformance --conf client.yaml -- ../../build/conformance/conformance -client

.PHONY: build/conformance
build/conformance:
	@cd e2e/conformance && CGO_ENABLED=0 go build -mod=mod -o ../../build/conformance/ . connectrpc.com/conformance/cmd/{connectconformance,referenceserver,grpcserver}

.PHONY: conformance
conformance: build/conformance ## Run Connect's conformance suite, with its reference server and its grpc-go server as backends
	@$(CONFORMANCE) --conf full.yaml -- $(LAUNCHER)/referenceserver
	@$(CONFORMANCE) --conf full.yaml --known-failing @grpcserver-known-failing.txt -- $(LAUNCHER)/grpcserver
	@$(CONFORMANCE_CLIENT)

.PHONY: conformance-short
conformance-short: build/conformance ## Run half of the conformance suite, and the client that carries calls to backends through it
	@$(CONFORMANCE) --conf short.yaml -- $(LAUNCHER)/referenceserver
	@$(CONFORMANCE_CLIENT)

.PHONY: compare
compare: ## Run the cases of REST and JSON against transom, grpc-gateway and Vanguard; writes docs/comparison.md
	@cd e2e/compare && go run -mod=mod . -markdown ../../docs/comparison.md $(ARGS)

.PHONY: bench-idle
bench-idle: build ## Compare the memory of idle WebSockets with open streams and of idle HTTP/1.1 and HTTP/3 connections: transom, a null proxy
	@go run ./e2e/benchidle

.PHONY: difftest
difftest: ## Compare the JSON codec with protojson on CASES random messages each way
	@CODEC_CASES=$(CASES) go test -count=1 -timeout 60m -v -run 'TestDiff' ./transcoder/codec

.PHONY: bench-codec
bench-codec: ## Compare the CPU of the JSON codec with protojson over dynamic and generated messages
	@go run ./transcoder/codec/codecbench -rounds 25

.PHONY: interop
interop: ## Run gRPC's interop client through transom to its server
	@cd e2e/interop && go test -mod=mod -count=1 ./...

.PHONY: checkdeploy
checkdeploy: deps build ## Test what is in deploy/ (dashboard, alerts, units, manifests) and what make release makes of bin/transom
	@go run ./.tools/release -prebuilt bin/transom -out build/release >/dev/null
	@cd e2e/deploy && go test -mod=mod -count=1 ./...

.PHONY: systemd
systemd: build ## Run the Debian package's whole life under a real systemd, in namespaces (root, Debian)
	@go run ./.tools/release -prebuilt bin/transom -out build/release >/dev/null
	@.tools/systemd build/release/transom_*_amd64.deb

# Results of single runs are kept in .cache/simulate, so that a run that was cut off goes on where it stopped.
.PHONY: simulate
simulate: ## Simulate the balancer beside published policies: the headline scenarios, 3 seeds; fails when a criterion does
	@go build -o bin/simulate ./upstream/loadaware/sim/cmd/simulate
	@bin/simulate

.PHONY: balance-e2e
balance-e2e: build ## Run the balancer's scenarios for real: slow, cold, broken, killed and draining servers; streams last for STREAM_DURATION
	@STREAM_DURATION=$(STREAM_DURATION) go test -vet=off -count=1 -v ./e2e/balance

.PHONY: simulate-full
simulate-full: ## All scenarios and policies, 10 seeds, resumable; writes the tables and plots of docs/balancing.md
	@go build -o bin/simulate ./upstream/loadaware/sim/cmd/simulate
	@bin/simulate -full -docs docs
