/* SPDX-License-Identifier: Apache-2.0 */
#include "tools/address.h"

#include <arpa/inet.h>
#include <netdb.h>
#include <netinet/in.h>
#include <stdio.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#define BACKLOG 64

int address_of_path(const char *path, struct socket_address *ret, struct error *err)
{
    size_t len = strlen(path);
    if (len == 0)
        return err_set(err, -EINVAL, "an empty path is no address");
    if (len >= sizeof ret->path)
        return err_set(err, -ENAMETOOLONG,
                       "%s: too long for a socket; choose one of at most %zu bytes", path,
                       sizeof ret->path - 1);
    *ret = (struct socket_address){.kind = ADDRESS_UNIX};
    memcpy(ret->path, path, len + 1);
    return 0;
}

/* Splits HOST:PORT; false if the text is not of that form. */
static bool split_host_port(const char *text, struct socket_address *ret)
{
    const char *colon = strrchr(text, ':');
    if (colon == NULL || colon == text || colon[1] == '\0')
        return false;
    const char *host = text;
    size_t host_len = (size_t)(colon - text), port_len = strlen(colon + 1);
    if (host[0] == '[' && colon[-1] == ']') {
        host++;
        host_len -= 2;
    }
    if (host_len >= sizeof ret->host || port_len >= sizeof ret->port ||
        strspn(colon + 1, "0123456789") != port_len)
        return false;
    *ret = (struct socket_address){.kind = ADDRESS_TCP};
    memcpy(ret->host, host, host_len);
    memcpy(ret->port, colon + 1, port_len);
    return true;
}

int address_parse(const char *text, struct socket_address *ret, struct error *err)
{
    if (strncmp(text, "unix:", 5) == 0)
        return address_of_path(text + 5, ret, err);
    if (strchr(text, '/') != NULL || strchr(text, ':') == NULL)
        return address_of_path(text, ret, err);
    if (!split_host_port(text, ret))
        return err_set(err, -EINVAL,
                       "%s: not HOST:PORT, and the port a number from 1 to 65535; a "
                       "socket of this name is unix:%s",
                       text, text);
    unsigned long port = strtoul(ret->port, NULL, 10);
    if (port == 0 || port > UINT16_MAX)
        return err_set(err, -EINVAL, "%s: a port is a number from 1 to 65535", text);
    return 0;
}

int address_make_absolute(struct socket_address *address, struct error *err)
{
    if (address->kind != ADDRESS_UNIX || address->path[0] == '/')
        return 0;
    cleanup(free_ptr) char *folder = getcwd(NULL, 0);
    cleanup(free_ptr) char *path = NULL;
    if (folder == NULL || asprintf(&path, "%s/%s", folder, address->path) < 0)
        return err_set(err, -errno, "%s: cannot find the current folder: %s",
                       address->path, strerror(errno));
    return address_of_path(path, address, err);
}

struct address_text address_text(const struct socket_address *address)
{
    struct address_text ret;
    bool is_v6 = strchr(address->host, ':') != NULL;
    if (address->kind == ADDRESS_UNIX)
        snprintf(ret.text, sizeof ret.text, "%s", address->path);
    else
        snprintf(ret.text, sizeof ret.text, "%s%s%s:%s", is_v6 ? "[" : "", address->host,
                 is_v6 ? "]" : "", address->port);
    return ret;
}

static struct sockaddr_un unix_address(const struct socket_address *address)
{
    struct sockaddr_un un = {.sun_family = AF_UNIX};
    static_assert(sizeof un.sun_path == sizeof address->path, "same length");
    memcpy(un.sun_path, address->path, sizeof un.sun_path);
    return un;
}

static int connect_unix(const struct socket_address *address, int *ret_fd)
{
    struct sockaddr_un un = unix_address(address);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return -errno;
    if (connect(fd, (struct sockaddr *)&un, sizeof un) < 0) {
        int r = -errno;
        close(fd);
        return r;
    }
    *ret_fd = fd;
    return 0;
}

/* The first address of host and port; NULL with -errno. */
static int resolve(const struct socket_address *address, struct addrinfo **ret)
{
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM};
    int r = getaddrinfo(address->host, address->port, &hints, ret);
    if (r == 0)
        return 0;
    return r == EAI_SYSTEM ? -errno : -EADDRNOTAVAIL;
}

