/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Two connections: block status answers all contexts that were chosen on one, and to ask
 * what is a hole in all of the disk would cost work in proportion to the disk.
 */
#include "tools/changes.h"

#include <stdio.h>

#include "runtime/limits.h"

#define CHANGED_SINCE "parallax:changed-since:"
/* One question covers at most this much, and this many answers are kept. */
#define WINDOW_BYTES (1 * GIB)
#define RANGES_MAX   2048U
/* Whether less than this is zeros is found by reading it. */
#define ASK_BYTES (64 * KIB)
/* Bit 0 of the context's flags: changed. */
#define STATE_CHANGED 1U

struct answer {
    uint32_t count;
    uint32_t entries[2 * RANGES_MAX]; /* length, flags */
};

static int fail_nbd(const struct changes *changes, struct error *err)
{
    const char *text = nbd_get_error();
    int code = nbd_get_errno();
    return err_set(err, code > 0 && code != ENOTCONN ? -code : -EIO, "%s: %s",
                   changes->name, text != NULL ? text : "NBD error");
}

static int open_one(struct changes *changes, struct nbd_handle **ret, const char *uri,
                    const char *context, struct error *err)
{
    *ret = nbd_create();
    if (*ret == NULL || nbd_add_meta_context(*ret, context) < 0 ||
        nbd_connect_uri(*ret, uri) < 0)
        return fail_nbd(changes, err);
    if (nbd_can_meta_context(*ret, context) <= 0)
        return err_set(err, -PLX_EMISSING, "%s: the server does not know %s",
                       changes->name, context);
    return 0;
}

int changes_open(struct changes *ret, const char *uri, const char *name, const char *base,
                 struct error *err)
{
    char context[sizeof CHANGED_SINCE + DISK_NAME_MAX];
    snprintf(context, sizeof context, CHANGED_SINCE "%s", base);
    *ret = (struct changes){.name = name};
    int r = open_one(ret, &ret->ranges, uri, context, err);
    if (r == 0)
        r = open_one(ret, &ret->data, uri, LIBNBD_CONTEXT_BASE_ALLOCATION, err);
    int64_t size = r == 0 ? nbd_get_size(ret->data) : 0;
    if (size < 0)
        r = fail_nbd(ret, err);
    if (r < 0)
        changes_close(ret);
    else
        ret->size_bytes = (uint64_t)size;
    return r;
}

void changes_close(struct changes *changes)
{
    if (changes->ranges != NULL)
        nbd_close(take(changes->ranges));
    if (changes->data != NULL)
        nbd_close(take(changes->data));
}

static int on_extents(void *arg, const char *context attr_unused,
                      uint64_t offset attr_unused, uint32_t *entries, size_t count,
                      int *error attr_unused)
{
    struct answer *answer = arg;
    answer->count = (uint32_t)min_u64(count / 2, RANGES_MAX);
    memcpy(answer->entries, entries, 2 * answer->count * sizeof *entries);
    return 0;
}

/* At least one range, none beyond [offset, offset + len). */
static int ask(const struct changes *changes, struct nbd_handle *nbd, uint64_t offset,
               uint64_t len, struct answer *ret, struct error *err)
{
    nbd_extent_callback callback = {.callback = on_extents, .user_data = ret};
    uint64_t total = 0;
    ret->count = 0;
    if (nbd_block_status(nbd, len, offset, callback, 0) < 0)
        return fail_nbd(changes, err);
    for (uint32_t i = 0; i < ret->count; i++) {
        uint32_t *range_len = &ret->entries[2 * i];
        *range_len = (uint32_t)min_u64(*range_len, len - total);
        total += *range_len;
        if (*range_len % BLOCK_SIZE != 0)
            total = 0; /* of no server of ours */
        if (total == 0)
            break;
    }
    if (total == 0)
        return err_set(err, -EPROTO, "%s: the server's block status makes no sense",
                       changes->name);
    return 0;
}

/* Tells a long changed range apart into what is zeros and what is not. */
static int tell_apart(struct changes *changes, uint64_t offset, uint64_t len,
                      changes_fn *fn, void *arg, struct error *err)
{
    struct answer *answer = malloc(sizeof *answer);
    int r = answer != NULL ? 0 : -ENOMEM;
    while (len > 0 && r == 0) {
        r = ask(changes, changes->data, offset, len, answer, err);
        for (uint32_t i = 0; i < answer->count && len > 0 && r == 0; i++) {
            uint64_t n = answer->entries[2 * i];
            bool is_zero = answer->entries[2 * i + 1] & LIBNBD_STATE_ZERO;
            if (n > 0)
                r = fn(arg, offset, n, is_zero);
            offset += n;
            len -= n;
        }
    }
    free(answer);
    return r;
}

int changes_each(struct changes *changes, changes_fn *fn, void *arg, struct error *err)
{
    struct answer *answer = malloc(sizeof *answer);
    int r = answer != NULL ? 0 : -ENOMEM;
    for (uint64_t offset = 0; offset < changes->size_bytes && r == 0;) {
        uint64_t len = min_u64(changes->size_bytes - offset, WINDOW_BYTES);
        r = ask(changes, changes->ranges, offset, len, answer, err);
        for (uint32_t i = 0; r == 0 && i < answer->count; i++) {
            uint64_t n = answer->entries[2 * i];
            if (!(answer->entries[2 * i + 1] & STATE_CHANGED) || n == 0)
                r = 0;
            else if (n <= ASK_BYTES)
                r = fn(arg, offset, n, false);
            else
                r = tell_apart(changes, offset, n, fn, arg, err);
            offset += n;
        }
    }
    free(answer);
    return r;
}
