/* SPDX-License-Identifier: Apache-2.0 */
/* Keys and certificates: what is signed, and what is not. */
#include <time.h>

#include "runtime/runtime.h"
#include "tests/unit/net_ends.h"

/* --- made with another program --- */

/* Asks for the name of node 9 and for the rights of a CA. */
static const char wishing_request[] =
    "-----BEGIN CERTIFICATE REQUEST-----\n"
    "MIIBPjCB5QIBADApMRgwFgYDVQQDDA9QYXJhbGxheCBub2RlIDkxDTALBgNVBAoM\n"
    "BHJvb3QwWTATBgcqhkjOPQIBBggqhkjOPQMBBwNCAAQmO7VcYl40cv7yr7MmsDUN\n"
    "FHkC6LheTk03F4h45m5WdQuIm5lBLwp32x3ZyzrteHQi6yJ//y5JVWsFoV1YW1iw\n"
    "oFowWAYJKoZIhvcNAQkOMUswSTA2BgNVHREELzAthitwYXJhbGxheDpjMTAyMDMw\n"
    "NDA1MDYwNzA4MDkwYTBiMGMwZDBlMGYwMDo5MA8GA1UdEwEB/wQFMAMBAf8wCgYI\n"
    "KoZIzj0EAwIDSAAwRQIgCSfby0F/o5YCyZMqL5Z4zHosRsQXgjQAdV1FGL9zZYUC\n"
    "IQCRKIkRcZ6TI4p8zf0G6urwDUAH8BQe4nqQ4oKbzJu1jg==\n"
    "-----END CERTIFICATE REQUEST-----\n";

/* The same with one bit of its signature changed. */
static const char forged_request[] =
    "-----BEGIN CERTIFICATE REQUEST-----\n"
    "MIIBPjCB5QIBADApMRgwFgYDVQQDDA9QYXJhbGxheCBub2RlIDkxDTALBgNVBAoM\n"
    "BHJvb3QwWTATBgcqhkjOPQIBBggqhkjOPQMBBwNCAAQmO7VcYl40cv7yr7MmsDUN\n"
    "FHkC6LheTk03F4h45m5WdQuIm5lBLwp32x3ZyzrteHQi6yJ//y5JVWsFoV1YW1iw\n"
    "oFowWAYJKoZIhvcNAQkOMUswSTA2BgNVHREELzAthitwYXJhbGxheDpjMTAyMDMw\n"
    "NDA1MDYwNzA4MDkwYTBiMGMwZDBlMGYwMDo5MA8GA1UdEwEB/wQFMAMBAf8wCgYI\n"
    "KoZIzj0EAwIDSAAwRQIgCSfby0F/o5YCyZMqL5Z4zHosRsQXgjQAdV1FGL9zZYUC\n"
    "IQCRKIkRcZ6TI4p8zf0G6urwDUAH8BQe4nqQ4oKbzJq1jg==\n"
    "-----END CERTIFICATE REQUEST-----\n";

static const char rsa_request[] =
    "-----BEGIN CERTIFICATE REQUEST-----\n"
    "MIICUTCCATkCAQAwDDEKMAgGA1UEAwwBcjCCASIwDQYJKoZIhvcNAQEBBQADggEP\n"
    "ADCCAQoCggEBAMqfyqEKT5bN2XfJC0McQgnituju9gXhW2u0jG0ip6L6N/YmvAvE\n"
    "Yg38l9K1feLUm6CDTuyxaS88DrZHcA+9BBr/iM8SVgf9x7NyyyRB5FJmKnz4X8hS\n"
    "n86QM22MDv7dbUZRxutt8acglWOg/ftefCQq+eiNGhH9MryRDcxUgX4UqGFgfo5o\n"
    "9Q4UeTEEvVPA/or055AagifSN7aO54crKEHEDUzwckpj754wcvFqSMo9PlFikuBE\n"
    "jyTg97tEvsOcA+/HpoYG1YteZLgu5lRTflCvagI6Rc4JvQ8sfksg3zxCrQ7DmjK1\n"
    "mftsmYQ8WgNOYS/ZJHsPOVZS/ZxvyEti+U0CAwEAAaAAMA0GCSqGSIb3DQEBCwUA\n"
    "A4IBAQB+e4YT0pd6haJnQS3bw1VA+wQg+5RZ/uEWl8ymtv4WRRmZewM2yrcvlI64\n"
    "i2GQdRq2nH+ZihAWaE+/8Uvdqs8M1Kj3Dbmhkn1AzSDvDbaniWMQpNDO277xxlBJ\n"
    "Vzu9wFPiaTJ/rTfJN1evg0QdJgN+fJ6LvnkrZHd/jVJqc5bFx8cUbeApAIGk4aEw\n"
    "VJXELGVbBd1HCDPNoOPTMAPVreILGcV+DrcmUFoEprV9SagQbBqmeV+KTZP6TUor\n"
    "fDS5r9mdFqTbiu72mKto4lz6qsrwVnPb3bmOhqSkPSgTEF63zHDrJUXqB7H6mcLa\n"
    "lMP7zCpqZGpDtwW9b7TLSPHaoD7d\n"
    "-----END CERTIFICATE REQUEST-----\n";

