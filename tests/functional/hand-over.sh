#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
#
# A disk goes from one host to another as its clients do, each with several connections:
# what moves it and what does not, what the old side may do, and that nothing that was
# answered is lost, 20 times back and forth under load, in a cluster of three.

. "$(dirname "$0")/lib.sh"
/usr/bin/python3 -c "import nbd" || skip "python3-libnbd is not installed"

start_cluster 3 --capacity 1G
wait_for 60 is_whole
parallax disk create web 16M
HOSTS=$T timeout 200 /usr/bin/python3 "$TESTS/hand_over.py" || fail "see above"
if grep -E ' error:' "$T"/[123]/log; then
    fail "the hosts say errors"
fi
