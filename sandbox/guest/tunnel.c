/* A port on the sandbox's own loopback whose connections are carried over the owner's channel.
 *
 * OP_LISTEN is answered with the port (u32); every frame about a connection carries that request's id, both ways:
 * u32 link | u8 kind | data. A side sends at most WINDOW bytes that the other has not yet granted again with LINK_MORE
 * (u32), so neither a flood nor an answer that is never read costs more than that; what breaks the rule ends the link.
 *
 * Owners die, and connections outlive them: all that came from inside over a link is kept until its owner has ended the
 * answer, and said again from the beginning to whoever listens next. LINK_OPEN tells him how many bytes of an answer were
 * taken already (u64), and how many of these are still on their way in (u32): of the same answer he sends the rest.
 * A link that said more than can be kept is lost with its owner.
 */
#define _GNU_SOURCE
#include "guest.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum { LINK_OPEN = 1, LINK_DATA = 2, LINK_END = 3, LINK_GONE = 4, LINK_MORE = 5 };

#define WINDOW (1u << 18)
#define PIECE (1u << 16)
#define BACKLOG 16
#define MOST_KEPT (17u << 20) /* of one link: more than any request that is served */
#define MOST_KEPT_IN_ALL (40u << 20)

struct link {
    int fd; /* -1: a free slot */
    uint32_t id, may_send, held, at, written;
    char *out;             /* a ring of WINDOW bytes on their way into the sandbox: `held` of them from `at` */
    int read_all, end_out; /* the sandbox's side has ended; end ours once `held` is written */
    char *kept;            /* all that came from inside: `told` of `kept_len` bytes are the owner's by now */
    uint32_t kept_len, kept_size, told;
    int unkept;            /* it was too much */
    uint64_t taken;        /* bytes of the answer */
};

static struct link links[MAX_LINKS];
static int listener = -1;
static uint32_t channel /* 0: nobody listens */, next_link = 1;
static size_t kept_in_all;

static void tell(const struct link *l, uint8_t kind, const void *data, size_t len) {
    char head[5];
    if (!channel) return;
    memcpy(head, &l->id, 4), head[4] = (char)kind;
    reply(channel, STATUS_OK, head, sizeof head, data, len, 0, 0);
}

static void forget_kept(struct link *l) {
    kept_in_all -= l->kept_size;
    free(l->kept), l->kept = 0, l->kept_len = l->kept_size = l->told = 0;
}

static void drop(struct link *l) {
    forget_kept(l);
    close(l->fd), free(l->out);
    memset(l, 0, sizeof *l), l->fd = -1;
}

static struct link *link_of(uint32_t id) {
    for (int i = 0; i < MAX_LINKS; i++)
        if (links[i].fd >= 0 && links[i].id == id) return &links[i];
    return 0;
}

/* Bytes that came from inside and that the owner has not been told; then, that there are no more. */
static void catch_up(struct link *l) {
    while (l->told < l->kept_len && l->may_send) {
        uint32_t n = l->kept_len - l->told < PIECE ? l->kept_len - l->told : PIECE;
        if (n > l->may_send) n = l->may_send;
        tell(l, LINK_DATA, l->kept + l->told, n);
        l->told += n, l->may_send -= n;
    }
    if (l->told == l->kept_len && l->read_all) tell(l, LINK_END, 0, 0);
}

static void open_link(struct link *l) {
    char word[12];
    memcpy(word, &l->taken, 8), memcpy(word + 8, &l->held, 4);
    tell(l, LINK_OPEN, word, sizeof word);
}

/* Whoever listened before takes nothing more. A link whose answer is here whole ends without anybody. */
static void take_over(uint32_t id) {
    struct sockaddr_in a;
    socklen_t len = sizeof a;
    if (getsockname(listener, (struct sockaddr *)&a, &len)) return reply_errno(id, errno, "listen");
    uint32_t port = ntohs(a.sin_port);
    channel = id;
    reply(id, STATUS_OK, &port, sizeof port, 0, 0, 0, 0);
    for (int i = 0; i < MAX_LINKS; i++) {
        struct link *l = &links[i];
        if (l->fd < 0 || l->end_out) continue;
        if (l->unkept) {
            drop(l);
            continue;
        }
        l->may_send = WINDOW, l->told = l->written = 0;
        open_link(l);
        catch_up(l);
    }
}

void tunnel_listen(uint32_t id) {
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof a;
    if (listener >= 0) return take_over(id);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0 || bind(fd, (struct sockaddr *)&a, len) || listen(fd, BACKLOG) ||
        getsockname(fd, (struct sockaddr *)&a, &len)) {
        reply_errno(id, errno, "listen");
        if (fd >= 0) close(fd);
        return;
    }
    for (int i = 0; i < MAX_LINKS; i++) links[i].fd = -1;
    uint32_t port = ntohs(a.sin_port);
    listener = fd, channel = id;
    reply(id, STATUS_OK, &port, sizeof port, 0, 0, 0, 0);
}

void tunnel_wait(void) {
    channel = 0;
}

static void take_connection(void) {
    struct link *l = 0;
    for (int i = 0; i < MAX_LINKS && !l; i++)
        if (links[i].fd < 0) l = &links[i];
    int fd = l ? accept4(listener, 0, 0, SOCK_CLOEXEC | SOCK_NONBLOCK) : -1;
    if (fd < 0) return;
    *l = (struct link){.fd = fd, .id = next_link++, .may_send = WINDOW, .out = malloc(WINDOW)};
    if (!l->out) drop(l);
    else open_link(l);
}