static const char p384_request[] =
    "-----BEGIN CERTIFICATE REQUEST-----\n"
    "MIIBBDCBiwIBADAMMQowCAYDVQQDDAFwMHYwEAYHKoZIzj0CAQYFK4EEACIDYgAE\n"
    "J5MxWu3rWNXkE6UhL+U0myjH1rz/WH+Qip+FGNSoz/cL8fWxrWYGzqy0QjjTbFDt\n"
    "xSDUfefyb6ifFzfo5D/6oibF8iW8HmvKsAwmSZpmu7g7rFhWY/gGH20Jh5G1SbbD\n"
    "oAAwCgYIKoZIzj0EAwIDaAAwZQIwOqVrWXfPIvvEKHQ/fGhJaBBdX43G1dOUvgTZ\n"
    "lQz+EVkXb6moRUPjdZYgGJ9xK2LwAjEAsuMkFsufGXcHc2KjeYVIznit/9dCE2kD\n"
    "vlx7ud6tbJ5rw3BFsijRqbRBlsyc1ago\n"
    "-----END CERTIFICATE REQUEST-----\n";

/* Names two nodes. */
static const char two_names[] =
    "-----BEGIN CERTIFICATE-----\n"
    "MIIB1TCCAXygAwIBAgIUPG5SVUFcI07C6feRlXMuOtQ69vUwCgYIKoZIzj0EAwIw\n"
    "DDEKMAgGA1UEAwwBeDAgFw0yNjExMjYwMzUzMTdaGA8yMTI2MTEwMjAzNTMxN1ow\n"
    "DDEKMAgGA1UEAwwBeDBZMBMGByqGSM49AgEGCCqGSM49AwEHA0IABCY7tVxiXjRy\n"
    "/vKvsyawNQ0UeQLouF5OTTcXiHjmblZ1C4ibmUEvCnfbHdnLOu14dCLrIn//LklV\n"
    "awWhXVhbWLCjgbkwgbYwHQYDVR0OBBYEFO33gjF5i03LUfyoSMME2BkDJvFGMB8G\n"
    "A1UdIwQYMBaAFO33gjF5i03LUfyoSMME2BkDJvFGMA8GA1UdEwEB/wQFMAMBAf8w\n"
    "YwYDVR0RBFwwWoYrcGFyYWxsYXg6YzEwMjAzMDQwNTA2MDcwODA5MGEwYjBjMGQw\n"
    "ZTBmMDA6OYYrcGFyYWxsYXg6YzEwMjAzMDQwNTA2MDcwODA5MGEwYjBjMGQwZTBm\n"
    "MDA6ODAKBggqhkjOPQQDAgNHADBEAiBiqlddABm/WDo/0Ft7wOHh0jVzPp1iNsrJ\n"
    "OWWXvVCoPQIgN19OxKVCl10VoNYA/Qbip8m7b+ss9D9egVK138WnZbs=\n"
    "-----END CERTIFICATE-----\n";

/* Names node "09". */
static const char odd_name[] =
    "-----BEGIN CERTIFICATE-----\n"
    "MIIBqjCCAVCgAwIBAgIUW+3n4QU/n+WG3zUIPdu8i35JBY8wCgYIKoZIzj0EAwIw\n"
    "DDEKMAgGA1UEAwwBeDAgFw0yNjExMjYwMzUzMTdaGA8yMTI2MTEwMjAzNTMxN1ow\n"
    "DDEKMAgGA1UEAwwBeDBZMBMGByqGSM49AgEGCCqGSM49AwEHA0IABCY7tVxiXjRy\n"
    "/vKvsyawNQ0UeQLouF5OTTcXiHjmblZ1C4ibmUEvCnfbHdnLOu14dCLrIn//LklV\n"
    "awWhXVhbWLCjgY0wgYowHQYDVR0OBBYEFO33gjF5i03LUfyoSMME2BkDJvFGMB8G\n"
    "A1UdIwQYMBaAFO33gjF5i03LUfyoSMME2BkDJvFGMA8GA1UdEwEB/wQFMAMBAf8w\n"
    "NwYDVR0RBDAwLoYscGFyYWxsYXg6YzEwMjAzMDQwNTA2MDcwODA5MGEwYjBjMGQw\n"
    "ZTBmMDA6MDkwCgYIKoZIzj0EAwIDSAAwRQIgbWW4hzG6t/1VK7/qZ+7Vk8mRwknX\n"
    "edvokoay7wb0PuwCIQCArb7LxNR1pDDopKDibh0f9g5Zymq7VmZJ4PDzpuB47Q==\n"
    "-----END CERTIFICATE-----\n";

