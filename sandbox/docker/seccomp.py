"""The profile of refused system calls for containers without a guest, which would bring its own filter.

It stands in for the daemon's default, so it refuses what that does, too. With a guest the daemon's default stays, and
the guest's filter (`guest/filter.c`) comes on top.
"""

from __future__ import annotations

import functools
import json
import socket

EPERM, ENOSYS, EAFNOSUPPORT, EOPNOTSUPP = 1, 38, 97, 95
_NAMESPACES = 0x7E020000  # CLONE_NEW* of namespaces
_FAMILIES = (socket.AF_UNIX, socket.AF_INET, socket.AF_INET6, socket.AF_NETLINK)
_MOST_FAMILIES = 64
REFUSED = (
    *("mount", "umount", "umount2", "pivot_root", "chroot", "open_tree", "move_mount", "fsopen", "fsconfig", "fsmount"),
    *("fspick", "mount_setattr", "unshare", "setns", "ptrace", "process_vm_readv", "process_vm_writev", "pidfd_getfd"),
    *("kcmp", "bpf", "perf_event_open", "userfaultfd", "keyctl", "add_key", "request_key", "io_uring_setup"),
    *("io_uring_enter", "io_uring_register", "kexec_load", "kexec_file_load", "init_module", "finit_module"),
    *("delete_module", "create_module", "query_module", "get_kernel_syms", "reboot", "swapon", "swapoff"),
    *("settimeofday", "clock_settime", "clock_settime64", "clock_adjtime", "clock_adjtime64", "adjtimex", "stime"),
    *(
        "acct",
        "quotactl",
        "quotactl_fd",
        "syslog",
        "open_by_handle_at",
        "name_to_handle_at",
        "fanotify_init",
        "vhangup",
    ),
    *("sethostname", "setdomainname", "migrate_pages", "move_pages", "mbind", "set_mempolicy", "get_mempolicy"),
    *("set_mempolicy_home_node", "iopl", "ioperm", "modify_ldt", "uselib", "ustat", "sysfs", "_sysctl", "nfsservctl"),
    *("lookup_dcookie", "vm86", "vm86old", "personality", "process_madvise", "landlock_create_ruleset"),
    *("lsm_set_self_attr", "listmount", "statmount", "memfd_secret", "socketcall"),
)


@functools.cache
def seccomp_profile() -> str:
    """The profile as the daemon takes it."""
    refused = _refuse(*REFUSED, error=EPERM)
    others = [n for n in range(_MOST_FAMILIES) if n not in _FAMILIES]
    families = [_refuse("socket", error=EAFNOSUPPORT, args=[_is(0, "SCMP_CMP_EQ", n)]) for n in others]
    beyond = _refuse("socket", error=EAFNOSUPPORT, args=[_is(0, "SCMP_CMP_GE", _MOST_FAMILIES)])
    bits = [1 << n for n in range(32) if _NAMESPACES >> n & 1]
    clones = [_refuse("clone", error=EPERM, args=[_is(0, "SCMP_CMP_MASKED_EQ", bit, bit)]) for bit in bits]
    calls = [
        refused,
        _refuse("clone3", error=ENOSYS),
        _refuse("fallocate", error=EOPNOTSUPP),
        beyond,
        *families,
        *clones,
    ]
    profile = {
        "defaultAction": "SCMP_ACT_ALLOW",
        "archMap": [
            {"architecture": "SCMP_ARCH_X86_64", "subArchitectures": []},
            {"architecture": "SCMP_ARCH_AARCH64", "subArchitectures": []},
        ],
        "syscalls": calls,
    }
    return json.dumps(profile)


def _refuse(*names: str, error: int, args: list[dict[str, object]] | None = None) -> dict[str, object]:
    return {"names": list(names), "action": "SCMP_ACT_ERRNO", "errnoRet": error, "args": args or []}


def _is(index: int, how: str, value: int, wanted: int = 0) -> dict[str, object]:
    return {"index": index, "op": how, "value": value, "valueTwo": wanted}
