/* SPDX-License-Identifier: Apache-2.0 */
/* Metadata contexts: listing, choosing, and what block status then tells. */
#include <libnbd.h>
#include <unistd.h>

#include "tests/unit/nbdserver/rig.h"

#define SINCE      "parallax:changed-since:"
#define ALLOCATION LIBNBD_CONTEXT_BASE_ALLOCATION

static struct nbd_handle *prepare(const char *name, const char *first, const char *second)
{
    struct nbd_handle *nbd = nbd_create();
    CHECK(nbd != NULL);
    CHECK_EQ(nbd_set_export_name(nbd, name), 0);
    if (first)
        CHECK_EQ(nbd_add_meta_context(nbd, first), 0);
    if (second)
        CHECK_EQ(nbd_add_meta_context(nbd, second), 0);
    return nbd;
}

static struct nbd_handle *attach(struct rig *rig, const char *name, const char *first,
                                 const char *second)
{
    struct nbd_handle *nbd = prepare(name, first, second);
    if (nbd_connect_unix(nbd, rig->path) < 0) {
        fprintf(stderr, "%s\n", nbd_get_error());
        exit(1);
    }
    return nbd;
}

static void detach(struct nbd_handle *nbd)
{
    CHECK_EQ(nbd_shutdown(nbd, 0), 0);
    nbd_close(nbd);
}

/* --- listing --- */

struct names {
    char text[256];
};

static int add_name(void *user, const char *name)
{
    struct names *names = user;
    strcat(names->text, name);
    strcat(names->text, " ");
    return 0;
}

static struct names list(struct rig *rig, const char *export, const char *query)
{
    struct names names = {""};
    struct nbd_handle *nbd = prepare(export, query, NULL);
    nbd_context_callback callback = {.callback = add_name, .user_data = &names};
    CHECK_EQ(nbd_set_opt_mode(nbd, true), 0);
    CHECK_EQ(nbd_connect_unix(nbd, rig->path), 0);
    if (nbd_opt_list_meta_context(nbd, callback) < 0)
        strcpy(names.text, "refused");
    CHECK_EQ(nbd_opt_abort(nbd), 0);
    nbd_close(nbd);
    return names;
}

static void test_list(struct rig *rig)
{
    CHECK_STR(list(rig, "disk", NULL).text, ALLOCATION " " SINCE "old ");
    CHECK_STR(list(rig, "disk", "parallax:").text, SINCE "old ");
    CHECK_STR(list(rig, "disk", SINCE).text, SINCE "old ");
    CHECK_STR(list(rig, "disk", SINCE "old").text, SINCE "old ");
    CHECK_STR(list(rig, "disk", SINCE "ol").text, "");
    CHECK_STR(list(rig, "disk", "base:").text, ALLOCATION " ");
    CHECK_STR(list(rig, "disk", "parallax").text, "");
    CHECK_STR(list(rig, "disk@old", "parallax:").text, SINCE "old ");
    CHECK_STR(list(rig, "other", NULL).text, ALLOCATION " ");
    CHECK_STR(list(rig, "disk@new", NULL).text, "refused");
    CHECK_STR(list(rig, "nobody", NULL).text, "refused");
    rig_wait_idle(rig);
}

/* --- block status --- */

struct answers {
    uint32_t calls;
    struct answer {
        char context[64];
        uint32_t count, entries[32];
    } of[4];
};

static int keep(void *user, const char *context, uint64_t offset, uint32_t *entries,
                size_t count, int *error)
{
    struct answers *answers = user;
    (void)offset, (void)error;
    CHECK(answers->calls < ARRAY_LEN(answers->of));
    struct answer *answer = &answers->of[answers->calls++];
    CHECK(count <= ARRAY_LEN(answer->entries));
    snprintf(answer->context, sizeof answer->context, "%s", context);
    memcpy(answer->entries, entries, count * sizeof *entries);
    answer->count = (uint32_t)count;
    return 0;
}

static int ask(struct nbd_handle *nbd, uint64_t len, uint64_t offset, uint32_t flags,
               struct answers *ret)
{
    nbd_extent_callback callback = {.callback = keep, .user_data = ret};
    *ret = (struct answers){0};
    return nbd_block_status(nbd, len, offset, callback, flags);
}

