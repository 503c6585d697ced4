/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The bytes of messages and entries (doc/format-consensus.md), and nothing else: no
 * state, no input or output.
 *
 * Happy path: a message of libraft is written field by field behind a byte of version
 * and one of kind, and read back into memory that libraft may keep.
 *
 * What is malformed is refused whole; no length or count is believed before the bytes
 * for it are there. Memory that is out ends the process, as everywhere in libraft
 * (raft_io.c).
 *
 * Membership is never written in libraft's own encoding: its decoder does not look where
 * its input ends, and its encoder leaves bytes undefined.
 */
#include <stdio.h>

#include "replication/raft_internal.h"

#define MESSAGE_VERSION 1U
#define COMMAND_VERSION 1U
#define MEMBERS_VERSION 1U

#define LIBRAFT_MEMBERS_VERSION 1U

#define ENTRY_HEAD_BYTES 13U

static_assert(MESSAGE_APPEND == (int)RAFT_IO_APPEND_ENTRIES &&
                  MESSAGE_TIMEOUT_NOW == (int)RAFT_IO_TIMEOUT_NOW,
              "kinds up to MESSAGE_TIMEOUT_NOW are libraft's");
static_assert(RAFT_COMMAND == 1 && RAFT_BARRIER == 2 && RAFT_CHANGE == 3,
              "types of entries are libraft's");
static_assert(CONSENSUS_STANDBY == (int)RAFT_STANDBY &&
                  CONSENSUS_VOTER == (int)RAFT_VOTER &&
                  CONSENSUS_SPARE == (int)RAFT_SPARE,
              "roles are libraft's");

void consensus_address(uint64_t node, char ret[RAFT_ADDRESS_MAX])
{
    snprintf(ret, RAFT_ADDRESS_MAX, "%llu", (unsigned long long)node);
}

/* --- members --- */

void members_done(struct member_list *list)
{
    free(list->members);
    *list = (struct member_list){0};
}

static struct consensus_member *members_alloc(uint32_t count)
{
    struct consensus_member *members = calloc(count + 1, sizeof *members);
    if (members == NULL)
        abort(); /* as libraft would */
    return members;
}

void members_copy(const struct member_list *from, struct member_list *ret)
{
    ret->count = from->count;
    ret->members = members_alloc(from->count);
    if (from->count != 0)
        memcpy(ret->members, from->members, from->count * sizeof *from->members);
}

const struct consensus_member *members_find(const struct member_list *list, uint64_t node)
{
    for (uint32_t i = 0; i < list->count; i++)
        if (list->members[i].node == node)
            return &list->members[i];
    return NULL;
}

uint32_t members_voters(const struct member_list *list)
{
    uint32_t voters = 0;
    for (uint32_t i = 0; i < list->count; i++)
        voters += list->members[i].role == CONSENSUS_VOTER;
    return voters;
}

void members_write(struct writer *w, const struct member_list *list)
{
    write_u8(w, MEMBERS_VERSION);
    write_u32(w, list->count);
    for (uint32_t i = 0; i < list->count; i++) {
        write_u64(w, list->members[i].node);
        write_u8(w, (uint8_t)list->members[i].role);
    }
}

/* One more member, if it is a sound one. */
static bool members_put(struct member_list *list, uint64_t node, uint8_t role)
{
    if (node == 0 || node > RAFT_NUMBER_MAX || role > CONSENSUS_SPARE ||
        members_find(list, node) != NULL)
        return false;
    list->members[list->count++] = (struct consensus_member){node, role};
    return true;
}

void members_read(struct reader *r, struct member_list *ret)
{
    *ret = (struct member_list){0};
    uint8_t version = read_u8(r);
    uint32_t count = read_u32(r);
    if (r->bad || version != MEMBERS_VERSION || count == 0 ||
        count > CONSENSUS_MEMBERS_MAX || count * 9ULL > r->left) {
        r->bad = true;
        return;
    }
    ret->members = members_alloc(count);
    for (uint32_t i = 0; i < count && !r->bad; i++) {
        uint64_t node = read_u64(r);
        uint8_t role = read_u8(r);
        r->bad = r->bad || !members_put(ret, node, role);
    }
    if (members_voters(ret) == 0)
        r->bad = true;
    if (r->bad)
        members_done(ret);
}

