# One target for each duty. `make demo` and `make test` are all that a fresh Debian or Ubuntu machine with cargo needs.
#
#   make setup   install and fetch what is missing (says what it does; asks nothing as root or with passwordless sudo)
#   make demo    the whole story on this machine: meters, brokers, an outage, a kill, and a tally
#   make check   formatting, lints, licences
#   make test    all tests, with real brokers; TEST_KAFKA=host:port runs them against another cluster
#   make test-arm-outbox   the outbox's tests built for 32-bit ARM, under qemu (Debian on x86-64)
#   make crash   power cuts of the outbox, replayed: TEST_CUTS (300) of them; TEST_SEED=n repeats the choices
#   make damage random damage to the outbox: TEST_ROUNDS (75) rounds in each of four tests
#   make soak    one run of TEST_READINGS (200,000) readings with faults
#   make bench   micro benchmarks and the end-to-end figures
#   make bench-outbox   the outbox beside a plain file, on the file system of TMPDIR (TEST_QUICK=1: short)
#   make clean   remove what was built and fetched
SHELL := /bin/bash
CACHE := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/fieldpost

# Built outside the checkout, so that a fresh clone is not a fresh build. Cargo's fingerprints notice every change of a source or
# of Cargo.lock; only a change of compiler gets a directory of its own.
export CARGO_TARGET_DIR ?= $(CACHE)/target-$(shell rustc -vV 2>/dev/null | sha256sum | cut -c1-12)

# The tests of the outbox keep both processors of a small machine and its disk busy: more than two at once make brokers time out.
export RUST_TEST_THREADS ?= 2

# Two runs that share a build directory would test each other's program.
LOCKED = mkdir -p $(CARGO_TARGET_DIR) && exec flock $(CARGO_TARGET_DIR)/make.lock

.PHONY: setup demo check test test-arm-outbox crash damage soak bench bench-outbox clean

setup:
	@scripts/setup

demo: setup
	@$(LOCKED) cargo build --release --locked
	@$(CARGO_TARGET_DIR)/release/fieldpost demo

check: setup
	cargo fmt --all -- --check
	@$(LOCKED) cargo clippy --locked --all-targets -- -D warnings
	@$(LOCKED) env RUSTDOCFLAGS="-D warnings -A rustdoc::private_intra_doc_links" cargo doc --locked --no-deps --document-private-items
	@scripts/deny

test: setup
	@$(LOCKED) cargo test --locked

# Without the loop of kills, which starts itself: qemu does not start ARM programs for it.
test-arm-outbox:
	@$(LOCKED) scripts/arm test --lib -- outbox:: --skip kill_tests

crash: setup
	@$(LOCKED) cargo test --locked --bench crash

damage:
	@$(LOCKED) env TEST_ROUNDS=$(or $(TEST_ROUNDS),75) cargo test --locked --lib random_damage -- --nocapture

soak: setup
	@$(LOCKED) env TEST_READINGS=$(or $(TEST_READINGS),200000) cargo test --locked --release --test end_to_end -- soak --nocapture

bench: setup
	@$(LOCKED) cargo bench --locked

bench-outbox: setup
	@$(LOCKED) cargo bench --locked --bench outbox

clean:
	rm -rf $(CACHE)/target-* $(CACHE)/kafka-* $(CACHE)/tools $(CACHE)/arm target
