/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the guests and the administrator of a run do: operations begun at random times by
 * a timer of the process, in parallel up to a depth. Reads and writes are in
 * workload_io.c, administration is in workload_admin.c and workload_remove.c; each tells
 * the model what it was told.
 */
#ifndef PARALLAX_TESTS_SIMULATION_WORKLOAD_H
#define PARALLAX_TESTS_SIMULATION_WORKLOAD_H

#include "tests/simulation/run.h"

#define CLIENTS_MAX   10U
#define SNAPS_MAX     40U
#define SNAPS_AT_ONCE 12U /* removed with one command */
#define BLOCKS_WHOLE (64 * MIB / BLOCK_SIZE) /* larger disks are written in spots */

/* One opening of a disk or snapshot. */
struct client {
    struct disk *disk;
    struct model_disk *md;
    struct model_snap *snap; /* NULL: the head */
    uint32_t inflight;
    bool is_closing;
    TAILQ_ENTRY(client) link;
};

struct op {
    const char *name;
    struct run *run;
    struct client *client;
    struct model_disk *md;
    struct model_snap *snap, *to_snap;
    struct disk_io io;
    struct change change;
    bool is_change, may_be_refused, has_snaps;
    struct model_snap *snaps[SNAPS_AT_ONCE];
    uint64_t removals, uses; /* so far, when it began */
    struct line *line;
    uint64_t lo; /* the line stands at this batch at least */
    uint64_t started_ns;
    struct task_call task;
    void (*run_op)(struct op *op);
    char names[1][MODEL_NAME_MAX], snap_name[MODEL_NAME_MAX];
    uint32_t count;
    uint64_t size_bytes;
    TAILQ_ENTRY(op) link;
};

struct op *op_begin(struct run *run, const char *name);
void op_end(struct op *op, int result);
/* Runs fn on a task of its own. */
void op_start_task(struct op *op, void (*fn)(struct op *op));
/* Ends the run unless the result is 0 or explained. */
void op_check_result(struct op *op, int result, const char *text);

/* True if its disk or snapshot may have been removed while it was under way. */
bool op_is_raced(const struct op *op);
/* Refused because it was: it has changed nothing. */
bool op_found_nothing(const struct op *op, int result);

/* Names are not given out twice. */
void draw_name(struct run *run, char letter, char ret[MODEL_NAME_MAX]);
/* A disk that nobody changes as a whole, or (alone) uses for anything but reading and
 * writing; NULL: there is none. */
struct model_disk *pick_disk(struct run *run, bool alone);
/* Something is done with it, until its `shared` is lowered. */
void disk_use(struct model_disk *disk);
/* A named snapshot of the disk, or of any. */
struct model_snap *pick_snap(struct run *run, const struct model_disk *of);
/* What an operation is about, and its name: it may lose it before it is looked up. */
void op_snap(struct op *op, struct model_snap *snap);

void client_enter(struct run *run, struct disk *disk, struct model_disk *md,
                  struct model_snap *snap);
void client_leave(struct run *run, struct client *client);

/* Each begins one operation, or none if it finds nothing to do. */
void io_read_begin(struct run *run);
void io_write_begin(struct run *run);
void io_zero_begin(struct run *run);
void io_trim_begin(struct run *run);
void io_flush_begin(struct run *run);
void io_bad_begin(struct run *run);
void io_status_begin(struct run *run);

void admin_open_begin(struct run *run);
void admin_close_begin(struct run *run);
void admin_create_begin(struct run *run);
void admin_snapshot_begin(struct run *run);
void admin_clone_begin(struct run *run);
void admin_rename_begin(struct run *run);
void admin_resize_begin(struct run *run);
void admin_rollback_begin(struct run *run);
void admin_remove_snaps_begin(struct run *run);
void admin_remove_begin(struct run *run);
void admin_restore_begin(struct run *run);
void admin_empty_begin(struct run *run);
void admin_keep_begin(struct run *run);
void admin_scrub_begin(struct run *run);
void scrub_check(struct run *run); /* what it has found so far */
void admin_diff_begin(struct run *run);
void admin_usage_begin(struct run *run);
void admin_check_begin(struct run *run);
void admin_import_begin(struct run *run);
void admin_import_end(struct run *run, struct model_disk *disk);

#endif