bool members_of_raft_bytes(const struct raft_buffer *buf, struct member_list *ret)
{
    struct reader r = reader_of(buf->base, buf->len);
    uint8_t version = read_u8(&r);
    uint64_t count = read_u64(&r);
    *ret = (struct member_list){0};
    if (r.bad || version != LIBRAFT_MEMBERS_VERSION || count > CONSENSUS_MEMBERS_MAX)
        return false;
    ret->members = members_alloc((uint32_t)count);
    for (uint64_t i = 0; i < count && !r.bad; i++) {
        uint64_t node = read_u64(&r);
        while (read_u8(&r) != 0) /* the address; ours say nothing. Past the end: 0 */
            ;
        uint8_t role = read_u8(&r);
        r.bad = r.bad || !members_put(ret, node, role);
    }
    if (r.bad)
        members_done(ret);
    return !r.bad;
}

void members_of_raft(const struct raft_configuration *conf, struct member_list *ret)
{
    ret->count = 0;
    ret->members = members_alloc(conf->n);
    for (unsigned i = 0; i < conf->n; i++)
        ret->members[ret->count++] = (struct consensus_member){
            conf->servers[i].id, (enum consensus_role)conf->servers[i].role};
}

void members_to_raft(const struct member_list *list, struct raft_configuration *ret)
{
    raft_configuration_init(ret);
    for (uint32_t i = 0; i < list->count; i++) {
        char address[RAFT_ADDRESS_MAX]; /* libraft wants them to differ */
        consensus_address(list->members[i].node, address);
        int rc = raft_configuration_add(ret, list->members[i].node, address,
                                        (int)list->members[i].role);
        assert(rc == 0); /* members_put has looked at all that can be wrong */
    }
}

/* --- entries --- */

void entry_write(struct writer *w, const struct raft_entry *entry)
{
    struct writer data = {0};
    write_u64(w, entry->term);
    write_u8(w, (uint8_t)entry->type);
    if (entry->type == RAFT_CHANGE) {
        struct member_list members;
        bool ok = members_of_raft_bytes(&entry->buf, &members);
        assert(ok); /* libraft wrote it, or members_to_raft did */
        members_write(&data, &members);
        members_done(&members);
    } else if (entry->type == RAFT_COMMAND) {
        write_bytes(&data, entry->buf.base, entry->buf.len);
    } /* what libraft puts into a barrier is undefined bytes */
    write_u32(w, (uint32_t)data.len);
    write_bytes(w, data.bytes, data.len);
    w->bad = w->bad || data.bad;
    writer_done(&data);
}

static bool command_is_sound(const uint8_t *bytes, size_t len)
{
    struct reader r = reader_of(bytes, len);
    struct origin origin;
    return command_read(&r, &origin) && r.left <= CONSENSUS_COMMAND_MAX;
}

/* Gives libraft memory of its own. Never of size 0: some of it takes that for none. */
static struct raft_buffer buffer_of(const void *bytes, size_t len)
{
    struct raft_buffer buf = {.base = raft_malloc(len + 1), .len = len};
    if (len != 0)
        memcpy(buf.base, bytes, len);
    return buf;
}

static bool change_read(const uint8_t *bytes, size_t len, struct raft_buffer *ret)
{
    struct reader r = reader_of(bytes, len);
    struct member_list members;
    struct raft_configuration conf;
    members_read(&r, &members);
    if (r.bad || r.left != 0) {
        members_done(&members);
        return false;
    }
    members_to_raft(&members, &conf);
    members_done(&members);
    raft_configuration_encode(&conf, ret);
    raft_configuration_close(&conf);
    return true;
}

