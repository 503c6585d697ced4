/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Dead lists that committed checkpoints name, one after the other, oldest first: read
 * block by block, checked, their entries handed to the store. What lies in an extent
 * without a final length goes on the next list, and so do the blocks of a list that is
 * through: it stays named, and can be read again after a crash, until a checkpoint says
 * that it is trimmed, with the list that carries on what is left of it.
 *
 * A subtree is walked, the nodes after what is below them; a node with something below it
 * that cannot be trimmed yet stays, and the whole subtree goes on the next list. So a
 * node that is dead has nothing live below it, and a second walk passes over it.
 *
 * What can fail is reading a block of a list, or a node, or telling a member. It is tried
 * again after a while, for ever if it may pass (a member is out of reach); what stays
 * unreadable is passed over, with a line in the log: its space is not lost for ever, the
 * check finds it. So is, at once, what a node names whose checksum is wrong. A store that
 * is out of service ends it.
 *
 * While a version collapses against the disk's head, or somebody reads the head (pin.h),
 * no list is begun. On close the task ends between two steps; what it did not get to is
 * named still.
 */
#include "cow/disk_internal.h"
#include "cow/tree_walk.h"
#include "cow/trim.h"

#define FAILURES_MAX 5U
#define RETRY_NS     NS_PER_S
#define HELD_NS      (200 * NS_PER_MS) /* between looks whether it may begin */
#define CLOSING_NS   (2 * NS_PER_S)    /* for tidying when the host closes */

/* One list on its way through. */
struct list_job {
    struct disk *disk;
    bool (*stops)(const struct disk *disk);
    struct trim_set set;
    struct dead_entries carried, spent;
    uint64_t kept_blocks; /* below carried subtrees: not trimmed */
    /* Of the subtree being walked: levels with something below that was not trimmed. */
    bool kept[MAP_HEIGHT_MAX + 1];
};

static struct copies *copies_of(const struct list_job *job)
{
    return job->disk->host->copies;
}

static void job_init(struct list_job *job, struct disk *disk,
                     bool (*stops)(const struct disk *disk))
{
    *job = (struct list_job){.disk = disk, .stops = stops};
    trim_set_init(&job->set);
}

static void job_done(struct list_job *job)
{
    trim_set_done(&job->set);
    dead_entries_done(&job->carried);
    dead_entries_done(&job->spent);
}

static async int apply_if_many(struct list_job *job)
{
    if (job->set.count < TRIM_ITEMS_SOON)
        return 0;
    return trim_apply(&job->set, copies_of(job));
}

/* --- subtrees --- */

static async int walk_data(void *arg, uint64_t block, struct map_entry entry,
                           struct map_entry other)
{
    struct list_job *job = arg;

    (void)block, (void)other;
    if (!copies_can_trim(copies_of(job), entry.address)) {
        job->kept[0] = true;
        job->kept_blocks++;
        return 0;
    }
    return trim_add(&job->set, entry.address, 1, 0);
}

static async int walk_node(void *arg, unsigned level, uint64_t index,
                           struct map_entry entry)
{
    struct list_job *job = arg;
    bool keeps = job->kept[level] || !copies_can_trim(copies_of(job), entry.address);
    int rc = 0;

    (void)index;
    job->kept[level] = false;
    if (keeps)
        job->kept[level + 1] = true;
    else
        rc = trim_add(&job->set, entry.address, 1, level + 1);
    if (rc == 0)
        rc = apply_if_many(job);
    return rc == 0 && job->stops(job->disk) ? -PLX_ECANCELLED : rc;
}

/* Whoever trimmed it may have ended before all copies were told. */
static async int walk_dead(void *arg, struct map_entry entry)
{
    struct list_job *job = arg;

    return copies_can_trim(copies_of(job), entry.address)
               ? trim_add(&job->set, entry.address, 1, MAP_HEIGHT_MAX)
               : 0;
}

/* What is below a rotten node is not known; the rest of the list is. */
static async int walk_unreadable(void *arg, unsigned level, uint64_t index,
                                 struct map_entry entry, bool of_against, int code)
{
    struct list_job *job = arg;

    (void)index, (void)of_against;
    if (code != -PLX_ECHECKSUM)
        return code;
    log_error(job->disk->loop,
              "disk %s: dead map node at level %u, extent %llx block %u: %s: what is "
              "below it stays; check --repair frees it",
              job->disk->name, level, (unsigned long long)address_extent(entry.address).v,
              address_block(entry.address), err_text(code));
    return 0;
}

