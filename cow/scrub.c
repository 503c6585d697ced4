/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The scrub reads everything the store keeps, in the background, and compares it with
 * the checksums beside it: first all of the key-value store, which verifies its own;
 * then one extent after the other, in order of address; a few readers share them, so
 * that one reads while another compares. What they find is put into words (scrub_seen.c),
 * logged and kept (scrub_record.c). Guests come first (pace.c).
 *
 * Extents come and go meanwhile. One that is gone needs no scrub; one that is open is
 * passed over, and looked at again at the end of the pass: if it is still open then, its
 * blocks are young, and the next pass reads them. Compaction may move an extent while it
 * is read; the store sees to that.
 *
 * Damage is a finding, not an error. Paused, the pass stays where it is, even within an
 * extent. When the host closes it ends at once, and later goes on at the extent where it
 * was. On close its task is waited for.
 */
#include "cow/scrub.h"

#define SAVE_EVERY_NS    (5 * NS_PER_S)
#define LOOK_EVERY_NS    (3600 * NS_PER_S)
#define METADATA_PAIRS   256U
#define KEY_SHOWN        24U

/* While it is paused it stays where it is, so nothing is read twice. */
static async void hold(struct scrub_reader *reader)
{
    struct scrub *scrub = reader->scrub;

    if (!scrub->state.paused || scrub->closing)
        return;
    (void)scrub_save(scrub, KV_SYNCED);
    while (scrub->state.paused && !scrub->closing)
        waitlist_wait(&scrub->resumed);
    pace_begin(&reader->pace);
}

/* --- the key-value store --- */

static async void metadata_damaged(struct scrub *scrub, const uint8_t *key, size_t len,
                                   int code)
{
    char text[SCRUB_LINE_MAX], hex[2 * KEY_SHOWN + 1] = "";

    for (size_t i = 0; i < len && i < KEY_SHOWN; i++)
        snprintf(hex + 2 * i, sizeof hex - 2 * i, "%02x", key[i]);
    snprintf(text, sizeof text,
             "metadata: unreadable %s%s: %s: copy the folder, then `parallax check`",
             len ? "behind key " : "from its start", hex, err_text(code));
    scrub_add_line(scrub, text);
}

/* Reads all of it: what is rotten there fails the scan, and with it what lies behind. */
static async void scrub_metadata(struct scrub *scrub, struct scrub_reader *reader)
{
    uint8_t after[KV_KEY_MAX];
    size_t after_len = 0;
    bool more = true;

    while (more && !scrub->closing) {
        struct kv_page page;
        int rc = kv_scan(scrub->host->kv, "", 0, after, after_len, METADATA_PAIRS, &page);
        if (rc < 0) {
            metadata_damaged(scrub, after, after_len, rc);
            return;
        }
        more = page.more && page.count > 0;
        if (page.count > 0) {
            const struct kv_pair *last = &page.pairs[page.count - 1];
            after_len = last->key_len;
            memcpy(after, last->key, after_len);
        }
        uint64_t bytes = page.value_bytes + page.count * (uint64_t)KV_KEY_MAX;
        kv_page_done(&page);
        pace_rest(&reader->pace, bytes);
        hold(reader);
    }
}

/* --- one extent --- */

static int on_damage(void *arg, struct address at, const struct entry *entry, int code)
{
    struct scrub_reader *reader = arg;

    if (reader->damage_count < ARRAY_LEN(reader->damage))
        reader->damage[reader->damage_count] = (struct scrub_damage){
            .at = at,
            .has_entry = entry != NULL,
            .entry = entry ? *entry : (struct entry){0},
            .code = code,
        };
    reader->damage_count++;
    if (entry && entry_has_block(entry->kind))
        copies_mend(reader->scrub->host->copies, at, entry->crc);
    return 0;
}

static void on_unknown(void *arg, uint32_t block)
{
    struct scrub_reader *reader = arg;

    (void)block;
    reader->unknown_count++;
}

static async int on_read(void *arg, uint64_t bytes)
{
    struct scrub_reader *reader = arg;
    struct scrub *scrub = reader->scrub;

    reader->read_bytes += bytes;
    pace_rest(&reader->pace, bytes);
    hold(reader);
    return scrub->closing ? -PLX_ECANCELLED : 0;
}

static async void extent_unreadable(struct scrub *scrub, struct address extent, int code)
{
    char text[SCRUB_LINE_MAX];

    snprintf(text, sizeof text, "extent %llx: %s", (unsigned long long)extent.v,
             err_text(code));
    scrub_add_line(scrub, text);
}

