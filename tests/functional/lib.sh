# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
#
# What every functional test starts with:
#
#     . "$(dirname "$0")/lib.sh"
#     requires nbdinfo
#     start_up "$T/store"
#     parallax disk create d 1G
#     nbdinfo "$(uri d)"
#
# $T is a folder of the test's own. At the end it is removed and the daemons the test
# started are ended, however the test ends. A test ends with 0 (passed), 77 (skipped, the
# reason is the last line) or anything else (failed). One that passed fails all the same
# if `parallax check` finds anything wrong in a store it leaves behind: see unchecked.
#
# tests/run reads comments of the form `# key: value` in a test:
#     # timeout: 600           seconds, instead of 300
#     # builds: release asan   run it with these builds, instead of release only
#     # alone: yes             nothing else may run beside it (it measures time)
#     # slow: yes              left out by --quick

set -eu -o pipefail

TESTS=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd) # where programs of tests lie
PARALLAX_SOURCE=$(cd "$TESTS/../.." && pwd)
PARALLAX_BUILD=${PARALLAX_BUILD:-$PARALLAX_SOURCE/build/release}
export PARALLAX_SOURCE PARALLAX_BUILD
export PATH="$PARALLAX_BUILD/tools:$PATH:/usr/sbin:/sbin"
unset PARALLAX # no disk of the caller's own

T=$(mktemp -d "${TMPDIR:-/tmp}/parallax-test.XXXXXX")
lib_cleanups=()
lib_stores=()
lib_unchecked=()

# --- how a test ends ---

fail()
{
    printf '%s: %s\n' "${0##*/}" "$*" >&2
    exit 1
}

skip()
{
    printf '%s\n' "$*"
    exit 77
}

# Runs COMMAND at the end of the test; the last one given runs first.
cleanup_fn()
{
    lib_cleanups=("$(printf '%q ' "$@")" "${lib_cleanups[@]}")
}

# The store of DIR is left damaged on purpose.
unchecked()
{
    lib_unchecked+=("$1")
}

# Is every block of the store where it should be, and owned once?
lib_check()
{
    local store=$1
    [ -d "$store" ] && [[ " ${lib_unchecked[*]-} " != *" $store "* ]] || return 0
    parallax -c "$store" status >/dev/null 2>&1 || parallax up "$store" --detach ||
        return 1
    timeout 200 parallax -c "$store" check >"$T/check.out" 2>&1 && return 0
    printf '%s: check of what the test left in %s:\n' "${0##*/}" "$store" >&2
    tail -n 20 "$T/check.out" >&2
    return 1
}

lib_exit()
{
    local status=$? command store
    trap - EXIT
    set +e
    for command in "${lib_cleanups[@]}"; do
        eval "$command"
    done
    for store in $([ "$status" -ne 0 ] || printf '%s\n' "${lib_stores[@]}" | sort -u); do
        lib_check "$store" || status=1
    done
    for store in "${lib_stores[@]}"; do
        end_daemon KILL "$store"
        if [ "$status" -ne 0 ] && [ "$status" -ne 77 ]; then
            tail -n 30 "$store/log" >&2
        fi
    done
    rm -rf "$T"
    exit "$status"
}
trap lib_exit EXIT
trap 'exit 143' TERM
trap 'exit 130' INT

# --- what a test needs ---

requires()
{
    local program
    for program in "$@"; do
        command -v "$program" >/dev/null || skip "$program is not installed"
    done
}

requires_root()
{
    [ "$(id -u)" -eq 0 ] || skip "needs root"
}

requires_device()
{
    if [ ! -r "$1" ] || [ ! -w "$1" ]; then
        skip "needs $1"
    fi
}

# Tries COMMAND every 50 ms for SECONDS.
wait_for()
{
    local seconds=$1 deadline=$((SECONDS + $1 + 1))
    shift
    until "$@"; do
        [ "$SECONDS" -lt "$deadline" ] || fail "not within $seconds s: $*"
        sleep 0.05
    done
}

# Runs COMMAND, which must fail (but not crash) with one line on standard error that
# matches the extended regular expression REGEX.
expect_error()
{
    local regex=$1 status=0 text
    shift
    "$@" >"$T/expect_error.out" 2>"$T/expect_error.err" </dev/null || status=$?
    text=$(cat "$T/expect_error.err")
    [ "$status" -ne 0 ] || fail "succeeded, but should not: $*"
    [ "$status" -lt 124 ] || fail "crashed ($status): $*: $text"
    [ "$(wc -l <"$T/expect_error.err")" -eq 1 ] ||
        fail "should say one line on standard error: $*: $text"
    [[ $text =~ $regex ]] || fail "$*: said '$text', which does not match '$regex'"
}

# --- daemons ---

# Starts a daemon on the folder DIR and makes it what `parallax` talks to.
start_up()
{
    local dir=$1
    shift
    lib_stores+=("$dir")
    parallax up "$dir" --detach "$@"
    export PARALLAX=$dir
}

daemon_pid()
{
    local pid
    pid=$(cat "$1/parallaxd.pid" 2>/dev/null) || return 1
    [[ $pid =~ ^[1-9][0-9]*$ ]] && echo "$pid"
}

