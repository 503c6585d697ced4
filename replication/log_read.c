/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Reading blocks by address, wherever a sound copy is.
 *
 * Happy path: one read of this node's store, then the checksum of every block is compared
 * with what the caller knows from the map or the log. A block can be read as soon as its
 * append is done, so retained batches need no other way; after a forced roll the old
 * place serves until everything points to the new one.
 *
 * What can fail: the read, or a checksum. Then, or if this node's store has no copy or is
 * slow, `more` goes on with the other members, one after the other: what came sound
 * stays, the rest is asked of the next. One that does not answer in time is not waited
 * for alone; those that could not be asked at all are asked again for a while, so that a
 * network that fails for a moment is not an error for a guest. Wrong bytes are an error
 * and the caller is told which block.
 *
 * Bytes go into the caller's memory: a store's own I/O straight there, an answer from
 * elsewhere is copied when it comes. An answer can be given up; the I/O cannot. So the
 * store of this node is asked alone, and nothing is under way any more when the caller is
 * told the result.
 *
 * Nothing needs closing: each read ends in bounded time.
 */
#include "blockstore/store_rpc_format.h"
#include "replication/copies_internal.h"

#define REMOTE_BLOCKS_MAX STORE_RPC_READ_BLOCKS /* of one call */
#define SAY_BAD_NS        NS_PER_S
#define AGAIN_NS          (100 * NS_PER_MS)

struct attempt {
    struct replica_read read;
    struct more *more;
    struct copies_member *member;
    bool is_under_way, is_given_up;
    bool was_asked; /* for the blocks that are wanted now; */
    int code;       /* what it said of them: 0, if it had all so far */
};

/* A read that went on beyond this node's store. */
struct more {
    struct copies *copies;
    struct log_read *read;
    struct attempt attempts[REPLICAS_MAX]; /* of each member, one */
    uint32_t count;
    bool is_whole[REPLICAS_MAX], is_usable[REPLICAS_MAX], is_unsure;
    uint32_t sound; /* so many blocks from the first on have come, and are right */
    uint32_t want;  /* so many after them are asked for */
    uint64_t until_ns;   /* members that could not be asked are asked again */
    struct timer timer;  /* while somebody is asked: he is slow; else to ask again */
    bool is_waiting;     /* to ask again */
    int local_code; /* what the store of this node said, if it is no member */
    bool is_busy, is_over; /* in go_on; there is a result: */
    int result;
    uint32_t iov_count;
    struct iovec iov[]; /* where the wanted blocks go */
};

/* --- checksums --- */

/* Of the blocks in iov; returns how many are right before the first that is not. */
static uint32_t sound_blocks(const struct iovec *iov, const uint32_t *crcs,
                             uint32_t count)
{
    size_t offset = 0;
    for (uint32_t block = 0; block < count; block++) {
        uint32_t crc = 0;
        size_t left = BLOCK_SIZE; /* which may straddle vectors */
        while (left > 0) {
            size_t n = min_u64(left, iov->iov_len - offset);
            crc = crc32c_more(crc, (const uint8_t *)iov->iov_base + offset, n);
            left -= n;
            offset += n;
            if (offset == iov->iov_len) {
                iov++;
                offset = 0;
            }
        }
        if (crc != crcs[block])
            return block;
    }
    return count;
}

/* --- what is said of copies --- */

static void report(struct copies *copies, const struct copies_bad *bad)
{
    uint64_t now_ns = loop_now_ns(copies->loop);
    metric_add(copies->bad_copies, 1);
    if (!copies->is_alone &&
        (copies->said_bad_ns == 0 || now_ns - copies->said_bad_ns >= SAY_BAD_NS)) {
        copies->said_bad_ns = now_ns;
        log_warning(copies->loop,
                    "extent %llx block %u on node %llu: %s; others are asked",
                    (unsigned long long)address_extent(bad->address).v,
                    address_block(bad->address), (unsigned long long)bad->node,
                    err_text(bad->code));
    }
    if (copies->bad_fn != NULL)
        copies->bad_fn(copies->bad_arg, bad);
    for (uint32_t i = 0; bad->node == copies->node && i < bad->count; i++)
        copies_mend(copies, address_plus(bad->address, i), bad->crcs[i]);
}

