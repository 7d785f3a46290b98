/* The command server that is pid 1 of every sandbox.
 *
 * Frames, both ways, little-endian: u32 length of the rest | u32 id | u8 op (request) or status (reply) | payload.
 * A reply carries the id of its request; id 0 is the hello. Strings are u32 length + bytes + NUL.
 * guest.c: the loop and the frames; jobs.c: commands; files.c: read and write; tree.c: a whole tree, through no link;
 * tunnel.c: a port whose connections the owner takes; user.c: a user without root; filter.c: refused system calls;
 * door.c: an owner who does not hold our stdin; reach.c: what the network must not let through.
 */
#ifndef GUEST_H
#define GUEST_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

enum { OP_EXEC = 1, OP_WRITE = 2, OP_READ = 3, OP_PING = 4, OP_KILL = 5, OP_KILL_ALL = 6, OP_STOP = 7, OP_CONTINUE = 8,
       OP_LISTEN = 9, OP_TUNNEL = 10, OP_LIST = 11, OP_FETCH = 12, OP_PLACE = 13, OP_HAND_OVER = 14,
       OP_OWNER = 15, OP_LASTING = 16, OP_REJOIN = 17 };
enum { STATUS_OK = 0, STATUS_ERROR = 1 };

#define PROTOCOL_VERSION 3
#define MAX_FRAME (80u << 20)
#define MAX_JOBS 32   /* commands that run at once */
#define MAX_LINKS 64  /* connections that a tunnel carries at once */
#define MAX_DRAINS 32 /* pipes kept open for background children of finished commands */

struct cursor { /* a payload being read; `bad` once something did not fit */
    char *at, *end;
    int bad;
};
uint32_t take_u32(struct cursor *c);
uint64_t take_u64(struct cursor *c);
char *take_string(struct cursor *c);

void reply(uint32_t id, uint8_t status, const void *a, size_t a_len, const void *b, size_t b_len, const void *c,
           size_t c_len);
void reply_errno(uint32_t id, int error, const char *what);
uint64_t now_ms(void);

/* jobs.c */
struct pollfd;
void job_start(uint32_t id, struct cursor *c, int lasts); /* `lasts`: it outlives the conversation; one a sandbox */
void job_rejoin(uint32_t id); /* answer with the result of the command that lasts, once there is one */
void job_kill(uint32_t id);
void job_kill_all(void);
void jobs_forget(void); /* kill the commands under way but the one that lasts, and answer for none of them */
int jobs_stop(void); /* pause every process but this one; 0 once all stand still */
void jobs_continue(void);
void jobs_reap(void);            /* collect dead children, answer for the commands among them */
void jobs_expire(uint64_t now);  /* kill and answer for commands past their deadline; look at those that take long */
uint64_t jobs_deadline(void);    /* when to call that next, or UINT64_MAX */
int jobs_running(void);
int jobs_poll(struct pollfd *fds); /* fill in what to wait for; how many */
void jobs_feed(const struct pollfd *fds, int num_fds);
uint64_t memory_in_use(void); /* bytes resident in all processes but this one */

/* files.c */
void make_dirs(const char *path); /* and its parents */
void file_write(uint32_t id, struct cursor *c);
void file_read(uint32_t id, struct cursor *c);

/* tunnel.c */
void tunnel_listen(uint32_t id);
void tunnel_frame(struct cursor *c);
void tunnel_wait(void); /* nobody takes connections: they are held for whoever listens next */
int tunnel_poll(struct pollfd *fds); /* as jobs_poll; at most MAX_LINKS + 1 */
void tunnel_feed(const struct pollfd *fds, int num_fds);

/* tree.c */
void tree_list(uint32_t id, struct cursor *c);
void tree_fetch(uint32_t id, struct cursor *c);
void tree_place(uint32_t id, struct cursor *c);

/* user.c */
void user_hand_over(uint32_t id, struct cursor *c);
int user_become(void);    /* 0, or not */
uid_t user_id(void);      /* 0: nobody without root works here */
void user_files(int on);  /* whether files are opened as that user's */

/* sha256.c */
struct sha256 {
    uint32_t state[8];
    uint64_t total;
    unsigned char block[64];
};
void sha256_begin(struct sha256 *h);
void sha256_add(struct sha256 *h, const void *data, size_t len);
void sha256_end(struct sha256 *h, char hex[65]);

/* door.c */
int door_wait(int wait_ms);      /* 0, or not */
int door_enter(void);            /* the other end's exit status */
pid_t door_carrier(void);        /* process that carries the conversation and is left alone; 0: there is none */
void door_signal_all(int signal, uid_t user); /* everybody but us and the carrier */

/* reach.c */
int reach(const char *ip, const char *port); /* an exit status: 1 when it does */

/* filter.c */
int install_filter(int refuse_fallocate); /* where nothing bounds at once what it takes */

#endif
