/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One world of errors: 0, or a negative errno, or one of ours (below -4096).
 * A code travels up unchanged; text is added by each layer with err_set/err_add and
 * printed once, by whoever handles it.
 */
#ifndef PARALLAX_RUNTIME_ERROR_H
#define PARALLAX_RUNTIME_ERROR_H

#include "runtime/base.h"

/* name, number, what it means, the errno a guest sees for it */
#define PLX_ERRORS(X)                                                                    \
    X(CHECKSUM, 4097, "checksum mismatch", EIO)                                          \
    X(FORMAT, 4098, "not a format this program knows", EIO)                              \
    X(NEWER, 4099, "written by a newer version", EIO)                                    \
    X(DEAD, 4100, "block is no longer live", EIO)                                        \
    X(NOTHERE, 4101, "block is not in this copy", EIO)                                   \
    X(STOPPED, 4102, "extent is stopped", EIO)                                           \
    X(NOTEND, 4103, "append is not at the end of the extent", EIO)                       \
    X(EPOCH, 4104, "an older lease epoch", ESHUTDOWN)                                    \
    X(OWNED, 4105, "disk is served by another owner", EBUSY)                             \
    X(FAILED, 4106, "store is out of service", EIO)                                      \
    X(FULL, 4107, "no space in the store", ENOSPC)                                       \
    X(EXISTS, 4108, "name exists", EEXIST)                                               \
    X(MISSING, 4109, "no such name", ENOENT)                                             \
    X(PRECONDITION, 4110, "state has changed meanwhile", EAGAIN)                         \
    X(DAMAGED, 4111, "a needed part of the log is damaged", EIO)                         \
    X(CANCELLED, 4112, "cancelled", ECANCELED)                                           \
    X(LIMIT, 4113, "a limit is reached", EAGAIN)                                         \
    X(NAME, 4114, "not a valid name", EINVAL)                                            \
    X(BUSY, 4115, "in use", EBUSY)                                                       \
    X(DENIED, 4116, "not allowed", EACCES)                                               \
    X(NOLEADER, 4117, "the cluster has no leader", EAGAIN)                               \
    X(UNKNOWN, 4118, "outcome is not known", EIO)

enum {
#define X(name, number, text, guest) PLX_E##name = number,
    PLX_ERRORS(X)
#undef X
};

/* A message that grows on its way up. Lives on a stack; never freed. */
struct error {
    int code;
    char text[480];
};

/* Sets code (negative) and text. Returns code, so `return err_set(err, -EIO, ...)`.
 * err may be NULL. */
int err_set(struct error *err, int code, const char *fmt, ...) attr_printf(3, 4);

/* Puts "text: " before what is there. Returns err's code (or code_if_null). */
int err_add(struct error *err, int code, const char *fmt, ...) attr_printf(3, 4);

/* Short words for a code, negative or positive: "checksum mismatch", or strerror. */
const char *err_text(int code);

/* Symbolic name, for JSON and tests: "PLX_ECHECKSUM", "ENOENT". */
const char *err_name(int code);

/* The positive errno a guest should see for a code. The only such translation. */
int err_to_errno(int code);

#endif