bool entry_read(struct reader *r, struct raft_entry *ret)
{
    uint64_t term = read_u64(r);
    uint8_t type = read_u8(r);
    uint32_t len = read_u32(r);
    const uint8_t *bytes = read_bytes(r, len);
    if (r->bad || term == 0 || term > RAFT_NUMBER_MAX)
        return false;
    struct raft_buffer buf;
    if (type == RAFT_CHANGE) {
        if (!change_read(bytes, len, &buf))
            return false;
    } else if (type == RAFT_COMMAND && command_is_sound(bytes, len)) {
        buf = buffer_of(bytes, len);
    } else if (type == RAFT_BARRIER && len == 0) {
        buf = buffer_of(NULL, 0);
    } else {
        return false;
    }
    *ret = (struct raft_entry){.term = term, .type = type, .buf = buf};
    return true;
}

void command_write(struct writer *w, struct origin origin, const void *bytes, size_t len)
{
    write_u8(w, COMMAND_VERSION);
    write_u64(w, origin.node);
    write_u64(w, origin.process);
    write_u64(w, origin.id);
    write_bytes(w, bytes, len);
}

bool command_read(struct reader *r, struct origin *ret_origin)
{
    uint8_t version = read_u8(r);
    struct origin origin = {.node = read_u64(r)};
    origin.process = read_u64(r);
    origin.id = read_u64(r);
    if (r->bad || version != COMMAND_VERSION)
        return false;
    *ret_origin = origin;
    return true;
}

/* --- messages --- */

static void append_write(struct writer *w, const struct raft_append_entries *args,
                         uint32_t append_bytes)
{
    struct writer entries = {0};
    unsigned count = 0;
    unsigned most = args->n_entries < RAFT_APPEND_COUNT ? args->n_entries
                                                        : RAFT_APPEND_COUNT;
    for (; count < most && (count == 0 || entries.len < append_bytes); count++)
        entry_write(&entries, &args->entries[count]);
    write_u64(w, args->term);
    write_u64(w, args->prev_log_index);
    write_u64(w, args->prev_log_term);
    /* Who gets only a part must not take what it has beyond it for committed. */
    write_u64(w, min_u64(args->leader_commit, args->prev_log_index + count));
    write_u32(w, count);
    write_bytes(w, entries.bytes, entries.len);
    w->bad = w->bad || entries.bad;
    writer_done(&entries);
}

static void snapshot_write(struct writer *w, const struct raft_install_snapshot *args)
{
    struct member_list members;
    members_of_raft(&args->conf, &members);
    write_u64(w, args->term);
    write_u64(w, args->last_index);
    write_u64(w, args->last_term);
    write_u64(w, args->conf_index);
    members_write(w, &members);
    write_u32(w, (uint32_t)args->data.len);
    write_bytes(w, args->data.base, args->data.len);
    members_done(&members);
}

static void vote_write(struct writer *w, const struct raft_request_vote *args)
{
    write_u64(w, args->term);
    write_u64(w, args->last_log_index);
    write_u64(w, args->last_log_term);
    write_u8(w, args->disrupt_leader);
    write_u8(w, args->pre_vote);
}

void message_encode(const struct raft_message *message, uint32_t append_bytes,
                    struct writer *w)
{
    write_u8(w, MESSAGE_VERSION);
    write_u8(w, (uint8_t)message->type);
    switch (message->type) {
    case RAFT_IO_APPEND_ENTRIES:
        append_write(w, &message->append_entries, append_bytes);
        break;
    case RAFT_IO_APPEND_ENTRIES_RESULT:
        write_u64(w, message->append_entries_result.term);
        write_u64(w, message->append_entries_result.rejected);
        write_u64(w, message->append_entries_result.last_log_index);
        break;
    case RAFT_IO_REQUEST_VOTE:
        vote_write(w, &message->request_vote);
        break;
    case RAFT_IO_REQUEST_VOTE_RESULT:
        write_u64(w, message->request_vote_result.term);
        write_u8(w, message->request_vote_result.vote_granted);
        write_u8(w, message->request_vote_result.pre_vote == raft_tribool_true);
        break;
    case RAFT_IO_INSTALL_SNAPSHOT:
        snapshot_write(w, &message->install_snapshot);
        break;
    default:
        assert(message->type == RAFT_IO_TIMEOUT_NOW);
        write_u64(w, message->timeout_now.term);
        write_u64(w, message->timeout_now.last_log_index);
        write_u64(w, message->timeout_now.last_log_term);
    }
}

