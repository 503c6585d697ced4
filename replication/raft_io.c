/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What libraft calls: its storage, network, clock and state machine.
 *
 * Happy path: set_term, set_vote and truncate suspend the one task that is inside
 * libraft until the key-value store has synced. Everything with a completion is put
 * into a queue, and carried out, completion and all, by the same task before anything
 * else enters libraft (consensus_settle). So libraft never sees two things under way at
 * once, but for this node's own snapshot, which takes long and which nothing depends on.
 *
 * What can fail: the storage. Then these functions say to libraft that all is well and do
 * nothing any more: no message leaves, no command is applied. So none of its paths for
 * errors is ever taken, some of which free what is not theirs. Completions come when all
 * is over, for libraft to release what it holds.
 *
 * On close nothing is left in the queue; this node's snapshot is waited for.
 */
#include "replication/raft_internal.h"

static struct consensus *of_io(struct raft_io *io)
{
    return container_of(io, struct consensus, io);
}

/* --- memory: when it is out the process ends --- */

static void *checked(void *p, size_t size)
{
    if (p == NULL && size != 0)
        abort();
    return p;
}

static void *heap_malloc(void *data, size_t size)
{
    (void)data;
    return checked(malloc(size), size);
}

static void heap_free(void *data, void *p)
{
    (void)data;
    free(p);
}

static void *heap_calloc(void *data, size_t count, size_t size)
{
    (void)data;
    return checked(calloc(count, size), count * size);
}

static void *heap_realloc(void *data, void *p, size_t size)
{
    (void)data;
    return checked(realloc(p, size), size);
}

static void *heap_aligned_alloc(void *data, size_t alignment, size_t size)
{
    (void)data;
    return checked(aligned_alloc(alignment, size), size);
}

static void heap_aligned_free(void *data, size_t alignment, void *p)
{
    (void)data, (void)alignment;
    free(p);
}

/* --- requests --- */

static struct io_request *request_add(struct consensus *c, enum io_kind kind,
                                      void *request)
{
    struct io_request *r = raft_calloc(1, sizeof *r);
    r->kind = kind;
    r->request = request;
    STAILQ_INSERT_TAIL(&c->io_requests, r, link);
    return r;
}

static int io_init(struct raft_io *io, raft_id id, const char *address)
{
    (void)io, (void)id, (void)address;
    return 0;
}

static void io_close(struct raft_io *io, raft_io_close_cb cb)
{
    cb(io);
}

/* The address of an id, as members_to_raft makes it, is never looked at. Our restore
 * does nothing, so the snapshot needs no bytes. */
static struct raft_snapshot *loaded_snapshot(struct consensus *c)
{
    const struct snapshot_meta *meta = &c->store.snapshot;
    struct raft_snapshot *snapshot = raft_calloc(1, sizeof *snapshot);
    snapshot->index = meta->index;
    snapshot->term = meta->term;
    snapshot->configuration_index = meta->config_index;
    members_to_raft(&meta->members, &snapshot->configuration);
    snapshot->bufs = raft_calloc(1, sizeof *snapshot->bufs);
    snapshot->bufs[0].base = raft_malloc(1);
    snapshot->n_bufs = 1;
    return snapshot;
}

static int io_load(struct raft_io *io, raft_term *term, raft_id *voted_for,
                   struct raft_snapshot **snapshot, raft_index *start_index,
                   struct raft_entry *entries[], size_t *n_entries)
{
    struct consensus *c = of_io(io);
    *term = c->store.term;
    *voted_for = c->store.vote;
    *snapshot = c->store.snapshot.index != 0 ? loaded_snapshot(c) : NULL;
    *start_index = c->store.first;
    *entries = c->loaded;
    *n_entries = c->loaded_count;
    c->loaded = NULL;
    c->loaded_count = 0;
    return 0;
}

static int io_start(struct raft_io *io, unsigned msecs, raft_io_tick_cb tick,
                    raft_io_recv_cb recv)
{
    (void)msecs;
    of_io(io)->tick = tick;
    of_io(io)->recv = recv;
    return 0;
}

