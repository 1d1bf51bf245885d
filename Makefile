# Weir. `make help` lists what a person runs.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

# Bytes differ between compiler versions: one is pinned.
LLVM_VERSION := 19
CLANG := clang-$(LLVM_VERSION)
CLANG_FORMAT := clang-format-$(LLVM_VERSION)
MULTIARCH := $(shell dpkg-architecture -qDEB_HOST_MULTIARCH 2>/dev/null || echo $(shell uname -m)-linux-gnu)

export BPF2GO_CC := $(CLANG)
export BPF2GO_STRIP := llvm-strip-$(LLVM_VERSION)
export BPF2GO_CFLAGS := -O2 -g -mcpu=v3 -Wall -Wextra -Werror -Wno-unused-parameter -Wno-missing-field-initializers -fno-strict-aliasing -I/usr/include/$(MULTIARCH) -I$(CURDIR)/bpf
export CGO_ENABLED := 0

BPF_SOURCES := $(wildcard bpf/*.c bpf/*.h bpf/*/*.c bpf/*/*.h tests/*/bpf/*.c tests/*/bpf/*.h)
GENERATED := .cache/generated

.PHONY: help
help: ## list these targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## /{printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: deps
deps: .cache/deps ## install the Debian packages that building and testing need

.cache/deps: tests/packages.txt
	mkdir -p .cache
	tests/install-packages
	touch $@

.PHONY: generate
generate: $(GENERATED) ## compile the BPF programs and generate their Go types

$(GENERATED): .cache/deps go.mod $(BPF_SOURCES) maps/generate $(shell grep -rl --include=*.go 'go:generate' . 2>/dev/null)
	go generate ./...
	touch $@

.PHONY: build
build: bin/weir ## build bin/weir, one static binary

.PHONY: bin/weir
bin/weir: $(GENERATED)
	go build -trimpath -ldflags '-s -w -X main.version=$(shell git describe --always --dirty 2>/dev/null || echo unknown)' -o $@ ./cmd/weir

IMAGE := ghcr.io/weir-lb/weir:latest

.PHONY: image
image: bin/weir ## build the container image (with buildah, or docker where there is none; IMAGE=name:tag)
	@if command -v buildah >/dev/null; then buildah bud --isolation chroot -t $(IMAGE) .; else docker build -t $(IMAGE) .; fi

.PHONY: demo
demo: bin/weir ## balance real traffic in a lab of network namespaces, and show it (as root; KEEP=1 leaves it up)
	@[[ $$(id -u) -eq 0 ]] || { echo "make demo needs root: it makes network namespaces and loads BPF programs" >&2; exit 1; }
	@go build -o bin/demo ./tests/demo
	@bin/demo -weir bin/weir $(if $(KEEP),-keep)

.PHONY: demo-clean
demo-clean: $(GENERATED) ## remove what make demo KEEP=1 left up
	@go build -o bin/demo ./tests/demo
	@bin/demo -remove

.PHONY: lint
lint: $(GENERATED) ## check formatting, vet, staticcheck, and that nothing generated is committed
	tests/lint

.PHONY: format
format: .cache/deps ## format the C and Go sources in place
	$(CLANG_FORMAT) -i $(BPF_SOURCES)
	go tool gofumpt -w .

# Tests make network namespaces, mount bpffs and load programs: root. They do their own set-up.
.PHONY: test
test: $(GENERATED) kernel-images ## run every test (as root)
	@[[ $$(id -u) -eq 0 ]] || { echo "make test needs root: it makes network namespaces and loads BPF programs" >&2; exit 1; }
	tests/all

# Other kernels than this machine's: the distribution's, and what else has been unpacked to .cache/kernels.
.PHONY: kernels
kernels: $(GENERATED) kernel-images ## run tests on the distribution's kernel, in a virtual machine (as root; KERNELS='-package ./tests/lab -tests Demo' chooses)
	go test -count=1 -v -timeout 60m ./tests/kernels $(KERNELS)

.PHONY: kernel-images
kernel-images: .cache/deps
	@tests/kernels/fetch

# kube-proxy's code is in a module of its own, so that Weir never imports it. Of the time of the comparison a fifth would be the
# garbage collector's.
.PHONY: parity
parity: $(GENERATED) ## compare 100,000 states of clusters with kube-proxy's own code (PARITY='-seed N -cases 50' repeats one history)
	cd tests/parity && GOGC=400 go test -count=1 -v -timeout 15m . $(PARITY)

.PHONY: e2e
e2e: $(GENERATED) e2e-binaries ## run the end-to-end tests on a real control plane (as root; the first time it is built, for some minutes)
	@[[ $$(id -u) -eq 0 ]] || { echo "make e2e needs root: it makes network namespaces and loads BPF programs" >&2; exit 1; }
	go test -count=1 -timeout 10m ./tests/e2e

.PHONY: scale
scale: $(GENERATED) e2e-binaries ## measure 10,000 Services of an API server beside kube-proxy (as root; SCALE=number)
	@[[ $$(id -u) -eq 0 ]] || { echo "make scale needs root: it makes network namespaces and loads BPF programs" >&2; exit 1; }
	go test -count=1 -v -timeout 60m -run TestScale ./tests/e2e -scale $(SCALE)

SCALE := 10000

# The control plane and helm are modules of their own, so that Weir never imports them. `make test` uses them where they have
# been built.
CONTROL_PLANE := .cache/kubernetes
KUBERNETES_VERSION := $(shell awk '$$1 == "k8s.io/kubernetes" {print $$2}' tests/e2e/kubernetes/go.mod)

.PHONY: e2e-binaries
e2e-binaries: $(CONTROL_PLANE)/$(KUBERNETES_VERSION)

$(CONTROL_PLANE)/$(KUBERNETES_VERSION): .cache/deps $(wildcard tests/e2e/*/go.mod tests/e2e/*/go.sum)
	mkdir -p $(CONTROL_PLANE)
	cd tests/e2e/kubernetes && go build -trimpath -ldflags '-s -w -X k8s.io/component-base/version.gitVersion=$(KUBERNETES_VERSION)' \
		-o $(CURDIR)/$(CONTROL_PLANE)/ tool
	cd tests/e2e/helm && go build -ldflags '-s -w' -o $(CURDIR)/$(CONTROL_PLANE)/ tool
	touch $@

.PHONY: bench
bench: bin/weir ## measure the programs beside their floors (as root; BENCH='-o json' adds flags, see weir bench datapath --help)
	@[[ $$(id -u) -eq 0 ]] || { echo "make bench needs root: it makes a network namespace and loads BPF programs" >&2; exit 1; }
	@bin/weir bench datapath $(BENCH)

.PHONY: clean
clean: ## remove what was built
	rm -rf bin .cache
	find . -name '*_bpfel.go' -o -name '*_bpfel.o' | xargs -r rm
