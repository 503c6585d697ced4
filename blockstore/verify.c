/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Reads what is stored of an extent and compares it with its headers or digest.
 *
 * Happy path: all that is live fits; nothing is reported.
 *
 * What can fail: a block, a header or the digest, which is what is looked for: each is
 * reported and the rest goes on. What a damaged header described cannot be checked; it
 * is still read.
 *
 * The extent may be trimmed, compacted or deleted meanwhile.
 */
#include "blockstore/inspect.h"

struct verification {
    struct inspect *ins;
    const struct verify_callbacks *cb;
    int digest_code; /* that was reported */
    uint64_t paced;
};

/* A live block of which nothing is known, or that is a header and not known to be one. */
static bool is_unknown(const struct extent *e, const struct inspected *in)
{
    bool is_known = in->is_header
                        ? e->headers != NULL && bitmap_get(e->headers, in->block)
                        : in->is_known;
    return !is_known && extent_is_live(e, in->block, 1);
}

/* Dead blocks need not be right. Headers are needed even when they are dead: as long as
 * they are there, they are all that says what the others should be. */
static int report(struct verification *v, const struct inspected *in)
{
    struct extent *e = v->ins->extent;
    if (v->cb->unknown != NULL && is_unknown(e, in))
        v->cb->unknown(v->cb->arg, in->block);
    if (in->code == 0 || (!in->is_header && !extent_is_live(e, in->block, 1)))
        return 0;
    return v->cb->finding(v->cb->arg, address_plus(v->ins->address, in->block),
                          in->is_known ? &in->entry : NULL, in->code);
}

static int report_digest(struct verification *v)
{
    struct inspect *ins = v->ins;
    int code = ins->extent->layout != NULL ? ins->digest_code : 0;
    if (code == v->digest_code)
        return 0;
    v->digest_code = code;
    return code == 0 ? 0 : v->cb->finding(v->cb->arg, ins->address, NULL, code);
}

static async int pause_between(struct verification *v)
{
    struct inspect *ins = v->ins;
    uint64_t bytes = ins->bytes_read - v->paced;
    if (bytes < COMPACT_CHUNK_BYTES)
        return 0;
    v->paced = ins->bytes_read;
    inspect_release(ins);
    int result = 0;
    if (v->cb->progress != NULL)
        result = v->cb->progress(v->cb->arg, bytes);
    else
        task_yield();
    int resumed = inspect_resume(ins);
    return result != 0 ? result : resumed;
}

static async int verify(struct verification *v)
{
    struct inspected in;
    int more = inspect_resume(v->ins);
    if (more < 0)
        return more;
    while ((more = inspect_next(v->ins, &in)) > 0) {
        int result = report_digest(v);
        if (result == 0)
            result = report(v, &in);
        if (result == 0)
            result = pause_between(v);
        if (result != 0)
            return result;
    }
    return more < 0 ? more : report_digest(v);
}

async int store_verify_extent(struct store *store, struct address extent,
                              const struct verify_callbacks *cb)
{
    struct verification v = {
        .cb = cb, .ins = inspect_create(store, extent, COMPACT_CHUNK_BYTES)};
    if (v.ins == NULL)
        return -ENOMEM;
    int result = verify(&v);
    if (v.ins->extent != NULL)
        inspect_release(v.ins);
    inspect_destroy(v.ins);
    return result;
}
