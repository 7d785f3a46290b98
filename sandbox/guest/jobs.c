/* Commands: start, capture head and tail of their output, kill with every descendant, answer. */
#define _GNU_SOURCE
#include "guest.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

enum { FIRST_LOOK_MS = 2000, LOOK_MS = 500, LOOK_SHARE = 128, MOST_THREADS = 4096, DEATH_MS = 2000 };

struct job {
    pid_t pid; /* 0: a free slot */
    int fd;    /* read end of its output; -1: ended */
    uint32_t id, half; /* id 0: nobody waits for it, it lasts */
    int lasts;
    uint64_t deadline, started, start_ticks, total;
    uint64_t next_look, cpu_ms; /* when to look next at what its processes do; CPU time of those that were collected */
    uint32_t looks, runnable;   /* looks so far, and those that found a process ready to run */
    char *head, *tail; /* `tail` is a ring of `half` bytes, `tail_at` its next place */
    uint32_t head_len, tail_len, tail_at;
};

static struct job jobs[MAX_JOBS];
static int drains[MAX_DRAINS], num_drains, oldest_drain;
static int has_lasting;   /* the command that lasts was started */
static char *lasting;     /* its result, once there is one: whoever was told may have died of it */
static size_t lasting_len;
extern char **environ;

struct process {
    pid_t pid, parent, session;
    uint64_t start_ticks, resident_pages, cpu_ticks; /* CPU time with that of children it has waited for */
    char state;
    int marked;
};

static int read_process(pid_t pid, struct process *p) {
    char path[64], text[1024], *rest;
    snprintf(path, sizeof path, "/proc/%d/stat", pid);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return -1;
    ssize_t n = read(fd, text, sizeof text - 1);
    close(fd);
    if (n <= 0) return -1;
    text[n] = 0;
    unsigned long long start, resident, user, system;
    long long waited_user, waited_system;
    if (!(rest = strrchr(text, ')'))) return -1; /* the name before it may hold anything */
    if (sscanf(rest + 2,
               "%c %d %*d %d %*d %*d %*u %*u %*u %*u %*u %llu %llu %lld %lld %*d %*d %*d %*d %llu %*u %llu", &p->state,
               &p->parent, &p->session, &user, &system, &waited_user, &waited_system, &start, &resident) != 9)
        return -1;
    p->pid = pid, p->start_ticks = start, p->resident_pages = resident, p->marked = 0;
    p->cpu_ticks = user + system + (uint64_t)(waited_user + waited_system);
    return 0;
}

/* All processes but this one, who carries its words, and the dead; the caller frees. */
static struct process *list_processes(int *count) {
    static const int most = 1 << 15;
    int size = 256;
    struct process *all = malloc(sizeof *all * (size_t)size);
    DIR *dir = opendir("/proc");
    struct dirent *entry;
    *count = 0;
    while (dir && all && *count < most && (entry = readdir(dir))) {
        pid_t pid = atoi(entry->d_name);
        if (pid <= 0 || pid == getpid() || pid == door_carrier()) continue;
        if (*count == size) {
            struct process *more = realloc(all, sizeof *all * (size_t)(size *= 2));
            if (!more) break;
            all = more;
        }
        struct process *p = &all[*count];
        if (!read_process(pid, p) && p->state != 'Z' && p->state != 'X') ++*count;
    }
    if (dir) closedir(dir);
    return all;
}

static struct job *job_of_pid(pid_t pid) {
    for (int i = 0; i < MAX_JOBS; i++)
        if (jobs[i].pid && jobs[i].pid == pid) return &jobs[i];
    return 0;
}

/* All processes, marked what belongs to a job: itself, its session, orphans not older than it, and all their
 * descendants. Orphans of another command that runs at the same moment count too: a daemon's first parent is not
 * knowable. The caller frees. */
