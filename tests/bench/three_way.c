/* SPDX-License-Identifier: Apache-2.0 */
/*
 * three_way DIR DEPTH SECONDS [KIB]
 *
 * What three copies cost at least on this machine: one client sends 4 KiB, or KIB, to
 * three processes over loopback TCP, each appends a header of 4 KiB and the data to a
 * pre-written file (O_DIRECT, libaio) and answers. No encryption, no checksum, no client
 * protocol.
 * Prints writes per second, the mean latency and CPU of all four processes per write.
 */
#include <errno.h>
#include <fcntl.h>
#include <libaio.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define COPIES     3
#define MAX_DEPTH  64
#define BLOCK      4096U
#define KIB_MAX    1024U
#define FILE_BYTES (256UL << 20)

static size_t data_bytes = BLOCK;

/* An id, then the data. */
static size_t message_bytes(void)
{
    return sizeof(uint64_t) + data_bytes;
}

static void die(const char *what)
{
    perror(what);
    exit(1);
}

static double now_s(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static void watch(int epoll, int fd)
{
    struct epoll_event event = {.events = EPOLLIN, .data.fd = fd};
    if (epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event) < 0)
        die("epoll_ctl");
}

/* --- a writer --- */

struct slot {
    struct iocb iocb;
    uint8_t *bytes; /* header and data */
    struct iovec iov;
};

static int open_file(const char *folder, int which)
{
    char path[4096];
    snprintf(path, sizeof(path), "%s/three_way.%d", folder, which);
    int fd = open(path, O_RDWR | O_CREAT | O_DIRECT, 0600);
    if (fd < 0)
        die(path);
    unlink(path);
    void *zeros = aligned_alloc(BLOCK, 1U << 20);
    memset(zeros, 0, 1U << 20);
    for (uint64_t at = 0; at < FILE_BYTES; at += 1U << 20) {
        if (pwrite(fd, zeros, 1U << 20, (off_t)at) != 1 << 20)
            die("filling");
    }
    free(zeros);
    return fd;
}

static void writer(int socket, const char *folder, int which)
{
    static struct slot slots[MAX_DEPTH];
    struct slot *unused[MAX_DEPTH];
    unsigned unused_count = MAX_DEPTH;
    size_t have = 0, in_bytes = MAX_DEPTH * message_bytes();
    size_t stored_bytes = BLOCK + data_bytes;
    uint8_t *in = malloc(in_bytes);
    uint64_t at = 0;
    io_context_t context = 0;
    int file = open_file(folder, which), wake = eventfd(0, EFD_NONBLOCK);
    int epoll = epoll_create1(0);
    if (io_setup(MAX_DEPTH, &context) < 0)
        die("io_setup");
    for (unsigned i = 0; i < MAX_DEPTH; i++) {
        slots[i].bytes = aligned_alloc(BLOCK, stored_bytes);
        memset(slots[i].bytes, 0, stored_bytes);
        slots[i].iov = (struct iovec){slots[i].bytes, stored_bytes};
        unused[i] = &slots[i];
    }
    watch(epoll, socket);
    watch(epoll, wake);
    if (send(socket, "r", 1, 0) != 1)
        die("send");
    for (;;) {
        struct epoll_event events[2];
        int n = epoll_wait(epoll, events, 2, -1);
        for (int i = 0; i < n; i++) {
            if (events[i].data.fd == wake) {
                uint64_t count, ids[MAX_DEPTH];
                struct io_event done[MAX_DEPTH];
                if (read(wake, &count, 8) < 0)
                    continue;
                int d = io_getevents(context, 0, MAX_DEPTH, done, NULL);
                for (int k = 0; k < d; k++) {
                    struct slot *slot = done[k].data;
                    if (done[k].res != stored_bytes)
                        die("write");
                    memcpy(&ids[k], slot->bytes, 8);
                    unused[unused_count++] = slot;
                }
                if (d > 0 && send(socket, ids, (size_t)d * 8, 0) < 0)
                    die("send");
                continue;
            }
            ssize_t got = recv(socket, in + have, in_bytes - have, 0);
            if (got <= 0)
                exit(0);
            have += (size_t)got;
            struct iocb *batch[MAX_DEPTH];
            size_t count = have / message_bytes();
            for (size_t k = 0; k < count; k++) {
                struct slot *slot = unused[--unused_count];
                memcpy(slot->bytes, in + k * message_bytes(), 8);
                memcpy(slot->bytes + BLOCK, in + k * message_bytes() + 8, data_bytes);
                io_prep_pwritev(&slot->iocb, file, &slot->iov, 1, (long long)at);
                io_set_eventfd(&slot->iocb, wake);
                slot->iocb.data = slot;
                batch[k] = &slot->iocb;
                at += stored_bytes;
                if (at + stored_bytes > FILE_BYTES)
                    at = 0;
            }
            if (count > 0 && io_submit(context, (long)count, batch) != (long)count)
                die("io_submit");
            have -= count * message_bytes();
            memmove(in, in + count * message_bytes(), have);
        }
    }
}