/* Which of two codes says more: one that may pass, before damage, before absence. */
static int worse(int a, int b)
{
    static const int ORDER[] = {-EIO, -PLX_ECHECKSUM, -PLX_ENOTHERE};
    if (a == 0 || b == 0)
        return a == 0 ? b : a;
    if (copies_is_unreached(a) || copies_is_unreached(b))
        return copies_is_unreached(a) ? a : b;
    for (size_t i = 0; i < ARRAY_LEN(ORDER); i++) {
        if (a == ORDER[i] || b == ORDER[i])
            return ORDER[i];
    }
    return -PLX_ENOTHERE;
}

/* --- the next member --- */

/* The lower, the sooner it is asked. */
static uint32_t rank(const struct more *more, uint32_t i)
{
    const struct copies *copies = more->copies;
    const struct copies_member *member = more->attempts[i].member;
    bool is_local = member == &copies->local;
    bool is_connected =
        is_local || copies->rpc == NULL || rpc_is_connected(copies->rpc, member->node);
    uint32_t rank = loop_now_ns(copies->loop) < member->avoid_until_ns;
    rank = rank << 1 | !is_connected;
    rank = rank << 1 | !is_local;
    rank = rank << 1 | !more->is_whole[i];
    return rank << 16 | min_u32(member->reads, UINT16_MAX);
}

static bool is_under_way(const struct more *more)
{
    for (uint32_t i = 0; i < more->count; i++) {
        if (more->attempts[i].is_under_way)
            return true;
    }
    return false;
}

/* A member that has all there is does not have it: so it is dead, and gone. If members
 * were taken for whole, another one may have it. */
static bool is_absent(const struct more *more)
{
    if (more->is_unsure)
        return false;
    for (uint32_t i = 0; i < more->count; i++) {
        if (more->is_whole[i] && more->attempts[i].code == -PLX_ENOTHERE)
            return true;
    }
    return false;
}

/* Equal ones take turns by address. NULL: all that may be asked now were. */
static struct attempt *choose(struct more *more)
{
    const struct copies *copies = more->copies;
    uint64_t first = more->read->address.v / EXTENT_BLOCKS;
    bool is_alone = !is_under_way(more), is_gone = is_absent(more);
    struct attempt *best = NULL;
    uint32_t best_rank = UINT32_MAX;
    for (uint32_t n = 0; n < more->count; n++) {
        uint32_t i = (uint32_t)((first + n) % more->count);
        bool is_local = more->attempts[i].member == &copies->local;
        bool is_in_vain = !more->is_usable[i] && is_gone;
        if (more->attempts[i].was_asked || (is_local && !is_alone) || is_in_vain ||
            rank(more, i) >= best_rank)
            continue;
        best = &more->attempts[i];
        best_rank = rank(more, i);
    }
    return best;
}

/* --- going on --- */

static void go_on(struct more *more);

/* Where the blocks behind the sound ones go. */
static void cut_iov(struct more *more)
{
    const struct log_read *read = more->read;
    size_t skip = (size_t)more->sound * BLOCK_SIZE;
    size_t left = (size_t)more->want * BLOCK_SIZE;
    more->iov_count = 0;
    for (uint32_t i = 0; left > 0; i++) {
        struct iovec part = read->iov[i];
        size_t n = min_u64(skip, part.iov_len);
        skip -= n;
        part.iov_base = (uint8_t *)part.iov_base + n;
        part.iov_len = min_u64(part.iov_len - n, left);
        left -= part.iov_len;
        if (part.iov_len > 0)
            more->iov[more->iov_count++] = part;
    }
}

