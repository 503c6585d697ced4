/* SPDX-License-Identifier: Apache-2.0 */
/* The face of the runtime: what all other folders include. */
#ifndef PARALLAX_RUNTIME_RUNTIME_H
#define PARALLAX_RUNTIME_RUNTIME_H

#include "runtime/base.h"
#include "runtime/buffer.h"
#include "runtime/crc32c.h"
#include "runtime/error.h"
#include "runtime/file.h"
#include "runtime/format.h"
#include "runtime/kv.h"
#include "runtime/limits.h"
#include "runtime/log.h"
#include "runtime/loop.h"
#include "runtime/metrics.h"
#include "runtime/net.h"
#include "runtime/plant.h"
#include "runtime/rpc.h"
#include "runtime/task.h"
#include "runtime/trace.h"

#endif