/* --- the client --- */

static int connect_pair(int *other)
{
    struct sockaddr_in address = {.sin_family = AF_INET};
    socklen_t size = sizeof(address);
    int one = 1, listener = socket(AF_INET, SOCK_STREAM, 0);
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (bind(listener, (struct sockaddr *)&address, size) < 0 ||
        listen(listener, 1) < 0 ||
        getsockname(listener, (struct sockaddr *)&address, &size) < 0 ||
        connect(fd, (struct sockaddr *)&address, size) < 0)
        die("connect");
    *other = accept(listener, NULL, NULL);
    close(listener);
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
    setsockopt(*other, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
    return fd;
}

static void send_all(int fd, const void *bytes, size_t size)
{
    for (size_t sent = 0; sent < size;) {
        ssize_t n = send(fd, (const uint8_t *)bytes + sent, size - sent, 0);
        if (n < 0)
            die("send");
        sent += (size_t)n;
    }
}

/* Answers come in the order of the writes' ends; a write is done with its third. */
static uint64_t run(const int *fds, unsigned depth, double seconds)
{
    uint8_t *message = calloc(1, message_bytes());
    static uint8_t answers[MAX_DEPTH];
    uint64_t done = 0;
    int epoll = epoll_create1(0);
    for (int i = 0; i < COPIES; i++)
        watch(epoll, fds[i]);
    for (uint64_t id = 0; id < depth; id++) {
        memcpy(message, &id, sizeof(id));
        for (int i = 0; i < COPIES; i++)
            send_all(fds[i], message, message_bytes());
    }
    double end = now_s() + seconds;
    while (now_s() < end) {
        struct epoll_event events[COPIES];
        int n = epoll_wait(epoll, events, COPIES, -1);
        for (int e = 0; e < n; e++) {
            uint64_t ids[MAX_DEPTH];
            ssize_t got = recv(events[e].data.fd, ids, sizeof(ids), 0);
            if (got <= 0 || got % 8 != 0)
                die("recv");
            for (ssize_t k = 0; k < got / 8; k++) {
                if (++answers[ids[k]] < COPIES)
                    continue;
                answers[ids[k]] = 0;
                done++;
                memcpy(message, &ids[k], sizeof(ids[k]));
                for (int i = 0; i < COPIES; i++)
                    send_all(fds[i], message, message_bytes());
            }
        }
    }
    free(message);
    return done;
}

static double cpu_s(int who)
{
    struct rusage usage;
    getrusage(who, &usage);
    return (double)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) +
           (double)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) / 1e6;
}

int main(int argc, char **argv)
{
    int kib = argc == 5 ? atoi(argv[4]) : (int)(BLOCK / 1024);
    if (argc < 4 || argc > 5 || atoi(argv[2]) < 1 || atoi(argv[2]) > MAX_DEPTH ||
        atof(argv[3]) <= 0 || kib < 4 || kib > (int)KIB_MAX || kib % 4 != 0) {
        fprintf(stderr, "usage: three_way DIR DEPTH(1..%d) SECONDS [KIB(4..%u)]\n",
                MAX_DEPTH, KIB_MAX);
        return 2;
    }
    data_bytes = (size_t)kib * 1024;
    unsigned depth = (unsigned)atoi(argv[2]);
    double seconds = atof(argv[3]);
    int fds[COPIES];
    for (int i = 0; i < COPIES; i++) {
        int other;
        fds[i] = connect_pair(&other);
        pid_t pid = fork();
        if (pid < 0)
            die("fork");
        if (pid == 0) {
            for (int k = 0; k <= i; k++)
                close(fds[k]);
            writer(other, argv[1], i);
        }
        close(other);
    }
    for (int i = 0; i < COPIES; i++) {
        char ready;
        if (recv(fds[i], &ready, 1, 0) != 1)
            die("a writer");
    }
    double filling = cpu_s(RUSAGE_CHILDREN);
    uint64_t done = run(fds, depth, seconds);
    for (int i = 0; i < COPIES; i++)
        close(fds[i]);
    while (wait(NULL) > 0)
        continue;
    printf("%.0f writes/s, %.0f us each, CPU %.1f us\n", (double)done / seconds,
           seconds * 1e6 * depth / (double)done,
           (cpu_s(RUSAGE_SELF) + cpu_s(RUSAGE_CHILDREN) - filling) * 1e6 / (double)done);
    return 0;
}