int address_connect(const struct socket_address *address, int *ret_fd)
{
    if (address->kind == ADDRESS_UNIX)
        return connect_unix(address, ret_fd);
    struct addrinfo *list;
    int r = resolve(address, &list);
    if (r < 0)
        return r;
    r = -EADDRNOTAVAIL;
    for (struct addrinfo *ai = list; ai != NULL && r < 0; ai = ai->ai_next) {
        int fd = socket(ai->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
        if (fd >= 0 && connect(fd, ai->ai_addr, ai->ai_addrlen) == 0) {
            *ret_fd = fd;
            r = 0;
            continue;
        }
        r = -errno;
        if (fd >= 0)
            close(fd);
    }
    freeaddrinfo(list);
    return r;
}

static bool is_loopback(const struct sockaddr *sa)
{
    if (sa->sa_family == AF_INET) {
        const struct sockaddr_in *in = (const struct sockaddr_in *)(const void *)sa;
        return ntohl(in->sin_addr.s_addr) >> 24 == 127;
    }
    const struct sockaddr_in6 *in6 = (const struct sockaddr_in6 *)(const void *)sa;
    return sa->sa_family == AF_INET6 && IN6_IS_ADDR_LOOPBACK(&in6->sin6_addr);
}

int address_check_loopback(const struct socket_address *address, struct error *err)
{
    if (address->kind == ADDRESS_UNIX)
        return 0;
    struct addrinfo *list;
    int r = resolve(address, &list);
    if (r < 0)
        return err_set(err, r, "%s: no such host", address->host);
    bool all = true;
    for (struct addrinfo *ai = list; ai != NULL; ai = ai->ai_next)
        all = all && is_loopback(ai->ai_addr);
    freeaddrinfo(list);
    if (!all)
        return err_set(err, -EADDRNOTAVAIL,
                       "%s: TCP is for loopback only so far; use 127.0.0.1:%s, or a Unix "
                       "socket",
                       address_text(address).text, address->port);
    return 0;
}

/* Removes a socket whose daemon is gone, so that its path can be used again. */
static int remove_stale(const struct socket_address *address, struct error *err)
{
    struct stat st;
    if (lstat(address->path, &st) < 0)
        return 0;
    if (!S_ISSOCK(st.st_mode))
        return err_set(err, -EEXIST, "%s: exists and is not a socket", address->path);
    int fd;
    int r = connect_unix(address, &fd);
    if (r == 0) {
        close(fd);
        return err_set(err, -EADDRINUSE, "%s: another process listens there",
                       address->path);
    }
    if (unlink(address->path) < 0 && errno != ENOENT)
        return err_set(err, -errno, "%s: cannot remove the old socket: %s", address->path,
                       strerror(errno));
    return 0;
}

static int bind_unix(int fd, const struct socket_address *address, struct error *err)
{
    struct sockaddr_un un = unix_address(address);
    int r = remove_stale(address, err);
    if (r < 0)
        return r;
    if (bind(fd, (struct sockaddr *)&un, sizeof un) < 0)
        return err_set(err, -errno, "%s: %s", address->path, strerror(errno));
    if (chmod(address->path, 0600) < 0)
        return err_set(err, -errno, "%s: %s", address->path, strerror(errno));
    return 0;
}

static int bind_tcp(int fd, const struct addrinfo *ai,
                    const struct socket_address *address, struct error *err)
{
    const int on = 1;
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(fd, ai->ai_addr, ai->ai_addrlen) < 0)
        return err_set(err, -errno, "%s: %s", address_text(address).text,
                       strerror(errno));
    return 0;
}

static int listen_on(const struct socket_address *address, int *ret_fd, struct error *err)
{
    struct addrinfo *ai = NULL;
    int family = AF_UNIX, r = 0;
    if (address->kind == ADDRESS_TCP) {
        r = resolve(address, &ai);
        if (r < 0)
            return err_set(err, r, "%s: no such host", address->host);
        family = ai->ai_family;
    }
    int fd = socket(family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0)
        r = err_set(err, -errno, "cannot make a socket: %s", strerror(errno));
    else if (ai == NULL)
        r = bind_unix(fd, address, err);
    else
        r = bind_tcp(fd, ai, address, err);
    if (r == 0 && listen(fd, BACKLOG) < 0)
        r = err_set(err, -errno, "%s: %s", address_text(address).text, strerror(errno));
    if (ai != NULL)
        freeaddrinfo(ai);
    if (r == 0)
        *ret_fd = fd;
    else if (fd >= 0)
        close(fd);
    return r;
}

int address_listen(const struct socket_address *address, int *ret_fd, struct error *err)
{
    int r = address_check_loopback(address, err);
    return r < 0 ? r : listen_on(address, ret_fd, err);
}

static int try_one(const struct socket_address *address, const struct addrinfo *ai)
{
    int fd = socket(ai->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    int r = fd < 0 ? -errno : bind_tcp(fd, ai, address, NULL);
    if (r == 0 && listen(fd, BACKLOG) < 0)
        r = -errno;
    if (fd >= 0)
        close(fd);
    return r;
}

static bool is_number(const char *host)
{
    unsigned char ignored[sizeof(struct in6_addr)];
    return inet_pton(AF_INET, host, ignored) == 1 ||
           inet_pton(AF_INET6, host, ignored) == 1;
}

/* One that others connect to must be the same for them. /etc/hosts often has 127.0.1.1
 * for the machine itself. */
static int check_name(const struct socket_address *address, const struct addrinfo *list,
                      struct error *err)
{
    bool all = true;
    if (is_number(address->host) || strcmp(address->host, "localhost") == 0)
        return 0;
    for (const struct addrinfo *ai = list; ai != NULL; ai = ai->ai_next)
        all = all && is_loopback(ai->ai_addr);
    if (!all)
        return 0;
    return err_set(err, -EADDRNOTAVAIL,
                   "%s: on this machine that name is a loopback address, which others "
                   "cannot reach: give a number, or mend /etc/hosts",
                   address->host);
}

int address_try(const struct socket_address *address, struct error *err)
{
    struct addrinfo *list;
    int r = resolve(address, &list);
    if (r < 0)
        return err_set(err, r, "%s: no such host", address->host);
    r = check_name(address, list, err);
    if (r == 0) {
        r = -EADDRNOTAVAIL;
        for (struct addrinfo *ai = list; ai != NULL && r != 0; ai = ai->ai_next)
            r = try_one(address, ai);
        if (r < 0)
            err_set(err, r, "%s: %s", address_text(address).text, err_text(r));
    }
    freeaddrinfo(list);
    return r;
}