/* The whole extent, or -PLX_ECANCELLED. */
static async int scrub_extent(struct scrub_reader *reader, const struct extent_info *info)
{
    struct scrub *scrub = reader->scrub;
    struct verify_callbacks callbacks = {
        .finding = on_damage, .progress = on_read, .unknown = on_unknown, .arg = reader,
    };
    struct scrub_state *state = &scrub->state;

    reader->damage_count = reader->unknown_count = 0;
    int rc = store_verify_extent(scrub->host->store, info->extent, &callbacks);
    reader->read_bytes = 0;
    if (scrub->closing)
        return -PLX_ECANCELLED; /* it is read again, so its damage is not lost */
    if (rc == -ENOMEM)
        return rc;
    if (reader->damage_count + reader->unknown_count > 0)
        copies_mend_extent(scrub->host->copies, info->extent);
    state->done_bytes += (uint64_t)info->stored * BLOCK_SIZE;
    state->total_bytes = max_u64(state->total_bytes, state->done_bytes);
    uint32_t told = min_u32(reader->damage_count, ARRAY_LEN(reader->damage));
    state->findings += reader->damage_count - told;
    scrub_describe(scrub, info->disk, reader->damage, told);
    /* Gone meanwhile; a -PLX_EPRECONDITION would be that it is open. */
    if (rc < 0 && rc != -PLX_EMISSING && rc != -PLX_EPRECONDITION)
        extent_unreadable(scrub, info->extent, rc);
    return 0;
}

/* --- a pass --- */

/* The extents that are still to be read, in order. */
static int make_list(struct scrub *scrub)
{
    cleanup(free_ptr) struct extent_info *infos = NULL;
    uint64_t bytes = 0;
    size_t all, count = 0;
    int rc = store_list_extents(scrub->host->store, 0, &infos, &all);

    if (rc < 0)
        return rc;
    scrub->list = malloc((all + 1) * sizeof *scrub->list);
    if (!scrub->list)
        return -ENOMEM;
    for (size_t i = 0; i < all; i++) {
        if (infos[i].extent.v < scrub->state.next.v)
            continue;
        scrub->list[count++] = infos[i].extent;
        if (infos[i].state != EXTENT_OPEN)
            bytes += (uint64_t)infos[i].stored * BLOCK_SIZE;
    }
    scrub->state.total_bytes = scrub->state.done_bytes + bytes;
    scrub->list_count = count;
    scrub->list_at = 0;
    return 0;
}

static void skip(struct scrub *scrub, struct address extent)
{
    if (scrub->state.skipped_count < SCRUB_SKIPPED_MAX)
        scrub->state.skipped[scrub->state.skipped_count++] = extent;
}

static async int visit(struct scrub_reader *reader, struct address extent,
                       bool is_last_look)
{
    struct extent_info info;

    if (store_extent_info(reader->scrub->host->store, extent, &info) < 0)
        return 0; /* gone */
    if (info.state != EXTENT_OPEN)
        return scrub_extent(reader, &info);
    if (!is_last_look)
        skip(reader->scrub, extent);
    return 0;
}

static async void save_now_and_then(struct scrub *scrub)
{
    if (loop_now_ns(scrub->host->loop) - scrub->saved_ns >= SAVE_EVERY_NS)
        (void)scrub_save(scrub, KV_UNSYNCED);
}

/* All below the first one that somebody reads, or will read, was seen to. */
static void note_position(struct scrub *scrub)
{
    struct address next = scrub->state.next;

    if (scrub->list_at < scrub->list_count)
        next = scrub->list[scrub->list_at];
    else if (scrub->list_count > 0)
        next.v = scrub->list[scrub->list_count - 1].v + EXTENT_BLOCKS;
    for (uint32_t i = 0; i < SCRUB_READERS; i++) {
        struct address extent = scrub->readers[i].extent;
        if (!address_is_null(extent) && extent.v < next.v)
            next = extent;
    }
    scrub->state.next = next;
}

/* Takes extents off the list, beside the other readers. */
static async void read_list(struct scrub_reader *reader)
{
    struct scrub *scrub = reader->scrub;

    pace_begin(&reader->pace);
    while (scrub->sweep_result == 0 && scrub->list_at < scrub->list_count) {
        reader->extent = scrub->list[scrub->list_at++];
        int rc = visit(reader, reader->extent, false);
        if (rc < 0) {
            scrub->sweep_result = rc; /* its extent stays the first to be read */
            break;
        }
        reader->extent = ADDRESS_NULL;
        note_position(scrub);
        save_now_and_then(scrub);
    }
    scrub->readers_running--;
    waitlist_wake_all(&scrub->over);
}

