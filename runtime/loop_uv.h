/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the real loop (loop_uv.c) and the real files and key-value stores (file_aio.c,
 * kv_leveldb.c) need from each other. libuv itself stays in loop_uv.c: descriptors are
 * followed with watch_create, threads report with loop_post_from_thread.
 */
#ifndef PARALLAX_RUNTIME_LOOP_UV_H
#define PARALLAX_RUNTIME_LOOP_UV_H

#include "runtime/loop_internal.h"

/* fn is called at least once before each poll, and again as long as it returns true and
 * the loop has not run for too long: submit what was collected, reap what is done. True:
 * it did something, so the loop must not sleep yet. NULL takes the hook off. */
void loop_set_idle_hook(struct loop *loop, bool (*fn)(void *arg), void *arg);

/* Where file_aio.c keeps its context of this loop; NULL at first. The context ends with
 * the last open file: the slot must be NULL again when the loop is destroyed. */
void **loop_uv_aio_slot(struct loop *loop);

/* file_aio.c */
async int file_aio_open(struct loop *loop, const char *path,
                        const struct file_options *options, struct file **ret,
                        struct error *err);
void file_aio_plug(struct loop *loop);
void file_aio_unplug(struct loop *loop);

/* kv_leveldb.c */
async int kv_leveldb_open(struct loop *loop, const char *path, bool create,
                          struct kv **ret, struct error *err);

#endif