/* Bootstrapping and recovering happen without libraft. */
static int io_refuse(struct raft_io *io, const struct raft_configuration *conf)
{
    (void)io, (void)conf;
    return RAFT_INVALID;
}

static async int io_set_term(struct raft_io *io, raft_term term)
{
    struct consensus *c = of_io(io);
    if (c->failed)
        return 0;
    metric_add(c->elections, 1);
    int rc = raft_store_set_vote(&c->store, term, 0);
    if (rc != 0)
        consensus_fail(c, rc, "storing term %llu", term);
    return 0;
}

static async int io_set_vote(struct raft_io *io, raft_id node)
{
    struct consensus *c = of_io(io);
    if (c->failed)
        return 0;
    int rc = raft_store_set_vote(&c->store, c->store.term, node);
    if (rc != 0)
        consensus_fail(c, rc, "storing a vote");
    return 0;
}

static async int io_truncate(struct raft_io *io, raft_index index)
{
    struct consensus *c = of_io(io);
    if (c->failed)
        return 0;
    int rc = raft_store_truncate(&c->store, index);
    if (rc != 0)
        consensus_fail(c, rc, "truncating the log before %llu", index);
    return 0;
}

static int io_append(struct raft_io *io, struct raft_io_append *req,
                     const struct raft_entry entries[], unsigned n, raft_io_append_cb cb)
{
    struct io_request *r = request_add(of_io(io), IO_APPEND, req);
    r->entries = entries;
    r->count = n;
    r->appended = cb;
    return 0;
}

/* A membership that is not committed goes only to those who vote in it. Another one,
 * having it, would neither stand for election nor vote for a node without it; and those
 * who have it may be gone. */
static unsigned entries_for(const struct consensus *c, uint64_t node,
                            const struct raft_append_entries *args)
{
    for (unsigned i = 0; i < args->n_entries; i++) {
        struct member_list members;
        if (args->entries[i].type != RAFT_CHANGE ||
            args->prev_log_index + 1 + i <= c->raft.commit_index)
            continue;
        bool ok = members_of_raft_bytes(&args->entries[i].buf, &members);
        assert(ok);
        const struct consensus_member *member = members_find(&members, node);
        bool votes = member != NULL && member->role == CONSENSUS_VOTER;
        members_done(&members);
        if (!votes)
            return i;
    }
    return args->n_entries;
}

/*
 * What libraft says, made right.
 *
 * What it confirms of its log may go beyond what the message it answers has proven to be
 * the leader's; the leader would count that. And where it refuses to promise a vote it
 * keeps its term for itself; the node with the newest log but an older term, whose vote
 * requests are refused for that, would never learn of it.
 */
static struct raft_message fit_message(const struct consensus *c,
                                       const struct raft_message *message)
{
    struct raft_message fit = *message;
    struct raft_append_entries *append = &fit.append_entries;
    struct raft_append_entries_result *appended = &fit.append_entries_result;
    struct raft_request_vote_result *vote = &fit.request_vote_result;
    if (fit.type == RAFT_IO_APPEND_ENTRIES)
        append->n_entries = entries_for(c, fit.server_id, append);
    if (fit.type == RAFT_IO_APPEND_ENTRIES_RESULT && appended->rejected == 0)
        appended->last_log_index = min_u64(appended->last_log_index, c->confirm_to);
    if (fit.type == RAFT_IO_REQUEST_VOTE_RESULT && !vote->vote_granted)
        vote->term = max_u64(vote->term, c->raft.current_term);
    return fit;
}

static int io_send(struct raft_io *io, struct raft_io_send *req,
                   const struct raft_message *message, raft_io_send_cb cb)
{
    struct consensus *c = of_io(io);
    struct writer w = {0};
    if (!c->failed) {
        struct raft_message fit = fit_message(c, message);
        message_encode(&fit, c->options.tuning.append_bytes, &w);
        consensus_send(c, message->server_id, &w);
    }
    writer_done(&w);
    if (cb != NULL) { /* there is none for TimeoutNow, whose request may be gone soon */
        struct io_request *r = request_add(c, IO_SEND, req);
        r->sent = cb;
    }
    return 0;
}

