/* SPDX-License-Identifier: Apache-2.0 */
/* Copies one endpoint to another, keeping its holes, with several requests in flight. */
#ifndef PARALLAX_TOOLS_COPY_H
#define PARALLAX_TOOLS_COPY_H

#include "tools/endpoint.h"

struct copy_options {
    void (*progress)(void *arg, uint64_t done, uint64_t total); /* may be NULL */
    bool (*interrupted)(void);                                  /* may be NULL */
    void *arg;
};

/* *ret_bytes is the size of the source. After an error the endpoints may only be closed:
 * requests may still be in flight. -EINTR: interrupted. */
int copy_run(struct endpoint *source, struct endpoint *destination,
             const struct copy_options *options, uint64_t *ret_bytes, struct error *err);

#endif