# A zombie whose parent never asks counts as gone, but not before its last thread has
# ended: until then its files are open.
is_running()
{
    local stat threads
    stat=$(cat "/proc/$1/stat" 2>/dev/null) || return 1
    stat=${stat##*) }
    threads=("/proc/$1/task/"*)
    [ "${stat%% *}" != Z ] || [ ${#threads[@]} -gt 1 ]
}

is_gone()
{
    ! is_running "$1"
}

# Sends SIGNAL to the daemon of DIR, if there is one, and waits until it is gone.
end_daemon()
{
    local signal=$1 pid
    pid=$(daemon_pid "$2") || return 0
    # A pid file outlives a killed daemon, and its number may be someone else's by now.
    grep -q parallax "/proc/$pid/comm" 2>/dev/null || return 0
    kill -s "$signal" "$pid" 2>/dev/null || return 0
    wait_for 60 is_gone "$pid"
}

# Ends it in order; everything is written and the next start has nothing to repair.
stop_daemon()
{
    daemon_pid "$1" >/dev/null || fail "$1 has no running daemon"
    end_daemon TERM "$1"
}

kill9_daemon()
{
    daemon_pid "$1" >/dev/null || fail "$1 has no running daemon"
    end_daemon KILL "$1"
}

# --- clusters ---

# The first of 32 that only this test uses, as long as it or one of its daemons holds the
# lock. Connections come from 32768 on.
lib_port=
claim_ports()
{
    local folder=${TMPDIR:-/tmp}/parallax-ports.$UID slots=375 slot=$$ tries
    mkdir -p "$folder"
    for ((tries = 0; tries < slots; tries++)); do
        slot=$(((slot + 1) % slots))
        exec {lib_port_lock}>"$folder/$slot"
        if flock --nonblock "$lib_port_lock"; then
            lib_port=$((20000 + slot * 32))
            return
        fi
        exec {lib_port_lock}>&-
    done
    fail "all ports are in use"
}
claim_ports
first_port()
{
    echo "$lib_port"
}

# Makes a cluster of COUNT hosts and starts them; each has its files in $T/1, $T/2 ...
# Further arguments are for `parallax cluster init` and `join`. Host 1 is what `parallax`
# talks to.
start_cluster()
{
    local count=$1 i
    shift
    parallax cluster init "$T/1" --listen "$(node_address 1)" "$@" >/dev/null
    start_up "$T/1"
    for ((i = 2; i <= count; i++)); do
        join_cluster "$i" "$@"
    done
    export PARALLAX=$T/1
}

# Lets host I join, by host 1, and starts it.
join_cluster()
{
    local i=$1
    shift
    parallax -c "$T/1" cluster token | parallax cluster join "$T/$i" "$(node_address 1)" \
        --token - --listen "$(node_address "$i")" "$@" >/dev/null
    start_up "$T/$i"
}

# Starts hosts at the same time, each with its files in one DIR: alone they may have no
# majority.
start_hosts()
{
    local dir pid pids=()
    for dir; do
        parallax up "$dir" --detach &
        pids+=($!)
    done
    for pid in "${pids[@]}"; do
        wait "$pid" || fail "a host does not start"
    done
}

# Where host I listens for the others.
node_address()
{
    echo "127.0.0.1:$((lib_port + $1))"
}

# Is the node of host I in STATE (up, down ...) for the host that `parallax` talks to?
node_is()
{
    [ "$(node_field "$1" state)" = "$2" ]
}

# What `parallax node show` says of a FIELD of the node of host I.
node_field()
{
    parallax node show "$(node_address "$1")" --json 2>/dev/null |
        sed -n "s/^ *\"$2\": \"\{0,1\}\([^\",]*\)\"\{0,1\},\{0,1\}\$/\1/p"
}

# Has every member of every group all it should have?
is_whole()
{
    parallax status --json | grep -q '"groups_not_whole": 0,\{0,1\}$'
}

# The NBD URI of DISK or DISK@SNAP, of the daemon started last or of DIR.
uri()
{
    echo "nbd+unix:///$1?socket=${2:-$PARALLAX}/nbd.sock"
}

# --- power ---

# What power.py needs. Builds the program of its disks.
requires_power()
{
    requires_root
    requires cc pkg-config losetup mkfs.ext4 fusermount3 unshare
    requires_device /dev/fuse
    requires_device /dev/loop-control
    unshare --mount true 2>/dev/null || skip "mounting is not allowed"
    losetup --find >/dev/null 2>&1 || skip "no free loop device"
    pkg-config --exists fuse3 || skip "libfuse3-dev is not installed"
    /usr/bin/python3 -c "import nbd" 2>/dev/null || skip "python3-libnbd is not installed"
    export POWER_DISK=$T/power_disk
    # shellcheck disable=SC2046 # several words
    cc -D_GNU_SOURCE -O2 -Wall -Wextra -Werror $(pkg-config --cflags fuse3) \
        -o "$POWER_DISK" "$TESTS/power_disk.c" $(pkg-config --libs fuse3)
}

# Makes the folder DIR, for a host whose power can be cut; with `device` a block device.
power_on()
{
    unchecked "$1" # it is not there any more when others are checked
    cleanup_fn /usr/bin/python3 "$TESTS/power.py" off "$1"
    /usr/bin/python3 "$TESTS/power.py" on "$@"
}

# Hosts lose power, and what they did not sync, and have it again; none is started.
power_cycle()
{
    /usr/bin/python3 "$TESTS/power.py" cycle "$@"
}
