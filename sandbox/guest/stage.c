/* Prepares, in a private mount namespace, what bubblewrap 0.8 cannot, drops every privilege, and becomes bubblewrap.
 *
 *   stage [options] -- program args...
 *     -u UID        as root: the host uid and gid to become (as another user: a user namespace of one's own is made)
 *     -g FILE       write "0" (this process) into a cgroup.procs file
 *     -s MIB        size of the tmpfs that holds all that the sandbox writes
 *     -l DIR        a lower layer of the work tree, topmost first; its owner's files appear as the sandbox's
 *     -c DIR        copy the content of DIR into the work tree instead (where an overlay cannot be had)
 *     -h DIR        copy the content of DIR into the home and temporary directories (`home/`, `tmp/`)
 *     -b SRC=NAME   bind SRC at /tmp/NAME
 *
 * Afterwards /tmp holds: work (the tree), upper, home, tmp and shm (writable), and the binds. All of it ends with the last
 * process of the namespace; nothing of it is ever visible outside.
 */
#define _GNU_SOURCE
#define PROGRAM "stage"
#include <dirent.h>
#include <fcntl.h>
#include <linux/mount.h>
#include <grp.h>
#include <sched.h>
#include <stdint.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "host_program.h"

#define MAX_ITEMS 64

static uid_t uid;
static int as_root;

static void write_file(const char *path, const char *text) {
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    if (fd < 0 || write(fd, text, strlen(text)) < 0) die(path);
    close(fd);
}

static void make_dir(const char *path) {
    if (mkdir(path, 0755) || chown(path, uid, uid)) die(path);
}

/* A user namespace in which on-disk `owner` is shown as the sandbox's uid; for an id-mapped mount. */
static int user_namespace(uid_t owner, gid_t group) {
    int ready[2], done[2];
    char byte;
    if (pipe2(ready, O_CLOEXEC) || pipe2(done, O_CLOEXEC)) die("pipe");
    pid_t pid = fork();
    if (!pid) {
        if (unshare(CLONE_NEWUSER) || write(ready[1], "r", 1) != 1) _exit(1);
        close(done[1]);
        if (read(done[0], &byte, 1) < 0) _exit(1);
        _exit(0);
    }
    close(ready[1]);
    if (pid < 0 || read(ready[0], &byte, 1) != 1) die("user namespace");
    write_file(format("/proc/%d/uid_map", pid), format("%u %u 1", owner, uid));
    write_file(format("/proc/%d/gid_map", pid), format("%u %u 1", group, uid));
    int fd = open(format("/proc/%d/ns/user", pid), O_RDONLY | O_CLOEXEC);
    if (fd < 0) die("user namespace");
    close(done[0]), close(done[1]), close(ready[0]);
    waitpid(pid, 0, 0);
    return fd;
}

/* A detached copy of the mount at `path`, its owner's files shown as the sandbox's when we are root. */
static int clone_tree(const char *path) {
    struct stat s;
    int fd = (int)syscall(SYS_open_tree, AT_FDCWD, path, OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC);
    if (fd < 0 || fstat(fd, &s)) die(path);
    if (as_root && s.st_uid != uid) {
        struct mount_attr map = {.attr_set = MOUNT_ATTR_IDMAP, .userns_fd = (uint64_t)user_namespace(s.st_uid, s.st_gid)};
        if (syscall(SYS_mount_setattr, fd, "", AT_EMPTY_PATH, &map, sizeof map)) die("id-mapped mount");
        close((int)map.userns_fd);
    }
    return fd;
}

static void attach(int tree, const char *at) {
    if (syscall(SYS_move_mount, tree, "", AT_FDCWD, at, MOVE_MOUNT_F_EMPTY_PATH)) die(at);
    close(tree);
}

