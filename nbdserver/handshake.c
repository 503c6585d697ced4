/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The handshake, up to an open disk: hello, the client's flags, options one by one. An
 * option's answer is sent before the next option is looked at, so one answer is all that
 * a client can make the server hold. EXPORT_NAME and GO open the disk on a task, the
 * only one of a connection: nothing waits for a client on a stack.
 *
 * A malformed option is answered with an error; broken magic, unknown flags, too many
 * options or too long ones end the connection. A disk that does not open is an error of
 * GO; EXPORT_NAME has no words for that and ends the connection.
 *
 * A client that leaves while its disk is being opened leaves a session that drains; the
 * disk is given back as soon as it is open.
 */
#include <stdarg.h>
#include <stdio.h>

#include "nbdserver/nbd_internal.h"

static void put(struct session *s, const void *bytes, size_t len)
{
    write_bytes(&s->handshake_out, bytes, len);
}

void handshake_begin(struct session *s)
{
    struct nbd_hello hello = {
        .magic = be64_of(NBD_MAGIC),
        .option_magic = be64_of(NBD_OPTION_MAGIC),
        .flags = be16_of(NBD_FLAG_FIXED_NEWSTYLE | NBD_FLAG_NO_ZEROES),
    };
    put(s, &hello, sizeof hello);
    loop_post(s->shared->loop, &s->output_work);
}

size_t handshake_hello(struct session *s, const uint8_t *bytes, size_t len)
{
    be32 flags;
    if (len < sizeof flags)
        return 0;
    memcpy(&flags, bytes, sizeof flags);
    uint32_t bits = be32_get(flags);
    if (bits & ~(uint32_t)(NBD_FLAG_FIXED_NEWSTYLE | NBD_FLAG_NO_ZEROES)) {
        session_break(s, "unknown client flags");
        return 0;
    }
    s->no_zeroes = bits & NBD_FLAG_NO_ZEROES;
    s->phase = PHASE_OPTIONS;
    return sizeof flags;
}

/* --- options --- */

void option_reply(struct session *s, uint32_t option, uint32_t type, const void *data,
                  size_t len)
{
    struct nbd_option_reply reply = {
        .magic = be64_of(NBD_OPTION_REPLY_MAGIC),
        .option = be32_of(option),
        .type = be32_of(type),
        .len = be32_of((uint32_t)len),
    };
    put(s, &reply, sizeof reply);
    if (len > 0)
        put(s, data, len);
}

void option_error(struct session *s, uint32_t option, uint32_t type, const char *fmt, ...)
{
    char text[sizeof((struct error *)0)->text];
    va_list args;
    va_start(args, fmt);
    vsnprintf(text, sizeof text, fmt, args);
    va_end(args);
    option_reply(s, option, type, text, strlen(text));
}

/* Too long to be taken up whole: refused and skipped, if that is soon done. */
static size_t option_too_long(struct session *s, uint32_t option, uint32_t len)
{
    if (option == NBD_OPT_EXPORT_NAME || len > NBD_OPTION_SKIP_MAX) {
        session_break(s, "an option of excessive length");
        return 0;
    }
    option_error(s, option, NBD_REP_ERR_TOO_BIG, "at most %u bytes",
                 NBD_OPTION_BYTES_MAX);
    s->skip_bytes = len;
    return sizeof(struct nbd_option);
}

size_t handshake_option(struct session *s, const uint8_t *bytes, size_t len)
{
    struct nbd_option option;
    if (s->handshake_out.len > 0) {
        session_block(s, BLOCKED_OUTPUT);
        return 0;
    }
    if (len < sizeof option)
        return 0;
    memcpy(&option, bytes, sizeof option);
    if (be64_get(option.magic) != NBD_OPTION_MAGIC) {
        session_break(s, "not an option");
        return 0;
    }
    uint32_t data_len = be32_get(option.len);
    if (data_len <= NBD_OPTION_BYTES_MAX && len - sizeof option < data_len)
        return 0;
    if (++s->option_count > NBD_OPTIONS_MAX) {
        session_break(s, "too many options");
        return 0;
    }
    if (data_len > NBD_OPTION_BYTES_MAX)
        return option_too_long(s, be32_get(option.option), data_len);
    option_run(s, be32_get(option.option), bytes + sizeof option, data_len);
    if (s->handshake_out.bad)
        session_break(s, "out of memory");
    return sizeof option + data_len;
}

/* --- opening --- */

