# cfsboot. `make demo` and `make test` are the two commands of the README; both install what they need (as root on Debian 12 or 13)
# and keep what they download or build in ${XDG_CACHE_HOME:-~/.cache}/cfsboot.

SHELL       := /bin/bash
.SHELLFLAGS := -euo pipefail -c
VERSION     := $(shell git describe --always --dirty 2>/dev/null || echo devel)
GO          := $(shell packaging/bootstrap.sh)
CACHE       := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/cfsboot
GOBUILD     := CGO_ENABLED=0 $(GO) build -trimpath -ldflags "-s -w -X main.version=$(VERSION)"
LAB         := $(GO) run ./tests/vm/cmd/lab
FUZZTIME    ?= 30s
BIN         ?= bin
export PATH := $(dir $(GO)):$(PATH):$(CACHE)/mkcomposefs/bin:$(CACHE)/cfsctl/bin

.PHONY: all build install rootfs arm64 demo test setup check unit oracle root vm vm-powercuts bench interop lint fuzz deps clean
all: build

build: ## static programs in bin/
	$(GOBUILD) -o '$(BIN)/cfsboot' ./cmd/cfsboot
	$(GOBUILD) -o '$(BIN)/cfsboot-setup-root' ./cmd/cfsboot-setup-root

# Unit and drop-in files keep their names and folders; programs that are built for another machine cannot print their completions.
UNITS = $(shell cd systemd/host && find . -type f ! -name '*.preset')
PUT   = install -D -m 644
install: build ## programs, units, dracut module and completions below DESTDIR, as an image or a package wants them
	install -D -m 755 '$(BIN)/cfsboot' '$(DESTDIR)/usr/bin/cfsboot'
	install -D -m 755 '$(BIN)/cfsboot-setup-root' '$(DESTDIR)/usr/lib/cfsboot/cfsboot-setup-root'
	for f in $(UNITS); do $(PUT) "systemd/host/$$f" '$(DESTDIR)'"/usr/lib/systemd/system/$$f"; done
	$(PUT) -t '$(DESTDIR)/usr/lib/systemd/system-preset' systemd/host/*.preset
	$(PUT) -t '$(DESTDIR)/usr/lib/cfsboot/initramfs' systemd/initramfs/*
	$(PUT) systemd/initramfs/watchdog.conf '$(DESTDIR)/usr/lib/systemd/system.conf.d/10-cfsboot-watchdog.conf'
	install -D -m 755 systemd/grow/grow-root '$(DESTDIR)/usr/lib/cfsboot/grow-root'
	$(PUT) -t '$(DESTDIR)/usr/lib/cfsboot/repart.d' systemd/grow/*.conf
	$(PUT) -t '$(DESTDIR)/usr/lib/dracut/modules.d/37cfsboot' systemd/dracut/37cfsboot/*
	mkdir -p '$(BIN)/completion'
	for s in bash zsh fish; do env -u GOOS -u GOARCH $(GO) run ./cmd/cfsboot completion $$s >'$(BIN)'/completion/$$s; done
	$(PUT) '$(BIN)'/completion/bash '$(DESTDIR)/usr/share/bash-completion/completions/cfsboot'
	$(PUT) '$(BIN)'/completion/zsh '$(DESTDIR)/usr/share/zsh/vendor-completions/_cfsboot'
	$(PUT) '$(BIN)'/completion/fish '$(DESTDIR)/usr/share/fish/vendor_completions.d/cfsboot.fish'

rootfs: ## what the Containerfile copies into an image, in bin/rootfs
	rm -rf bin/rootfs
	$(MAKE) --no-print-directory install DESTDIR=bin/rootfs

arm64: ## the programs for the other architecture, in bin/arm64, and its tests compiled
	mkdir -p bin/arm64
	GOARCH=arm64 $(GOBUILD) -o bin/arm64/ ./cmd/...
	CGO_ENABLED=0 GOARCH=arm64 $(GO) vet -trimpath ./...

demo: setup ## from a registry to a booted machine, an upgrade and a rollback, as a transcript
	$(LAB) demo

test: setup check unit oracle root vm ## everything that CI runs

setup: ## packages, kernel and images that the tests need
	$(LAB) setup

check: arm64 ## formatting, module file, vet, staticcheck; everything for arm64 too
	@out=$$(gofmt -l .); [ -z "$$out" ] || { echo "not formatted: $$out"; exit 1; }
	$(GO) mod tidy -diff
	$(GO) mod verify
	$(GO) vet ./...
	$(GO) run honnef.co/go/tools/cmd/staticcheck@v0.8.2 ./...

unit: ## no root, no network beyond loopback; faults at every call that changes a file (docs/reliability.md)
	CFSBOOT_CRASH_ALL=1 $(GO) test -timeout 20m ./...

oracle: ## our bytes against mkcomposefs and other tools that setup installed
	CFSBOOT_REQUIRE_ORACLES=1 $(GO) test -count=1 -run Oracle ./...

root: ## fs-verity, EROFS and overlayfs of a real kernel, in User Mode Linux
	$(LAB) umltest -run '^TestRoot' $(shell grep -rlE '^func TestRoot' --include='*_test.go' . | xargs -r -n1 dirname | sort -u)

vm: ## whole machines in QEMU, the demo among them; one package at a time (they share the registry and the cache), three machines (they wait, too)
	CFSBOOT_VM_TESTS=1 $(GO) test -p 1 -parallel 3 -count=1 -v -timeout 60m ./tests/vm/...

vm-powercuts: setup ## ten power cuts during each of upgrade, finalize, rollback and delete (docs/reliability.md has the last result)
	CFSBOOT_VM_TESTS=1 CFSBOOT_VM_CUTS=10 $(GO) test -run '^TestVMPowerCuts$$' -count=1 -v -timeout 150m ./tests/vm

bench: build setup ## our programs beside mkcomposefs and cfsctl in one run; prints ratios
	$(GO) test -run '^$$' -bench . -benchmem ./fsverity ./erofs/... ./bootimage/... ./repo/...
	$(GO) run ./tests/bench/encode -n 10
	$(GO) run ./tests/bench/pull

interop: ## cfsctl of composefs-rs into the cache (5 minutes), then the tests that use it
	[ -x $(CACHE)/cfsctl/bin/cfsctl ] || cargo install --root $(CACHE)/cfsctl composefs-ctl@0.9.4
	CFSBOOT_REQUIRE_ORACLES=1 CFSBOOT_REQUIRE_CFSCTL=1 $(GO) test -count=1 -run Oracle ./...

lint: ## golangci-lint with .golangci.yml
	$(GO) run github.com/golangci/golangci-lint/v2/cmd/golangci-lint@v2.15.0 run ./...

fuzz: ## each fuzz target for FUZZTIME
	for p in $$($(GO) list ./...); do for f in $$($(GO) test -list '^Fuzz' $$p | grep ^Fuzz || true); do \
		$(GO) test -run '^$$' -fuzz "^$$f\$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 1x $$p; done; done

deps: ## rewrite cmd/*/deps.txt
	CFSBOOT_UPDATE_DEPS=1 $(GO) test -count=1 -run TestDeps ./internal/archtest

clean:
	rm -rf bin
