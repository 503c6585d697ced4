/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The decoders of messages, entries and memberships, and of what stands in the store. The
 * first byte chooses:
 *
 *   0  a message       1  an entry        2  members
 *   3  members in libraft's own encoding
 *   4  a store: keys and values, made into records with a good checksum, else nothing
 *      but that would ever be looked at; it is loaded on a simulated machine
 *
 * What decodes must encode to the same bytes.
 */
#include "replication/raft_message.c"
#include "replication/raft_store.c"

#include "runtime/sim.h"

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t len);

#define SAME(cond)                                                                       \
    do {                                                                                 \
        if (!(cond))                                                                     \
            abort();                                                                     \
    } while (0)

static void check_same(struct writer *w, const uint8_t *bytes, size_t len)
{
    SAME(!w->bad && w->len == len && memcmp(w->bytes, bytes, len) == 0);
    writer_done(w);
}

static void one_message(const uint8_t *bytes, size_t len)
{
    struct message message;
    struct writer w = {0};
    if (!message_decode(bytes, len, &message))
        return;
    if (message.kind >= MESSAGE_SUBMIT) {
        message_encode_forward(message.kind, &message.forward, &w);
        check_same(&w, bytes, len);
    } else {
        /* But for a leader's commit index beyond what the message has: that is cut. */
        struct message again;
        message_encode(&message.raft, UINT32_MAX, &w);
        SAME(!w.bad && w.len == len);
        SAME(message_decode(w.bytes, w.len, &again));
        message_done(&again);
        writer_done(&w);
    }
    message_done(&message);
}

static void one_entry(const uint8_t *bytes, size_t len)
{
    struct reader r = reader_of(bytes, len);
    struct raft_entry entry;
    struct writer w = {0};
    if (!entry_read(&r, &entry))
        return;
    entry_write(&w, &entry);
    check_same(&w, bytes, len - r.left);
    raft_free(entry.buf.base);
}

static void members_again(const struct member_list *members)
{
    struct raft_configuration conf;
    struct raft_buffer buf;
    struct member_list again;
    members_to_raft(members, &conf);
    SAME(raft_configuration_encode(&conf, &buf) == 0);
    SAME(members_of_raft_bytes(&buf, &again));
    SAME(again.count == members->count);
    members_done(&again);
    members_of_raft(&conf, &again);
    SAME(memcmp(again.members, members->members, again.count * sizeof *again.members) ==
         0);
    members_done(&again);
    raft_free(buf.base);
    raft_configuration_close(&conf);
}

static void some_members(const uint8_t *bytes, size_t len)
{
    struct reader r = reader_of(bytes, len);
    struct member_list members;
    struct writer w = {0};
    members_read(&r, &members);
    if (r.bad)
        return;
    members_write(&w, &members);
    check_same(&w, bytes, len - r.left);
    members_again(&members);
    members_done(&members);
}

static void raft_members(const uint8_t *bytes, size_t len)
{
    struct raft_buffer buf = {.base = (void *)(uintptr_t)bytes, .len = len};
    struct member_list members;
    if (!members_of_raft_bytes(&buf, &members))
        return;
    if (members.count != 0)
        members_again(&members);
    members_done(&members);
}

/* --- a store --- */

struct storing {
    struct task_call call;
    struct loop *loop;
    struct reader r;
    bool is_over;
};

/* Which key, how it goes on, and the body of its record. */
static void put_one(struct kv_batch *batch, struct reader *r)
{
    static const char *const NAMES[] = {"rv", "re", "rs", "rp"};
    struct key key = key_of(NAMES[read_u8(r) % 4]);
    size_t number_len = read_u8(r) % (KEY_MAX - 1);
    const uint8_t *number = read_bytes(r, number_len);
    size_t len = read_u16(r);
    const uint8_t *body = read_bytes(r, min_u64(len, r->left));
    if (r->bad)
        return;
    memcpy(key.bytes + key.len, number, number_len);
    key.len += number_len;
    record_put(batch, key, body, min_u64(len, (uint64_t)(r->at - body)));
}

static void store_main(struct task_call *call)
{
    struct storing *storing = container_of(call, struct storing, call);
    struct error err = {0};
    struct kv *kv;
    struct kv_batch batch;
    struct raft_store store;
    struct raft_entry *entries;
    size_t count;
    SAME(kv_open(storing->loop, "kv", true, &kv, &err) == 0);
    kv_batch_init(&batch);
    while (storing->r.left != 0 && !storing->r.bad)
        put_one(&batch, &storing->r);
    SAME(kv_write_wait(kv, &batch, KV_SYNCED) == 0);
    int rc = raft_store_load(&store, kv, 1, &entries, &count, &err);
    SAME((rc != 0) == (err.text[0] != '\0'));
    if (rc == 0) {
        struct raft_buffer buf;
        SAME(count == store.next - store.first);
        for (size_t i = 0; i < count; i++) {
            SAME(entries[i].term == raft_store_term_of(&store, store.first + i));
            raft_free(entries[i].buf.base);
        }
        raft_free(entries);
        if (store.snapshot.index != 0 &&
            raft_store_read_snapshot(&store, &buf, &err) == 0)
            raft_free(buf.base);
        raft_store_done(&store);
    }
    kv_close(kv);
    storing->is_over = true;
}

static void one_store(const uint8_t *bytes, size_t len)
{
    struct sim_world *world = sim_world_create(1);
    struct storing storing = {.r = reader_of(bytes, len)};
    storing.call = (struct task_call){.main = store_main, .name = "fuzz"};
    storing.loop = sim_process_create(world);
    task_start(storing.loop, &storing.call);
    SAME(sim_world_run_until(world, &storing.is_over, 1000 * NS_PER_S));
    sim_process_end(storing.loop, SIM_KILL);
    sim_world_destroy(world);
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t len)
{
    if (len == 0)
        return 0;
    switch (bytes[0] % 5) {
    case 0:
        one_message(bytes + 1, len - 1);
        break;
    case 1:
        one_entry(bytes + 1, len - 1);
        break;
    case 2:
        some_members(bytes + 1, len - 1);
        break;
    case 3:
        raft_members(bytes + 1, len - 1);
        break;
    default:
        one_store(bytes + 1, len - 1);
    }
    return 0;
}