/* Read-only disks still take flushes: clients send them out of habit. */
uint16_t export_flags(const struct session *s, bool read_only)
{
    unsigned flags = NBD_FLAG_HAS_FLAGS | NBD_FLAG_SEND_FLUSH | NBD_FLAG_SEND_FUA |
                     NBD_FLAG_CAN_MULTI_CONN | NBD_FLAG_SEND_CACHE;
    if (s->structured)
        flags |= NBD_FLAG_SEND_DF;
    if (read_only)
        flags |= NBD_FLAG_READ_ONLY;
    else
        flags |= NBD_FLAG_SEND_TRIM | NBD_FLAG_SEND_WRITE_ZEROES |
                 NBD_FLAG_SEND_FAST_ZERO;
    return (uint16_t)flags;
}

static void open_done(struct session *s)
{
    uint64_t size_bytes = disk_size_bytes(s->disk);
    bool read_only = disk_is_read_only(s->disk);
    if (s->open_option == NBD_OPT_GO) {
        option_infos(s, NBD_OPT_GO, s->export, size_bytes, read_only, s->open_infos);
    } else {
        struct nbd_export_reply reply = {
            .size_bytes = be64_of(size_bytes),
            .flags = be16_of(export_flags(s, read_only)),
        };
        put(s, &reply,
            s->no_zeroes ? offsetof(struct nbd_export_reply, zeroes) : sizeof reply);
    }
    contexts_opened(s);
    s->phase = PHASE_SERVING;
    log_debug(s->shared->loop, "nbd client %llu: serves %s",
              (unsigned long long)s->number, s->export);
}

static void open_failed(struct session *s, const struct error *err)
{
    bool missing = err->code == -PLX_EMISSING || err->code == -PLX_ENAME;
    /* A name that nobody has is the client's affair. */
    log_line(s->shared->loop, missing ? LOG_DEBUG : LOG_WARNING,
             "nbd client %llu: %s: %s", (unsigned long long)s->number, s->export,
             err->text);
    s->export[0] = '\0';
    if (s->open_option == NBD_OPT_EXPORT_NAME) {
        session_break(s, "the export did not open");
        return;
    }
    option_error(s, s->open_option, missing ? NBD_REP_ERR_UNKNOWN : NBD_REP_ERR_POLICY,
                 "%s", err->text);
    s->phase = PHASE_OPTIONS;
}

static async void open_main(struct task_call *call)
{
    struct session *s = container_of(call, struct session, open_call);
    struct error err = {0};
    struct disk *disk = NULL;
    char name[NBD_EXPORT_NAME_MAX + 1];
    bool is_incoming = export_split(s->export, name);
    enum disk_access access = is_incoming              ? DISK_INCOMING
                              : strchr(name, '@') != NULL ? DISK_READ_ONLY
                                                          : DISK_READ_WRITE;
    int rc = disk_open(s->shared->host, name, access, &disk, &err);
    session_work_end(s);
    if (rc == 0) {
        s->disk = disk;
        s->opened = disk_opened(disk);
    }
    else if (err.code == 0)
        err_set(&err, rc, "%s", err_text(rc));
    /* Whoever left meanwhile has the disk closed at the session's end. */
    if (s->phase == PHASE_OPENING) {
        if (rc == 0)
            open_done(s);
        else
            open_failed(s, &err);
        if (s->handshake_out.bad)
            session_break(s, "out of memory");
        session_unblock(s, BLOCKED_OPENING);
    }
    if (session_is_live(s))
        session_kick(s);
    else
        session_settle(s);
}

static uint32_t clients_of(const struct nbd_shared *shared, const char *name)
{
    uint32_t count = 0;
    const struct session *other;
    TAILQ_FOREACH(other, &shared->sessions, link) {
        if (strcmp(other->export, name) == 0)
            count++;
    }
    return count;
}

void open_start(struct session *s, uint32_t option, const char *name, uint32_t infos)
{
    size_t len = strlen(name);
    assert(s->phase == PHASE_OPTIONS && len <= NBD_EXPORT_NAME_MAX);
    s->open_option = option;
    s->open_infos = infos;
    uint32_t clients = clients_of(s->shared, name);
    memcpy(s->export, name, len + 1);
    if (len == 0 || clients >= NBD_CLIENTS_PER_DISK_MAX) {
        struct error err;
        if (len == 0)
            err_set(&err, -PLX_EMISSING, "there is no default export; name a disk");
        else
            err_set(&err, -PLX_ELIMIT, "has %u clients already", clients);
        open_failed(s, &err);
        return;
    }
    s->phase = PHASE_OPENING;
    session_work_begin(s);
    s->open_call = (struct task_call){.main = open_main, .name = "nbd open"};
    task_start(s->shared->loop, &s->open_call);
}
