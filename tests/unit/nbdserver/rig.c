/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/unit/nbdserver/rig.h"

#include <signal.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define PATIENCE_S 60

/* --- the server's side --- */

static void stop_main(struct task_call *call)
{
    struct rig *rig = container_of(call, struct rig, stop);
    if (!rig->stopped)
        nbd_server_destroy(rig->server);
    loop_stop(rig->loop);
}

static void finished_run(struct work *work)
{
    struct rig *rig = container_of(work, struct rig, finished);
    rig->stop = (struct task_call){.main = stop_main, .name = "stop"};
    task_start(rig->loop, &rig->stop);
}

static void *body_thread(void *arg)
{
    struct rig *rig = arg;
    rig->body(rig);
    loop_post_from_thread(rig->loop, &rig->finished);
    return NULL;
}

void rig_run(const char *name, void (*body)(struct rig *rig), uint64_t buffer_bytes)
{
    struct rig rig = {.body = body, .loop = loop_create()};
    struct error err;
    signal(SIGPIPE, SIG_IGN);
    fprintf(stderr, "-- %s\n", name);
    strcpy(rig.folder, "/tmp/parallax-nbd-XXXXXX");
    CHECK(mkdtemp(rig.folder) != NULL);
    snprintf(rig.path, sizeof rig.path, "%s/nbd.sock", rig.folder);
    rig.host = fake_host_create(rig.loop, buffer_bytes ? buffer_bytes : NBD_BUFFER_BYTES);
    rig.disk = fake_disk_add(rig.host, "disk", RIG_DISK_BYTES);
    rig.snapshot = fake_disk_add(rig.host, "disk@old", 1 * MIB);
    rig.other = fake_disk_add(rig.host, "other", 8 * MIB);
    struct nbd_server_options options = {.connections_max = 100};
    rig.server = nbd_server_create(rig.loop, rig.host, &options);
    CHECK(rig.server != NULL);
    CHECK_EQ(nbd_server_listen_unix(rig.server, rig.path, &err), 0);
    rig.finished.run = finished_run;
    CHECK_EQ(pthread_create(&rig.thread, NULL, body_thread, &rig), 0);
    loop_run(rig.loop);
    CHECK_EQ(pthread_join(rig.thread, NULL), 0);
    CHECK_EQ(access(rig.path, F_OK), -1); /* gone with the server */
    CHECK_EQ(buffer_pool_used_bytes(rig.host->buffers), 0);
    fake_host_destroy(rig.host);
    loop_destroy(rig.loop);
    CHECK_EQ(rmdir(rig.folder), 0);
}

struct rig_job {
    struct work work;
    struct task_call call;
    struct rig *rig;
    void (*fn)(struct rig *rig);
    sem_t done;
    bool on_task;
};

static void job_main(struct task_call *call)
{
    struct rig_job *job = container_of(call, struct rig_job, call);
    job->fn(job->rig);
    sem_post(&job->done);
}

static void job_run(struct work *work)
{
    struct rig_job *job = container_of(work, struct rig_job, work);
    if (job->on_task)
        task_start(job->rig->loop, &job->call);
    else
        job_main(&job->call);
}

static void call(struct rig *rig, void (*fn)(struct rig *rig), bool on_task)
{
    struct rig_job job = {.work.run = job_run, .rig = rig, .fn = fn, .on_task = on_task};
    job.call = (struct task_call){.main = job_main, .name = "job"};
    sem_init(&job.done, 0, 0);
    loop_post_from_thread(rig->loop, &job.work);
    while (sem_wait(&job.done) < 0)
        continue;
    sem_destroy(&job.done);
}

void rig_call(struct rig *rig, void (*fn)(struct rig *rig))
{
    call(rig, fn, false);
}

void rig_call_on_task(struct rig *rig, void (*fn)(struct rig *rig))
{
    call(rig, fn, true);
}

static void wait_idle(struct rig *rig)
{
    while (fake_openings(rig->host) > 0 || nbd_server_client_count(rig->server) > 0)
        task_sleep_ns(2 * NS_PER_MS);
}

void rig_wait_idle(struct rig *rig)
{
    rig_call_on_task(rig, wait_idle);
}

static void read_used(struct rig *rig)
{
    rig->buffer_bytes = buffer_pool_used_bytes(rig->host->buffers);
}

uint64_t rig_buffers_used(struct rig *rig)
{
    rig_call(rig, read_used);
    return rig->buffer_bytes;
}

/* --- a client's side --- */

