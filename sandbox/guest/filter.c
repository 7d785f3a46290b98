/* System calls that neither a build nor a test run needs, refused for the guest and everything it starts.
 *
 * On top of namespaces, dropped capabilities and (under Docker) the engine's own profile: what is left here is kernel
 * surface that an ordinary user may reach, and sockets that no network namespace confines (vsock).
 */
#define _GNU_SOURCE
#include "guest.h"

#include <errno.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/sched.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#if defined(__x86_64__)
#define ARCH AUDIT_ARCH_X86_64
#elif defined(__aarch64__)
#define ARCH AUDIT_ARCH_AARCH64
#else
#error "the filter knows x86_64 and aarch64"
#endif

#ifndef SYS_quotactl_fd /* headers older than the kernel */
#define SYS_quotactl_fd 443
#endif
#ifndef SYS_mount_setattr
#define SYS_mount_setattr 442
#endif

static const int refused[] = {
    SYS_mount, SYS_umount2, SYS_pivot_root, SYS_chroot, SYS_open_tree, SYS_move_mount, SYS_fsopen, SYS_fsconfig,
    SYS_fsmount, SYS_fspick, SYS_mount_setattr, SYS_unshare, SYS_setns, SYS_ptrace, SYS_process_vm_readv,
    SYS_process_vm_writev, SYS_pidfd_getfd, SYS_kcmp, SYS_bpf, SYS_perf_event_open, SYS_userfaultfd, SYS_keyctl,
    SYS_add_key, SYS_request_key, SYS_io_uring_setup, SYS_io_uring_enter, SYS_io_uring_register, SYS_kexec_load,
    SYS_kexec_file_load, SYS_init_module, SYS_finit_module, SYS_delete_module, SYS_reboot, SYS_swapon, SYS_swapoff,
    SYS_settimeofday, SYS_clock_settime, SYS_clock_adjtime, SYS_adjtimex, SYS_acct, SYS_quotactl, SYS_quotactl_fd,
    SYS_syslog, SYS_open_by_handle_at, SYS_name_to_handle_at, SYS_fanotify_init, SYS_vhangup,
    SYS_sethostname, SYS_setdomainname, SYS_migrate_pages, SYS_move_pages, SYS_mbind, SYS_set_mempolicy,
#if defined(__x86_64__)
    SYS_iopl, SYS_ioperm, SYS_modify_ldt, SYS_uselib, SYS_ustat, SYS_sysfs,
#endif
};

#define NAMESPACES (CLONE_NEWNS | CLONE_NEWCGROUP | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWUSER | CLONE_NEWPID | CLONE_NEWNET)
#define DENY(error) BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | (error))
#define ALLOW BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW)
#define LOAD(field) BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, field))
#define UNLESS(value, skip) BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (value), 0, (skip))
#define NUM_REFUSED (sizeof refused / sizeof *refused)

/* 0, or -1 with errno. */
int install_filter(int refuse_fallocate) {
    struct sock_filter code[64 + 2 * NUM_REFUSED];
    unsigned short n = 0;
    const struct sock_filter start[] = {
        LOAD(arch),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, ARCH, 1, 0),
        DENY(ENOSYS), /* 32-bit calls have other numbers */
        LOAD(nr),
#if defined(__x86_64__)
        BPF_JUMP(BPF_JMP | BPF_JGE | BPF_K, 0x40000000, 0, 1),
        DENY(ENOSYS), /* so has the x32 ABI */
#endif
        UNLESS(SYS_clone3, 1),
        DENY(ENOSYS), /* its flags are behind a pointer; libraries fall back to clone */
        UNLESS(SYS_clone, 4),
        LOAD(args[0]),
        BPF_JUMP(BPF_JMP | BPF_JSET | BPF_K, NAMESPACES, 0, 1),
        DENY(EPERM),
        ALLOW,
        UNLESS(SYS_socket, 7),
        LOAD(args[0]),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, AF_UNIX, 4, 0),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, AF_INET, 3, 0),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, AF_INET6, 2, 0),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, AF_NETLINK, 1, 0),
        DENY(EAFNOSUPPORT),
        ALLOW,
    };
    for (size_t i = 0; i < sizeof start / sizeof *start; i++) code[n++] = start[i];
    if (refuse_fallocate) { /* as a file system without it: libraries write zeros instead */
        code[n++] = (struct sock_filter)UNLESS(SYS_fallocate, 1);
        code[n++] = (struct sock_filter)DENY(EOPNOTSUPP);
    }
    for (size_t i = 0; i < NUM_REFUSED; i++) {
        code[n++] = (struct sock_filter)UNLESS((unsigned)refused[i], 1);
        code[n++] = (struct sock_filter)DENY(EPERM);
    }
    code[n++] = (struct sock_filter)ALLOW;
    struct sock_fprog program = {n, code};
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)) return -1;
    return prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program, 0, 0);
}