void message_encode_forward(enum message_kind kind, const struct forward *forward,
                            struct writer *w)
{
    assert(kind >= MESSAGE_SUBMIT && kind < MESSAGE_KINDS);
    write_u8(w, MESSAGE_VERSION);
    write_u8(w, (uint8_t)kind);
    write_u64(w, forward->process);
    write_u64(w, forward->id);
    if (kind == MESSAGE_SUBMIT) {
        write_bytes(w, forward->bytes, forward->len);
    } else if (kind != MESSAGE_BARRIER) {
        write_u8(w, forward->accepted);
        write_u64(w, forward->index);
    }
}

/* A term, or the index of an entry. */
static uint64_t read_number(struct reader *r)
{
    uint64_t n = read_u64(r);
    if (n > RAFT_NUMBER_MAX)
        r->bad = true;
    return n;
}

static bool read_bool(struct reader *r)
{
    uint8_t n = read_u8(r);
    if (n > 1)
        r->bad = true;
    return n == 1;
}

/* libraft frees the entries of a message by their batch, so they have one. */
static void append_read_entries(struct reader *r, struct raft_append_entries *args,
                                uint32_t count)
{
    size_t total = 0, at = 0;
    struct raft_entry *entries = raft_calloc(count, sizeof *entries);
    for (args->n_entries = 0; args->n_entries < count; args->n_entries++) {
        struct raft_entry *entry = &entries[args->n_entries];
        uint64_t before = args->n_entries == 0 ? args->prev_log_term : entry[-1].term;
        if (!entry_read(r, entry))
            break;
        total += entry->buf.len;
        if (entry->term < before || entry->term > args->term) {
            raft_free(entry->buf.base);
            break;
        }
    }
    r->bad = r->bad || args->n_entries != count;
    uint8_t *batch = raft_malloc(total + 1);
    for (uint32_t i = 0; i < args->n_entries; i++) {
        struct raft_buffer *buf = &entries[i].buf;
        memcpy(batch + at, buf->base, buf->len);
        raft_free(buf->base);
        buf->base = batch + at;
        entries[i].batch = batch;
        at += buf->len;
    }
    args->entries = entries;
    if (r->bad) {
        raft_free(batch);
        raft_free(entries);
        args->entries = NULL;
        args->n_entries = 0;
    }
}

static void append_read(struct reader *r, struct raft_append_entries *args)
{
    args->term = read_number(r);
    args->prev_log_index = read_number(r);
    args->prev_log_term = read_number(r);
    args->leader_commit = read_number(r);
    uint32_t count = read_u32(r);
    args->entries = NULL;
    args->n_entries = 0;
    if (args->term == 0 || (args->prev_log_index == 0) != (args->prev_log_term == 0) ||
        args->prev_log_term > args->term || count > RAFT_APPEND_COUNT ||
        count > r->left / ENTRY_HEAD_BYTES)
        r->bad = true;
    if (!r->bad && count != 0)
        append_read_entries(r, args, count);
    /* The first entry of every log is its first membership. */
    if (!r->bad && count != 0 && args->prev_log_index == 0 &&
        args->entries[0].type != RAFT_CHANGE)
        r->bad = true;
    args->leader_commit = min_u64(args->leader_commit, args->prev_log_index + count);
}

