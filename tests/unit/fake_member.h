/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A member of a write set in memory, behind the table of replication/replica.h: what a
 * store promises, with answers that come late and in any order, and faults on demand. The
 * medium outlives the process; of data blocks it keeps the checksum, and of those that
 * are all the same byte but for the eighth, enough to make them again.
 *
 * A member may be restarted beside the process, and may be out of reach for a while: then
 * it answers nothing but timeouts, and has done what it was asked, or has not. It may be
 * slow. Requests may be given up, unless it is the one of this process.
 */
#ifndef PARALLAX_TESTS_UNIT_FAKE_MEMBER_H
#define PARALLAX_TESTS_UNIT_FAKE_MEMBER_H

#include "replication/replica.h"
#include "runtime/sim.h"
#include "tests/unit/check.h"

#define FAKE_EXTENTS_MAX 2048U

struct fake_append {
    uint32_t block, blocks;
    bool is_done, is_synced, is_failed;
    uint8_t *header;
    uint32_t *crcs; /* of the blocks behind it */
    uint8_t (*bytes)[2]; /* of each: the first byte, and the eighth */
    struct fake_append *next;
};

struct fake_extent {
    struct address extent;
    uint64_t disk, epoch, nonce;
    enum extent_state state;
    uint32_t end;     /* of all that was submitted */
    uint32_t length;  /* stop or final length */
    bool is_absent, is_refusing; /* an I/O error stopped it before `length` */
    bool has_no_headers;
    bool is_stopping; /* takes no more; what is in flight is waited for */
    bool is_scanned; /* stopped by a restart */
    bool is_rotten;  /* which took less than there is */
    uint32_t inflight;
    struct fake_append *appends, **last;
};

struct fake_medium {
    struct fake_extent extents[FAKE_EXTENTS_MAX];
    uint32_t count;
    uint64_t used_blocks, limit_blocks;
    uint64_t boots;
};

struct fake_member {
    struct replica replica;
    struct loop *loop;
    struct sim_world *world;
    struct fake_medium *medium;
    uint32_t append_error_ppm, sync_error_ppm, create_error_ppm;
    int append_error, create_error; /* which */
    int64_t fail_nth;  /* the nth append or sync from now fails; -1: off */
    bool has_failed, is_broken;
    bool is_silent;    /* out of reach */
    bool is_mute;      /* while it is, it does all it is asked */
    bool is_known;     /* that is known to those who choose */
    bool is_here;      /* what was begun cannot be given up */
    uint64_t timeout_ns; /* of requests to it while it is silent */
    uint64_t delay_ns; /* it is that slow */
    uint32_t walks;    /* begun */
    struct waitlist quiet;
};

static inline struct fake_member *fake_of(struct replica *replica)
{
    return container_of(replica, struct fake_member, replica);
}

static inline struct fake_extent *fake_find(struct fake_medium *medium,
                                            struct address extent)
{
    for (uint32_t i = medium->count; i-- > 0;) {
        if (address_equal(medium->extents[i].extent, extent))
            return &medium->extents[i];
    }
    return NULL;
}

static inline struct fake_extent *fake_add(struct fake_medium *medium,
                                           struct address extent, uint64_t disk)
{
    CHECK(medium->count < FAKE_EXTENTS_MAX);
    struct fake_extent *e = &medium->extents[medium->count++];
    *e = (struct fake_extent){.extent = extent, .disk = disk};
    e->last = &e->appends;
    return e;
}

static inline bool fake_fails(struct fake_member *member, uint32_t ppm)
{
    if (member->fail_nth >= 0 && member->fail_nth-- == 0) {
        member->has_failed = true;
        return true;
    }
    return ppm > 0 && sim_world_random(member->world, 1000000) < ppm;
}

#define FAKE_TIMEOUT_NS (30 * NS_PER_MS)

/* What is asked of it is lost. */
static inline async bool fake_is_lost(struct fake_member *member)
{
    if (!member->is_silent)
        return false;
    task_sleep_ns(member->timeout_ns);
    return true;
}

