/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The folder of a daemon:
 *
 *     store           the store, unless that is a block device
 *     meta/           what describes it
 *     nbd.sock        NBD, unless --nbd says otherwise
 *     control.sock    the parallax command
 *     parallaxd.pid   of the running daemon
 *     lock            locked by it for as long as it runs
 *     log             what a detached daemon has to say
 *     creating        there while a new store is made; what is found with it is no store
 */
#ifndef PARALLAX_TOOLS_DIRECTORY_H
#define PARALLAX_TOOLS_DIRECTORY_H

#include <limits.h>

#include "runtime/base.h"
#include "runtime/error.h"
#include "tools/address.h"

struct directory {
    char path[PATH_MAX];  /* absolute */
    char store[PATH_MAX]; /* in it, or the device */
    char meta[PATH_MAX];
    bool is_device;
    int lock_fd;
};

/* argument: a folder, which is made if its parent is there, or a block device. Takes the
 * lock: -PLX_EBUSY, the text names the daemon that has it. */
int directory_open(struct directory *dir, const char *argument, struct error *err);
/* Removes what only a running daemon has, and gives up the lock. */
void directory_close(struct directory *dir);

/* The path of a file in it; -ENAMETOOLONG. */
int directory_path(const struct directory *dir, const char *name, char ret[PATH_MAX],
                   struct error *err);
int directory_write_pid(const struct directory *dir, struct error *err);
/* Standard output and error go to the log from now on, standard input is empty. */
int directory_redirect(const struct directory *dir, struct error *err);

/* There is neither store nor metadata, after the removal of what an interrupted creation
 * has left. A device counts as empty when there is no metadata: the store itself knows.
 */
int directory_is_empty(const struct directory *dir, bool *ret_empty, struct error *err);
/* Between these a store is being made. Durable. */
int directory_create_begin(const struct directory *dir, struct error *err);
int directory_create_end(const struct directory *dir, struct error *err);
/* Instead of the end: it failed, and the next try begins with an empty folder. */
void directory_create_undo(const struct directory *dir);
/* Capacity for a new store: half of what is free, or the whole device. */
int directory_capacity(const struct directory *dir, uint64_t *ret_bytes,
                       struct error *err);

#endif
