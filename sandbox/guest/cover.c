/* Gives a container that has just started a disk of its own size: covers everything writable in it with overlays whose
 * upper layers lie in one tmpfs, and makes the rest read-only.
 *
 *   cover PID MIB INODES [DIRECTORY...]    as the host's root, before anything runs in the container but its command
 *                                          server; the directories are made first
 *
 * What is written then is bounded in bytes and in files, whatever way it is written, and gone with the container, whatever
 * it looks like. Mounts of directories keep their places: those that are read-only as they are (binds), the others (volumes
 * of an image) covered as well; mounted files (/etc/hosts) become ordinary ones. A change of owner alone copies no content.
 */
#define _GNU_SOURCE
#define PROGRAM "cover"
#include <dirent.h>
#include <fcntl.h>
#include <linux/mount.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "host_program.h"

#define PLACE "/.longhaul-disk"
#define MAX_MOUNTS 256
#define MAX_TEXT 65536

struct mounted {
    char *path, *content; /* content: of a file */
    size_t len;
    int tree, writable;
};

static struct mounted mounts[MAX_MOUNTS];
static int num_mounts, num_covers;

static int is_below(const char *path, const char *folder) {
    size_t n = strlen(folder);
    return !strncmp(path, folder, n) && path[n] == '/';
}

static int is_kernels(const char *path) {
    static const char *const places[] = {"/proc", "/sys", "/dev"};
    for (size_t i = 0; i < sizeof places / sizeof *places; i++)
        if (!strcmp(path, places[i]) || is_below(path, places[i])) return 1;
    return 0;
}

/* Mount points of the container, by the host's own /proc. */
static void read_mounts(const char *pid) {
    char *name = format("/proc/%s/mountinfo", pid), *line = 0, path[4096], options[256];
    FILE *file = fopen(name, "re");
    size_t size = 0;
    if (!file) die(name);
    while (getline(&line, &size, file) > 0) {
        if (sscanf(line, "%*d %*d %*s %*s %4095s %255s", path, options) != 2) exit(122);
        if (!strcmp(path, "/") || is_kernels(path)) continue;
        if (strchr(path, '\\') || num_mounts == MAX_MOUNTS) exit(122); /* no mount of ours has such a name */
        mounts[num_mounts++] = (struct mounted){.path = strdup(path), .tree = -1, .writable = strncmp(options, "ro", 2) != 0};
    }
    fclose(file);
    free(line), free(name);
}

static void keep_mounts(void) {
    for (int i = 0; i < num_mounts; i++) {
        struct mounted *m = &mounts[i];
        struct stat s;
        if (stat(m->path, &s)) die(m->path);
        if (S_ISDIR(s.st_mode) || !m->writable) {
            m->tree = (int)syscall(SYS_open_tree, AT_FDCWD, m->path, OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC);
            if (m->tree < 0) die(m->path);
        } else {
            int fd = open(m->path, O_RDONLY | O_CLOEXEC);
            ssize_t n = fd < 0 || !(m->content = malloc(MAX_TEXT)) ? -1 : read(fd, m->content, MAX_TEXT);
            if (n < 0) die(m->path);
            m->len = (size_t)n;
            close(fd);
        }
    }
}

static void cover(const char *path) {
    struct stat s;
    char *upper = format(PLACE "/u%d", num_covers), *work = format(PLACE "/w%d", num_covers);
    num_covers++;
    if (stat(path, &s) || mkdir(upper, 0700) || mkdir(work, 0700)) die(path);
    if (chown(upper, s.st_uid, s.st_gid) || chmod(upper, s.st_mode & 07777)) die(upper);
    char *options = format("lowerdir=%s,upperdir=%s,workdir=%s,xino=off,metacopy=on", path, upper, work);
    if (mount("overlay", path, "overlay", MS_NOSUID | MS_NODEV, options)) die(path);
    free(upper), free(work), free(options);
}

static void restore_below(const char *folder) {
    for (int i = 0; i < num_mounts; i++) {
        struct mounted *m = &mounts[i];
        if (!is_below(m->path, folder)) continue;
        if (m->content) {
            int fd = open(m->path, O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW | O_CLOEXEC, 0644);
            if (fd < 0 || write(fd, m->content, m->len) != (ssize_t)m->len) die(m->path);
            close(fd);
        } else {
            if (syscall(SYS_move_mount, m->tree, "", AT_FDCWD, m->path, MOVE_MOUNT_F_EMPTY_PATH)) die(m->path);
            if (m->writable) cover(m->path);
        }
    }
}

static int is_mounted(const char *path) {
    for (int i = 0; i < num_mounts; i++)
        if (!strcmp(mounts[i].path, path)) return 1;
    return 0;
}

/* And its parents; one that is there stays as it is. */
static void make_dirs(char *path) {
    if (*path != '/') exit(123);
    for (char *at = path + 1; *at; at++)
        if (*at == '/') *at = 0, mkdir(path, 0755), *at = '/';
    if (mkdir(path, 0755) && errno != EEXIST) die(path);
}

int main(int argc, char **argv) {
    if (argc < 4) return 123;
    int ns = open(format("/proc/%s/ns/mnt", argv[1]), O_RDONLY | O_CLOEXEC);
    if (ns < 0) die("the container's mounts");
    read_mounts(argv[1]);
    if (setns(ns, CLONE_NEWNS) || chdir("/")) die("enter");
    umask(022);
    for (int i = 4; i < argc; i++) make_dirs(argv[i]);
    keep_mounts();
    if (mkdir(PLACE, 0700) && errno != EEXIST) die(PLACE);
    if (mount("tmpfs", PLACE, "tmpfs", MS_NOSUID | MS_NODEV, format("size=%sm,nr_inodes=%s,mode=700", argv[2], argv[3])))
        die("tmpfs");
    DIR *root = opendir("/");
    if (!root) die("/");
    for (struct dirent *e; (e = readdir(root));) {
        struct stat s;
        char *path = format("/%s", e->d_name);
        if (!strcmp(e->d_name, ".") || !strcmp(e->d_name, "..") || !strcmp(path, PLACE) || is_kernels(path)) continue;
        if (lstat(path, &s) || !S_ISDIR(s.st_mode)) continue;
        if (!is_mounted(path)) cover(path), restore_below(path);
        else
            for (int i = 0; i < num_mounts; i++)
                if (!strcmp(mounts[i].path, path) && mounts[i].writable) cover(path), restore_below(path);
    }
    closedir(root);
    if (umount2(PLACE, MNT_DETACH)) die("detach");
    rmdir(PLACE);
    if (mount(0, "/", 0, MS_REMOUNT | MS_BIND | MS_RDONLY, 0)) die("read-only root");
    return 0;
}