static void check_answer(const struct answer *answer, const char *context,
                         const uint32_t *entries, uint32_t count)
{
    CHECK_STR(answer->context, context);
    CHECK_EQ(answer->count, count);
    CHECK(memcmp(answer->entries, entries, count * sizeof *entries) == 0);
}

static void test_status(struct rig *rig)
{
    static const uint8_t ones[8192] = {[0 ... 8191] = 1};
    struct answers answers;
    struct nbd_handle *nbd = attach(rig, "disk", ALLOCATION, SINCE "old");
    CHECK_EQ(nbd_can_meta_context(nbd, ALLOCATION), 1);
    CHECK_EQ(nbd_can_meta_context(nbd, SINCE "old"), 1);
    CHECK_EQ(nbd_can_meta_context(nbd, SINCE "new"), 0);
    CHECK_EQ(nbd_pwrite(nbd, ones, sizeof ones, 40960, 0), 0);
    CHECK_EQ(nbd_pwrite(nbd, ones, sizeof ones, 2 * MIB, 0), 0); /* beyond the base */
    CHECK_EQ(ask(nbd, 4 * MIB, 0, 0, &answers), 0);
    CHECK_EQ(answers.calls, 2);
    const uint32_t allocation[] = {40960, 3, 8192,           0, 2 * MIB - 49152, 3,
                                   8192,  0, 2 * MIB - 8192, 3};
    const uint32_t changes[] = {40960, 0, 8192,           1, 2 * MIB - 49152, 0,
                                8192,  1, 2 * MIB - 8192, 0};
    check_answer(&answers.of[0], ALLOCATION, allocation, ARRAY_LEN(allocation));
    check_answer(&answers.of[1], SINCE "old", changes, ARRAY_LEN(changes));
    CHECK_EQ(ask(nbd, 1 * MIB, 45056, LIBNBD_CMD_FLAG_REQ_ONE, &answers), 0);
    const uint32_t one[] = {4096, 1};
    check_answer(&answers.of[1], SINCE "old", one, 2);
    detach(nbd);

    /* Alone, and of a snapshot. */
    nbd = attach(rig, "disk", SINCE "old", NULL);
    CHECK_EQ(nbd_can_meta_context(nbd, ALLOCATION), 0);
    CHECK_EQ(ask(nbd, 49152, 0, 0, &answers), 0);
    CHECK_EQ(answers.calls, 1);
    check_answer(&answers.of[0], SINCE "old", changes, 4);
    detach(nbd);
    nbd = attach(rig, "disk@old", SINCE "old", NULL);
    const uint32_t same[] = {1 * MIB, 0};
    CHECK_EQ(ask(nbd, 1 * MIB, 0, 0, &answers), 0);
    check_answer(&answers.of[0], SINCE "old", same, 2);
    detach(nbd);
    rig_wait_idle(rig);
}

static void remove_bases(struct rig *rig)
{
    rig->host->bases_gone = true;
}

static void test_gone(struct rig *rig)
{
    struct answers answers;
    struct nbd_handle *nbd = attach(rig, "disk", ALLOCATION, SINCE "old");
    rig_call(rig, remove_bases);
    CHECK_EQ(ask(nbd, 1 * MIB, 0, 0, &answers), -1);
    CHECK_EQ(nbd_get_errno(), EINVAL);
    uint8_t byte;
    CHECK_EQ(nbd_pread(nbd, &byte, 1, 0, 0), 0); /* the connection goes on */
    detach(nbd);
    nbd = attach(rig, "disk", ALLOCATION, NULL);
    CHECK_EQ(ask(nbd, 1 * MIB, 0, 0, &answers), 0);
    detach(nbd);
    rig_wait_idle(rig);
}

/* --- limits --- */

static void put_query(uint8_t *bytes, uint32_t *len, const char *query)
{
    be32 n = be32_of((uint32_t)strlen(query));
    memcpy(bytes + *len, &n, sizeof n);
    memcpy(bytes + *len + sizeof n, query, strlen(query));
    *len += (uint32_t)(sizeof n + strlen(query));
}

/* The type of the answer to `count` times the same query. */
static uint32_t ask_often(int fd, uint32_t option, const char *query, uint32_t count)
{
    static uint8_t bytes[NBD_OPTION_BYTES_MAX];
    uint32_t len = 0;
    be32 n = be32_of(count);
    put_query(bytes, &len, "disk");
    memcpy(bytes + len, &n, sizeof n);
    len += (uint32_t)sizeof n;
    for (uint32_t i = 0; i < count; i++)
        put_query(bytes, &len, query);
    raw_option(fd, option, bytes, len);
    return raw_option_reply(fd, option);
}