/* A task of its own: the pieces of this node's snapshot. */
static async void own_main(struct task_call *call)
{
    struct consensus *c = container_of(call, struct consensus, own_call);
    int rc = raft_store_write_pieces(&c->store, c->own_snapshot->bufs,
                                     c->own_snapshot->n_bufs,
                                     c->options.tuning.piece_bytes, &c->own_meta);
    c->own_state = OWN_WRITTEN;
    if (rc != 0)
        consensus_fail(c, rc, "storing a snapshot");
    waitlist_wake_all(&c->own_over);
    consensus_wake(c);
}

/* The membership in force at an index, which must not be before the snapshot. libraft's
 * own idea of it may be one that is not committed. */
static const struct config_at *config_at(const struct consensus *c, uint64_t index)
{
    const struct config_at *found = NULL;
    for (uint32_t i = 0; i < c->store.config_count; i++)
        if (c->store.configs[i].index <= index)
            found = &c->store.configs[i];
    assert(found != NULL);
    return found;
}

static void own_start(struct consensus *c, unsigned trailing,
                      struct raft_io_snapshot_put *req,
                      const struct raft_snapshot *snapshot, raft_io_snapshot_put_cb cb)
{
    const struct config_at *config = config_at(c, snapshot->index);
    assert(c->own_state == OWN_NONE);
    c->own_put = req;
    c->own_done = cb;
    c->own_snapshot = snapshot;
    c->own_trailing = trailing;
    c->own_meta = (struct snapshot_meta){.index = snapshot->index,
                                         .term = snapshot->term,
                                         .config_index = config->index};
    members_copy(&config->members, &c->own_meta.members);
    c->own_state = OWN_WRITING;
    c->own_call = (struct task_call){
        .main = own_main, .name = "consensus snapshot", .system = true};
    task_start(c->loop, &c->own_call);
}

static int io_snapshot_put(struct raft_io *io, unsigned trailing,
                           struct raft_io_snapshot_put *req,
                           const struct raft_snapshot *snapshot,
                           raft_io_snapshot_put_cb cb)
{
    struct consensus *c = of_io(io);
    if (trailing != 0) { /* of the leader's it is 0 */
        assert(!c->failed); /* fsm_snapshot has looked */
        own_start(c, trailing, req, snapshot, cb);
        return 0;
    }
    struct io_request *r = request_add(c, IO_INSTALL, req);
    r->snapshot = snapshot;
    r->put = cb;
    return 0;
}

static int io_snapshot_get(struct raft_io *io, struct raft_io_snapshot_get *req,
                           raft_io_snapshot_get_cb cb)
{
    struct io_request *r = request_add(of_io(io), IO_GET, req);
    r->got = cb;
    return 0;
}

static raft_time io_time(struct raft_io *io)
{
    return loop_now_ns(of_io(io)->loop) / NS_PER_MS;
}

static int io_random(struct raft_io *io, int min, int max)
{
    uint64_t span = (uint64_t)(max - min) + 1;
    return min + (int)(loop_random_u64(of_io(io)->loop) % span);
}

/* --- carrying them out --- */

async void raft_io_finish_own(struct consensus *c)
{
    while (c->own_state == OWN_WRITING)
        waitlist_wait(&c->own_over);
    if (c->own_state == OWN_NONE || c->failed)
        return;
    uint64_t index = c->own_meta.index;
    uint64_t keep = index > c->own_trailing ? index - c->own_trailing : 0;
    int rc = raft_store_switch(&c->store, &c->own_meta, false, keep);
    if (rc != 0)
        consensus_fail(c, rc, "switching to a snapshot");
    if (c->failed)
        return;
    c->own_state = OWN_NONE;
    c->is_inside = true;
    c->own_done(c->own_put, 0);
    c->is_inside = false;
}