static inline uint64_t fake_latency(struct fake_member *member)
{
    return member->delay_ns + 20 * NS_PER_US +
           sim_world_random(member->world, 200 * NS_PER_US);
}

/* --- operations --- */

static inline uint64_t fake_reserve(const struct fake_medium *medium)
{
    return medium->limit_blocks / 10;
}

static inline async int fake_create(struct replica *replica,
                                    const struct replica_create *create)
{
    struct fake_member *member = fake_of(replica);
    CHECK(create->slabs_hint >= 1 && create->slabs_hint <= EXTENT_SLABS);
    if (member->is_silent) {
        task_sleep_ns(min_u64(member->timeout_ns, create->limit_ns));
        return -ETIMEDOUT;
    }
    if (member->delay_ns > create->limit_ns) {
        task_sleep_ns(create->limit_ns);
        return -ETIMEDOUT;
    }
    task_sleep_ns(fake_latency(member));
    if (member->is_broken)
        return -PLX_EFAILED;
    if (fake_find(member->medium, create->extent) != NULL)
        return -PLX_EEXISTS;
    if (member->medium->used_blocks +
            (create->keep_reserve ? fake_reserve(member->medium) : 0) >=
        member->medium->limit_blocks)
        return -PLX_EFULL;
    if (fake_fails(member, member->create_error_ppm))
        return member->create_error;
    struct fake_extent *e = fake_add(member->medium, create->extent, create->disk);
    e->epoch = create->epoch;
    e->nonce = create->nonce;
    task_sleep_ns(fake_latency(member));
    return 0;
}

struct fake_io {
    struct timer timer;
    struct fake_member *member;
    struct replica_append *append; /* or */
    struct replica_sync *sync;     /* both NULL: it was given up */
    struct fake_extent *extent;
    struct fake_append *data;
    uint64_t boot;
    bool fails; /* the write */
    int result;
    /* The header as it lies with the owner: what is on its way, or being written here,
     * must stay as it was sent. */
    struct buffer *header; /* NULL: here */
    const uint8_t *header_bytes;
    uint32_t header_crc;
};

/* Without its own checksum: with it the sum of any sound header is the same. */
#define FAKE_HEADER_BYTES (BLOCK_SIZE - 4U)

static inline void fake_keep_header(struct fake_io *io, const struct slice *header)
{
    io->header_bytes = slice_data(*header);
    io->header_crc = crc32c(io->header_bytes, FAKE_HEADER_BYTES);
    if (!io->member->is_here)
        io->header = buffer_get(header->buffer);
}

static inline void fake_check_header(struct fake_io *io)
{
    if (io->header_bytes != NULL)
        CHECK_EQ(crc32c(io->header_bytes, FAKE_HEADER_BYTES), io->header_crc);
    buffer_put(take(io->header));
}

static inline void fake_io_done(struct timer *timer)
{
    struct fake_io *io = container_of(timer, struct fake_io, timer);
    bool is_cut_off = io->boot != io->member->medium->boots;
    fake_check_header(io);
    if (is_cut_off)
        io->result = -ECONNRESET;
    if (io->data != NULL && !is_cut_off) {
        io->extent->inflight--;
        io->data->is_done = true;
        io->data->is_failed = io->fails;
    }
    waitlist_wake_all(&io->member->quiet);
    struct replica_append *append = io->append;
    struct replica_sync *sync = io->sync;
    int result = io->result;
    free(io);
    if (append != NULL) {
        append->result = result;
        append->done(append);
    }
    if (sync != NULL) {
        sync->result = result;
        sync->done(sync);
    }
}

static inline void fake_cancel_append(struct replica *replica,
                                      struct replica_append *append)
{
    struct fake_io *io = append->call;
    if (fake_of(replica)->is_here)
        return;
    CHECK(io->append == append);
    io->append = NULL;
    append->result = -ECANCELED;
    append->done(append);
}

