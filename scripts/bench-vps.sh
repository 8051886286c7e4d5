#!/bin/sh
# One small machine: the daemon held to one core and 512 MB, the simulated relay at 1,000 events/s
# and 500 consumers of all kinds on the other cores, for SECS seconds; then a restart and an upgrade
# under them. One table, whose first row says what the daemon was held to. Arguments are passed on;
# see loadgen vps --help.
set -eu
cd "$(dirname "$0")/.."
dir=$(mktemp -d) cgroup=
trap 'rm -rf "$dir"; [ -z "$cgroup" ] || rmdir "$cgroup"' EXIT
trap 'exit 1' INT TERM
mkdir "$dir/installed" "$dir/next"
go build -trimpath -o "$dir/" ./cmd/loadgen ./cmd/simrelay
go build -trimpath -ldflags "-X main.version=before" -o "$dir/installed/" ./cmd/slipstream
go build -trimpath -ldflags "-X main.version=after" -o "$dir/next/" ./cmd/slipstream

# A cgroup of its own, of version 1 or 2.
for limit in /sys/fs/cgroup/memory/slipstream-$$/memory.limit_in_bytes /sys/fs/cgroup/slipstream-$$/memory.max; do
	mkdir "${limit%/*}" 2>/dev/null || continue
	if echo 536870912 2>/dev/null >"$limit"; then cgroup=${limit%/*}; break; fi
	rmdir "${limit%/*}"
done
memory="512 MB by a cgroup, the kernel's cache of its files included" enter="echo \$\$ >$cgroup/cgroup.procs"
[ -n "$cgroup" ] || memory="GOMEMLIMIT=448MiB, as no cgroup can be made here" enter="export GOMEMLIMIT=448MiB"
core= others= cores="GOMAXPROCS=1, as there is no taskset or one core only"
if command -v taskset >/dev/null && [ "$(nproc)" -gt 1 ]; then
	core="taskset -c 0" others="taskset -c 1-$(($(nproc) - 1))" cores="one core by taskset"
fi
cat >"$dir/slipstream" <<END
#!/bin/sh
$enter
export GOMAXPROCS=1
exec $core $dir/installed/slipstream "\$@"
END
chmod +x "$dir/slipstream"
$others "$dir/loadgen" vps --bin "$dir" --seconds "${SECS:-600}" --held "$cores, $memory" \
	--upgrade "install $dir/next/slipstream $dir/installed/" "$@"
