# What people type here. `make help` lists it.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

# `ip`, `bridge`, `nft` and `tcpdump` stand where a normal user's PATH does not look.
export PATH := $(PATH):/usr/sbin:/sbin:$(HOME)/.cargo/bin

CARGO ?= cargo
TARGET := $(or $(CARGO_TARGET_DIR),target)
PREFIX ?= /usr/local
DESTDIR ?=

PROGRAMS := protoc etcd etcdctl ip bridge nft ping unshare tcpdump ovs-vswitchd ethtool python3 prometheus promtool
PACKAGES := protobuf-compiler libprotobuf-dev etcd-server etcd-client iproute2 nftables iputils-ping util-linux tcpdump \
            openvswitch-switch ethtool python3 prometheus
PROTOS   := /usr/include/google/protobuf/descriptor.proto

# Namespaces in which the tests find no network and no mount of the host: root's own, or those that a user may make (root in a
# container may be such a user).
PRIVATE = unshare $(shell unshare --net --mount true 2>/dev/null || echo --user --map-root-user) --net --mount

.PHONY: help
help: ## List what can be made
	@sed -nE 's/^([a-z]+):.*## (.*)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 20

.PHONY: deps
deps: ## Install the Debian packages that are missing (compiler of etcd's protocol, etcd, iproute2, …)
	@missing=; \
	for program in $(PROGRAMS); do command -v "$$program" >/dev/null || missing+=" $$program"; done; \
	[[ -e $(firstword $(PROTOS)) ]] || missing+=" $(firstword $(PROTOS))"; \
	if [[ -n $$missing ]]; then \
		echo "missing:$$missing"; \
		if ! command -v apt-get >/dev/null; then \
			echo "This is no Debian; please install what these packages hold: $(PACKAGES)" >&2; exit 1; \
		fi; \
		sudo=; \
		if [[ $$(id -u) != 0 ]]; then \
			command -v sudo >/dev/null || { \
				echo "Neither root nor sudo; please have these installed: $(PACKAGES)" >&2; exit 1; }; \
			sudo=sudo; \
		fi; \
		$$sudo apt-get update; \
		$$sudo env DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends $(PACKAGES); \
	fi
	@command -v $(CARGO) >/dev/null || { \
		echo "Rust is missing (1.88 or newer; Debian's may be older): see https://rustup.rs" >&2; exit 1; }

.PHONY: build
build: deps ## Build the program for development
	$(CARGO) build --locked

.PHONY: release
release: deps ## Build the program for use
	$(CARGO) build --locked --release

.PHONY: demo
demo: build ## Two hosts, a ping across, breakages and their repair, on networks of their own
	$(TARGET)/debug/vtepd demo

# The build needs the network at most for crates; the run gets none, and cannot touch the host's. Tests against etcd want a
# loopback that is up.
.PHONY: test
test: deps ## Check the form, then run all tests in private namespaces
	$(CARGO) fmt --check
	$(CARGO) clippy --locked --all-targets -- --deny warnings
	$(CARGO) test --locked --no-run
	@$(PRIVATE) true || { echo "This user may make no private namespaces here: be root, or allow user namespaces." >&2; exit 1; }
	$(PRIVATE) bash -euc 'ip link set lo up; exec $(CARGO) test --locked --offline --no-fail-fast'

.PHONY: simulate
simulate: deps ## Try many simulated schedules of store, sessions, hosts and kernels (SEEDS)
	SEEDS=$(or $(SEEDS),5000) $(CARGO) test --locked --release --test sessions --test simulation -- --skip the_simulated_etcd

.PHONY: fuzz
fuzz: deps ## Try ten million mutated records on decoders and store (FUZZ_EXECUTIONS, FUZZ_SEED)
	FUZZ_EXECUTIONS=$(or $(FUZZ_EXECUTIONS),10000000) $(CARGO) test --locked --release --test fuzz

.PHONY: bench
bench: deps ## Print how fast it is beside the tools that do the same (SCALE=small, usual or full)
	BENCH_SCALE=$(SCALE) $(CARGO) bench --locked --bench agent

.PHONY: install
install: ## Install program, unit and an example of its settings (after `make release`; needs the right to write there)
	@[[ -x $(TARGET)/release/vtepd ]] || { echo "please run 'make release' first" >&2; exit 1; }
	install -D -m 755 $(TARGET)/release/vtepd $(DESTDIR)$(PREFIX)/bin/vtepd
	install -D -m 644 deploy/vtepd.service $(DESTDIR)/etc/systemd/system/vtepd.service
	install -D -m 644 deploy/vtepd.env.example $(DESTDIR)/etc/vtepd/vtepd.env.example