static inline void fake_cancel_sync(struct replica *replica, struct replica_sync *sync)
{
    struct fake_io *io = sync->call;
    if (fake_of(replica)->is_here)
        return;
    CHECK(io->sync == sync);
    io->sync = NULL;
    sync->result = -ECANCELED;
    sync->done(sync);
}

static inline struct fake_append *fake_copy(const struct store_append *append)
{
    struct fake_append *data = calloc(1, sizeof *data);
    data->block = append->block;
    data->header = malloc(BLOCK_SIZE);
    memcpy(data->header, slice_data(append->slices[0]), BLOCK_SIZE);
    CHECK_EQ(append->slices[0].len, BLOCK_SIZE);
    data->crcs = calloc(BATCH_BLOCKS, sizeof *data->crcs);
    data->bytes = calloc(BATCH_BLOCKS, sizeof *data->bytes);
    uint32_t count = 0;
    for (uint32_t i = 1; i < append->slice_count; i++) {
        const uint8_t *block = slice_data(append->slices[i]);
        for (uint32_t at = 0; at < append->slices[i].len; at += BLOCK_SIZE) {
            data->bytes[count][0] = block[at];
            data->bytes[count][1] = block[at + 7];
            data->crcs[count++] = crc32c(block + at, BLOCK_SIZE);
        }
    }
    data->blocks = count + 1;
    return data;
}

static inline void fake_append_free(struct fake_append *data)
{
    free(data->header);
    free(data->crcs);
    free(data->bytes);
    free(data);
}

static inline int fake_accept(struct fake_member *member, struct fake_extent *e,
                              const struct store_append *append)
{
    uint32_t blocks = 0;
    for (uint32_t i = 0; i < append->slice_count; i++)
        blocks += append->slices[i].len / BLOCK_SIZE;
    if (member->is_broken)
        return -PLX_EFAILED;
    if (e == NULL || e->state != EXTENT_OPEN || e->is_refusing || e->is_stopping)
        return -PLX_ESTOPPED;
    if (append->epoch != e->epoch)
        return -PLX_EEPOCH;
    if (append->block != e->end)
        return -PLX_ENOTEND;
    uint64_t reserve = append->use_reserve ? 0 : fake_reserve(member->medium);
    if (member->medium->used_blocks + blocks + reserve > member->medium->limit_blocks)
        return -PLX_EFULL;
    CHECK(e->end + blocks <= EXTENT_BLOCKS);
    return 0;
}

static inline void fake_append(struct replica *replica, struct replica_append *append)
{
    struct fake_member *member = fake_of(replica);
    struct fake_extent *e = fake_find(member->medium, append->store.extent);
    struct fake_io *io = calloc(1, sizeof *io);
    *io = (struct fake_io){.timer.fire = fake_io_done,
                           .member = member,
                           .append = append,
                           .extent = e,
                           .boot = member->medium->boots,
                           .result = fake_accept(member, e, &append->store)};
    append->call = io;
    fake_keep_header(io, &append->store.slices[0]);
    bool is_lost = member->is_silent && sim_world_random(member->world, 2) == 0;
    if (is_lost && !member->is_mute)
        io->result = -ETIMEDOUT;
    bool refuses_at_once = io->result != 0 && sim_world_random(member->world, 2) == 0;
    if (io->result == 0) {
        struct fake_append *data = fake_copy(&append->store);
        bool fails = fake_fails(member, member->append_error_ppm);
        /* A write that is reported as failed may be on media all the same. */
        if (!fails || sim_world_random(member->world, 2) == 0) {
            *e->last = data;
            e->last = &data->next;
            io->data = data;
            e->inflight++;
            member->medium->used_blocks += data->blocks;
        } else {
            fake_append_free(data);
        }
        if (fails) {
            io->fails = true;
            io->result = member->append_error;
            e->is_refusing = true;
            e->length = append->store.block;
            if (io->data != NULL)
                io->data->is_failed = true;
        } else {
            e->end += data->blocks;
        }
    }
    if (member->is_silent) {
        io->result = -ETIMEDOUT; /* it may have done it */
        timer_start(member->loop, &io->timer, member->timeout_ns);
    } else if (refuses_at_once) {
        fake_io_done(&io->timer);
    } else {
        timer_start(member->loop, &io->timer, fake_latency(member));
    }
}

