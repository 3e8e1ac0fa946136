#!/bin/bash
# Installs the Go that this project needs on a fresh Debian machine, and prints nothing if it is there. Any Go from 1.21 on is
# enough: it fetches the tool chain that go.mod names through the module proxy by itself.
set -euo pipefail

new_enough() { # a Go that can switch tool chains
	local v
	v=$("$1" env GOVERSION 2>/dev/null) || return 1
	v=${v#go}
	printf '%s\n1.21\n' "${v%%[!0-9.]*}" | sort -V | head -n1 | grep -qx 1.21
}

for go in go /usr/lib/go-1.2[3-9]/bin/go; do
	if command -v "$go" >/dev/null && new_enough "$go"; then
		command -v "$go"
		exit
	fi
done
[ "$(id -u)" = 0 ] || { echo "bootstrap: no Go from 1.21 on; run as root to install one, or put one on PATH" >&2; exit 1; }

. /etc/os-release
export DEBIAN_FRONTEND=noninteractive
echo "bootstrap: installing Go from Debian's packages" >&2
apt-get update -q >&2
if apt-cache policy golang-go | grep -E 'Candidate: 2:1\.(2[1-9]|[3-9][0-9])' >/dev/null; then # not -q: with pipefail apt-cache must not die of a closed pipe
	apt-get install -y -q --no-install-recommends golang-go ca-certificates >&2
else # Debian 12: its own Go cannot switch tool chains, the backport can; the mirror is the one that apt uses
	mirror=$(apt-get indextargets --format '$(REPO_URI)' "Codename: $VERSION_CODENAME" | head -n1)
	echo "deb ${mirror%/} $VERSION_CODENAME-backports main" >/etc/apt/sources.list.d/cfsboot-backports.list
	apt-get update -q >&2
	apt-get install -y -q --no-install-recommends golang-1.23-go ca-certificates >&2
fi
exec "$0"
