/* SPDX-License-Identifier: Apache-2.0 */
/* What is copied from and to: an NBD export, a file or device, a pipe. */
#ifndef PARALLAX_TOOLS_ENDPOINT_H
#define PARALLAX_TOOLS_ENDPOINT_H

#include <libnbd.h>

#include "runtime/base.h"
#include "runtime/error.h"

enum endpoint_kind { ENDPOINT_NONE, ENDPOINT_NBD, ENDPOINT_FILE, ENDPOINT_STREAM };

#define ENDPOINT_SIZE_UNKNOWN UINT64_MAX

struct endpoint {
    enum endpoint_kind kind;
    struct nbd_handle *nbd;
    int fd;              /* of a FILE or STREAM; also the image behind a destination's
                          * NBD child, for syncing. -1: none */
    uint64_t size_bytes; /* or ENDPOINT_SIZE_UNKNOWN */
    bool is_zero;        /* a destination that reads as zeros wherever not written */
    bool can_zero;       /* a destination that can be told to be zero somewhere */
    bool has_status;     /* a source that knows its holes */
    char *name;          /* as the user gave it; for messages */
    char *temp, *final;  /* a new file, and what it is called when complete */
};

struct endpoint_options {
    const char *format; /* NULL: find out */
    bool backing;       /* an image may refer to other files */
};

/* `name`: a path, "-" or an NBD URI. */
int endpoint_open_source(struct endpoint *ret, const char *name,
                         const struct endpoint_options *options, struct error *err);
/* A new file is written under another name until endpoint_commit. */
int endpoint_open_destination(struct endpoint *ret, const char *name, uint64_t size_bytes,
                              const struct endpoint_options *options, struct error *err);
/* An export of our daemon; `name` is for messages. */
int endpoint_open_nbd(struct endpoint *ret, const char *uri, const char *name,
                      struct error *err);
/* Makes a destination durable and gives it its name. Only endpoint_close may follow. */
int endpoint_commit(struct endpoint *endpoint, struct error *err);
/* Removes a destination that was not committed. An all-zero endpoint is allowed. */
void endpoint_close(struct endpoint *endpoint);

#endif