static async void reader_main(struct task_call *call)
{
    read_list(container_of(call, struct scrub_reader, task));
}

static async int sweep(struct scrub *scrub)
{
    int rc = make_list(scrub);

    if (rc < 0)
        return rc;
    scrub->sweep_result = 0;
    scrub->readers_running = SCRUB_READERS;
    for (uint32_t i = 0; i < SCRUB_READERS; i++) {
        struct scrub_reader *reader = &scrub->readers[i];
        reader->extent = ADDRESS_NULL;
        reader->task = (struct task_call){
            .main = reader_main, .name = "scrub reader", .system = true,
        };
        task_start(scrub->host->loop, &reader->task);
    }
    while (scrub->readers_running > 0)
        waitlist_wait(&scrub->over);
    free(take(scrub->list));
    return scrub->sweep_result;
}

/* Those that were open when the sweep came by. */
static async int sweep_skipped(struct scrub *scrub, struct scrub_reader *reader)
{
    struct scrub_state *state = &scrub->state;
    int rc = 0;

    while (rc == 0 && state->skipped_count > 0) {
        rc = visit(reader, state->skipped[state->skipped_count - 1], true);
        if (rc == 0)
            state->skipped_count--;
        save_now_and_then(scrub);
    }
    return rc;
}

static void pass_ended(struct scrub *scrub)
{
    struct scrub_state *state = &scrub->state;
    struct loop *loop = scrub->host->loop;

    state->under_way = false;
    state->next = ADDRESS_NULL;
    state->done_bytes = state->total_bytes;
    state->finished_wall_ns = state->counted_wall_ns = loop_wall_ns(loop);
    log_info(loop, "scrub: %llu MiB read, %llu findings",
             (unsigned long long)(state->done_bytes / MIB),
             (unsigned long long)state->findings);
}

static async int pass(struct scrub *scrub)
{
    struct scrub_reader *reader = &scrub->readers[0];

    pace_begin(&reader->pace);
    if (address_is_null(scrub->state.next))
        scrub_metadata(scrub, reader);
    if (scrub->closing)
        return -PLX_ECANCELLED;
    int rc = sweep(scrub);
    return rc < 0 ? rc : sweep_skipped(scrub, reader);
}

/* Everything is read again. */
static async void begin_pass(struct scrub *scrub)
{
    struct scrub_state *state = &scrub->state;
    uint64_t wall_ns = loop_wall_ns(scrub->host->loop);

    *state = (struct scrub_state){
        .under_way = true,
        .started_wall_ns = wall_ns,
        .finished_wall_ns = state->finished_wall_ns,
        .counted_wall_ns = wall_ns,
        .limit_bytes_s = state->limit_bytes_s,
    };
    (void)scrub_forget_lines(scrub); /* in memory they are gone */
    (void)scrub_save(scrub, KV_SYNCED);
}

static async void scrub_main(struct task_call *call)
{
    struct scrub *scrub = container_of(call, struct scrub, task);
    struct scrub_state *state = &scrub->state;
    int rc = 0;

    do {
        bool may = !scrub->closing && !state->paused;
        if (scrub->wanted && may) {
            scrub->wanted = false;
            begin_pass(scrub);
        }
        if (state->under_way && may) {
            rc = pass(scrub);
            if (rc == 0)
                pass_ended(scrub);
        }
        (void)scrub_save(scrub, KV_SYNCED);
        if (rc == -PLX_ECANCELLED)
            rc = 0;
    } while (rc == 0 && !scrub->closing && !state->paused &&
             (scrub->wanted || state->under_way));
    if (rc < 0)
        log_warning(scrub->host->loop, "scrub: %s; it goes on later", err_text(rc));
    scrub->running = false;
    waitlist_wake_all(&scrub->over);
}

static void run(struct scrub *scrub)
{
    if (scrub->running || scrub->closing)
        return;
    scrub->running = true;
    scrub->task = (struct task_call){.main = scrub_main, .name = "scrub", .system = true};
    task_start(scrub->host->loop, &scrub->task);
}

/* --- the public face --- */

static void set_limit(struct scrub *scrub, uint64_t bytes_per_s)
{
    scrub->state.limit_bytes_s = bytes_per_s;
    for (uint32_t i = 0; i < SCRUB_READERS; i++)
        scrub->readers[i].pace.limit_bytes_s = bytes_per_s;
}