/* A key that wants a password: nobody may be asked for it. */
static const char locked_key[] =
    "-----BEGIN ENCRYPTED PRIVATE KEY-----\n"
    "MIHsMFcGCSqGSIb3DQEFDTBKMCkGCSqGSIb3DQEFDDAcBAiwq0LgfhFxDwICCAAw\n"
    "DAYIKoZIhvcNAgkFADAdBglghkgBZQMEAQIEELnaE7RNupEGBDAVy/EQuz0EgZCv\n"
    "N3FnCjNbsn4irdFtKuxU/Ue6/eW7hK3MYcFnKfH7YtBVYQa/u0jl/QGr3esZTeYT\n"
    "J3JWoSfcdkLn0t3pn5GOuCegCF3S7iaVNkoA3ARDO6Sb/eJh8RUqUx0QpGKey9Tl\n"
    "2UKjCbIfmWzXoaqKqzgfFFm6LXl0DOMGC/u63RZZfk0H4h2vxLQF0t/2DH+WLHU=\n"
    "-----END ENCRYPTED PRIVATE KEY-----\n";

static struct test_pki pki;

static const struct net_identity second = {CLUSTER_UID, 2};

static void test_authority(void)
{
    struct net_identity identity = {.node = 7};
    uint64_t until_s;
    CHECK_EQ(net_pki_inspect(pki.authority.certificate, &identity, &until_s, NULL), 0);
    CHECK(uid_equal(identity.cluster, pki.cluster));
    CHECK_EQ(identity.node, 0);
    uint64_t years = (until_s - (uint64_t)time(NULL)) / (365 * 86400);
    CHECK(years >= 19 && years <= 20);
    uint8_t one[NET_DIGEST_BYTES], again[NET_DIGEST_BYTES];
    CHECK_EQ(net_pki_digest(pki.authority.certificate, one, NULL), 0);
    CHECK_EQ(net_pki_digest(pki.authority.certificate, again, NULL), 0);
    CHECK(memcmp(one, again, sizeof one) == 0);
    /* The same cluster once more is another CA. */
    struct net_pki_pair other;
    CHECK_EQ(net_pki_create_authority(pki.cluster, &other, NULL), 0);
    CHECK_EQ(net_pki_digest(other.certificate, again, NULL), 0);
    CHECK(memcmp(one, again, sizeof one) != 0);
    free(other.certificate);
    net_pki_free_key(other.key);
    net_pki_free_key(NULL);
}

static void test_sign(void)
{
    struct net_pki_pair request;
    struct net_identity identity;
    char *certificate = NULL, *next = NULL;
    uint64_t until_s, largest = UINT64_MAX;
    CHECK_EQ(net_pki_create_request(&request, NULL), 0);
    CHECK_EQ(net_pki_sign(&pki.authority, request.certificate,
                          (struct net_identity){pki.cluster, largest}, 90, &certificate,
                          NULL),
             0);
    CHECK_EQ(net_pki_inspect(certificate, &identity, &until_s, NULL), 0);
    CHECK(uid_equal(identity.cluster, pki.cluster) && identity.node == largest);
    uint64_t left_s = until_s - (uint64_t)time(NULL);
    CHECK(left_s > 89 * 86400 && left_s < 90 * 86400);
    /* Serials differ, and so everything else does. */
    CHECK_EQ(net_pki_sign(&pki.authority, request.certificate, identity, 90, &next, NULL),
             0);
    CHECK(strcmp(certificate, next) != 0);
    free(certificate);
    free(next);
    free(request.certificate);
    net_pki_free_key(request.key);
}

/* Only the key of a request counts. */
static void test_wishes(void)
{
    struct net_identity identity;
    char *certificate = NULL;
    uint64_t until_s;
    CHECK_EQ(net_pki_sign(&pki.authority, wishing_request, second, 1, &certificate, NULL),
             0);
    CHECK_EQ(net_pki_inspect(certificate, &identity, &until_s, NULL), 0);
    CHECK_EQ(identity.node, 2);
    CHECK(uid_equal(identity.cluster, pki.cluster));
    free(certificate);
}