/* Other blocks are wanted now, of which nobody was asked. */
static void want(struct more *more, uint32_t blocks)
{
    more->want = min_u32(blocks, REMOTE_BLOCKS_MAX);
    for (uint32_t i = 0; i < more->count; i++) {
        more->attempts[i].was_asked = false;
        more->attempts[i].code = 0;
    }
    cut_iov(more);
}

static uint32_t rest_of(const struct more *more)
{
    return more->read->count - more->sound;
}

static void give_up_all(struct more *more)
{
    for (uint32_t i = 0; i < more->count; i++) {
        struct attempt *attempt = &more->attempts[i];
        if (!attempt->is_under_way)
            continue;
        attempt->is_given_up = true;
        attempt->member->replica->ops->cancel_read(attempt->member->replica,
                                                   &attempt->read);
        assert(!attempt->is_under_way);
    }
}

static void report_bad(struct more *more, const struct attempt *attempt, uint32_t count,
                       int code)
{
    const struct log_read *read = more->read;
    struct copies_bad bad = {.node = attempt->member->node,
                             .address = address_plus(read->address, more->sound),
                             .count = count,
                             .code = code,
                             .crcs = read->crcs + more->sound};
    report(more->copies, &bad);
}

/* Data came for the wanted blocks. Those that are right are done with. */
static void take_data(struct more *more, struct attempt *attempt)
{
    uint32_t wanted = more->want;
    uint32_t good = sound_blocks(more->iov, more->read->crcs + more->sound, wanted);
    if (good > 0) {
        give_up_all(more); /* they would overwrite what is sound */
        more->sound += good;
        want(more, rest_of(more));
    }
    if (good == wanted)
        return;
    report_bad(more, attempt, 1, -PLX_ECHECKSUM);
    attempt->was_asked = true;
    attempt->code = -PLX_ECHECKSUM;
}

static void attempt_done(struct replica_read *done)
{
    struct attempt *attempt = container_of(done, struct attempt, read);
    struct more *more = attempt->more;
    int rc = done->result;
    attempt->is_under_way = false;
    attempt->member->reads--;
    if (attempt->is_given_up)
        return;
    if (rc == 0) {
        take_data(more, attempt);
    } else if (rc == -PLX_EDEAD) {
        more->result = rc;
        more->is_over = true;
    } else {
        if (copies_is_unreached(rc))
            copies_member_failed(more->copies, attempt->member);
        if (rc == -EIO)
            report_bad(more, attempt, more->want, rc);
        attempt->code = rc;
    }
    go_on(more);
}

static void ask(struct more *more, struct attempt *attempt)
{
    struct replica *replica = attempt->member->replica;
    if (attempt->member != &more->copies->local)
        metric_add(more->copies->reads_elsewhere, 1);
    attempt->was_asked = true;
    attempt->is_under_way = true;
    attempt->is_given_up = false;
    attempt->member->reads++;
    attempt->read = (struct replica_read){
        .store = {.address = address_plus(more->read->address, more->sound),
                  .count = more->want,
                  .iov = more->iov,
                  .iov_count = more->iov_count},
        .done = attempt_done,
    };
    timer_start(more->copies->loop, &more->timer, more->copies->slow_ns);
    replica->ops->read(replica, &attempt->read);
}

/* Nobody is left to be asked for these. Of a whole range no copy could be read; of each
 * block one may be. Later, somebody may answer. Else that was it. */
