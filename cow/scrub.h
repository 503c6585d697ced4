/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the files of the scrub share; its face is in cow/host.h, its story in
 * doc/scrub.md.
 *
 *     idle --start--> under way --all extents seen--> idle
 *                      |    ^
 *                   pause  start
 *                      v    |
 *                     paused (no automatic passes either)
 */
#ifndef PARALLAX_COW_SCRUB_H
#define PARALLAX_COW_SCRUB_H

#include "cow/disk_internal.h"
#include "cow/pace.h"
#include "cow/scrub_format.h"

struct scrub_state {
    bool under_way, paused;
    struct address next;
    uint64_t done_bytes, total_bytes, findings;
    uint64_t started_wall_ns, finished_wall_ns, counted_wall_ns;
    uint64_t limit_bytes_s;
    uint32_t skipped_count;
    struct address skipped[SCRUB_SKIPPED_MAX];
};

/* One piece of damage, as the store found it. */
struct scrub_damage {
    struct address at;
    bool has_entry;        /* else a header, or a block no header tells of */
    struct entry entry;
    int code;
};

/* One of the tasks that share the extents. */
#define SCRUB_READERS 2U
struct scrub_reader {
    struct scrub *scrub;
    struct task_call task;
    struct pace pace;
    struct address extent;        /* that it reads now; null: none */
    uint64_t read_bytes;          /* of it */
    struct scrub_damage damage[SCRUB_LINES_MAX]; /* found in it */
    uint32_t damage_count;        /* what did not fit is only counted */
    uint32_t unknown_count;       /* blocks that could not be checked */
};

struct scrub {
    struct host *host;
    struct scrub_state state;
    char *lines[SCRUB_LINES_MAX]; /* a ring: line n is at n % SCRUB_LINES_MAX */
    uint64_t line_count;          /* ever, in this pass */
    struct scrub_reader readers[SCRUB_READERS];
    uint32_t readers_running;
    struct address *list;         /* extents of this pass; taken from list_at on */
    size_t list_count, list_at;
    int sweep_result; /* 0, or why they stop */
    uint64_t saved_ns;
    bool stop;                    /* it rests no longer: paused, or the host closes */
    bool running;                 /* its task is */
    bool wanted;                  /* a new pass is to begin */
    bool closing;
    struct task_call task;
    struct timer due;
    struct waitlist over, resumed;
};

/* --- scrub.c --- */
async int scrub_open(struct host *host, struct error *err);
async void scrub_close(struct host *host);

/* --- scrub_record.c --- */
/* Appends to w; w->bad tells of memory. */
void scrub_state_encode(const struct scrub_state *state, struct writer *w);
/* 0, -PLX_EFORMAT, -PLX_ENEWER or -PLX_ECHECKSUM. */
int scrub_state_decode(const void *bytes, size_t len, struct scrub_state *ret);
/* What is damaged counts as not there, with a line in the log. -ENOMEM. */
async int scrub_load(struct scrub *scrub);
async int scrub_save(struct scrub *scrub, enum kv_durability durability);
/* Keeps and logs a line. */
async void scrub_add_line(struct scrub *scrub, const char *text);
/* A new pass begins: forgets the lines of the last one. */
async int scrub_forget_lines(struct scrub *scrub);

/* --- scrub_seen.c --- */
/* Puts damage of an extent of this disk into words: what it is and who sees it. */
async void scrub_describe(struct scrub *scrub, uint64_t disk,
                          const struct scrub_damage *damage, uint32_t count);

#endif