static void vote_read(struct reader *r, struct raft_request_vote *args)
{
    args->term = read_number(r);
    args->last_log_index = read_number(r);
    args->last_log_term = read_number(r);
    args->disrupt_leader = read_bool(r);
    args->pre_vote = read_bool(r);
    if (args->term == 0)
        r->bad = true;
}

static void snapshot_read(struct reader *r, struct raft_install_snapshot *args)
{
    struct member_list members;
    args->term = read_number(r);
    args->last_index = read_number(r);
    args->last_term = read_number(r);
    args->conf_index = read_number(r);
    members_read(r, &members);
    uint32_t len = read_u32(r);
    const uint8_t *bytes = read_bytes(r, len);
    if (args->last_index == 0 || args->last_term == 0 || args->last_term > args->term ||
        args->conf_index == 0 || args->conf_index > args->last_index ||
        len > CONSENSUS_SNAPSHOT_MAX || r->left != 0)
        r->bad = true;
    if (!r->bad) {
        members_to_raft(&members, &args->conf);
        args->data = buffer_of(bytes, len);
    }
    members_done(&members);
}

static void raft_read(struct reader *r, struct message *message)
{
    struct raft_message *raft = &message->raft;
    raft->type = (unsigned short)message->kind;
    switch (message->kind) {
    case MESSAGE_APPEND:
        append_read(r, &raft->append_entries);
        break;
    case MESSAGE_APPEND_RESULT:
        raft->append_entries_result.term = read_number(r);
        raft->append_entries_result.rejected = read_number(r);
        raft->append_entries_result.last_log_index = read_number(r);
        break;
    case MESSAGE_VOTE:
        vote_read(r, &raft->request_vote);
        break;
    case MESSAGE_VOTE_RESULT:
        raft->request_vote_result.term = read_number(r);
        raft->request_vote_result.vote_granted = read_bool(r);
        raft->request_vote_result.pre_vote = TO_RAFT_TRIBOOL(read_bool(r));
        break;
    case MESSAGE_SNAPSHOT:
        snapshot_read(r, &raft->install_snapshot);
        break;
    default:
        raft->timeout_now.term = read_number(r);
        raft->timeout_now.last_log_index = read_number(r);
        raft->timeout_now.last_log_term = read_number(r);
    }
}

static void forward_read(struct reader *r, struct message *message)
{
    struct forward *forward = &message->forward;
    forward->process = read_u64(r);
    forward->id = read_u64(r);
    if (message->kind == MESSAGE_SUBMIT) {
        forward->len = r->left;
        forward->bytes = read_bytes(r, r->left);
        if (forward->len > CONSENSUS_COMMAND_MAX)
            r->bad = true;
    } else if (message->kind != MESSAGE_BARRIER) {
        forward->accepted = read_bool(r);
        forward->index = read_number(r);
    }
}

bool message_decode(const void *bytes, size_t len, struct message *ret)
{
    struct reader r = reader_of(bytes, len);
    struct message message = {0};
    uint8_t version = read_u8(&r);
    uint8_t kind = read_u8(&r);
    if (r.bad || version != MESSAGE_VERSION || kind == 0 || kind >= MESSAGE_KINDS)
        return false;
    message.kind = kind;
    if (kind <= MESSAGE_TIMEOUT_NOW)
        raft_read(&r, &message);
    else
        forward_read(&r, &message);
    if (!r.bad && r.left == 0) {
        *ret = message;
        return true;
    }
    if (kind != MESSAGE_SNAPSHOT) /* that one owns nothing when it is bad */
        message_done(&message);
    return false;
}

void message_done(struct message *message)
{
    if (message->kind == MESSAGE_APPEND) {
        struct raft_append_entries *args = &message->raft.append_entries;
        if (args->n_entries != 0)
            raft_free(args->entries[0].batch);
        raft_free(args->entries);
    } else if (message->kind == MESSAGE_SNAPSHOT) {
        raft_configuration_close(&message->raft.install_snapshot.conf);
        raft_free(message->raft.install_snapshot.data.base);
    }
    message->kind = 0;
}