static void all_were_asked(struct more *more)
{
    bool has_unreadable = false;
    int worst = more->local_code;
    for (uint32_t i = 0; i < more->count; i++) {
        has_unreadable = has_unreadable || more->attempts[i].code == -EIO;
        worst = worse(worst, more->attempts[i].code);
    }
    if (copies_is_unreached(worst) && is_absent(more))
        worst = -PLX_ENOTHERE;
    if (has_unreadable && more->want > 1) {
        want(more, 1);
    } else if (copies_is_unreached(worst) &&
               loop_now_ns(more->copies->loop) < more->until_ns) {
        more->is_waiting = true;
        timer_start(more->copies->loop, &more->timer, AGAIN_NS);
    } else {
        more->result = worst;
        more->is_over = true;
    }
}

static void end(struct more *more)
{
    struct log_read *read = more->read;
    give_up_all(more);
    timer_stop(more->copies->loop, &more->timer);
    read->result = more->sound == read->count ? 0 : more->result;
    read->bad_block = more->sound == read->count ? 0 : more->sound;
    free(more);
    read->done(read);
}

/* Does what there is to do until something is under way, or it is over. Members may
 * answer from inside. */
static void go_on(struct more *more)
{
    if (more->is_busy)
        return;
    more->is_busy = true;
    while (!more->is_over && !more->is_waiting && more->sound < more->read->count &&
           !is_under_way(more)) {
        struct attempt *next = choose(more);
        if (next != NULL)
            ask(more, next);
        else
            all_were_asked(more);
    }
    more->is_busy = false;
    if (more->is_over || more->sound == more->read->count)
        end(more);
}

/* Whoever is asked has not answered for a while. The store of this node is waited for,
 * whatever it does. */
static void somebody_is_slow(struct more *more)
{
    bool is_local = false;
    for (uint32_t i = 0; i < more->count; i++) {
        struct attempt *attempt = &more->attempts[i];
        if (!attempt->is_under_way)
            continue;
        copies_member_failed(more->copies, attempt->member);
        is_local = is_local || attempt->member == &more->copies->local;
    }
    struct attempt *next = is_local ? NULL : choose(more);
    if (next == NULL)
        return;
    metric_add(more->copies->reads_again, 1);
    more->is_busy = true; /* it may answer from inside */
    ask(more, next);
    more->is_busy = false;
    go_on(more);
}

static void timer_fired(struct timer *timer)
{
    struct more *more = container_of(timer, struct more, timer);
    if (!more->is_waiting) {
        somebody_is_slow(more);
        return;
    }
    more->is_waiting = false;
    for (uint32_t i = 0; i < more->count; i++)
        more->attempts[i].was_asked = !copies_is_unreached(more->attempts[i].code);
    go_on(more);
}

/* NULL: no memory, or there is nobody else. */
static struct more *more_create(struct copies *copies, struct log_read *read,
                                int *ret_code)
{
    struct copies_where where = copies_where(copies, read->address);
    struct more *more = malloc(sizeof *more + read->iov_count * sizeof more->iov[0]);
    if (more == NULL) {
        *ret_code = -ENOMEM;
        return NULL;
    }
    *more = (struct more){.copies = copies,
                          .read = read,
                          .is_unsure = where.is_unsure,
                          .timer.fire = timer_fired,
                          .until_ns = loop_now_ns(copies->loop) + copies->patience_ns};
    bool has_others = false;
    for (uint32_t i = 0; i < where.count; i++) {
        struct copies_member *member = copies_member(copies, where.members[i].node);
        if (member == NULL)
            continue;
        has_others = has_others || member != &copies->local;
        more->is_whole[more->count] = where.members[i].is_whole;
        more->is_usable[more->count] = where.members[i].is_usable;
        more->attempts[more->count++] = (struct attempt){.more = more, .member = member};
        if (!where.members[i].is_usable)
            copies_member_failed(copies, member);
    }
    if (has_others)
        return more;
    free(more);
    return NULL;
}

static struct attempt *local_attempt(struct more *more)
{
    for (uint32_t i = 0; i < more->count; i++) {
        if (more->attempts[i].member == &more->copies->local)
            return &more->attempts[i];
    }
    return NULL;
}

/* --- the store of this node --- */

