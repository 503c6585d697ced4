#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# builds: release asan
#
# Every request of the protocol, with every flag, through libnbd: see client-nbdsh.py.

. "$(dirname "$0")/lib.sh"
/usr/bin/python3 -c "import nbd" || skip "python3-libnbd is not installed"

start_up "$T/store" --capacity 4G
/usr/bin/python3 "$TESTS/client-nbdsh.py" "$PARALLAX"