async int scrub_start(struct host *host, uint64_t bytes_per_s, struct error *err)
{
    struct scrub *scrub = host->scrub;

    if (scrub->closing)
        return err_set(err, -ESHUTDOWN, "the daemon is stopping");
    scrub->state.paused = scrub->stop = false;
    set_limit(scrub, bytes_per_s);
    scrub->wanted = !scrub->state.under_way;
    waitlist_wake_all(&scrub->resumed);
    run(scrub);
    return 0;
}

void scrub_pause(struct host *host)
{
    struct scrub *scrub = host->scrub;

    scrub->state.paused = scrub->stop = true;
    scrub->wanted = false;
    run(scrub); /* notes it, if it does not run already */
}

void scrub_status(struct host *host, struct scrub_status *ret_status)
{
    const struct scrub *scrub = host->scrub;
    const struct scrub_state *state = &scrub->state;
    uint64_t done_bytes = state->done_bytes;

    for (uint32_t i = 0; i < SCRUB_READERS; i++)
        done_bytes += scrub->readers[i].read_bytes;
    *ret_status = (struct scrub_status){
        .running = (state->under_way || scrub->wanted) && !state->paused,
        .paused = state->paused,
        .done_bytes = done_bytes,
        .total_bytes = max_u64(state->total_bytes, done_bytes),
        .findings = state->findings,
        .started_wall_ns = state->started_wall_ns,
        .finished_wall_ns = state->finished_wall_ns,
        .rate_bytes_s = state->limit_bytes_s,
    };
}

void scrub_findings(struct host *host, void (*fn)(void *arg, const char *line), void *arg)
{
    const struct scrub *scrub = host->scrub;
    uint64_t kept = min_u64(scrub->line_count, SCRUB_LINES_MAX);

    for (uint64_t i = scrub->line_count - kept; i < scrub->line_count; i++)
        if (scrub->lines[i % SCRUB_LINES_MAX])
            fn(arg, scrub->lines[i % SCRUB_LINES_MAX]);
}

/* --- by itself --- */

static bool is_due(const struct scrub *scrub)
{
    const struct scrub_state *state = &scrub->state;
    uint64_t now_ns = loop_wall_ns(scrub->host->loop);

    if (state->paused || scrub->running)
        return false;
    if (state->under_way)
        return true; /* it ended for want of memory */
    /* A clock that was set back long ago must not stop it for ever. */
    return now_ns < state->counted_wall_ns ||
           now_ns - state->counted_wall_ns >= SCRUB_EVERY_S * NS_PER_S;
}

static void due_fired(struct timer *timer)
{
    struct scrub *scrub = container_of(timer, struct scrub, due);

    timer_start(scrub->host->loop, &scrub->due, LOOK_EVERY_NS);
    if (!is_due(scrub))
        return;
    scrub->wanted = !scrub->state.under_way;
    run(scrub);
}

/* --- opening, closing --- */

async int scrub_open(struct host *host, struct error *err)
{
    struct scrub *scrub = calloc(1, sizeof *scrub);

    if (!scrub)
        return err_set(err, -ENOMEM, "out of memory");
    scrub->host = host;
    for (uint32_t i = 0; i < SCRUB_READERS; i++)
        scrub->readers[i] = (struct scrub_reader){
            .scrub = scrub,
            .pace = {.host = host, .parallel = SCRUB_READERS, .stop = &scrub->stop},
        };
    scrub->due.fire = due_fired;
    waitlist_init(&scrub->over);
    waitlist_init(&scrub->resumed);
    host->scrub = scrub;
    int rc = scrub_load(scrub);
    if (rc < 0)
        return err_set(err, rc, "scrub: %s", err_text(rc));
    set_limit(scrub, scrub->state.limit_bytes_s);
    if (host->options.no_idle_work)
        return 0;
    if (scrub->state.counted_wall_ns == 0) { /* a new store */
        scrub->state.counted_wall_ns = loop_wall_ns(host->loop);
        (void)scrub_save(scrub, KV_UNSYNCED);
    }
    timer_start(host->loop, &scrub->due, LOOK_EVERY_NS);
    if (scrub->state.under_way && !scrub->state.paused)
        run(scrub);
    return 0;
}

async void scrub_close(struct host *host)
{
    struct scrub *scrub = host->scrub;

    if (!scrub)
        return;
    scrub->closing = scrub->stop = true;
    timer_stop(host->loop, &scrub->due);
    waitlist_wake_all(&scrub->resumed);
    while (scrub->running)
        waitlist_wait(&scrub->over);
    for (uint32_t i = 0; i < SCRUB_LINES_MAX; i++)
        free(scrub->lines[i]);
    free(take(host->scrub));
}
