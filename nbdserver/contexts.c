/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Metadata contexts: what block status can tell of an export.
 *
 *   base:allocation               what is a hole and reads as zeros
 *   parallax:changed-since:SNAP   what is not as it was in that snapshot of the same disk
 *
 * A client lists or chooses them by queries, answered from the host's list of snapshots.
 * What was chosen belongs to the export it was chosen for: opening another drops it. The
 * snapshots are looked up once more when the disk is open; one that has gone meanwhile is
 * an error of block status, which is also what happens when it goes later.
 *
 * A list of all contexts may be long; as with LIST, few clients are sent one at a time.
 */
#include <stdio.h>

#include "nbdserver/nbd_internal.h"

#define ALLOCATION "base:allocation"
#define CHANGES    "parallax:changed-since:"

#define CONTEXT_NAME_MAX (sizeof CHANGES - 1 + DISK_NAME_MAX)

/* One option being answered. */
struct asked {
    struct session *s;
    uint32_t option;
    char disk[NBD_EXPORT_NAME_MAX + 1]; /* of the export */
    struct snapshot_info *snapshots;
    size_t snapshot_count;
    uint32_t listed;
    bool too_many;
};

static void reply_context(struct session *s, uint32_t option, uint32_t id,
                          const char *text, const char *base)
{
    uint8_t bytes[sizeof(be32) + CONTEXT_NAME_MAX + 1];
    be32 number = be32_of(id);
    memcpy(bytes, &number, sizeof number);
    int n = snprintf((char *)bytes + sizeof number, sizeof bytes - sizeof number, "%s%s",
                     text, base);
    assert(n > 0 && (size_t)n <= CONTEXT_NAME_MAX);
    option_reply(s, option, NBD_REP_META_CONTEXT, bytes, sizeof number + (size_t)n);
}

/* Lists it, or chooses it if it is not chosen already. base "": base:allocation. */
static void take_context(struct asked *a, const char *base)
{
    struct session *s = a->s;
    bool is_changes = base[0] != '\0';
    if (a->option == NBD_OPT_LIST_META_CONTEXT) {
        if (a->listed++ < NBD_CONTEXTS_LISTED_MAX)
            reply_context(s, a->option, 0, is_changes ? CHANGES : ALLOCATION, base);
        return;
    }
    for (uint32_t i = 0; i < s->context_count; i++)
        if (strcmp(s->contexts[i].base, base) == 0)
            return;
    a->too_many = s->context_count == NBD_CONTEXTS_MAX;
    if (a->too_many)
        return;
    struct context *context = &s->contexts[s->context_count++];
    *context = (struct context){.is_changes = is_changes};
    memcpy(context->base, base, strlen(base) + 1);
}

static bool query_is(const uint8_t *query, uint32_t len, const char *text)
{
    return len == strlen(text) && memcmp(query, text, len) == 0;
}

static bool names_snapshot(const uint8_t *query, uint32_t len, const char *name)
{
    const size_t head = sizeof CHANGES - 1;
    return len == head + strlen(name) && memcmp(query, CHANGES, head) == 0 &&
           memcmp(query + head, name, strlen(name)) == 0;
}

/* A list may ask for a whole namespace, a choice is of one context. */
static void take_query(struct asked *a, const uint8_t *query, uint32_t len)
{
    bool is_list = a->option == NBD_OPT_LIST_META_CONTEXT;
    bool all = is_list &&
               (query_is(query, len, "parallax:") || query_is(query, len, CHANGES));
    if (query_is(query, len, ALLOCATION) || (is_list && query_is(query, len, "base:")))
        take_context(a, "");
    for (size_t i = 0; i < a->snapshot_count && !a->too_many; i++)
        if (all || names_snapshot(query, len, a->snapshots[i].name))
            take_context(a, a->snapshots[i].name);
}

/* Walks over the queries; without a function it only looks whether their lengths add up.
 */
