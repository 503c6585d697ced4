#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
#
# A disk goes from one host to another as its clients do, each with several connections:
# what moves it and what does not, what the old side may do, and that nothing that was
# answered is lost, 20 times back and forth under load. Two hosts of one process.

. "$(dirname "$0")/lib.sh"
/usr/bin/python3 -c "import nbd" || skip "python3-libnbd is not installed"

mkdir "$T/hosts"
: >"$T/hosts/out"

end_hosts()
{
    kill -s KILL "$hosts" 2>/dev/null || true
}

"$PARALLAX_BUILD/tests/functional/two_hosts" "$T/hosts" web 16 \
    >"$T/hosts/out" 2>"$T/hosts/err" &
hosts=$!
cleanup_fn end_hosts
wait_for 20 grep -q ready "$T/hosts/out"
HOSTS=$T/hosts timeout 200 /usr/bin/python3 "$TESTS/hand_over.py" ||
    fail "see above; the hosts said: $(tail -n 5 "$T/hosts/err")"
kill "$hosts"
wait "$hosts" || fail "the hosts: $(tail -n 5 "$T/hosts/err")"
if grep -E ' error:' "$T/hosts/err"; then
    fail "the hosts say errors"
fi