static struct process *list_family(const struct job *j, int *num) {
    int count, changed;
    struct process *all = list_processes(&count);
    *num = all ? count : 0;
    for (int i = 0; i < *num; i++) {
        struct process *p = &all[i];
        int orphan = p->parent == getpid() && p->start_ticks >= j->start_ticks && !job_of_pid(p->pid);
        p->marked = p->pid == j->pid || p->session == j->pid || orphan;
    }
    do {
        changed = 0;
        for (int i = 0; i < *num; i++)
            for (int k = 0; !all[i].marked && k < *num; k++)
                if (all[k].marked && all[k].pid == all[i].parent) all[i].marked = changed = 1;
    } while (changed);
    return all;
}

static int kill_family_once(const struct job *j) {
    int count, hits = 0;
    struct process *all = list_family(j, &count);
    for (int i = 0; i < count; i++)
        if (all[i].marked && !kill(all[i].pid, SIGKILL)) hits++;
    free(all);
    return hits;
}

/* Until they are dead: what was killed needs a processor for that, and others may have them all. */
static void kill_family(const struct job *j) {
    for (uint64_t end = now_ms() + DEATH_MS; kill_family_once(j) && now_ms() < end;) usleep(1000);
}

/* The longest that a thread of a process was ready to run while others ran, in ms. */
static uint64_t most_delayed(pid_t pid) {
    char path[64], text[128];
    snprintf(path, sizeof path, "/proc/%d/task", pid);
    DIR *dir = opendir(path);
    struct dirent *entry;
    uint64_t most = 0;
    for (int seen = 0; dir && seen < MOST_THREADS && (entry = readdir(dir));) {
        int thread = atoi(entry->d_name), fd;
        unsigned long long ran, delayed;
        if (thread <= 0) continue;
        seen++;
        snprintf(path, sizeof path, "/proc/%d/task/%d/schedstat", pid, thread);
        if ((fd = open(path, O_RDONLY | O_CLOEXEC)) < 0) continue;
        ssize_t n = read(fd, text, sizeof text - 1);
        close(fd);
        text[n > 0 ? n : 0] = 0;
        if (sscanf(text, "%llu %llu", &ran, &delayed) == 2 && delayed / 1000000 > most) most = delayed / 1000000;
    }
    if (dir) closedir(dir);
    return most;
}

/* CPU time of a job's processes, and how long some of them were ready to run and did not: what one thread that still is
 * there was delayed, or, of processes that came and went, the share of looks that found one ready less what they ran. */
static void measure(const struct job *j, uint64_t *cpu_ms, uint64_t *waited_ms) {
    uint64_t elapsed = now_ms() - j->started, ticks = 0, ready;
    int count;
    *cpu_ms = j->cpu_ms, *waited_ms = 0;
    if (elapsed < FIRST_LOOK_MS) return; /* nobody's deadline, and most commands */
    struct process *all = list_family(j, &count);
    for (int i = 0; i < count; i++) {
        if (!all[i].marked) continue;
        uint64_t delayed = most_delayed(all[i].pid);
        ticks += all[i].cpu_ticks;
        if (delayed > *waited_ms) *waited_ms = delayed;
    }
    free(all);
    *cpu_ms += ticks * 1000 / (uint64_t)sysconf(_SC_CLK_TCK);
    ready = j->looks ? elapsed * j->runnable / j->looks : 0;
    if (ready > *cpu_ms && ready - *cpu_ms > *waited_ms) *waited_ms = ready - *cpu_ms;
}

static void look(struct job *j, uint64_t now) {
    int count, ready = 0;
    struct process *all = list_family(j, &count);
    for (int i = 0; i < count; i++) ready |= all[i].marked && all[i].state == 'R';
    free(all);
    j->looks++, j->runnable += (uint32_t)ready;
    uint64_t pause = (now - j->started) / LOOK_SHARE;
    j->next_look = now + (pause > LOOK_MS ? pause : LOOK_MS);
}

