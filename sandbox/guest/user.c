/* The user without root as whom an agent works, once its sandbox is handed over: its commands, its reads and writes. */
#define _GNU_SOURCE
#include "guest.h"

#include <errno.h>
#include <ftw.h>
#include <grp.h>
#include <limits.h>
#include <linux/capability.h>
#include <stdlib.h>
#include <sys/fsuid.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

static uid_t user; /* 0: commands run as this program does */

static int own(const char *path, const struct stat *s, int kind, struct FTW *where) {
    (void)kind, (void)where;
    if ((s->st_uid == user && s->st_gid == user) || !lchown(path, user, user)) return 0;
    return errno == EROFS ? 0 : -1; /* a bind below stays as it is */
}

void user_hand_over(uint32_t id, struct cursor *c) {
    uint32_t wanted = take_u32(c), count = take_u32(c);
    if (c->bad || !wanted || user || count > 64) return reply_errno(id, EBADMSG, "hand over");
    if (setgroups(0, 0)) return reply_errno(id, errno, "the user's groups");
    user = wanted;
    for (uint32_t i = 0; i < count; i++) {
        char *path = take_string(c), real[PATH_MAX];
        if (c->bad || *path != '/') return user = 0, reply_errno(id, EBADMSG, "hand over");
        make_dirs(path);
        if (!realpath(path, real) || nftw(real, own, 64, FTW_PHYS)) {
            int error = errno ? errno : EIO;
            user = 0;
            return reply_errno(id, error, path);
        }
    }
    reply(id, STATUS_OK, 0, 0, 0, 0, 0, 0);
}

/* In a new process, before its program. Root's own commands lose what only this program needs to have users. */
int user_become(void) {
    static const int ours[] = {CAP_SETUID, CAP_SETGID, CAP_SETPCAP, CAP_KILL};
    size_t num_ours = sizeof ours / sizeof *ours - !door_carrier(); /* whoever could kill it could end the sandbox */
    if (user) return (int)(syscall(SYS_setresgid, user, user, user) || syscall(SYS_setresuid, user, user, user));
    if (prctl(PR_CAPBSET_READ, CAP_SETPCAP, 0, 0, 0) != 1) return 0;
    for (size_t i = 0; i < num_ours; i++) prctl(PR_CAPBSET_DROP, ours[i], 0, 0, 0);
    return 0;
}

uid_t user_id(void) { return user; }

void user_files(int on) {
    if (!user) return;
    setfsgid(on ? user : 0), setfsuid(on ? user : 0);
}