static async int trim_subtree(struct list_job *job, const struct dead_subtree *subtree)
{
    static const struct tree_walk_ops ops = {
        .data = walk_data, .node_done = walk_node, .unreadable = walk_unreadable,
        .node_dead = walk_dead,
    };
    struct host *host = job->disk->host;
    struct tree_walk walk = {
        .loop = host->loop,
        .cache = host->nodes,
        .bound = subtree->bound,
        .dead_is_done = true,
    };

    memset(job->kept, 0, sizeof job->kept);
    int rc = tree_walk_subtree(&walk, subtree->entry, subtree->level, 0, &ops, job);
    if (rc == 0 && job->kept[subtree->level + 1U])
        rc = dead_entries_add_subtree(&job->carried, subtree);
    return rc;
}

/* --- a list --- */

static async int trim_entries(struct list_job *job, const struct dead_entries *entries)
{
    int rc = 0;

    for (uint32_t i = 0; rc == 0 && i < entries->run_count; i++) {
        const struct dead_run *run = &entries->runs[i];
        if (copies_can_trim(copies_of(job), run->address))
            rc = trim_add(&job->set, run->address, run->count, 0);
        else
            rc = dead_entries_add(&job->carried, run->address, run->count);
    }
    for (uint32_t i = 0; rc == 0 && i < entries->subtree_count; i++)
        rc = trim_subtree(job, &entries->subtrees[i]);
    return rc;
}

async int dead_block_read(struct host *host, struct address address, uint32_t crc,
                          struct dead_block *ret_block)
{
    struct buffer *buffer;
    int rc = buffer_await(host->log_buffers, BLOCK_SIZE, &buffer);

    if (rc < 0)
        return rc;
    rc = copies_read_wait(host->copies, address, &crc, 1, buffer->data, NULL);
    if (rc == 0)
        rc = dead_block_decode(buffer->data, ret_block);
    buffer_put(buffer);
    return rc;
}

/* Trimmed lists lose their blocks only after all that they name, and the first of them
 * last. */
static bool is_gone(int code)
{
    return code == -PLX_EDEAD || code == -PLX_ENOTHERE || code == -PLX_EMISSING;
}

static async int trim_list(struct list_job *job, const struct dead_list *list)
{
    struct address at = list->head;
    uint32_t crc = list->crc;
    int rc = 0;

    for (uint32_t i = 0; rc == 0 && i < list->blocks && !address_is_null(at); i++) {
        struct dead_block block;
        rc = dead_block_read(job->disk->host, at, crc, &block);
        if (is_gone(rc)) { /* maybe not on all copies */
            rc = dead_entries_add(&job->spent, at, 1);
            break;
        }
        if (rc < 0)
            break;
        rc = block.checkpoint == list->checkpoint ? trim_entries(job, &block.entries)
                                                  : -PLX_EFORMAT;
        dead_entries_done(&block.entries);
        if (rc == 0)
            rc = dead_entries_add(&job->spent, at, 1);
        if (rc == 0)
            rc = apply_if_many(job);
        if (rc == 0 && job->stops(job->disk))
            rc = -PLX_ECANCELLED;
        at = block.previous;
        crc = block.previous_crc;
    }
    return rc == 0 ? trim_apply(&job->set, copies_of(job)) : rc;
}

/* --- the task of an open disk --- */

static const struct cluster_disk *state_of(const struct disk *disk)
{
    return cluster_disk_by_id(cluster_state(disk->host->cluster), disk->id);
}

/* The oldest list that was not processed. */
static bool next_list(const struct disk *disk, struct dead_list *ret_list)
{
    const struct cluster_disk *state = state_of(disk);

    for (uint32_t i = 0; state && i < state->list_count; i++) {
        if (state->lists[i].checkpoint <= disk->trims.processed)
            continue;
        *ret_list = state->lists[i];
        return true;
    }
    return false;
}

uint32_t trimmer_lists_left(const struct disk *disk)
{
    const struct cluster_disk *state = state_of(disk);
    uint32_t left = 0;

    for (uint32_t i = 0; state && i < state->list_count; i++)
        left += state->lists[i].checkpoint > disk->trims.processed;
    return left;
}

static bool is_held(const struct disk *disk)
{
    const struct cluster_disk *state = state_of(disk);

    return !state || state->collapsing_version ||
           pin_is_taken(&disk->host->pins, PIN_HEAD, disk->id);
}