static void capture(struct job *j, const char *data, size_t len) {
    j->total += len;
    if (j->head_len < j->half) {
        size_t n = j->half - j->head_len < len ? j->half - j->head_len : len;
        if (!j->head && !(j->head = malloc(j->half))) _exit(4);
        memcpy(j->head + j->head_len, data, n);
        j->head_len += (uint32_t)n, data += n, len -= n;
    }
    if (!len) return;
    if (!j->tail && !(j->tail = malloc(j->half))) _exit(4);
    if (len > j->half) data += len - j->half, len = j->half;
    size_t first = j->half - j->tail_at < len ? j->half - j->tail_at : len;
    memcpy(j->tail + j->tail_at, data, first);
    memcpy(j->tail, data + first, len - first);
    j->tail_at = (uint32_t)((j->tail_at + len) % j->half);
    j->tail_len = j->tail_len + len > j->half ? j->half : j->tail_len + (uint32_t)len;
}

/* One read; whether there was something. */
static int feed(struct job *j) {
    char data[1 << 16];
    ssize_t n = read(j->fd, data, sizeof data);
    if (n < 0 && (errno == EAGAIN || errno == EINTR)) return 0;
    if (n <= 0) {
        close(j->fd), j->fd = -1;
        return 0;
    }
    capture(j, data, (size_t)n);
    return 1;
}

/* A background child may still write to its command's pipe: keep it open and throw away what comes. */
static void keep_draining(int fd) {
    if (num_drains < MAX_DRAINS) {
        drains[num_drains++] = fd;
        return;
    }
    close(drains[oldest_drain]), drains[oldest_drain] = fd;
    oldest_drain = (oldest_drain + 1) % MAX_DRAINS;
}

static void release(struct job *j) {
    free(j->head), free(j->tail);
    memset(j, 0, sizeof *j);
}

/* What its processes took is measured before any of them is killed. */
static void finish(struct job *j, int32_t exit_code, int timed_out) {
    uint64_t cpu_ms, waited_ms, duration_ms = now_ms() - j->started;
    measure(j, &cpu_ms, &waited_ms);
    if (timed_out) kill_family(j);
    for (int i = 0; i < 64 && j->fd >= 0 && feed(j); i++) {}
    if (j->fd >= 0) keep_draining(j->fd);
    struct __attribute__((packed)) {
        int32_t exit_code;
        uint32_t timed_out, head_len, tail_len;
        uint64_t total, took_ms, cpu_ms, waited_ms;
    } result = {exit_code, (uint32_t)timed_out, j->head_len, j->tail_len, j->total, duration_ms,
                cpu_ms, waited_ms};
    uint32_t oldest = j->tail_len == j->half ? j->tail_at : 0, first = j->tail_len - oldest;
    size_t len = sizeof result + j->head_len + j->tail_len;
    char *words = malloc(len), *at = words;
    if (!words) _exit(4);
    memcpy(at, &result, sizeof result), at += sizeof result;
    if (j->head_len) memcpy(at, j->head, j->head_len), at += j->head_len;
    if (first) memcpy(at, j->tail + oldest, first), at += first;
    if (oldest) memcpy(at, j->tail, oldest);
    if (j->id) reply(j->id, STATUS_OK, words, len, 0, 0, 0, 0);
    if (j->lasts) lasting = words, lasting_len = len;
    else free(words);
    release(j);
}

/* The guest's own environment with `count` entries of the request over it; the caller frees. */
static char **merge_environment(struct cursor *c, uint32_t count) {
    size_t base = 0, n = 0;
    while (environ[base]) base++;
    char **merged = calloc(base + count + 1, sizeof *merged);
    if (!merged) return 0;
    for (uint32_t i = 0; i < count; i++) merged[n++] = take_string(c);
    for (size_t b = 0; b < base; b++) {
        size_t name = strcspn(environ[b], "=") + 1, i = 0;
        while (i < count && strncmp(merged[i], environ[b], name)) i++;
        if (i == count) merged[n++] = environ[b];
    }
    return merged;
}

