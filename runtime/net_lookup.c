/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Happy path: a detached thread asks the system (getaddrinfo), notes the answer, and
 * writes to an eventfd that the loop watches; the loop takes the answer.
 *
 * The system may take a minute over it and cannot be interrupted. So a cancelled lookup
 * is left to its thread, which frees it when the system has answered; nobody waits for a
 * thread. What is shared between the two is under a lock, and whoever is last frees it.
 */
#include "runtime/net_lookup_internal.h"

#include <arpa/inet.h>
#include <netdb.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "runtime/task.h"

#define HOST_MAX 256U

struct lookups {
    pthread_mutex_t lock;
    uint32_t running;
    uint32_t refs; /* the net, and each lookup */
};

struct lookup {
    struct lookups *lookups;
    char host[HOST_MAX], port[8];
    /* The loop's. */
    struct watch *watch;
    lookup_done_fn *done;
    void *arg;
    /* Both; refs under the lock of lookups, the answer handed over by the eventfd. */
    uint32_t refs;
    int answered_fd;
    int rc; /* of getaddrinfo */
    struct addrinfo *answer;
};

/* --- addresses --- */

/* "HOST:PORT" or "[HOST]:PORT" into its two parts; false: it is neither. */
static bool split(const char *text, char host[HOST_MAX], char port[8])
{
    const char *colon = strrchr(text, ':');
    if (colon == NULL || colon == text || strlen(colon + 1) > 5)
        return false;
    size_t len = (size_t)(colon - text);
    bool has_brackets = text[0] == '[' && text[len - 1] == ']' && len > 2;
    if (has_brackets) {
        text++;
        len -= 2;
    }
    if (len >= HOST_MAX || (!has_brackets && memchr(text, ':', len) != NULL))
        return false;
    memcpy(host, text, len);
    host[len] = '\0';
    if (strpbrk(host, "[]") != NULL)
        return false;
    snprintf(port, 8, "%s", colon + 1);
    unsigned long number = 0;
    for (const char *at = port; *at != '\0'; at++) {
        if (*at < '0' || *at > '9')
            return false;
        number = number * 10 + (unsigned long)(*at - '0');
    }
    return port[0] != '\0' && number <= UINT16_MAX;
}

bool net_address_parse(const char *text, union net_address *ret)
{
    char host[HOST_MAX], port[8];
    union net_address address = {.any.sa_family = AF_UNSPEC};
    if (!split(text, host, port))
        return false;
    in_port_t number = htons((uint16_t)strtoul(port, NULL, 10));
    if (inet_pton(AF_INET, host, &address.in.sin_addr) == 1) {
        address.in.sin_family = AF_INET;
        address.in.sin_port = number;
    } else if (inet_pton(AF_INET6, host, &address.in6.sin6_addr) == 1) {
        address.in6.sin6_family = AF_INET6;
        address.in6.sin6_port = number;
    } else {
        return false;
    }
    *ret = address;
    return true;
}

void net_address_print(const union net_address *address, char *ret, size_t cap)
{
    char host[INET6_ADDRSTRLEN] = "?";
    if (address->any.sa_family == AF_INET) {
        inet_ntop(AF_INET, &address->in.sin_addr, host, sizeof host);
        snprintf(ret, cap, "%s:%u", host, ntohs(address->in.sin_port));
        return;
    }
    const struct in6_addr *in6 = &address->in6.sin6_addr;
    uint16_t port = ntohs(address->in6.sin6_port);
    if (IN6_IS_ADDR_V4MAPPED(in6)) {
        inet_ntop(AF_INET, &in6->s6_addr[12], host, sizeof host);
        snprintf(ret, cap, "%s:%u", host, port);
    } else {
        inet_ntop(AF_INET6, in6, host, sizeof host);
        snprintf(ret, cap, "[%s]:%u", host, port);
    }
}

/* --- counting --- */

struct lookups *lookups_create(void)
{
    struct lookups *lookups = calloc(1, sizeof *lookups);
    if (lookups == NULL)
        return NULL;
    pthread_mutex_init(&lookups->lock, NULL);
    lookups->refs = 1;
    return lookups;
}

/* Unlocks, and frees it if nobody is left. */
static void lookups_put_locked(struct lookups *lookups)
{
    bool is_last = --lookups->refs == 0;
    pthread_mutex_unlock(&lookups->lock);
    if (!is_last)
        return;
    pthread_mutex_destroy(&lookups->lock);
    free(lookups);
}

void lookups_destroy(struct lookups *lookups)
{
    if (lookups == NULL)
        return;
    pthread_mutex_lock(&lookups->lock);
    lookups_put_locked(lookups);
}

/* is_thread: the system's call is over. */
static void lookup_put(struct lookup *lookup, bool is_thread)
{
    struct lookups *lookups = lookup->lookups;
    pthread_mutex_lock(&lookups->lock);
    if (is_thread)
        lookups->running--;
    if (--lookup->refs > 0) {
        pthread_mutex_unlock(&lookups->lock);
        return;
    }
    if (lookup->answer != NULL)
        freeaddrinfo(lookup->answer);
    close(lookup->answered_fd);
    free(lookup);
    lookups_put_locked(lookups);
}