static void expect_unsigned(const struct net_pki_pair *authority, const char *request,
                            struct net_identity identity, int code, const char *words)
{
    struct error err = {0};
    char *certificate = NULL;
    CHECK_EQ(net_pki_sign(authority, request, identity, 1, &certificate, &err), code);
    CHECK(certificate == NULL);
    if (strstr(err.text, words) == NULL)
        fprintf(stderr, "%s\n", err.text);
    CHECK(strstr(err.text, words) != NULL);
    CHECK(strstr(err.text, "PRIVATE KEY") == NULL);
}

static void test_not_signed(void)
{
    const struct net_pki_pair *authority = &pki.authority;
    char *large = malloc(1 * MIB);
    CHECK(large != NULL);
    memset(large, 'A', 1 * MIB);
    large[1 * MIB - 1] = '\0';
    expect_unsigned(authority, forged_request, second, -PLX_EDENIED, "own key");
    expect_unsigned(authority, rsa_request, second, -PLX_EDENIED, "P-256");
    expect_unsigned(authority, p384_request, second, -PLX_EDENIED, "P-256");
    expect_unsigned(authority, "", second, -PLX_EFORMAT, "request");
    expect_unsigned(authority, "nonsense", second, -PLX_EFORMAT, "request");
    expect_unsigned(authority, large, second, -PLX_EFORMAT, "request");
    expect_unsigned(authority, pki.nodes[1].certificate, second, -PLX_EFORMAT, "request");
    free(large);
}

/* Every request cut short, and with any byte changed, is refused or signed as asked. */
static void test_damaged_requests(void)
{
    size_t len = strlen(wishing_request);
    char damaged[sizeof wishing_request];
    struct net_identity identity;
    uint64_t until_s;
    for (size_t i = 0; i < len; i += 3) {
        char *certificate = NULL;
        memcpy(damaged, wishing_request, sizeof damaged);
        damaged[i] = i % 2 == 0 ? '\0' : (char)(damaged[i] ^ 1);
        int rc = net_pki_sign(&pki.authority, damaged, second, 1, &certificate, NULL);
        CHECK(rc == 0 || rc == -PLX_EFORMAT || rc == -PLX_EDENIED);
        if (rc < 0)
            continue;
        CHECK_EQ(net_pki_inspect(certificate, &identity, &until_s, NULL), 0);
        CHECK_EQ(identity.node, 2);
        free(certificate);
    }
}

static void test_wrong_authority(void)
{
    struct net_pki_pair mixed = {pki.authority.certificate, pki.nodes[1].key};
    struct net_identity other = second;
    struct net_pki_pair locked = {pki.authority.certificate,
                                  (char *)(uintptr_t)locked_key};
    expect_unsigned(&mixed, wishing_request, second, -PLX_EFORMAT, "key");
    expect_unsigned(&locked, wishing_request, second, -PLX_EFORMAT, "key");
    /* A node is no CA. */
    expect_unsigned(&pki.nodes[1], wishing_request, second, -PLX_EFORMAT, "CA");
    other.cluster.b[0] ^= 1;
    expect_unsigned(&pki.authority, wishing_request, other, -PLX_EFORMAT, "cluster");
}

static void test_inspect(void)
{
    struct net_identity identity = {.node = 7};
    uint64_t until_s = 7;
    uint8_t digest[NET_DIGEST_BYTES];
    const char *const texts[] = {two_names,
                                 odd_name,
                                 "",
                                 "x",
                                 wishing_request,
                                 "-----BEGIN CERTIFICATE-----\nAAAA\n"
                                 "-----END CERTIFICATE-----\n"};
    for (size_t i = 0; i < ARRAY_LEN(texts); i++) {
        struct error err = {0};
        CHECK_EQ(net_pki_inspect(texts[i], &identity, &until_s, &err), -PLX_EFORMAT);
        CHECK(strstr(err.text, "certificate") != NULL);
        CHECK_EQ(identity.node, 7);
        CHECK_EQ(until_s, 7);
    }
    CHECK_EQ(net_pki_digest("x", digest, NULL), -PLX_EFORMAT);
}

static void test_hash(void)
{
    static const uint8_t abc[] = {0xba, 0x78, 0x16, 0xbf, 0x8f, 0x01, 0xcf, 0xea};
    uint8_t digest[NET_DIGEST_BYTES];
    CHECK_EQ(net_pki_hash("abc", 3, digest, NULL), 0); /* of FIPS 180-2 */
    CHECK(memcmp(digest, abc, sizeof abc) == 0);
    CHECK_EQ(net_pki_hash("", 0, digest, NULL), 0);
    CHECK_EQ(digest[0], 0xe3);
}

int main(void)
{
    test_hash();
    test_pki_create(&pki, CLUSTER_UID);
    test_authority();
    test_sign();
    test_wishes();
    test_not_signed();
    test_damaged_requests();
    test_wrong_authority();
    test_inspect();
    test_pki_free(&pki);
    return 0;
}
