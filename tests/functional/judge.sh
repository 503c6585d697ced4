#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
#
# Does the judge of the cluster tests find what it is for? The disk is changed behind
# its back: an old write is there again, one is torn, comes late, or was never sent.

. "$(dirname "$0")/lib.sh"
/usr/bin/python3 -c "import nbd" || skip "python3-libnbd is not installed"

start_up "$T/store" --capacity 1G
parallax disk create web 16M
timeout 60 /usr/bin/python3 "$TESTS/judge_self.py" "$(uri web)" || fail "see above"
