//! Seccomp profiles: the runtime's default as a table, a node's own from a file, compiled to BPF.
//! Needs no library: numbers come from libc, so a syscall that an architecture lacks is left out.

use super::executor::SeccompProgram;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule, TargetArch,
};
use serde::Deserialize;
use std::collections::BTreeMap;

/// Bits of capabilities that widen the default profile.
mod capability {
    pub const DAC_READ_SEARCH: u32 = 2;
    pub const SYS_MODULE: u32 = 16;
    #[cfg(target_arch = "x86_64")]
    pub const SYS_RAWIO: u32 = 17;
    pub const SYS_CHROOT: u32 = 18;
    pub const SYS_PTRACE: u32 = 19;
    pub const SYS_PACCT: u32 = 20;
    pub const SYS_ADMIN: u32 = 21;
    pub const SYS_BOOT: u32 = 22;
    pub const SYS_NICE: u32 = 23;
    pub const SYS_TIME: u32 = 25;
    pub const SYS_TTY_CONFIG: u32 = 26;
    pub const SYSLOG: u32 = 34;
    pub const PERFMON: u32 = 38;
    pub const BPF: u32 = 39;
}

#[derive(Debug, thiserror::Error)]
pub enum SeccompError {
    #[error("seccomp is not supported on this architecture")]
    Architecture,
    #[error("parse seccomp profile: {0}")]
    Parse(#[from] serde_json::Error),
    #[error("seccomp profile has unknown {what} {value:?}")]
    Unknown { what: &'static str, value: String },
    #[error("compile seccomp profile: {0}")]
    Compile(#[from] seccompiler::BackendError),
}

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

/// `RuntimeDefault` for a process with these capabilities, as containerd and Docker define it.
pub fn default_programs(capabilities: u64) -> Result<Vec<SeccompProgram>, SeccompError> {
    let has = |bit: u32| capabilities & (1 << bit) != 0;
    let mut rules: Rules = ALLOWED.iter().map(|number| (*number, Vec::new())).collect();
    for (bit, syscalls) in PRIVILEGED {
        if has(*bit) {
            rules.extend(syscalls.iter().map(|number| (*number, Vec::new())));
        }
    }
    // Virtual machine sockets would leave the pod's network namespace.
    let not_vsock = [SeccompCmpOp::Lt, SeccompCmpOp::Gt].map(|op| condition(0, SeccompCmpArgLen::Dword, op, 40));
    rules.insert(libc::SYS_socket, not_vsock.into_iter().map(rule).collect::<Result<_, _>>()?);
    let personalities = [0x0, 0x8, 0x20000, 0x20008, 0xffff_ffff];
    let personality = |value| rule(condition(0, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, value));
    rules.insert(libc::SYS_personality, personalities.into_iter().map(personality).collect::<Result<_, _>>()?);
    let errno = |number: i32| SeccompAction::Errno(number.unsigned_abs());
    if has(capability::SYS_ADMIN) {
        rules.insert(libc::SYS_clone3, Vec::new());
        return Ok(vec![compile(rules, errno(libc::EPERM), SeccompAction::Allow)?]);
    }
    // No new namespaces. clone3 hides its flags in memory: "not there" makes libc fall back to clone.
    let namespaces = SeccompCmpOp::MaskedEq(0x7e02_0000);
    rules.insert(libc::SYS_clone, vec![rule(condition(0, SeccompCmpArgLen::Qword, namespaces, 0))?]);
    rules.insert(libc::SYS_clone3, Vec::new());
    let clone3 = Rules::from([(libc::SYS_clone3, Vec::new())]);
    Ok(vec![
        compile(rules, errno(libc::EPERM), SeccompAction::Allow)?,
        compile(clone3, SeccompAction::Allow, errno(libc::ENOSYS))?,
    ])
}

/// A profile in the form that Docker, containerd and Kubernetes' `Localhost` profiles use.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Profile {
    default_action: String,
    default_errno_ret: Option<u32>,
    #[serde(default)]
    syscalls: Vec<Syscalls>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Syscalls {
    #[serde(default)]
    names: Vec<String>,
    action: String,
    errno_ret: Option<u32>,
    #[serde(default)]
    args: Option<Vec<Argument>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Argument {
    index: u8,
    value: u64,
    #[serde(default)]
    value_two: u64,
    op: String,
}

/// Compiles a profile file. Every action but `allow` gets a filter of its own; the kernel takes the strictest.
pub fn profile_programs(json: &[u8]) -> Result<Vec<SeccompProgram>, SeccompError> {
    let profile: Profile = serde_json::from_slice(json)?;
    let default = action(&profile.default_action, profile.default_errno_ret)?;
    let mut all = Rules::new();
    let mut by_action: Vec<(SeccompAction, Rules)> = Vec::new();
    for entry in &profile.syscalls {
        let action = action(&entry.action, entry.errno_ret)?;
        let rules = entry_rules(entry)?;
        merge(&mut all, &rules);
        match by_action.iter_mut().find(|(known, _)| *known == action) {
            Some((_, known)) => merge(known, &rules),
            None => by_action.push((action, rules)),
        }
    }
    let mut programs = Vec::new();
    if default != SeccompAction::Allow {
        programs.push(compile(all, default.clone(), SeccompAction::Allow)?);
    }
    for (action, rules) in by_action.into_iter().filter(|(action, _)| *action != SeccompAction::Allow) {
        if action != default {
            programs.push(compile(rules, SeccompAction::Allow, action)?);
        }
    }
    Ok(programs)
}

fn action(name: &str, errno: Option<u32>) -> Result<SeccompAction, SeccompError> {
    Ok(match name {
        "SCMP_ACT_ALLOW" => SeccompAction::Allow,
        "SCMP_ACT_ERRNO" => SeccompAction::Errno(errno.unwrap_or(libc::EPERM.unsigned_abs())),
        "SCMP_ACT_KILL" | "SCMP_ACT_KILL_THREAD" => SeccompAction::KillThread,
        "SCMP_ACT_KILL_PROCESS" => SeccompAction::KillProcess,
        "SCMP_ACT_LOG" => SeccompAction::Log,
        "SCMP_ACT_TRAP" => SeccompAction::Trap,
        "SCMP_ACT_TRACE" => SeccompAction::Trace(errno.unwrap_or(0)),
        _ => return Err(SeccompError::Unknown { what: "action", value: name.to_owned() }),
    })
}

fn entry_rules(entry: &Syscalls) -> Result<Rules, SeccompError> {
    let mut rules = Rules::new();
    // Names this architecture does not have are skipped, as libseccomp does.
    for number in entry.names.iter().filter_map(|name| number(name)) {
        let arguments = entry.args.as_deref().unwrap_or_default();
        rules.insert(number, if arguments.is_empty() { Vec::new() } else { argument_rules(arguments)? });
    }
    Ok(rules)
}

/// All arguments must match. `not equal` is two rules, so it stands alone.
fn argument_rules(arguments: &[Argument]) -> Result<Vec<SeccompRule>, SeccompError> {
    let mut conditions = Vec::new();
    for argument in arguments {
        let op = match argument.op.as_str() {
            "SCMP_CMP_EQ" => SeccompCmpOp::Eq,
            "SCMP_CMP_LT" => SeccompCmpOp::Lt,
            "SCMP_CMP_LE" => SeccompCmpOp::Le,
            "SCMP_CMP_GT" => SeccompCmpOp::Gt,
            "SCMP_CMP_GE" => SeccompCmpOp::Ge,
            "SCMP_CMP_MASKED_EQ" => SeccompCmpOp::MaskedEq(argument.value),
            "SCMP_CMP_NE" if arguments.len() == 1 => {
                let either = [SeccompCmpOp::Lt, SeccompCmpOp::Gt];
                let either = either.map(|op| condition(argument.index, SeccompCmpArgLen::Qword, op, argument.value));
                return either.into_iter().map(rule).collect();
            }
            other => return Err(SeccompError::Unknown { what: "operator", value: other.to_owned() }),
        };
        let masked = matches!(op, SeccompCmpOp::MaskedEq(_));
        let value = if masked { argument.value_two } else { argument.value };
        conditions.push(condition(argument.index, SeccompCmpArgLen::Qword, op, value)?);
    }
    Ok(vec![SeccompRule::new(conditions)?])
}

/// No rule for a syscall means "whatever its arguments": it wins over rules.
fn merge(into: &mut Rules, from: &Rules) {
    for (number, rules) in from {
        match into.get_mut(number) {
            Some(known) if known.is_empty() || rules.is_empty() => known.clear(),
            Some(known) => known.extend(rules.iter().cloned()),
            None => {
                into.insert(*number, rules.clone());
            }
        }
    }
}

fn condition(
    index: u8,
    length: SeccompCmpArgLen,
    op: SeccompCmpOp,
    value: u64,
) -> Result<SeccompCondition, seccompiler::BackendError> {
    SeccompCondition::new(index, length, op, value)
}

fn rule(condition: Result<SeccompCondition, seccompiler::BackendError>) -> Result<SeccompRule, SeccompError> {
    Ok(SeccompRule::new(vec![condition?])?)
}

fn compile(rules: Rules, other: SeccompAction, matched: SeccompAction) -> Result<SeccompProgram, SeccompError> {
    let architecture = TargetArch::try_from(std::env::consts::ARCH).map_err(|_| SeccompError::Architecture)?;
    let program: BpfProgram = SeccompFilter::new(rules, other, matched, architecture)?.try_into()?;
    Ok(program.iter().map(instruction).collect())
}

fn instruction(filter: &seccompiler::sock_filter) -> [u8; 8] {
    let [code_low, code_high] = filter.code.to_ne_bytes();
    let [a, b, c, d] = filter.k.to_ne_bytes();
    [code_low, code_high, filter.jt, filter.jf, a, b, c, d]
}

fn number(name: &str) -> Option<i64> {
    NAMES.iter().find(|(known, _)| *known == name).map(|(_, number)| *number)
}

/// Not in libc.
const IO_PGETEVENTS: i64 = if cfg!(target_arch = "x86_64") { 333 } else { 292 };

macro_rules! numbers {
    ($($name:ident)*) => { &[$(libc::$name),*] };
}

macro_rules! syscalls {
    (allowed: $($name:ident = $number:ident)*; new: $($new:literal = $value:tt)*;
     x86_64: $($old:ident = $old_number:ident)*; privileged: $($more:ident = $more_number:ident)*;) => {
        /// Syscalls that the default profile allows whatever their arguments.
        const ALLOWED: &[i64] = &[
            $(libc::$number,)* $($value,)*
            $(#[cfg(target_arch = "x86_64")] libc::$old_number,)*
        ];
        const NAMES: &[(&str, i64)] = &[
            $((stringify!($name), libc::$number),)* $(($new, $value),)*
            $(#[cfg(target_arch = "x86_64")] (stringify!($old), libc::$old_number),)*
            $((stringify!($more), libc::$more_number),)*
        ];
    };
}

syscalls! {
    allowed:
        accept = SYS_accept accept4 = SYS_accept4 adjtimex = SYS_adjtimex bind = SYS_bind brk = SYS_brk
        capget = SYS_capget capset = SYS_capset chdir = SYS_chdir clock_adjtime = SYS_clock_adjtime
        clock_getres = SYS_clock_getres clock_gettime = SYS_clock_gettime clock_nanosleep = SYS_clock_nanosleep
        close = SYS_close close_range = SYS_close_range connect = SYS_connect copy_file_range = SYS_copy_file_range
        dup = SYS_dup dup3 = SYS_dup3 epoll_create1 = SYS_epoll_create1 epoll_ctl = SYS_epoll_ctl
        epoll_pwait = SYS_epoll_pwait epoll_pwait2 = SYS_epoll_pwait2 eventfd2 = SYS_eventfd2 execve = SYS_execve
        execveat = SYS_execveat exit = SYS_exit exit_group = SYS_exit_group faccessat = SYS_faccessat
        faccessat2 = SYS_faccessat2 fadvise64 = SYS_fadvise64 fallocate = SYS_fallocate
        fanotify_mark = SYS_fanotify_mark fchdir = SYS_fchdir fchmod = SYS_fchmod fchmodat = SYS_fchmodat
        fchown = SYS_fchown fchownat = SYS_fchownat fcntl = SYS_fcntl fdatasync = SYS_fdatasync
        fgetxattr = SYS_fgetxattr flistxattr = SYS_flistxattr flock = SYS_flock fremovexattr = SYS_fremovexattr
        fsetxattr = SYS_fsetxattr fstat = SYS_fstat fstatfs = SYS_fstatfs fsync = SYS_fsync ftruncate = SYS_ftruncate
        futex = SYS_futex futex_waitv = SYS_futex_waitv getcpu = SYS_getcpu getcwd = SYS_getcwd
        getdents64 = SYS_getdents64 getegid = SYS_getegid geteuid = SYS_geteuid getgid = SYS_getgid
        getgroups = SYS_getgroups getitimer = SYS_getitimer getpeername = SYS_getpeername getpgid = SYS_getpgid
        getpid = SYS_getpid getppid = SYS_getppid getpriority = SYS_getpriority getrandom = SYS_getrandom
        getresgid = SYS_getresgid getresuid = SYS_getresuid getrlimit = SYS_getrlimit
        get_robust_list = SYS_get_robust_list getrusage = SYS_getrusage getsid = SYS_getsid
        getsockname = SYS_getsockname getsockopt = SYS_getsockopt gettid = SYS_gettid gettimeofday = SYS_gettimeofday
        getuid = SYS_getuid getxattr = SYS_getxattr inotify_add_watch = SYS_inotify_add_watch
        inotify_init1 = SYS_inotify_init1 inotify_rm_watch = SYS_inotify_rm_watch io_cancel = SYS_io_cancel
        ioctl = SYS_ioctl io_destroy = SYS_io_destroy io_getevents = SYS_io_getevents
        ioprio_get = SYS_ioprio_get ioprio_set = SYS_ioprio_set
        io_setup = SYS_io_setup io_submit = SYS_io_submit kill = SYS_kill landlock_add_rule = SYS_landlock_add_rule
        landlock_create_ruleset = SYS_landlock_create_ruleset landlock_restrict_self = SYS_landlock_restrict_self
        lgetxattr = SYS_lgetxattr linkat = SYS_linkat listen = SYS_listen listxattr = SYS_listxattr
        llistxattr = SYS_llistxattr lremovexattr = SYS_lremovexattr lseek = SYS_lseek lsetxattr = SYS_lsetxattr
        madvise = SYS_madvise membarrier = SYS_membarrier memfd_create = SYS_memfd_create
        memfd_secret = SYS_memfd_secret mincore = SYS_mincore mkdirat = SYS_mkdirat mknodat = SYS_mknodat
        mlock = SYS_mlock mlock2 = SYS_mlock2 mlockall = SYS_mlockall mmap = SYS_mmap mprotect = SYS_mprotect
        mq_getsetattr = SYS_mq_getsetattr mq_notify = SYS_mq_notify mq_open = SYS_mq_open
        mq_timedreceive = SYS_mq_timedreceive mq_timedsend = SYS_mq_timedsend mq_unlink = SYS_mq_unlink
        mremap = SYS_mremap msgctl = SYS_msgctl msgget = SYS_msgget msgrcv = SYS_msgrcv msgsnd = SYS_msgsnd
        msync = SYS_msync munlock = SYS_munlock munlockall = SYS_munlockall munmap = SYS_munmap
        name_to_handle_at = SYS_name_to_handle_at nanosleep = SYS_nanosleep newfstatat = SYS_newfstatat
        openat = SYS_openat openat2 = SYS_openat2 pidfd_open = SYS_pidfd_open
        pidfd_send_signal = SYS_pidfd_send_signal pipe2 = SYS_pipe2 pkey_alloc = SYS_pkey_alloc
        pkey_free = SYS_pkey_free pkey_mprotect = SYS_pkey_mprotect ppoll = SYS_ppoll prctl = SYS_prctl
        pread64 = SYS_pread64 preadv = SYS_preadv preadv2 = SYS_preadv2 prlimit64 = SYS_prlimit64
        process_mrelease = SYS_process_mrelease process_vm_readv = SYS_process_vm_readv
        process_vm_writev = SYS_process_vm_writev pselect6 = SYS_pselect6 ptrace = SYS_ptrace pwrite64 = SYS_pwrite64
        pwritev = SYS_pwritev pwritev2 = SYS_pwritev2 read = SYS_read readahead = SYS_readahead
        readlinkat = SYS_readlinkat readv = SYS_readv recvfrom = SYS_recvfrom recvmmsg = SYS_recvmmsg
        recvmsg = SYS_recvmsg remap_file_pages = SYS_remap_file_pages removexattr = SYS_removexattr
        renameat = SYS_renameat renameat2 = SYS_renameat2 restart_syscall = SYS_restart_syscall rseq = SYS_rseq
        rt_sigaction = SYS_rt_sigaction rt_sigpending = SYS_rt_sigpending rt_sigprocmask = SYS_rt_sigprocmask
        rt_sigqueueinfo = SYS_rt_sigqueueinfo rt_sigreturn = SYS_rt_sigreturn rt_sigsuspend = SYS_rt_sigsuspend
        rt_sigtimedwait = SYS_rt_sigtimedwait rt_tgsigqueueinfo = SYS_rt_tgsigqueueinfo
        sched_getaffinity = SYS_sched_getaffinity sched_getattr = SYS_sched_getattr
        sched_getparam = SYS_sched_getparam sched_get_priority_max = SYS_sched_get_priority_max
        sched_get_priority_min = SYS_sched_get_priority_min sched_getscheduler = SYS_sched_getscheduler
        sched_rr_get_interval = SYS_sched_rr_get_interval sched_setaffinity = SYS_sched_setaffinity
        sched_setattr = SYS_sched_setattr sched_setparam = SYS_sched_setparam
        sched_setscheduler = SYS_sched_setscheduler sched_yield = SYS_sched_yield seccomp = SYS_seccomp
        semctl = SYS_semctl semget = SYS_semget semop = SYS_semop semtimedop = SYS_semtimedop sendfile = SYS_sendfile
        sendmmsg = SYS_sendmmsg sendmsg = SYS_sendmsg sendto = SYS_sendto setfsgid = SYS_setfsgid
        setfsuid = SYS_setfsuid setgid = SYS_setgid setgroups = SYS_setgroups setitimer = SYS_setitimer
        setpgid = SYS_setpgid setpriority = SYS_setpriority setregid = SYS_setregid setresgid = SYS_setresgid
        setresuid = SYS_setresuid setreuid = SYS_setreuid setrlimit = SYS_setrlimit
        set_robust_list = SYS_set_robust_list setsid = SYS_setsid setsockopt = SYS_setsockopt
        set_tid_address = SYS_set_tid_address setuid = SYS_setuid setxattr = SYS_setxattr shmat = SYS_shmat
        shmctl = SYS_shmctl shmdt = SYS_shmdt shmget = SYS_shmget shutdown = SYS_shutdown
        sigaltstack = SYS_sigaltstack signalfd4 = SYS_signalfd4 socketpair = SYS_socketpair splice = SYS_splice
        statfs = SYS_statfs statx = SYS_statx symlinkat = SYS_symlinkat sync = SYS_sync
        sync_file_range = SYS_sync_file_range syncfs = SYS_syncfs sysinfo = SYS_sysinfo tee = SYS_tee
        tgkill = SYS_tgkill timer_create = SYS_timer_create timer_delete = SYS_timer_delete
        timer_getoverrun = SYS_timer_getoverrun timer_gettime = SYS_timer_gettime timer_settime = SYS_timer_settime
        timerfd_create = SYS_timerfd_create timerfd_gettime = SYS_timerfd_gettime
        timerfd_settime = SYS_timerfd_settime times = SYS_times tkill = SYS_tkill truncate = SYS_truncate
        umask = SYS_umask uname = SYS_uname unlinkat = SYS_unlinkat utimensat = SYS_utimensat vmsplice = SYS_vmsplice
        wait4 = SYS_wait4 waitid = SYS_waitid write = SYS_write writev = SYS_writev;
    new:
        "cachestat" = 451 "fchmodat2" = 452 "map_shadow_stack" = 453 "futex_wake" = 454 "futex_wait" = 455
        "futex_requeue" = 456
        "io_pgetevents" = IO_PGETEVENTS;
    x86_64:
        access = SYS_access alarm = SYS_alarm arch_prctl = SYS_arch_prctl chmod = SYS_chmod chown = SYS_chown
        creat = SYS_creat dup2 = SYS_dup2 epoll_create = SYS_epoll_create epoll_ctl_old = SYS_epoll_ctl_old
        epoll_wait = SYS_epoll_wait epoll_wait_old = SYS_epoll_wait_old eventfd = SYS_eventfd fork = SYS_fork
        futimesat = SYS_futimesat getdents = SYS_getdents getpgrp = SYS_getpgrp get_thread_area = SYS_get_thread_area
        inotify_init = SYS_inotify_init lchown = SYS_lchown link = SYS_link lstat = SYS_lstat mkdir = SYS_mkdir
        mknod = SYS_mknod modify_ldt = SYS_modify_ldt open = SYS_open pause = SYS_pause pipe = SYS_pipe
        poll = SYS_poll readlink = SYS_readlink rename = SYS_rename rmdir = SYS_rmdir select = SYS_select
        set_thread_area = SYS_set_thread_area signalfd = SYS_signalfd stat = SYS_stat symlink = SYS_symlink
        time = SYS_time unlink = SYS_unlink utime = SYS_utime utimes = SYS_utimes vfork = SYS_vfork;
    privileged:
        open_by_handle_at = SYS_open_by_handle_at delete_module = SYS_delete_module init_module = SYS_init_module
        finit_module = SYS_finit_module chroot = SYS_chroot kcmp = SYS_kcmp pidfd_getfd = SYS_pidfd_getfd
        process_madvise = SYS_process_madvise acct = SYS_acct bpf = SYS_bpf clone = SYS_clone
        fanotify_init = SYS_fanotify_init fsconfig = SYS_fsconfig fsmount = SYS_fsmount fsopen = SYS_fsopen
        fspick = SYS_fspick mount = SYS_mount mount_setattr = SYS_mount_setattr move_mount = SYS_move_mount
        open_tree = SYS_open_tree perf_event_open = SYS_perf_event_open quotactl = SYS_quotactl
        quotactl_fd = SYS_quotactl_fd setdomainname = SYS_setdomainname sethostname = SYS_sethostname
        setns = SYS_setns syslog = SYS_syslog umount2 = SYS_umount2 unshare = SYS_unshare reboot = SYS_reboot
        get_mempolicy = SYS_get_mempolicy mbind = SYS_mbind set_mempolicy = SYS_set_mempolicy
        settimeofday = SYS_settimeofday clock_settime = SYS_clock_settime vhangup = SYS_vhangup clone3 = SYS_clone3
        socket = SYS_socket personality = SYS_personality keyctl = SYS_keyctl add_key = SYS_add_key
        request_key = SYS_request_key swapon = SYS_swapon swapoff = SYS_swapoff pivot_root = SYS_pivot_root
        userfaultfd = SYS_userfaultfd io_uring_setup = SYS_io_uring_setup io_uring_enter = SYS_io_uring_enter
        io_uring_register = SYS_io_uring_register kexec_load = SYS_kexec_load move_pages = SYS_move_pages
        migrate_pages = SYS_migrate_pages lookup_dcookie = SYS_lookup_dcookie nfsservctl = SYS_nfsservctl;
}

/// What a capability adds.
const PRIVILEGED: &[(u32, &[i64])] = &[
    (capability::DAC_READ_SEARCH, numbers![SYS_open_by_handle_at]),
    (capability::SYS_MODULE, numbers![SYS_delete_module SYS_init_module SYS_finit_module]),
    #[cfg(target_arch = "x86_64")]
    (capability::SYS_RAWIO, numbers![SYS_iopl SYS_ioperm]),
    (capability::SYS_CHROOT, numbers![SYS_chroot]),
    (capability::SYS_PTRACE, numbers![SYS_kcmp SYS_pidfd_getfd SYS_process_madvise]),
    (capability::SYS_PACCT, numbers![SYS_acct]),
    (
        capability::SYS_ADMIN,
        numbers![SYS_bpf SYS_clone SYS_fanotify_init SYS_fsconfig SYS_fsmount SYS_fsopen SYS_fspick SYS_mount SYS_mount_setattr SYS_move_mount SYS_open_tree SYS_perf_event_open SYS_quotactl SYS_quotactl_fd SYS_setdomainname SYS_sethostname SYS_setns SYS_syslog SYS_umount2 SYS_unshare],
    ),
    (capability::SYS_BOOT, numbers![SYS_reboot]),
    (capability::SYS_NICE, numbers![SYS_get_mempolicy SYS_mbind SYS_set_mempolicy]),
    (capability::SYS_TIME, numbers![SYS_settimeofday SYS_clock_settime]),
    (capability::SYS_TTY_CONFIG, numbers![SYS_vhangup]),
    (capability::SYSLOG, numbers![SYS_syslog]),
    (capability::PERFMON, numbers![SYS_perf_event_open]),
    (capability::BPF, numbers![SYS_bpf]),
];

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs a filter as the kernel would: the instructions seccompiler emits, on one syscall.
    fn evaluate(program: &SeccompProgram, number: i64, argument: u64) -> u32 {
        let architecture = if cfg!(target_arch = "x86_64") { 0xc000_003e } else { 0xc000_00b7u32 };
        let mut data = [0u8; 64];
        data[..4].copy_from_slice(&u32::try_from(number).expect("number").to_ne_bytes());
        data[4..8].copy_from_slice(&architecture.to_ne_bytes());
        data[16..24].copy_from_slice(&argument.to_ne_bytes());
        let (mut at, mut accumulator) = (0, 0u32);
        loop {
            let step = program[at];
            let code = u16::from_ne_bytes([step[0], step[1]]);
            let k = u32::from_ne_bytes([step[4], step[5], step[6], step[7]]);
            at += 1;
            let jump = |taken: bool| usize::from(if taken { step[2] } else { step[3] });
            match code {
                0x20 => {
                    let offset = usize::try_from(k).expect("offset");
                    accumulator = u32::from_ne_bytes(data[offset..offset + 4].try_into().expect("four"));
                }
                0x05 => at += usize::try_from(k).expect("offset"),
                0x15 => at += jump(accumulator == k),
                0x25 => at += jump(accumulator > k),
                0x35 => at += jump(accumulator >= k),
                0x54 => accumulator &= k,
                0x06 => return k,
                other => panic!("instruction {other:#x}"),
            }
        }
    }

    const ALLOW: u32 = 0x7fff_0000;
    const ERRNO: u32 = 0x0005_0000;

    fn verdict(programs: &[SeccompProgram], number: i64, argument: u64) -> u32 {
        let verdicts = programs.iter().rev().map(|program| evaluate(program, number, argument));
        verdicts.min_by_key(|verdict| verdict & 0xffff_0000).expect("a program")
    }

    #[test]
    fn the_default_profile_allows_and_denies() {
        let programs = default_programs(0).expect("compile");
        let cases = [
            (libc::SYS_read, 0, ALLOW),
            (libc::SYS_mount, 0, ERRNO | 1),
            (libc::SYS_unshare, 0, ERRNO | 1),
            (libc::SYS_clone3, 0, ERRNO | 38),
            (libc::SYS_clone, 0x11, ALLOW),
            (libc::SYS_clone, 0x1000_0000, ERRNO | 1),
            (libc::SYS_socket, 1, ALLOW),
            (libc::SYS_socket, 40, ERRNO | 1),
            (libc::SYS_personality, 8, ALLOW),
            (libc::SYS_personality, 9, ERRNO | 1),
            (libc::SYS_keyctl, 0, ERRNO | 1),
            (libc::SYS_ptrace, 0, ALLOW),
        ];
        for (number, argument, expected) in cases {
            assert_eq!(verdict(&programs, number, argument), expected, "syscall {number} with {argument}");
        }
    }

    #[test]
    fn capabilities_widen_it() {
        let programs = default_programs(1 << capability::SYS_ADMIN).expect("compile");
        for number in [libc::SYS_mount, libc::SYS_unshare, libc::SYS_clone3, libc::SYS_clone] {
            assert_eq!(verdict(&programs, number, u64::MAX), ALLOW);
        }
        let programs = default_programs(1 << capability::SYS_CHROOT).expect("compile");
        assert_eq!(verdict(&programs, libc::SYS_chroot, 0), ALLOW);
    }

    #[test]
    fn profiles_of_the_node_are_compiled() {
        let json = br#"{"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 22, "architectures": ["SCMP_ARCH_X86_64"],
            "syscalls": [{"names": ["read", "write", "no_such_call"], "action": "SCMP_ACT_ALLOW"},
                {"names": ["mkdirat"], "action": "SCMP_ACT_KILL_PROCESS"},
                {"names": ["socket"], "action": "SCMP_ACT_ALLOW", "args": [{"index": 0, "value": 40, "op": "SCMP_CMP_NE"}]}]}"#;
        let programs = profile_programs(json).expect("compile");
        assert_eq!(verdict(&programs, libc::SYS_read, 0), ALLOW);
        assert_eq!(verdict(&programs, libc::SYS_openat, 0), ERRNO | 22);
        assert_eq!(verdict(&programs, libc::SYS_socket, 40), ERRNO | 22);
        assert_eq!(verdict(&programs, libc::SYS_socket, 41), ALLOW);
        assert!(programs.iter().any(|program| evaluate(program, libc::SYS_mkdirat, 0) == 0x8000_0000));
        assert!(profile_programs(br#"{"defaultAction": "SCMP_ACT_WHAT"}"#).is_err());
    }
}