static inline void fake_sync(struct replica *replica, struct replica_sync *sync)
{
    struct fake_member *member = fake_of(replica);
    struct fake_io *io = calloc(1, sizeof *io);
    *io = (struct fake_io){.timer.fire = fake_io_done,
                           .member = member,
                           .sync = sync,
                           .boot = member->medium->boots};
    sync->call = io;
    const struct fake_extent *e = fake_find(member->medium, sync->extent);
    if (member->is_broken)
        io->result = -PLX_EFAILED;
    else if (member->is_silent)
        io->result = -ETIMEDOUT;
    else if (e == NULL || e->state != EXTENT_OPEN) /* restarted: it may have lost some */
        io->result = -PLX_ESTOPPED;
    else if (fake_fails(member, member->sync_error_ppm))
        io->result = -ETIMEDOUT;
    for (uint32_t i = 0; i < member->medium->count && io->result == 0; i++) {
        struct fake_append *data = member->medium->extents[i].appends;
        for (; data != NULL; data = data->next)
            data->is_synced |= data->is_done;
    }
    timer_start(member->loop, &io->timer,
                member->is_silent ? member->timeout_ns : 3 * fake_latency(member));
}

/* The end of the prefix without a gap. */
static inline uint32_t fake_prefix(const struct fake_extent *e)
{
    uint32_t end = 0;
    const struct fake_append *data = e->appends;
    while (data != NULL && data->block == end && data->is_done) {
        end += data->blocks;
        data = data->next;
    }
    return e->is_refusing && e->length < end ? e->length : end;
}

static inline async int fake_stop(struct replica *replica, struct address extent,
                                  uint32_t *ret_length, bool *ret_restart_scanned)
{
    struct fake_member *member = fake_of(replica);
    if (fake_is_lost(member))
        return -ETIMEDOUT;
    struct fake_extent *e = fake_find(member->medium, extent);
    if (member->is_broken)
        return -PLX_EFAILED;
    if (e == NULL) {
        e = fake_add(member->medium, extent, 0);
        e->state = EXTENT_STOPPED;
    }
    e->is_stopping = true;
    while (e->inflight > 0)
        waitlist_wait(&member->quiet);
    task_sleep_ns(fake_latency(member));
    if (e->state == EXTENT_OPEN) {
        e->length = fake_prefix(e);
        e->state = EXTENT_STOPPED;
        for (struct fake_append *data = e->appends; data != NULL; data = data->next)
            data->is_synced = true;
    }
    *ret_length = e->length;
    *ret_restart_scanned = e->is_scanned;
    return 0;
}

static inline async int fake_finalize(struct replica *replica, struct address extent,
                                      uint32_t length)
{
    struct fake_member *member = fake_of(replica);
    if (fake_is_lost(member))
        return -ETIMEDOUT;
    struct fake_extent *e = fake_find(member->medium, extent);
    if (e == NULL || e->is_absent) {
        CHECK_EQ(length, 0);
        return 0;
    }
    if (e->state == EXTENT_FINAL) {
        CHECK_EQ(e->length, length);
        return 0;
    }
    uint32_t stopped;
    bool restart_scanned;
    int rc = fake_stop(replica, extent, &stopped, &restart_scanned);
    if (rc != 0)
        return rc;
    if (e->is_rotten && stopped < length)
        return -PLX_ENOTHERE;
    CHECK(stopped >= length);
    e->state = EXTENT_FINAL;
    e->length = length;
    e->is_absent = length == 0;
    return 0;
}