static void keep(struct link *l, const char *data, uint32_t len) {
    if (l->unkept) return;
    uint32_t size = l->kept_size ? l->kept_size : 1u << 12;
    while (size < l->kept_len + len) size *= 2;
    if (l->kept_len + len > MOST_KEPT || kept_in_all - l->kept_size + size > MOST_KEPT_IN_ALL) {
        forget_kept(l), l->unkept = 1;
        return;
    }
    if (size > l->kept_size) {
        char *more = realloc(l->kept, size);
        if (!more) {
            forget_kept(l), l->unkept = 1;
            return;
        }
        kept_in_all += size - l->kept_size, l->kept = more, l->kept_size = size;
    }
    memcpy(l->kept + l->kept_len, data, len), l->kept_len += len;
}

/* From the sandbox to the owner. */
static void read_link(struct link *l) {
    char data[PIECE];
    ssize_t n = read(l->fd, data, l->may_send < PIECE ? l->may_send : PIECE);
    if (n < 0 && (errno == EAGAIN || errno == EINTR)) return;
    if (n > 0) {
        keep(l, data, (uint32_t)n);
        l->told = l->kept_len, l->may_send -= (uint32_t)n;
        tell(l, LINK_DATA, data, (size_t)n);
    } else if (n == 0) {
        l->read_all = 1;
        tell(l, LINK_END, 0, 0);
        if (l->end_out && !l->held) drop(l);
    } else {
        tell(l, LINK_GONE, 0, 0);
        drop(l);
    }
}

/* From the owner into the sandbox: what is held. */
static void write_link(struct link *l) {
    uint32_t first = WINDOW - l->at < l->held ? WINDOW - l->at : l->held;
    ssize_t n = first ? send(l->fd, l->out + l->at, first, MSG_NOSIGNAL) : 0;
    if (n < 0 && (errno == EAGAIN || errno == EINTR)) return;
    if (n < 0) {
        tell(l, LINK_GONE, 0, 0);
        return drop(l);
    }
    l->at = (l->at + (uint32_t)n) % WINDOW, l->held -= (uint32_t)n, l->written += (uint32_t)n;
    if (l->written >= WINDOW / 4 || (l->written && !l->held)) {
        tell(l, LINK_MORE, &l->written, 4);
        l->written = 0;
    }
    if (l->held || !l->end_out) return;
    shutdown(l->fd, SHUT_WR);
    if (l->read_all) drop(l);
}

void tunnel_frame(struct cursor *c) {
    uint32_t id = take_u32(c);
    if (c->bad || c->at == c->end) return;
    int kind = (unsigned char)*c->at++;
    size_t len = (size_t)(c->end - c->at);
    struct link *l = link_of(id);
    if (!l) return; /* it ended while this was on its way */
    if (kind == LINK_DATA && len <= WINDOW - l->held && !l->end_out) {
        uint32_t end = (l->at + l->held) % WINDOW, first = WINDOW - end < len ? WINDOW - end : (uint32_t)len;
        memcpy(l->out + end, c->at, first), memcpy(l->out, c->at + first, len - first);
        l->held += (uint32_t)len, l->taken += len;
        write_link(l);
    } else if (kind == LINK_MORE && len == 4) {
        uint32_t more = take_u32(c);
        if (more <= WINDOW - l->may_send) l->may_send += more;
        if (l->told < l->kept_len) catch_up(l);
    } else if (kind == LINK_END) {
        if (l->read_all && l->told < l->kept_len) tell(l, LINK_END, 0, 0); /* it wants no more of it */
        forget_kept(l), l->unkept = l->end_out = 1;
        write_link(l);
    } else {
        drop(l);
    }
}

/* Whether more may be read from inside: what was read before has to be told first. */
static int hears(const struct link *l) {
    return !l->read_all && l->may_send && l->told == l->kept_len;
}

int tunnel_poll(struct pollfd *fds) {
    int n = 0, room = 0;
    if (listener < 0) return 0;
    for (int i = 0; i < MAX_LINKS; i++) {
        struct link *l = &links[i];
        if (l->fd < 0) {
            room = 1;
            continue;
        }
        short events = (short)((hears(l) ? POLLIN : 0) | (l->held ? POLLOUT : 0));
        if (events) fds[n++] = (struct pollfd){l->fd, events, 0};
    }
    if (room) fds[n++] = (struct pollfd){listener, POLLIN, 0};
    return n;
}

void tunnel_feed(const struct pollfd *fds, int num_fds) {
    for (int k = 0; k < num_fds; k++) {
        if (!fds[k].revents) continue;
        if (fds[k].fd == listener) {
            take_connection();
            continue;
        }
        struct link *l = 0;
        for (int i = 0; i < MAX_LINKS && !l; i++)
            if (links[i].fd == fds[k].fd) l = &links[i];
        if (l && fds[k].revents & POLLOUT) write_link(l);
        if (l && l->fd == fds[k].fd && hears(l) && fds[k].revents & (POLLIN | POLLHUP | POLLERR))
            read_link(l);
    }
}