int raw_connect(struct rig *rig)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    struct timeval patience = {.tv_sec = PATIENCE_S};
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    CHECK(fd >= 0);
    CHECK(strlen(rig->path) < sizeof address.sun_path);
    memcpy(address.sun_path, rig->path, strlen(rig->path) + 1);
    CHECK_EQ(connect(fd, (struct sockaddr *)&address, sizeof address), 0);
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience);
    return fd;
}

bool raw_send(int fd, const void *bytes, size_t len)
{
    const uint8_t *at = bytes;
    while (len > 0) {
        ssize_t n = send(fd, at, len, MSG_NOSIGNAL);
        if (n < 0)
            return false;
        at += n;
        len -= (size_t)n;
    }
    return true;
}

void raw_receive(int fd, void *ret, size_t len)
{
    if (len > 0) /* to receive nothing waits for something */
        CHECK_EQ(recv(fd, ret, len, MSG_WAITALL), (ssize_t)len);
}

void raw_expect_end(int fd)
{
    uint8_t bytes[4096];
    ssize_t n;
    do {
        n = recv(fd, bytes, sizeof bytes, 0);
    } while (n > 0);
    CHECK(n == 0 || errno == ECONNRESET);
    close(fd);
}

int raw_hello(struct rig *rig)
{
    struct nbd_hello hello;
    be32 flags = be32_of(NBD_FLAG_FIXED_NEWSTYLE | NBD_FLAG_NO_ZEROES);
    int fd = raw_connect(rig);
    raw_receive(fd, &hello, sizeof hello);
    CHECK(be64_get(hello.magic) == NBD_MAGIC);
    CHECK(be64_get(hello.option_magic) == NBD_OPTION_MAGIC);
    CHECK_EQ(be16_get(hello.flags), 3);
    CHECK(raw_send(fd, &flags, sizeof flags));
    return fd;
}

void raw_option(int fd, uint32_t option, const void *data, uint32_t len)
{
    struct nbd_option header = {be64_of(NBD_OPTION_MAGIC), be32_of(option), be32_of(len)};
    CHECK(raw_send(fd, &header, sizeof header));
    if (data)
        CHECK(raw_send(fd, data, len));
}

uint32_t raw_option_reply(int fd, uint32_t option)
{
    struct nbd_option_reply reply;
    uint8_t data[8192];
    raw_receive(fd, &reply, sizeof reply);
    CHECK(be64_get(reply.magic) == NBD_OPTION_REPLY_MAGIC);
    CHECK_EQ(be32_get(reply.option), option);
    CHECK(be32_get(reply.len) <= sizeof data);
    raw_receive(fd, data, be32_get(reply.len));
    return be32_get(reply.type);
}

int raw_go(struct rig *rig, const char *name, bool structured)
{
    uint8_t data[300];
    uint32_t len = (uint32_t)strlen(name);
    be32 name_len = be32_of(len);
    int fd = raw_hello(rig);
    if (structured) {
        raw_option(fd, NBD_OPT_STRUCTURED_REPLY, NULL, 0);
        CHECK_EQ(raw_option_reply(fd, NBD_OPT_STRUCTURED_REPLY), NBD_REP_ACK);
    }
    memcpy(data, &name_len, 4);
    memcpy(data + 4, name, len);
    memset(data + 4 + len, 0, 2);
    raw_option(fd, NBD_OPT_GO, data, 4 + len + 2);
    uint32_t type;
    while ((type = raw_option_reply(fd, NBD_OPT_GO)) == NBD_REP_INFO)
        continue;
    CHECK_EQ(type, NBD_REP_ACK);
    return fd;
}

void raw_request(int fd, uint16_t type, uint16_t flags, uint64_t cookie, uint64_t offset,
                 uint32_t len)
{
    struct nbd_request request = {
        .magic = be32_of(NBD_REQUEST_MAGIC),
        .flags = be16_of(flags),
        .type = be16_of(type),
        .offset_bytes = be64_of(offset),
        .len_bytes = be32_of(len),
    };
    memcpy(request.cookie, &cookie, sizeof cookie);
    CHECK(raw_send(fd, &request, sizeof request));
}

uint32_t raw_reply(int fd, uint64_t cookie)
{
    struct nbd_simple_reply reply;
    raw_receive(fd, &reply, sizeof reply);
    CHECK(be32_get(reply.magic) == NBD_SIMPLE_REPLY_MAGIC);
    CHECK(memcmp(reply.cookie, &cookie, sizeof cookie) == 0);
    return be32_get(reply.error);
}