static bool stops(const struct disk *disk)
{
    return disk->trims.stopping || disk->down;
}

/* The list is through: what it leaves goes on the next one. */
static int take_over(struct trimmer *trims, struct list_job *job, uint64_t checkpoint)
{
    uint32_t runs = trims->carried.run_count, subtrees = trims->carried.subtree_count;
    int rc = dead_entries_append(&trims->carried, &job->carried);

    if (rc == 0 && dead_entries_append(&trims->spent, &job->spent) < 0) {
        trims->carried.run_count = runs;
        trims->carried.subtree_count = subtrees;
        rc = -ENOMEM;
    }
    if (rc == 0) {
        trims->processed = checkpoint;
        trims->kept_blocks += job->kept_blocks;
    }
    return rc;
}

/* True: there is no point in going on now. */
static async bool has_failed(struct disk *disk, struct list_job *job,
                       const struct dead_list *list, int code)
{
    struct trimmer *trims = &disk->trims;

    if (code == -PLX_ECANCELLED || code == -PLX_EFAILED || stops(disk))
        return true;
    if (trims->failures == 0 && !trims->is_waiting)
        log_warning(disk->loop, "disk %s: dead list of checkpoint %llu: %s", disk->name,
                    (unsigned long long)list->checkpoint, err_text(code));
    trims->is_waiting = copies_may_pass(code);
    trims->failures += !trims->is_waiting;
    if (trims->is_waiting || trims->failures < FAILURES_MAX) {
        timer_start(disk->loop, &trims->retry, RETRY_NS);
        return true;
    }
    log_error(disk->loop,
              "disk %s: the dead list of checkpoint %llu cannot be read: what it names "
              "stays, until a check repairs that",
              disk->name, (unsigned long long)list->checkpoint);
    (void)trim_apply(&job->set, copies_of(job));
    return take_over(trims, job, list->checkpoint) < 0;
}

/* A planted bug: as if the list were of all that is superseded by now. */
static async int trim_beyond(struct list_job *job)
{
    struct disk *disk = job->disk;
    struct map_root root = disk->root;
    uint64_t block = 0;
    int rc = 0;

    for (const struct interval *at;
         rc == 0 && (at = overlay_at_or_after(&layer_top(disk)->overlay, block));) {
        struct map_span span;
        block = max_u64(block, at->start);
        rc = map_get(disk->host->nodes, &root, block, &span);
        if (rc < 0 || !span.leaf)
            break;
        struct address address = map_span_entry(&span, block++).address;
        node_put(disk->host->nodes, span.leaf);
        if (!address_is_null(address) && copies_can_trim(copies_of(job), address))
            rc = trim_add(&job->set, address, 1, 0);
    }
    return rc < 0 ? rc : trim_apply(&job->set, copies_of(job));
}

static async bool process(struct disk *disk, const struct dead_list *list)
{
    struct list_job job;
    bool goes_on = true;

    job_init(&job, disk, stops);
    int rc = trim_list(&job, list);
    if (rc == 0 && planted(PLANT_LIST_WRONG_P))
        rc = trim_beyond(&job);
    if (rc == 0)
        rc = take_over(&disk->trims, &job, list->checkpoint);
    if (rc < 0)
        goes_on = !has_failed(disk, &job, list, rc);
    if (goes_on) {
        disk->trims.failures = 0;
        disk->trims.is_waiting = false;
    }
    trace(disk->loop, "dead list", disk->id, list->checkpoint, (uint64_t)-rc);
    job_done(&job);
    return goes_on;
}

/* Is any of it in an extent that is final now? */
static bool has_trimmable(const struct disk *disk)
{
    const struct dead_entries *carried = &disk->trims.carried;
    struct address extent = ADDRESS_NULL;

    for (uint32_t i = 0; i < carried->run_count; i++) {
        struct address at = address_extent(carried->runs[i].address);
        if (address_equal(at, extent))
            continue;
        extent = at;
        if (copies_can_trim(disk->host->copies, extent))
            return true;
    }
    return false;
}

/* Hands what can be trimmed of the carried entries to the store and puts the rest into
 * job->carried. */