/* Nobody may walk it after this. */
static inline async int fake_trim_headers(struct replica *replica, struct address extent)
{
    struct fake_member *member = fake_of(replica);
    if (fake_is_lost(member))
        return -ETIMEDOUT;
    struct fake_extent *e = fake_find(member->medium, extent);
    task_sleep_ns(fake_latency(member));
    if (e == NULL || e->is_absent)
        return 0;
    CHECK_EQ(e->state, EXTENT_FINAL);
    e->has_no_headers = true;
    return 0;
}

static inline async int fake_walk(struct replica *replica, struct address extent,
                                  header_fn *fn, void *arg, uint32_t *ret_end)
{
    struct fake_member *member = fake_of(replica);
    member->walks++;
    struct fake_extent *e = fake_find(member->medium, extent);
    struct entry entries[BATCH_BLOCKS];
    struct roll_entry rolls[ROLL_ENTRIES_MAX];
    struct header head;
    uint32_t previous_crc = 0, end = 0;
    if (fake_is_lost(member))
        return -ETIMEDOUT;
    if (e == NULL || e->is_absent)
        return -PLX_EMISSING;
    CHECK(!e->has_no_headers);
    task_sleep_ns(fake_latency(member));
    struct fake_append *data = e->appends;
    uint32_t length = e->state == EXTENT_OPEN ? fake_prefix(e) : e->length;
    for (; data != NULL && data->block + data->blocks <= length; data = data->next) {
        if (data->block == 0)
            CHECK_EQ(roll_decode(data->header, &head, rolls), 0);
        else
            CHECK_EQ(header_decode(data->header, &head, entries), 0);
        CHECK_EQ(head.block, end);
        CHECK_EQ(head.previous_crc, previous_crc);
        CHECK(address_equal(head.extent, extent) && head.disk == e->disk);
        CHECK(head.epoch == e->epoch && head.nonce == e->nonce);
        previous_crc = head.crc;
        end += data->blocks;
        int rc = fn(arg, &head, entries, rolls);
        if (rc != 0)
            return rc;
    }
    if (ret_end != NULL)
        *ret_end = end;
    return 0;
}

struct fake_read {
    struct timer timer;
    struct fake_member *member;
    struct replica_read *read;
};

/* The append that this block of data lies in, if it can be read. */
static inline struct fake_append *fake_append_at(const struct fake_extent *e,
                                                 uint32_t block)
{
    struct fake_append *data = e->appends;
    if (e->state != EXTENT_OPEN && block >= e->length)
        return NULL;
    for (; data != NULL; data = data->next) {
        bool is_in = data->block <= block && block < data->block + data->blocks;
        if (is_in && !data->is_failed)
            break;
    }
    return data;
}

static inline void fake_make_block(const struct fake_append *data, uint32_t block,
                                   uint8_t *ret)
{
    if (block == data->block) {
        memcpy(ret, data->header, BLOCK_SIZE);
        return;
    }
    uint32_t at = block - data->block - 1;
    memset(ret, data->bytes[at][0], BLOCK_SIZE);
    ret[7] = data->bytes[at][1];
    CHECK_EQ(crc32c(ret, BLOCK_SIZE), data->crcs[at]);
}

/* Into one vector. */
static inline void fake_read_done(struct timer *timer)
{
    struct fake_read *io = container_of(timer, struct fake_read, timer);
    struct replica_read *read = io->read;
    const struct store_read *store = &read->store;
    struct fake_extent *e =
        fake_find(io->member->medium, address_extent(store->address));
    uint32_t first = address_block(store->address);
    CHECK_EQ(store->iov_count, 1);
    read->result = io->member->is_silent ? -ETIMEDOUT : 0;
    for (uint32_t i = 0; i < store->count && read->result == 0; i++) {
        struct fake_append *data = e != NULL ? fake_append_at(e, first + i) : NULL;
        if (data == NULL)
            read->result = -PLX_ENOTHERE;
        else
            fake_make_block(data, first + i,
                            (uint8_t *)store->iov[0].iov_base + i * BLOCK_SIZE);
    }
    free(io);
    read->done(read);
}

