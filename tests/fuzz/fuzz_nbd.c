/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A client of the NBD server that sends whatever it likes. No socket: the bytes go into
 * a session, whose disks are in memory and whose loop is simulated, so that an input
 * takes microseconds and always does the same.
 *
 * The first byte is a set of CHOOSE_ bits, the second says how many bytes come at once
 * (0: all). Whatever the client did, at the end the session must end, the disk must be
 * closed and every buffer put back.
 */
#include "nbdserver/nbd_internal.h"
#include "runtime/sim.h"
#include "tests/unit/nbdserver/fake_disk.h"

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t len);

enum {
    CHOOSE_SERVING = 1 << 0, /* the handshake is done already */
    CHOOSE_STRUCTURED = 1 << 1,
    CHOOSE_SNAPSHOT = 1 << 2,
    CHOOSE_REORDER = 1 << 3,
    CHOOSE_DRAIN = 1 << 4,   /* the end of input, not of the connection */
    CHOOSE_SLOW = 1 << 5,    /* takes few bytes of the output at a time */
    CHOOSE_DIRECT = 1 << 6,  /* payload goes to its buffer without a detour */
    CHOOSE_HOLD = 1 << 7,    /* the disk answers when all has been sent */
};

#define POOL_BYTES   (3 * MIB)
#define STEPS_AT_END 100000

struct machine {
    struct sim_world *world;
    struct loop *loop;
    struct host *host;
    struct nbd_shared shared;
};

struct client {
    struct session session;
    struct machine *machine;
    unsigned choices;
    uint8_t *bytes; /* not taken up yet */
    size_t len, cap;
    bool must_resume, ended;
};

static struct client *client_of(struct session *s)
{
    return container_of(s, struct client, session);
}

/* --- what a connection would do --- */

static void take_output(struct session *s)
{
    struct iovec iov[16];
    uint32_t count = session_output(s, iov, ARRAY_LEN(iov));
    size_t len = 0;
    for (uint32_t i = 0; i < count; i++)
        len += iov[i].iov_len;
    if (client_of(s)->choices & CHOOSE_SLOW)
        len = min_u64(len, 777);
    if (len > 0)
        session_sent(s, len);
}

static void resume(struct session *s)
{
    client_of(s)->must_resume = true;
}

static void ended(struct session *s)
{
    client_of(s)->ended = true;
}

static const struct session_events events = {
    .output = take_output,
    .resume = resume,
    .ended = ended,
};

static void feed(struct client *c, const uint8_t *bytes, size_t len)
{
    struct session *s = &c->session;
    uint8_t *direct_at;
    size_t direct = 0;
    if ((c->choices & CHOOSE_DIRECT) && session_direct(s, &direct_at, &direct)) {
        assert(c->len == 0);
        direct = min_u64(direct, len);
        memcpy(direct_at, bytes, direct);
        session_direct_done(s, direct);
        bytes += direct;
        len -= direct;
    }
    assert(c->len + len <= c->cap);
    if (len > 0)
        memcpy(c->bytes + c->len, bytes, len);
    c->len += len;
    c->must_resume = false;
    size_t taken = session_input(s, c->bytes, c->len);
    assert(taken <= c->len);
    c->len -= taken;
    memmove(c->bytes, c->bytes + taken, c->len);
}

static void step(struct client *c, uint32_t count)
{
    while (count-- > 0 && !c->ended) {
        bool has_more = sim_world_step(c->machine->world);
        if (c->ended)
            return;
        if (session_is_live(&c->session))
            take_output(&c->session);
        if (c->must_resume)
            feed(c, NULL, 0);
        else if (!has_more && session_stalled_ns(&c->session) == 0)
            return;
    }
}

/* --- a handshake --- */

static void send_option(struct client *c, uint32_t option, const void *data, uint32_t len)
{
    uint8_t bytes[200];
    struct nbd_option header = {be64_of(NBD_OPTION_MAGIC), be32_of(option), be32_of(len)};
    assert(sizeof header + len <= sizeof bytes);
    memcpy(bytes, &header, sizeof header);
    memcpy(bytes + sizeof header, data, len);
    feed(c, bytes, sizeof header + len);
    step(c, 50);
}

static void shake_hands(struct client *c)
{
    be32 flags = be32_of(3);
    bool is_snapshot = c->choices & CHOOSE_SNAPSHOT;
    feed(c, (const uint8_t *)&flags, sizeof flags);
    if (c->choices & CHOOSE_STRUCTURED) {
        send_option(c, NBD_OPT_STRUCTURED_REPLY, "", 0);
        if (is_snapshot)
            send_option(c, NBD_OPT_SET_META_CONTEXT,
                        "\0\0\0\5d@old\0\0\0\1\0\0\0\17base:allocation", 32);
        else
            send_option(c, NBD_OPT_SET_META_CONTEXT,
                        "\0\0\0\1d\0\0\0\1\0\0\0\17base:allocation", 28);
    }
    send_option(c, NBD_OPT_EXPORT_NAME, is_snapshot ? "d@old" : "d", is_snapshot ? 5 : 1);
    assert(c->session.phase == PHASE_SERVING);
}

/* --- one input --- */

static void machine_create(struct machine *m)
{
    m->world = sim_world_create(1);
    m->loop = sim_process_create(m->world);
    m->host = fake_host_create(m->loop, POOL_BYTES);
    fake_disk_add(m->host, "d", 5 * MIB + 123);
    fake_disk_add(m->host, "d@old", 5 * MIB);
    m->host->bad_offset = 4 * MIB;
    nbd_shared_init(&m->shared, m->loop, m->host);
}

static void finish(struct client *c)
{
    struct machine *m = c->machine;
    fake_release(m->host);
    if (c->choices & CHOOSE_DRAIN)
        session_drain(&c->session);
    else
        session_break(&c->session, "the client has gone");
    for (uint32_t i = 0; i < STEPS_AT_END && !c->ended; i++)
        step(c, 1);
    assert(c->ended);
    assert(fake_openings(m->host) == 0);
    assert(buffer_pool_used_bytes(m->host->buffers) == 0);
    assert(m->shared.buffer_waiters == 0 && m->shared.lists == 0);
    assert(TAILQ_EMPTY(&m->shared.sessions));
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t len)
{
    static struct machine machine; /* made once: the process belongs to the fuzzer */
    if (len < 2)
        return 0;
    if (!machine.world)
        machine_create(&machine);
    struct client c = {.machine = &machine, .choices = bytes[0], .cap = len + 300};
    size_t chunk = bytes[1] > 0 ? bytes[1] : len;
    c.bytes = malloc(c.cap);
    assert(c.bytes);
    machine.host->reorder = c.choices & CHOOSE_REORDER;
    session_init(&c.session, &machine.shared, &events);
    step(&c, 10);
    if (c.choices & CHOOSE_SERVING)
        shake_hands(&c);
    machine.host->hold = c.choices & CHOOSE_HOLD;
    for (size_t at = 2; at < len && session_is_live(&c.session);) {
        size_t n = min_u64(chunk, len - at);
        if (session_wants_input(&c.session)) {
            feed(&c, bytes + at, n);
            at += n;
        } else {
            fake_release(machine.host); /* else it would wait for ever */
            step(&c, 20);
            if (c.session.phase >= PHASE_DRAINING)
                break;
        }
        step(&c, 3);
    }
    finish(&c);
    free(c.bytes);
    return 0;
}