static async int trim_possible(struct list_job *job, const struct dead_entries *carried)
{
    struct dead_entries copy = {.runs = NULL};
    int rc = dead_entries_append(&copy, carried); /* it may change meanwhile */

    if (rc == 0)
        rc = trim_entries(job, &copy);
    if (rc == 0)
        rc = trim_apply(&job->set, copies_of(job));
    dead_entries_done(&copy);
    return rc;
}

/* Trims what was carried, as far as it has become possible. The list it came from is
 * named still, so this may be done, or half done, any time before the next one is. */
static async int trim_carried(struct disk *disk)
{
    struct trimmer *trims = &disk->trims;
    struct list_job job;
    uint64_t gathers = trims->gathers;

    job_init(&job, disk, stops);
    int rc = trim_possible(&job, &trims->carried);
    if (rc == 0 && gathers == trims->gathers) { /* else the next list has it all */
        struct dead_entries was = trims->carried;
        trims->carried = job.carried;
        trims->kept_blocks = job.kept_blocks;
        job.carried = was;
    }
    job_done(&job);
    return rc;
}

void trimmer_trim_early(struct disk *disk, const struct dead_list *list)
{
    struct list_job job;

    job_init(&job, disk, stops);
    (void)trim_list(&job, list);
    job_done(&job);
}

static async void trimmer_main(struct task_call *call)
{
    struct trimmer *trims = container_of(call, struct trimmer, task);
    struct disk *disk = container_of(trims, struct disk, trims);
    struct dead_list list;

    while (!stops(disk) && next_list(disk, &list)) {
        if (is_held(disk)) {
            timer_start(disk->loop, &trims->retry, HELD_NS);
            break;
        }
        if (!process(disk, &list))
            break;
        space_freed(disk->host);
    }
    if (trims->again && !stops(disk) && !is_held(disk) && !trims->gathered &&
        trim_carried(disk) == 0)
        space_freed(disk->host);
    trims->again = false;
    trims->running = false;
    waitlist_wake_all(&trims->over);
}

static void retry_fired(struct timer *timer)
{
    struct trimmer *trims = container_of(timer, struct trimmer, retry);

    trimmer_kick(container_of(trims, struct disk, trims));
}

void trimmer_init(struct disk *disk)
{
    waitlist_init(&disk->trims.over);
    disk->trims.retry.fire = retry_fired;
}

void trimmer_done(struct disk *disk)
{
    assert(!disk->trims.running);
    timer_stop(disk->loop, &disk->trims.retry);
    dead_entries_done(&disk->trims.carried);
    dead_entries_done(&disk->trims.spent);
}

static void start(struct disk *disk)
{
    struct trimmer *trims = &disk->trims;

    timer_stop(disk->loop, &trims->retry);
    trims->running = true;
    trims->task = (struct task_call){
        .main = trimmer_main, .name = "trimmer", .system = true,
    };
    task_start(disk->loop, &trims->task);
}

void trimmer_kick(struct disk *disk)
{
    struct dead_list list;

    if (disk->log && !disk->trims.running && !stops(disk) && next_list(disk, &list))
        start(disk);
}

bool trimmer_again(struct disk *disk)
{
    struct trimmer *trims = &disk->trims;

    if (!disk->log || stops(disk) || is_held(disk) || trims->gathered)
        return false;
    bool is_final = !address_is_null(disk->rolled_extent) &&
                    copies_can_trim(disk->host->copies, disk->rolled_extent);
    if (!is_final && !has_trimmable(disk))
        return false;
    if (is_final)
        disk->rolled_extent = ADDRESS_NULL;
    trims->again = true;
    if (!trims->running)
        start(disk);
    return true;
}

uint64_t trimmer_blocks_carried(const struct disk *disk)
{
    const struct dead_entries *carried = &disk->trims.carried;
    uint64_t blocks = disk->trims.kept_blocks;

    for (uint32_t i = 0; i < carried->run_count; i++)
        blocks += carried->runs[i].count;
    return blocks;
}

async void trimmer_stop(struct disk *disk)
{
    struct trimmer *trims = &disk->trims;

    trims->stopping = true;
    timer_stop(disk->loop, &trims->retry);
    while (trims->running)
        waitlist_wait(&trims->over);
}

/* --- a closed disk --- */

/* What the tidying of a closed disk commits. */
struct tidying {
    struct cluster_command command;
    struct final_length finals[LOG_EXTENTS_MAX];
};

static bool tidy_stops(const struct disk *disk)
{
    return disk->is_wanted ||
           (disk->host->closing && loop_now_ns(disk->loop) >= disk->tidy_until_ns);
}