static inline void fake_read(struct replica *replica, struct replica_read *read)
{
    struct fake_member *member = fake_of(replica);
    struct fake_read *io = calloc(1, sizeof *io);
    *io = (struct fake_read){
        .timer.fire = fake_read_done, .member = member, .read = read};
    timer_start(member->loop, &io->timer, fake_latency(member));
}

static inline const struct replica_ops *fake_ops(void)
{
    static const struct replica_ops ops = {.create = fake_create,
                                           .append = fake_append,
                                           .sync = fake_sync,
                                           .cancel_append = fake_cancel_append,
                                           .cancel_sync = fake_cancel_sync,
                                           .stop = fake_stop,
                                           .finalize = fake_finalize,
                                           .trim_headers = fake_trim_headers,
                                           .walk_headers = fake_walk,
                                           .read = fake_read};
    return &ops;
}

static inline void fake_member_init(struct fake_member *member, struct loop *loop,
                                    struct sim_world *world, struct fake_medium *medium,
                                    uint64_t node)
{
    *member = (struct fake_member){.replica = {.ops = fake_ops(), .node = node},
                                   .loop = loop,
                                   .world = world,
                                   .medium = medium,
                                   .append_error = -EIO,
                                   .create_error = -EIO,
                                   .timeout_ns = FAKE_TIMEOUT_NS,
                                   .fail_nth = -1};
    waitlist_init(&member->quiet);
}

/* --- between two processes --- */

/* What is left of an extent that was open: every write in flight may be there or not,
 * after a power cut also those that were done but not synced. */
static inline void fake_restart(struct fake_medium *medium, struct sim_world *world,
                                enum sim_end how)
{
    medium->boots++; /* what is under way is never answered */
    for (uint32_t i = 0; i < medium->count; i++) {
        struct fake_extent *e = &medium->extents[i];
        e->inflight = 0;
        if (e->state != EXTENT_OPEN)
            continue;
        bool is_gap = false;
        e->length = 0;
        for (struct fake_append *data = e->appends; data != NULL; data = data->next) {
            bool is_safe = data->is_synced ||
                           (how == SIM_KILL && data->is_done && !data->is_failed);
            if (!is_safe && sim_world_random(world, 2) == 0)
                is_gap = true;
            if (is_gap || data->block != e->length) {
                is_gap = true;
                continue;
            }
            e->length += data->blocks;
            data->is_failed = false; /* it reached the medium all the same */
        }
        e->state = EXTENT_STOPPED;
        e->is_refusing = false;
        e->is_scanned = true;
    }
}

/* The process that wrote is gone, the member lives on: what it got it also wrote. */
static inline void fake_owner_gone(struct fake_medium *medium)
{
    for (uint32_t i = 0; i < medium->count; i++) {
        medium->extents[i].inflight = 0;
        struct fake_append *data = medium->extents[i].appends;
        for (; data != NULL; data = data->next)
            data->is_done = true;
    }
}

/* True if a sound block with this checksum can be read there. */
static inline bool fake_has(struct fake_medium *medium, struct address address,
                            uint32_t crc)
{
    struct fake_extent *e = fake_find(medium, address_extent(address));
    uint32_t block = address_block(address);
    if (e == NULL || e->is_absent || (e->state != EXTENT_OPEN && block >= e->length))
        return false;
    struct fake_append *data = e->appends;
    for (; data != NULL; data = data->next) {
        if (data->is_failed || block <= data->block ||
            block >= data->block + data->blocks)
            continue;
        return data->crcs[block - data->block - 1] == crc;
    }
    return false;
}

static inline void fake_medium_done(struct fake_medium *medium)
{
    for (uint32_t i = 0; i < medium->count; i++) {
        struct fake_append *data;
        while ((data = medium->extents[i].appends) != NULL) {
            medium->extents[i].appends = data->next;
            fake_append_free(data);
        }
    }
    medium->count = 0;
}

#endif