static bool each_query(struct reader r, uint32_t count, struct asked *a)
{
    for (uint32_t i = 0; i < count && !r.bad; i++) {
        uint32_t len = read_be32(&r);
        const uint8_t *query = read_bytes(&r, len);
        if (query && a)
            take_query(a, query, len);
    }
    return !r.bad && r.left == 0;
}

/* The snapshots of the export's disk; an error if there is no such export. */
static int find_snapshots(struct asked *a, const char *export, struct error *err)
{
    (void)export_split(export, a->disk);
    char *at = strchr(a->disk, '@');
    if (at)
        *at++ = '\0';
    int rc = snapshot_list(a->s->shared->host, a->disk, &a->snapshots, &a->snapshot_count,
                           err);
    bool found = !at;
    for (size_t i = 0; i < a->snapshot_count && !found; i++)
        found = strcmp(a->snapshots[i].name, at) == 0;
    if (rc == 0 && !found)
        rc = err_set(err, -PLX_EMISSING, "no snapshot %s of disk %s", at, a->disk);
    return rc;
}

static void answer(struct asked *a, struct reader queries, uint32_t count)
{
    struct session *s = a->s;
    bool is_list = a->option == NBD_OPT_LIST_META_CONTEXT;
    if (is_list && !option_list_begin(s, a->option))
        return;
    if (is_list && count == 0) {
        take_query(a, (const uint8_t *)ALLOCATION, sizeof ALLOCATION - 1);
        take_query(a, (const uint8_t *)CHANGES, sizeof CHANGES - 1);
    }
    each_query(queries, count, a);
    if (a->too_many) {
        s->context_count = 0;
        option_error(s, a->option, NBD_REP_ERR_TOO_BIG, "at most %u contexts",
                     NBD_CONTEXTS_MAX);
        return;
    }
    for (uint32_t i = 0; i < s->context_count && !is_list; i++) {
        const struct context *context = &s->contexts[i];
        reply_context(s, a->option, i + 1, context->is_changes ? CHANGES : ALLOCATION,
                      context->base);
    }
    option_reply(s, a->option, NBD_REP_ACK, NULL, 0);
}

void contexts_run_option(struct session *s, uint32_t option, const uint8_t *data,
                         uint32_t len)
{
    struct reader r = reader_of(data, len);
    struct asked a = {.s = s, .option = option};
    char name[NBD_EXPORT_NAME_MAX + 1];
    struct error err = {0};
    bool has_name = option_read_name(&r, read_be32(&r), name);
    uint32_t count = read_be32(&r);
    if (option == NBD_OPT_SET_META_CONTEXT)
        s->context_count = 0;
    if (r.bad || !each_query(r, count, NULL)) {
        option_error(s, option, NBD_REP_ERR_INVALID, "the lengths do not add up");
    } else if (!s->structured) {
        option_error(s, option, NBD_REP_ERR_INVALID, "needs structured replies");
    } else if (!has_name || find_snapshots(&a, name, &err) < 0) {
        option_error(s, option, NBD_REP_ERR_UNKNOWN, "%s",
                     err.code ? err.text : "no such export");
    } else if (count > NBD_QUERIES_MAX) {
        option_error(s, option, NBD_REP_ERR_TOO_BIG, "at most %u queries",
                     NBD_QUERIES_MAX);
    } else {
        if (option == NBD_OPT_SET_META_CONTEXT)
            memcpy(s->context_export, name, strlen(name) + 1);
        answer(&a, r, count);
    }
    free(a.snapshots);
}

void contexts_opened(struct session *s)
{
    /* A context belongs to the export it was asked for. */
    if (strcmp(s->context_export, s->export) != 0)
        s->context_count = 0;
    for (uint32_t i = 0; i < s->context_count; i++) {
        struct context *context = &s->contexts[i];
        if (context->is_changes &&
            disk_find_snapshot(s->disk, context->base, &context->version, NULL) < 0)
            context->version = 0;
    }
}