/* Each of these: false, and consensus has failed. */

static async bool run_install(struct consensus *c, struct io_request *r)
{
    const struct raft_snapshot *snapshot = r->snapshot;
    struct snapshot_meta meta = {.index = snapshot->index,
                                 .term = snapshot->term,
                                 .config_index = snapshot->configuration_index};
    members_of_raft(&snapshot->configuration, &meta.members);
    assert(c->own_state == OWN_NONE); /* libraft is busy then */
    int rc = raft_store_write_pieces(&c->store, snapshot->bufs, snapshot->n_bufs,
                                     c->options.tuning.piece_bytes, &meta);
    if (rc == 0)
        rc = raft_store_switch(&c->store, &meta, true, 0);
    members_done(&meta.members);
    if (rc != 0)
        consensus_fail(c, rc, "storing a snapshot from the leader");
    if (c->failed)
        return false;
    /* libraft keeps what it believed of membership that was not committed. */
    c->needs_reload = true;
    r->put(r->request, 0);
    return true;
}

static async bool run_get(struct consensus *c, struct io_request *r)
{
    struct error err = {0};
    struct raft_buffer buf;
    int rc = raft_store_read_snapshot(&c->store, &buf, &err);
    if (rc != 0)
        consensus_fail_with(c, &err);
    if (c->failed) {
        if (rc == 0)
            raft_free(buf.base);
        return false;
    }
    struct raft_snapshot *snapshot = loaded_snapshot(c);
    raft_free(snapshot->bufs[0].base);
    snapshot->bufs[0] = buf;
    r->got(r->request, snapshot, 0);
    return true;
}

static async bool run_append(struct consensus *c, struct io_request *r)
{
    int rc = raft_store_append(&c->store, r->entries, r->count);
    metric_add(c->appends, 1);
    if (rc != 0)
        consensus_fail(c, rc, "appending to the log");
    if (c->failed) /* so it may have in the task that stores a snapshot */
        return false;
    r->appended(r->request, 0);
    return true;
}

async void raft_io_run(struct consensus *c, struct io_request *r)
{
    bool is_done = true;
    switch (r->kind) {
    case IO_SEND:
        r->sent(r->request, 0);
        break;
    case IO_APPEND:
        is_done = run_append(c, r);
        break;
    case IO_INSTALL:
        is_done = run_install(c, r);
        break;
    case IO_GET:
        is_done = run_get(c, r);
        break;
    }
    if (is_done)
        raft_free(r);
    else
        STAILQ_INSERT_HEAD(&c->io_requests, r, link);
}

/* Tells libraft that all it asked for was done. What it wants next is not done either,
 * and comes to an end: nothing comes in any more. */
void raft_io_let_go(struct consensus *c)
{
    struct io_request *r;
    assert(c->failed && c->is_inside && c->own_state != OWN_WRITING);
    if (c->own_state == OWN_WRITTEN)
        c->own_done(c->own_put, 0);
    c->own_state = OWN_NONE;
    while ((r = STAILQ_FIRST(&c->io_requests)) != NULL) {
        STAILQ_REMOVE_HEAD(&c->io_requests, link);
        switch (r->kind) {
        case IO_SEND:
            r->sent(r->request, 0);
            break;
        case IO_APPEND:
            r->appended(r->request, 0);
            break;
        case IO_INSTALL:
            r->put(r->request, 0);
            break;
        case IO_GET:
            r->got(r->request, loaded_snapshot(c), 0);
            break;
        }
        raft_free(r);
    }
}

/* --- the state machine --- */

static struct consensus *of_fsm(struct raft_fsm *fsm)
{
    return container_of(fsm, struct consensus, fsm);
}

