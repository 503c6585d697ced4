/* SPDX-License-Identifier: Apache-2.0 */
#include "runtime/error.h"
#include "tests/unit/check.h"

static void test_set_and_add(void)
{
    struct error err = {0};
    CHECK_EQ(err_set(&err, -EIO, "block %d", 7), -EIO);
    CHECK_EQ(err.code, -EIO);
    CHECK_STR(err.text, "block 7");
    CHECK_EQ(err_add(&err, -ENOMEM, "disk %s", "web01"), -EIO);
    CHECK_STR(err.text, "disk web01: block 7");
    /* The old text may be an argument. */
    CHECK_EQ(err_set(&err, -EAGAIN, "again: %s", err.text), -EAGAIN);
    CHECK_STR(err.text, "again: disk web01: block 7");
}

static void test_null_and_silent(void)
{
    CHECK_EQ(err_set(NULL, -EIO, "nobody listens"), -EIO);
    CHECK_EQ(err_add(NULL, -EBUSY, "nobody listens"), -EBUSY);
    struct error err = {0};
    CHECK_EQ(err_add(&err, -PLX_ECHECKSUM, "read"), -PLX_ECHECKSUM);
    CHECK_STR(err.text, "read: checksum mismatch");
}

static void test_long_texts_are_cut(void)
{
    char text[2000];
    memset(text, 'a', sizeof text - 1);
    text[sizeof text - 1] = '\0';
    struct error err = {0};
    err_set(&err, -EIO, "%s", text);
    CHECK_EQ(strlen(err.text), sizeof err.text - 1);
    err_add(&err, -EIO, "front");
    CHECK_EQ(strlen(err.text), sizeof err.text - 1);
    CHECK(strncmp(err.text, "front: aaa", 10) == 0);
    err_add(&err, -EIO, "%s", text);
    CHECK_EQ(strlen(err.text), sizeof err.text - 1);
}

static void test_tables(void)
{
    CHECK_STR(err_text(-PLX_EFULL), "no space in the store");
    CHECK_STR(err_text(PLX_EFULL), "no space in the store");
    CHECK_STR(err_name(-PLX_ECHECKSUM), "PLX_ECHECKSUM");
    CHECK_STR(err_name(-ENOENT), "ENOENT");
    CHECK_STR(err_text(-ENOENT), "No such file or directory");
    CHECK_STR(err_name(-99999), "UNKNOWN");
    CHECK_STR(err_text(INT32_MIN), err_text(0));
    CHECK_EQ(err_to_errno(-PLX_EFULL), ENOSPC);
    CHECK_EQ(err_to_errno(-PLX_EEPOCH), ESHUTDOWN);
    CHECK_EQ(err_to_errno(-EBUSY), EBUSY);
    CHECK_EQ(err_to_errno(-99999), EIO);
    CHECK_EQ(err_to_errno(0), 0);
}

int main(void)
{
    test_set_and_add();
    test_null_and_silent();
    test_long_texts_are_cut();
    test_tables();
    return 0;
}