/* It did not have all of it sound: `good` blocks were, then there was this code. */
static void look_elsewhere(struct log_read *read, uint32_t good, int code)
{
    struct copies *copies = read->copies;
    int rc = code;
    struct more *more =
        code == -PLX_EDEAD || copies->is_alone ? NULL : more_create(copies, read, &rc);
    if (more == NULL) {
        read->result = rc;
        read->bad_block = good;
        read->done(read);
        return;
    }
    more->sound = good;
    want(more, rest_of(more));
    struct attempt *local = local_attempt(more);
    if (local != NULL) {
        local->was_asked = true;
        local->code = code;
    } else {
        more->local_code = code;
    }
    go_on(more);
}

static void local_done(struct store_read *store)
{
    struct log_read *read = container_of(store, struct log_read, store);
    struct copies *copies = read->copies;
    uint32_t good = 0;
    int rc = store->result;
    if (!copies->is_alone)
        TAILQ_REMOVE(&copies->local_reads, read, link);
    if (rc == 0) {
        good = planted(PLANT_READ_UNVERIFIED)
                   ? read->count
                   : sound_blocks(read->iov, read->crcs, read->count);
        rc = good == read->count ? 0 : -PLX_ECHECKSUM;
    }
    if (rc == 0) {
        read->result = 0;
        read->done(read);
        return;
    }
    if (rc == -PLX_ECHECKSUM || rc == -EIO)
        report(copies,
               &(struct copies_bad){.node = copies->node,
                                    .address = address_plus(read->address, good),
                                    .count = rc == -EIO ? read->count : 1,
                                    .code = rc,
                                    .crcs = read->crcs + good});
    look_elsewhere(read, good, rc);
}

/* Reads that wait for a store that is stuck are not to be joined by others. */
static bool local_is_slow(struct copies *copies)
{
    uint64_t now_ns = loop_now_ns(copies->loop);
    const struct log_read *oldest = TAILQ_FIRST(&copies->local_reads);
    if (oldest != NULL && now_ns - oldest->begun_ns >= copies->slow_ns)
        copies_member_failed(copies, &copies->local);
    return now_ns < copies->local.avoid_until_ns;
}

void copies_read(struct copies *copies, struct log_read *read)
{
    assert(read->count > 0 &&
           address_block(read->address) + read->count <= EXTENT_BLOCKS);
    read->copies = copies;
    read->bad_block = 0;
    if (!copies->is_alone) {
        int rc = 0;
        struct more *more =
            local_is_slow(copies) ? more_create(copies, read, &rc) : NULL;
        if (more != NULL) {
            want(more, read->count);
            go_on(more);
            return;
        }
        read->begun_ns = loop_now_ns(copies->loop);
        TAILQ_INSERT_TAIL(&copies->local_reads, read, link);
    }
    read->store = (struct store_read){.address = read->address,
                                      .count = read->count,
                                      .iov = read->iov,
                                      .iov_count = read->iov_count,
                                      .done = local_done};
    store_read(copies->store, &read->store);
}

struct waiting_read {
    struct log_read read;
    struct event over;
};

static void waiting_done(struct log_read *read)
{
    event_set(&container_of(read, struct waiting_read, read)->over);
}

async int copies_read_wait(struct copies *copies, struct address address,
                           const uint32_t *crcs, uint32_t count, void *ret_bytes,
                           uint32_t *ret_bad)
{
    struct iovec iov = {ret_bytes, (size_t)count * BLOCK_SIZE};
    struct waiting_read mine = {.read = {.address = address,
                                         .count = count,
                                         .iov = &iov,
                                         .iov_count = 1,
                                         .crcs = crcs,
                                         .done = waiting_done}};
    event_init(&mine.over);
    copies_read(copies, &mine.read);
    event_wait(&mine.over);
    if (ret_bad != NULL)
        *ret_bad = mine.read.bad_block;
    return mine.read.result;
}