static int fsm_apply(struct raft_fsm *fsm, const struct raft_buffer *buf, void **result)
{
    struct consensus *c = of_fsm(fsm);
    uint64_t index = c->raft.last_applied + 1;
    struct reader r = reader_of(buf->base, buf->len);
    struct writer answer = {0};
    struct origin origin;
    *result = NULL;
    if (c->failed || index <= c->applied) /* before libraft was started again */
        return 0;
    bool ok = command_read(&r, &origin);
    assert(ok); /* entry_read has looked */
    int rc = c->options.machine.apply(c->options.machine.arg, index, r.at, r.left,
                                      &answer);
    if (rc != 0) {
        writer_done(&answer);
        consensus_fail(c, rc, "log entry %llu (key 're')", (unsigned long long)index);
        return 0;
    }
    c->applied = index;
    metric_add(c->applies, 1);
    trace(c->loop, "consensus_apply", index, c->options.node, origin.id);
    submit_applied(c, &origin, &answer);
    writer_done(&answer);
    return 0;
}

/* As many entries as have a bounded number of bytes stay behind a snapshot. */
static unsigned trailing_entries(const struct consensus *c)
{
    const struct raft_store *store = &c->store;
    uint64_t bytes = 0;
    unsigned count = 1;
    uint64_t index = c->raft.last_applied;
    while (count < c->options.tuning.trailing_entries && index > store->first) {
        bytes += store->slots[store->slots_front + (size_t)(index - store->first)].bytes;
        if (bytes > c->options.tuning.snapshot_bytes / 2)
            break;
        index--;
        count++;
    }
    return count;
}

static int fsm_snapshot(struct raft_fsm *fsm, struct raft_buffer *bufs[],
                        unsigned *n_bufs)
{
    struct consensus *c = of_fsm(fsm);
    struct writer w = {0};
    /* The machine may be ahead of libraft, after that was started again. */
    if (c->failed || c->applied > c->raft.last_applied)
        return RAFT_BUSY;
    c->options.machine.encode(c->options.machine.arg, &w);
    if (w.bad || w.len > CONSENSUS_SNAPSHOT_MAX) {
        log_error(c->loop, "consensus: the state (%zu bytes) cannot be stored%s", w.len,
                  w.bad ? ": no memory" : ": it is too large");
        writer_done(&w);
        return RAFT_BUSY; /* libraft tries again with the next command */
    }
    *bufs = raft_malloc(sizeof **bufs);
    (*bufs)[0].base = raft_malloc(w.len + 1);
    (*bufs)[0].len = w.len;
    if (w.len != 0)
        memcpy((*bufs)[0].base, w.bytes, w.len);
    *n_bufs = 1;
    writer_done(&w);
    c->raft.snapshot.trailing = trailing_entries(c);
    return 0;
}

/* Snapshots are decoded before libraft hears of them. */
static int fsm_restore(struct raft_fsm *fsm, struct raft_buffer *buf)
{
    (void)fsm;
    raft_free(buf->base);
    return 0;
}

void raft_io_setup(struct consensus *c)
{
    static struct raft_heap heap = {
        .malloc = heap_malloc,
        .free = heap_free,
        .calloc = heap_calloc,
        .realloc = heap_realloc,
        .aligned_alloc = heap_aligned_alloc,
        .aligned_free = heap_aligned_free,
    };
    raft_heap_set(&heap); /* the same one, whoever calls first */
    c->io = (struct raft_io){
        .version = 1,
        .init = io_init,
        .close = io_close,
        .load = io_load,
        .start = io_start,
        .bootstrap = io_refuse,
        .recover = io_refuse,
        .set_term = io_set_term,
        .set_vote = io_set_vote,
        .send = io_send,
        .append = io_append,
        .truncate = io_truncate,
        .snapshot_put = io_snapshot_put,
        .snapshot_get = io_snapshot_get,
        .time = io_time,
        .random = io_random,
    };
    c->fsm = (struct raft_fsm){
        .version = 1,
        .apply = fsm_apply,
        .snapshot = fsm_snapshot,
        .restore = fsm_restore,
    };
}