static void run_child(int out, const char *cwd, char **argv, char **env) {
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, 0);
    signal(SIGPIPE, SIG_DFL);
    setsid();
    dup2(out, 1), dup2(out, 2);
    if (user_become()) _exit(126);
    if (*cwd && chdir(cwd)) {
        dprintf(2, "cannot enter %s: %s\n", cwd, strerror(errno));
        _exit(126);
    }
    execvpe(argv[0], argv, env);
    dprintf(2, "cannot run %.200s: %s\n", argv[0], strerror(errno));
    _exit(errno == ENOENT ? 127 : 126);
}

void job_start(uint32_t id, struct cursor *c, int lasts) {
    uint32_t timeout_ms = take_u32(c), max_output = take_u32(c), argc = take_u32(c), envc = take_u32(c);
    char *cwd = take_string(c);
    struct job *j = 0;
    for (int i = 0; i < MAX_JOBS && !j; i++)
        if (!jobs[i].pid) j = &jobs[i];
    if (c->bad || !argc || argc > 1 << 16 || envc > 1 << 16) return reply_errno(id, EBADMSG, "exec");
    if (!j) return reply_errno(id, EBUSY, "too many commands at once");
    if (lasts && has_lasting) return reply_errno(id, EEXIST, "a command that lasts");
    char **argv = calloc(argc + 1, sizeof *argv), **env = 0;
    int out[2] = {-1, -1};
    for (uint32_t i = 0; argv && i < argc; i++) argv[i] = take_string(c);
    if (argv) env = merge_environment(c, envc);
    if (!argv || !env || c->bad) {
        reply_errno(id, c->bad ? EBADMSG : ENOMEM, "exec");
    } else if (pipe2(out, O_CLOEXEC)) {
        reply_errno(id, errno, "pipe");
    } else {
        fcntl(out[0], F_SETPIPE_SZ, 1 << 18), fcntl(out[0], F_SETFL, O_NONBLOCK);
        pid_t pid = vfork();
        if (!pid) run_child(out[1], cwd, argv, env);
        struct process self = {0};
        if (pid > 0) {
            read_process(pid, &self);
            uint64_t now = now_ms();
            has_lasting |= lasts;
            *j = (struct job){.pid = pid, .fd = out[0], .id = id, .lasts = lasts,
                              .half = max_output < 2 ? 1 : max_output / 2, .started = now,
                              .deadline = timeout_ms ? now + timeout_ms : UINT64_MAX,
                              .next_look = now + FIRST_LOOK_MS, .start_ticks = self.start_ticks};
        } else {
            reply_errno(id, errno, "fork");
            close(out[0]);
        }
        close(out[1]);
    }
    free(argv), free(env);
}

void job_rejoin(uint32_t id) {
    if (lasting) return reply(id, STATUS_OK, lasting, lasting_len, 0, 0, 0, 0);
    for (int i = 0; i < MAX_JOBS; i++)
        if (jobs[i].pid && jobs[i].lasts) {
            jobs[i].id = id;
            return;
        }
    reply_errno(id, ESRCH, "a command that lasts");
}

void job_kill(uint32_t id) {
    for (int i = 0; i < MAX_JOBS; i++)
        if (jobs[i].pid && jobs[i].id == id) kill_family(&jobs[i]);
}

void jobs_forget(void) {
    for (int i = 0; i < MAX_JOBS; i++) {
        if (!jobs[i].pid) continue;
        if (jobs[i].lasts) {
            jobs[i].id = 0;
            continue;
        }
        kill_family(&jobs[i]);
        if (jobs[i].fd >= 0) close(jobs[i].fd);
        release(&jobs[i]);
    }
}

/* How many processes are neither dead nor in one of the two states. */
static int num_not_in(char state, char other) {
    int count, n = 0;
    struct process *all = list_processes(&count);
    for (int i = 0; all && i < count; i++) n += all[i].state != state && all[i].state != other;
    free(all);
    return n;
}

