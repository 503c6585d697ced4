/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A real server on disks in memory, and a test body on a thread of its own that talks to
 * it as clients do. The disks: `disk` (64 MiB and 123 bytes, so that it ends inside a
 * block), its snapshot `disk@old`, and `other`.
 */
#ifndef PARALLAX_TESTS_UNIT_NBDSERVER_RIG_H
#define PARALLAX_TESTS_UNIT_NBDSERVER_RIG_H

#include <pthread.h>
#include <semaphore.h>

#include "nbdserver/nbd.h"
#include "nbdserver/nbd_format.h"
#include "nbdserver/nbd_limits.h"
#include "tests/unit/check.h"
#include "tests/unit/nbdserver/fake_disk.h"

#define RIG_DISK_BYTES (64 * MIB + 123)

struct rig {
    struct loop *loop;
    struct host *host;
    struct disk *disk, *snapshot, *other;
    struct nbd_server *server;
    char folder[64], path[96];
    uint64_t buffer_bytes;
    uint32_t connections_max;
    void (*body)(struct rig *rig);
    pthread_t thread;
    struct work finished;
    struct task_call stop;
    bool stopped; /* the body destroyed the server itself */
};

/* buffer_bytes 0: as a daemon has. */
void rig_run(const char *name, void (*body)(struct rig *rig), uint64_t buffer_bytes);
/* On the loop's thread, waiting for it; fn runs on a task if so asked. */
void rig_call(struct rig *rig, void (*fn)(struct rig *rig));
void rig_call_on_task(struct rig *rig, void (*fn)(struct rig *rig));
/* Waits until every disk was given back and no client is left. */
void rig_wait_idle(struct rig *rig);
uint64_t rig_buffers_used(struct rig *rig);

/* A plain socket to the server. */
int raw_connect(struct rig *rig);
/* False if the server closed. */
bool raw_send(int fd, const void *bytes, size_t len);
/* Exactly len bytes. */
void raw_receive(int fd, void *ret, size_t len);
/* The server has closed, after whatever it still sent. */
void raw_expect_end(int fd);
/* Hello and client flags. */
int raw_hello(struct rig *rig);
void raw_option(int fd, uint32_t option, const void *data, uint32_t len);
/* Returns the type of one reply to an option; its data is dropped. */
uint32_t raw_option_reply(int fd, uint32_t option);
/* Ready for requests. */
int raw_go(struct rig *rig, const char *name, bool structured);
void raw_request(int fd, uint16_t type, uint16_t flags, uint64_t cookie, uint64_t offset,
                 uint32_t len);
/* A simple reply: its error; the cookie must be this. */
uint32_t raw_reply(int fd, uint64_t cookie);

#endif
