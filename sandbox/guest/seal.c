/* Makes paths of a container read-only from outside, whoever is root in it.
 *
 *   seal PID PATH...     as the host's root; a path that is not there is left out, and none is reached through a link
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/mount.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

static int fail(const char *what) {
    fprintf(stderr, "seal: %s: %s\n", what, strerror(errno));
    return 120;
}

int main(int argc, char **argv) {
    char name[64];
    struct mount_attr read_only = {.attr_set = MOUNT_ATTR_RDONLY};
    if (argc < 3) return 123;
    snprintf(name, sizeof name, "/proc/%s/ns/mnt", argv[1]);
    int ns = open(name, O_RDONLY | O_CLOEXEC);
    if (ns < 0 || setns(ns, CLONE_NEWNS) || chdir("/")) return fail("the container's mounts");
    for (int i = 2; i < argc; i++) {
        unsigned flags = AT_RECURSIVE | AT_SYMLINK_NOFOLLOW;
        int tree = (int)syscall(SYS_open_tree, AT_FDCWD, argv[i], OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | flags);
        if (tree < 0 && (errno == ENOENT || errno == ENOTDIR || errno == EINVAL)) continue;
        if (tree < 0) return fail(argv[i]);
        if (syscall(SYS_mount_setattr, tree, "", AT_EMPTY_PATH | AT_RECURSIVE, &read_only, sizeof read_only))
            return fail(argv[i]);
        if (syscall(SYS_move_mount, tree, "", AT_FDCWD, argv[i], MOVE_MOUNT_F_EMPTY_PATH)) return fail(argv[i]);
        close(tree);
    }
    return 0;
}
