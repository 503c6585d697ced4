/* SPDX-License-Identifier: Apache-2.0 */
/* Addresses and the NBD URIs made of them. */
#include "tools/address.h"

#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#include "tests/unit/check.h"
#include "tools/uri.h"

static struct socket_address parse(const char *text)
{
    struct socket_address address;
    struct error err = {0};
    CHECK_EQ(address_parse(text, &address, &err), 0);
    return address;
}

static void test_parse(void)
{
    struct socket_address a = parse("unix:x.sock");
    CHECK(a.kind == ADDRESS_UNIX);
    CHECK_STR(a.path, "x.sock");
    a = parse("/run/x:1");
    CHECK(a.kind == ADDRESS_UNIX);
    a = parse("x.sock");
    CHECK(a.kind == ADDRESS_UNIX);
    a = parse("127.0.0.1:10809");
    CHECK(a.kind == ADDRESS_TCP);
    CHECK_STR(a.host, "127.0.0.1");
    CHECK_STR(a.port, "10809");
    a = parse("[::1]:80");
    CHECK_STR(a.host, "::1");
    CHECK_STR(address_text(&a).text, "[::1]:80");
}

static void test_refuse(void)
{
    struct socket_address address;
    struct error err = {0};
    char path[200];
    memset(path, 'a', sizeof path);
    path[sizeof path - 1] = '\0';
    CHECK_EQ(address_parse(path, &address, &err), -ENAMETOOLONG);
    CHECK_EQ(address_parse("", &address, &err), -EINVAL);
    CHECK_EQ(address_parse("localhost:0", &address, &err), -EINVAL);
    CHECK_EQ(address_parse("localhost:65536", &address, &err), -EINVAL);
    /* What was meant as HOST:PORT does not become a socket of that name. */
    CHECK_EQ(address_parse("127.0.0.1:99999999999999999999", &address, &err), -EINVAL);
    CHECK_EQ(address_parse("127.0.0.1:http", &address, &err), -EINVAL);
}

static void test_loopback(void)
{
    struct error err = {0};
    struct socket_address a = parse("127.9.9.9:1");
    CHECK_EQ(address_check_loopback(&a, &err), 0);
    a = parse("[::1]:1");
    CHECK_EQ(address_check_loopback(&a, &err), 0);
    a = parse("0.0.0.0:1");
    CHECK_EQ(address_check_loopback(&a, &err), -EADDRNOTAVAIL);
    a = parse("10.0.0.1:1");
    CHECK_EQ(address_check_loopback(&a, &err), -EADDRNOTAVAIL);
    CHECK(strstr(err.text, "127.0.0.1:1") != NULL);
}

/* A live socket is left alone, a stale one and nothing else is replaced. */
static void test_listen(void)
{
    char folder[] = "/tmp/test_address.XXXXXX", path[64];
    CHECK(mkdtemp(folder) != NULL);
    snprintf(path, sizeof path, "%s/s", folder);
    struct socket_address a = parse(path);
    struct error err = {0};
    int fd, other;
    CHECK_EQ(address_connect(&a, &other), -ENOENT);
    CHECK_EQ(address_listen(&a, &fd, &err), 0);
    CHECK_EQ(address_connect(&a, &other), 0);
    close(other);
    struct stat st;
    CHECK_EQ(stat(path, &st), 0);
    CHECK_EQ(st.st_mode & 0777, 0600);
    CHECK_EQ(address_listen(&a, &other, &err), -EADDRINUSE);
    close(fd);
    CHECK_EQ(address_connect(&a, &other), -ECONNREFUSED);
    CHECK_EQ(address_listen(&a, &fd, &err), 0);
    close(fd);
    unlink(path);
    FILE *file = fopen(path, "w");
    CHECK(file != NULL);
    fclose(file);
    CHECK_EQ(address_listen(&a, &fd, &err), -EEXIST);
    unlink(path);
    rmdir(folder);
}

static void check_uri(const char *address, const char *name, const char *expected)
{
    struct socket_address a = parse(address);
    char *uri = uri_of_address(&a, name);
    CHECK_STR(uri, expected);
    char *server = uri_of_address(&a, "");
    char *again = uri_with_export(server, name);
    CHECK_STR(again, expected);
    free(uri);
    free(server);
    free(again);
}

static void test_uri(void)
{
    check_uri("/run/nbd.sock", "web@1", "nbd+unix:///web@1?socket=/run/nbd.sock");
    check_uri("/a b/n", "x+y", "nbd+unix:///x%2By?socket=/a%20b/n");
    check_uri("127.0.0.1:10809", "d", "nbd://127.0.0.1:10809/d");
    check_uri("[::1]:1", "", "nbd://[::1]:1/");
    CHECK(uri_is_nbd("nbd+unix:///x?socket=y"));
    CHECK(uri_is_nbd("nbds://host/x"));
    CHECK(!uri_is_nbd("nbd.raw"));
    CHECK(!uri_is_nbd("/nbd://x"));
}

int main(void)
{
    test_parse();
    test_refuse();
    test_loopback();
    test_listen();
    test_uri();
    return 0;
}