/* --- a lookup --- */

static void *lookup_main(void *arg)
{
    struct lookup *lookup = arg;
    struct addrinfo hints = {.ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM};
    hints.ai_flags = AI_NUMERICSERV;
    lookup->rc = getaddrinfo(lookup->host, lookup->port, &hints, &lookup->answer);
    if (lookup->rc != 0)
        lookup->answer = NULL;
    uint64_t one = 1;
    ssize_t n = write(lookup->answered_fd, &one, sizeof one);
    assert(n == sizeof one);
    (void)n;
    lookup_put(lookup, true);
    return NULL;
}

static uint32_t take_addresses(const struct addrinfo *answer,
                               union net_address addresses[NET_ADDRESSES_MAX])
{
    uint32_t count = 0;
    for (; answer != NULL && count < NET_ADDRESSES_MAX; answer = answer->ai_next) {
        if (answer->ai_family != AF_INET && answer->ai_family != AF_INET6)
            continue;
        addresses[count] = (union net_address){0};
        memcpy(&addresses[count], answer->ai_addr,
               min_u64(answer->ai_addrlen, sizeof addresses[count]));
        count++;
    }
    return count;
}

int net_address_find(const char *text, union net_address *ret, uint32_t *ret_count,
                     struct error *err)
{
    char host[HOST_MAX], port[8];
    struct addrinfo hints = {.ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM};
    struct addrinfo *answer = NULL;
    hints.ai_flags = AI_NUMERICSERV;
    if (net_address_parse(text, ret)) {
        *ret_count = 1;
        return 0;
    }
    if (!split(text, host, port))
        return err_set(err, -EINVAL, "not an address: HOST:PORT is wanted");
    assert(task_current() == NULL);
    int rc = getaddrinfo(host, port, &hints, &answer);
    if (rc != 0)
        return err_set(err, -EHOSTUNREACH, "no such host: %s", gai_strerror(rc));
    *ret_count = take_addresses(answer, ret);
    freeaddrinfo(answer);
    return *ret_count > 0 ? 0 : err_set(err, -EHOSTUNREACH, "it has no address");
}

static void answered(void *arg, unsigned events)
{
    struct lookup *lookup = arg;
    union net_address addresses[NET_ADDRESSES_MAX];
    uint64_t number;
    (void)events;
    /* Taking the answer with a call orders what the thread wrote before what follows. */
    if (read(lookup->answered_fd, &number, sizeof number) != sizeof number)
        return;
    uint32_t count = take_addresses(lookup->answer, addresses);
    int code = count > 0 ? 0 : -EHOSTUNREACH;
    const char *why = "it has no address";
    if (lookup->rc != 0)
        why = gai_strerror(lookup->rc);
    lookup_done_fn *done = lookup->done;
    void *done_arg = lookup->arg;
    lookup_cancel(lookup);
    done(done_arg, code, code < 0 ? why : NULL, addresses, count);
}

static bool thread_start(struct lookup *lookup)
{
    sigset_t all, before;
    pthread_t thread;
    sigfillset(&all); /* signals are the loop's */
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int rc = pthread_create(&thread, NULL, lookup_main, lookup);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (rc == 0)
        pthread_detach(thread);
    return rc == 0;
}

/* Counts it; false: there are too many. */
static bool lookups_enter(struct lookups *lookups)
{
    pthread_mutex_lock(&lookups->lock);
    bool fits = lookups->running < NET_LOOKUPS_MAX;
    if (fits) {
        lookups->running++;
        lookups->refs++;
    }
    pthread_mutex_unlock(&lookups->lock);
    return fits;
}

int lookup_start(struct lookups *lookups, struct loop *loop, const char *text,
                 lookup_done_fn *done, void *arg, struct lookup **ret, struct error *err)
{
    struct lookup *lookup = calloc(1, sizeof *lookup);
    if (lookup == NULL)
        return err_set(err, -ENOMEM, "look it up: %s", err_text(ENOMEM));
    if (!split(text, lookup->host, lookup->port)) {
        free(lookup);
        return err_set(err, -EINVAL, "not an address: HOST:PORT is wanted");
    }
    if (!lookups_enter(lookups)) {
        free(lookup);
        return err_set(err, -PLX_ELIMIT, "look it up: %u names are being looked up",
                       NET_LOOKUPS_MAX);
    }
    lookup->lookups = lookups;
    lookup->done = done;
    lookup->arg = arg;
    lookup->refs = 2; /* the thread's; without one it is given back below */
    lookup->answered_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (lookup->answered_fd >= 0)
        lookup->watch = watch_create(loop, lookup->answered_fd, answered, lookup);
    if (lookup->watch == NULL || watch_set(lookup->watch, WATCH_READ) != 0 ||
        !thread_start(lookup)) {
        watch_destroy(lookup->watch);
        lookup_put(lookup, true);
        lookup_put(lookup, false);
        return err_set(err, -ENOMEM, "look it up: %s", err_text(ENOMEM));
    }
    *ret = lookup;
    return 0;
}

void lookup_cancel(struct lookup *lookup)
{
    watch_destroy(take(lookup->watch));
    lookup_put(lookup, false);
}