/* As pid 1, -1 is everything in the namespace but this process. Anywhere else it would be the owner's world. */
static void signal_all(int signal) {
    if (door_carrier()) door_signal_all(signal, user_id());
    else kill(-1, signal);
}

void job_kill_all(void) {
    if (getpid() == 1) {
        for (int waited = 0; waited < 2000; waited++) {
            signal_all(SIGKILL);
            if (!num_not_in('Z', 'X')) return;
            usleep(1000);
        }
        return;
    }
    for (int i = 0; i < MAX_JOBS; i++)
        if (jobs[i].pid) kill_family(&jobs[i]);
    kill_family(&(struct job){.pid = -1}); /* older orphans */
}

int jobs_stop(void) {
    if (getpid() != 1) return -1;
    for (int waited = 0; waited < 2000; waited++) {
        signal_all(SIGSTOP);
        if (!num_not_in('T', 't')) return 0;
        usleep(1000);
    }
    jobs_continue();
    return -1;
}

void jobs_continue(void) {
    if (getpid() == 1) signal_all(SIGCONT);
}

void jobs_reap(void) {
    int status;
    pid_t pid;
    struct rusage took;
    while ((pid = wait4(-1, &status, WNOHANG, &took)) > 0) {
        struct job *j = job_of_pid(pid);
        if (!j) continue;
        j->cpu_ms = (uint64_t)(took.ru_utime.tv_sec + took.ru_stime.tv_sec) * 1000 +
                    (uint64_t)(took.ru_utime.tv_usec + took.ru_stime.tv_usec) / 1000;
        finish(j, WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status), 0);
    }
}

void jobs_expire(uint64_t now) {
    for (int i = 0; i < MAX_JOBS; i++)
        if (jobs[i].pid && jobs[i].deadline <= now) finish(&jobs[i], -SIGKILL, 1);
        else if (jobs[i].pid && jobs[i].next_look <= now) look(&jobs[i], now);
}

uint64_t jobs_deadline(void) {
    uint64_t nearest = UINT64_MAX;
    for (int i = 0; i < MAX_JOBS; i++)
        if (jobs[i].pid) {
            if (jobs[i].deadline < nearest) nearest = jobs[i].deadline;
            if (jobs[i].next_look < nearest) nearest = jobs[i].next_look;
        }
    return nearest;
}

int jobs_running(void) {
    int n = 0;
    for (int i = 0; i < MAX_JOBS; i++) n += jobs[i].pid != 0;
    return n;
}

int jobs_poll(struct pollfd *fds) {
    int n = 0;
    for (int i = 0; i < MAX_JOBS; i++)
        if (jobs[i].pid && jobs[i].fd >= 0) fds[n++] = (struct pollfd){jobs[i].fd, POLLIN, 0};
    for (int i = 0; i < num_drains; i++) fds[n++] = (struct pollfd){drains[i], POLLIN, 0};
    return n;
}

static void drop_output(int fd) {
    char data[1 << 16];
    ssize_t n = read(fd, data, sizeof data);
    if (n > 0 || (n < 0 && (errno == EAGAIN || errno == EINTR))) return;
    close(fd);
    for (int i = 0; i < num_drains; i++)
        if (drains[i] == fd) {
            drains[i] = drains[--num_drains];
            oldest_drain = 0;
            return;
        }
}

void jobs_feed(const struct pollfd *fds, int num_fds) {
    for (int k = 0; k < num_fds; k++) {
        if (!fds[k].revents) continue;
        int i = 0;
        while (i < MAX_JOBS && !(jobs[i].pid && jobs[i].fd == fds[k].fd)) i++;
        if (i < MAX_JOBS) feed(&jobs[i]);
        else drop_output(fds[k].fd);
    }
}

uint64_t memory_in_use(void) {
    int count;
    uint64_t pages = 0;
    struct process *all = list_processes(&count);
    for (int i = 0; all && i < count; i++) pages += all[i].resident_pages;
    free(all);
    return pages * (uint64_t)sysconf(_SC_PAGESIZE);
}