static void copy_file(int from_dir, int to_dir, const char *name, mode_t mode) {
    int from = openat(from_dir, name, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
    int to = openat(to_dir, name, O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW | O_CLOEXEC, 0600);
    if (from < 0 || to < 0) die(name);
    char data[1 << 16];
    for (ssize_t n; (n = read(from, data, sizeof data));)
        if (n < 0 || write(to, data, (size_t)n) != n) die(name);
    if (fchown(to, uid, uid) || fchmod(to, mode & 07777)) die(name);
    close(from), close(to);
}

/* Regular files, links and directories; anything else in a source tree is left out. Closes both. */
static void copy_tree(int from, int to) {
    DIR *dir = fdopendir(from);
    if (!dir || to < 0) die("copy");
    for (struct dirent *e; (e = readdir(dir));) {
        struct stat s;
        char target[4096];
        if (!strcmp(e->d_name, ".") || !strcmp(e->d_name, "..")) continue;
        if (fstatat(from, e->d_name, &s, AT_SYMLINK_NOFOLLOW)) die(e->d_name);
        if (S_ISREG(s.st_mode)) {
            copy_file(from, to, e->d_name, s.st_mode);
        } else if (S_ISLNK(s.st_mode)) {
            ssize_t n = readlinkat(from, e->d_name, target, sizeof target - 1);
            if (n < 0) die(e->d_name);
            target[n] = 0;
            if (symlinkat(target, to, e->d_name)) die(e->d_name);
            if (fchownat(to, e->d_name, uid, uid, AT_SYMLINK_NOFOLLOW)) die(e->d_name);
        } else if (S_ISDIR(s.st_mode)) {
            if (mkdirat(to, e->d_name, 0700) && errno != EEXIST) die(e->d_name);
            int child = openat(to, e->d_name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
            if (child < 0 || fchown(child, uid, uid) || fchmod(child, s.st_mode & 07777)) die(e->d_name);
            copy_tree(openat(from, e->d_name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC), child);
        }
    }
    closedir(dir), close(to);
}

static int open_dir(const char *path) { return open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC); }

static void enter_namespaces(void) {
    gid_t gid = getgid();
    if (unshare(as_root ? CLONE_NEWNS : CLONE_NEWUSER | CLONE_NEWNS)) die("unshare (are user namespaces allowed?)");
    if (!as_root) {
        write_file("/proc/self/setgroups", "deny");
        write_file("/proc/self/uid_map", format("%u %u 1", uid, uid));
        write_file("/proc/self/gid_map", format("%u %u 1", uid, gid));
    }
    if (mount("", "/", 0, MS_REC | MS_PRIVATE, 0)) die("private mounts");
}

static void drop_privileges(void) {
    if (!as_root) return;
    if (setgroups(0, 0) || setresgid(uid, uid, uid) || setresuid(uid, uid, uid)) die("drop privileges");
    if (!setuid(0)) exit(122);
}

struct plan {
    const char *size, *copy, *homes;
    const char *lowers[MAX_ITEMS], *binds[MAX_ITEMS];
    int num_lowers, num_binds;
    int lower_trees[MAX_ITEMS], bind_trees[MAX_ITEMS], copy_dir, homes_dir;
};

static void read_options(int argc, char **argv, struct plan *p) {
    for (int option; (option = getopt(argc, argv, "+u:g:s:l:c:h:b:")) != -1;) {
        if (p->num_lowers == MAX_ITEMS || p->num_binds == MAX_ITEMS) exit(123);
        switch (option) {
        case 'u': if (as_root) uid = (uid_t)atoi(optarg); break;
        case 'g': write_file(optarg, "0"); break;
        case 's': p->size = optarg; break;
        case 'l': p->lowers[p->num_lowers++] = optarg; break;
        case 'c': p->copy = optarg; break;
        case 'h': p->homes = optarg; break;
        case 'b': p->binds[p->num_binds++] = optarg; break;
        default: exit(123);
        }
    }
    if (!uid || !argv[optind]) exit(123);
}

/* Before /tmp is covered: all of it may lie there. */
static void open_sources(struct plan *p) {
    for (int i = 0; i < p->num_lowers; i++) p->lower_trees[i] = clone_tree(p->lowers[i]);
    for (int i = 0; i < p->num_binds; i++) {
        char *path = strdup(p->binds[i]), *name = path ? strrchr(path, '=') : 0;
        if (!name) exit(123);
        *name++ = 0;
        unsigned flags = OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_RECURSIVE;
        if ((p->bind_trees[i] = (int)syscall(SYS_open_tree, AT_FDCWD, path, flags)) < 0) die(path);
        p->binds[i] = name;
    }
    if (p->copy && (p->copy_dir = open_dir(p->copy)) < 0) die(p->copy);
    if (p->homes && (p->homes_dir = open_dir(p->homes)) < 0) die(p->homes);
}

static void make_writable_place(const struct plan *p) {
    static const char *const names[] = {"work", "upper", "scratch", "home", "tmp", "shm"};
    char *options = format("size=%sm,mode=755,nr_inodes=200000", p->size);
    if (mount("tmpfs", "/tmp", "tmpfs", MS_NOSUID | MS_NODEV, options) || chown("/tmp", uid, uid)) die("tmpfs");
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) make_dir(format("/tmp/%s", names[i]));
    if (p->homes) copy_tree(p->homes_dir, open_dir("/tmp"));
}

static void make_work_tree(const struct plan *p) {
    char *layers = "";
    if (p->copy) copy_tree(p->copy_dir, open_dir("/tmp/work"));
    if (!p->num_lowers) return;
    for (int i = 0; i < p->num_lowers; i++) {
        char *at = format("/tmp/lower%d", i);
        make_dir(at), attach(p->lower_trees[i], at);
        layers = format("%s%s%s", layers, i ? ":" : "", at);
    }
    const char *kind = as_root ? "xino=off" : "userxattr";
    char *options = format("lowerdir=%s,upperdir=/tmp/upper,workdir=/tmp/scratch,%s", layers, kind);
    if (mount("overlay", "/tmp/work", "overlay", MS_NOSUID | MS_NODEV, options)) die("overlay");
}

static void attach_binds(const struct plan *p) {
    for (int i = 0; i < p->num_binds; i++) {
        struct stat s;
        char *at = format("/tmp/%s", p->binds[i]);
        if (fstat(p->bind_trees[i], &s)) die(at);
        if (S_ISDIR(s.st_mode)) make_dir(at);
        else close(open(at, O_CREAT | O_WRONLY, 0644));
        attach(p->bind_trees[i], at);
    }
}

int main(int argc, char **argv) {
    struct plan plan = {.size = "256"};
    as_root = !geteuid(), uid = getuid();
    umask(022);
    read_options(argc, argv, &plan);
    enter_namespaces();
    open_sources(&plan);
    make_writable_place(&plan);
    make_work_tree(&plan);
    attach_binds(&plan);
    if (chdir("/")) die("/");
    drop_privileges();
    execv(argv[optind], argv + optind);
    die(argv[optind]);
}
