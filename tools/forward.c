/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Commands that move the bytes of disks are run by parallax-images, which is the same
 * program with libnbd in place of this file. To load that library takes longer than most
 * other commands.
 */
#include "tools/cli.h"

#define PROGRAM "parallax-images"

int cmd_import(const struct cli *cli)
{
    return cli_exec(cli, PROGRAM, cli->argv);
}

int cmd_export(const struct cli *cli)
{
    return cli_exec(cli, PROGRAM, cli->argv);
}