/* What was chosen for one export does not hold for another. */
static void test_other_export(struct rig *rig)
{
    struct nbd_chunk chunk;
    uint32_t type;
    int fd = raw_hello(rig);
    raw_option(fd, NBD_OPT_STRUCTURED_REPLY, NULL, 0);
    CHECK_EQ(raw_option_reply(fd, NBD_OPT_STRUCTURED_REPLY), NBD_REP_ACK);
    CHECK_EQ(ask_often(fd, NBD_OPT_SET_META_CONTEXT, SINCE "old", 1),
             NBD_REP_META_CONTEXT);
    CHECK_EQ(raw_option_reply(fd, NBD_OPT_SET_META_CONTEXT), NBD_REP_ACK);
    raw_option(fd, NBD_OPT_GO, "\0\0\0\5other\0\0", 11);
    do
        type = raw_option_reply(fd, NBD_OPT_GO);
    while (type == NBD_REP_INFO);
    CHECK_EQ(type, NBD_REP_ACK);
    raw_request(fd, NBD_CMD_BLOCK_STATUS, 0, 1, 0, 4096);
    raw_receive(fd, &chunk, sizeof chunk);
    CHECK_EQ(be16_get(chunk.type), NBD_CHUNK_ERROR);
    close(fd);
    rig_wait_idle(rig);
}

static void test_limits(struct rig *rig)
{
    int fd = raw_hello(rig);
    raw_option(fd, NBD_OPT_STRUCTURED_REPLY, NULL, 0);
    CHECK_EQ(raw_option_reply(fd, NBD_OPT_STRUCTURED_REPLY), NBD_REP_ACK);
    CHECK_EQ(ask_often(fd, NBD_OPT_SET_META_CONTEXT, "x", NBD_QUERIES_MAX), NBD_REP_ACK);
    CHECK_EQ(ask_often(fd, NBD_OPT_SET_META_CONTEXT, "x", NBD_QUERIES_MAX + 1),
             NBD_REP_ERR_TOO_BIG);
    /* One context, however often it is named. */
    CHECK_EQ(ask_often(fd, NBD_OPT_SET_META_CONTEXT, SINCE "old", 20),
             NBD_REP_META_CONTEXT);
    CHECK_EQ(raw_option_reply(fd, NBD_OPT_SET_META_CONTEXT), NBD_REP_ACK);
    raw_option(fd, NBD_OPT_ABORT, NULL, 0);
    CHECK_EQ(raw_option_reply(fd, NBD_OPT_ABORT), NBD_REP_ACK);
    raw_expect_end(fd);
    rig_wait_idle(rig);
}

static void add_snapshots(struct rig *rig)
{
    static const char *const names[] = {"disk@1", "disk@2", "disk@3", "disk@4", "disk@5"};
    for (size_t i = 0; i < ARRAY_LEN(names); i++)
        fake_disk_add(rig->host, names[i], 1 * MIB);
}

/* As many as there may be: each is answered, and each has its share of the ranges. */
static void test_many(struct rig *rig)
{
    struct nbd_handle *nbd = prepare("disk", ALLOCATION, SINCE "old");
    struct answers answers;
    rig_call(rig, add_snapshots);
    CHECK_EQ(nbd_add_meta_context(nbd, SINCE "5"), 0);
    CHECK_EQ(nbd_add_meta_context(nbd, SINCE "none"), 0);
    CHECK_EQ(nbd_connect_unix(nbd, rig->path), 0);
    CHECK_EQ(ask(nbd, 1 * MIB, 0, 0, &answers), 0);
    CHECK_EQ(answers.calls, 3);
    CHECK_STR(answers.of[2].context, SINCE "5");
    detach(nbd);
    CHECK_STR(list(rig, "disk", "parallax:").text,
              SINCE "old " SINCE "1 " SINCE "2 " SINCE "3 " SINCE "4 " SINCE "5 ");
    rig_wait_idle(rig);
}

int main(void)
{
    rig_run("list", test_list, 0);
    rig_run("status", test_status, 0);
    rig_run("gone", test_gone, 0);
    rig_run("other export", test_other_export, 0);
    rig_run("limits", test_limits, 0);
    rig_run("many", test_many, 0);
    return 0;
}