static bool may_tidy(const struct disk *disk)
{
    const struct cluster_disk *state = state_of(disk);

    return state && !state->owner && !(state->flags & DISK_IMPORTING) &&
           (state->list_count > 0 || state->extent_count > 0);
}

/* The blocks of a list, the first one after all others: while it is live somewhere all of
 * them can be found. */
static int add_spent(struct list_job *job, const struct dead_list *list)
{
    int rc = 0;

    for (uint32_t i = 0; rc == 0 && i < job->spent.run_count; i++) {
        const struct dead_run *run = &job->spent.runs[i];
        for (uint32_t b = 0; rc == 0 && b < run->count; b++) {
            struct address at = address_plus(run->address, b);
            rc = trim_add(&job->set, at, 1, address_equal(at, list->head));
        }
    }
    return rc;
}

/* Trims the lists and their own blocks, as long as nothing stands in the way. The blocks
 * go last: a list whose blocks are dead is known to be through. */
static async int tidy_lists(struct disk *disk)
{
    struct dead_list list;
    int rc = 0;

    while (rc == 0 && !is_held(disk) && !tidy_stops(disk) && next_list(disk, &list)) {
        struct list_job job;
        job_init(&job, disk, tidy_stops);
        rc = trim_list(&job, &list);
        if (rc == 0 && job.carried.run_count + job.carried.subtree_count > 0)
            rc = -PLX_EPRECONDITION; /* an extent is not final yet */
        if (rc == 0)
            rc = add_spent(&job, &list);
        if (rc == 0)
            rc = trim_apply(&job.set, copies_of(&job));
        if (rc == 0)
            disk->trims.processed = list.checkpoint;
        job_done(&job);
    }
    return rc;
}

/* Is the extent final, as long as the state says, or can be made so? */
static async bool is_final(struct disk *disk, const struct log_extent *extent)
{
    return extent->final && copies_finalize(disk->host->copies, extent) == 0;
}

/* Extents that nothing needs the list for any more. */
static async void collect_finals(struct disk *disk, struct tidying *tidying)
{
    uint32_t count = 0;

    for (uint32_t i = 0;; i++) {
        const struct cluster_disk *state = state_of(disk);
        if (!state || i >= state->extent_count)
            break;
        struct log_extent extent = state->extents[i];
        if (extent.last_number > state->checkpoint.covers || !is_final(disk, &extent))
            continue;
        tidying->finals[count++] = (struct final_length){
            .extent = extent.extent,
            .length = extent.length,
            .last_number = extent.last_number,
            .leaves = true,
        };
    }
    tidying->command.finals = tidying->finals;
    tidying->command.final_count = count;
}

static async int tidy(struct disk *disk, struct tidying *tidying)
{
    struct cluster_result result;
    int failed = tidy_lists(disk);
    const struct cluster_disk *state = state_of(disk);

    if (!may_tidy(disk))
        return failed;
    tidying->command = (struct cluster_command){
        .op = CLUSTER_DISK_TIDY,
        .disk = disk->id,
        .epoch = state->epoch,
        .number = disk->trims.processed,
    };
    collect_finals(disk, tidying);
    if (tidying->command.number == 0 && tidying->command.final_count == 0)
        return failed;
    int rc = cluster_submit(disk->host->cluster, &tidying->command, &result);
    for (uint32_t i = 0; rc == 0 && i < tidying->command.final_count; i++) {
        rc = copies_trim_headers(disk->host->copies, tidying->finals[i].extent);
    }
    return rc < 0 ? rc : failed;
}

async void disk_tidy(struct disk *disk)
{
    struct tidying *tidying;
    int rc;

    if (!may_tidy(disk) || !(tidying = calloc(1, sizeof *tidying)))
        return;
    /* What the lists could not have trimmed while it was open they can now. */
    disk->trims.processed = 0;
    disk->tidy_until_ns = loop_now_ns(disk->loop) + CLOSING_NS;
    rc = tidy(disk, tidying);
    /* With others, blocks can be trimmed when their extents have left the list. */
    if (rc == -PLX_EPRECONDITION && tidying->command.final_count > 0)
        rc = tidy(disk, tidying);
    if (rc < 0 && rc != -PLX_ECANCELLED)
        log_warning(disk->loop, "disk %s: what is dead is not all trimmed yet: %s",
                    disk->name, err_text(rc));
    free(tidying);
}
