//! Kills a process at its nth system call that changes the kernel's networking.

use std::{
    env, fs,
    os::unix::fs::FileExt as _,
    process::{Command, Stdio},
};

use nix::{
    errno::Errno,
    libc,
    sys::{
        ptrace::{self, Options},
        signal::{Signal, kill, raise},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::Pid,
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    Killed,
    ByItself,
}

/// The calling process lets its parent trace it from here on.
pub(crate) fn traced() {
    ptrace::traceme().unwrap();
    raise(Signal::SIGSTOP).unwrap();
}

/// Runs this very test in a process with this environment, and kills it when it is about to make its nth change.
#[allow(clippy::zombie_processes, reason = "it is waited for below, as all that is traced")]
pub(crate) fn killed_at(point: usize, environment: &[(&str, &str)]) -> Ended {
    let test = std::thread::current().name().unwrap().to_owned();
    let mut command = Command::new(env::current_exe().unwrap());
    command.args(["--exact", &test, "--nocapture", "--test-threads=1"]).envs(environment.iter().copied());
    let child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap();
    let leader = Pid::from_raw(child.id().try_into().unwrap());
    let mut changes = 0;
    let mut ended = Ended::ByItself;
    loop {
        let status = match waitpid(Pid::from_raw(-1), Some(WaitPidFlag::__WALL | WaitPidFlag::__WNOTHREAD)) {
            Err(Errno::ECHILD) => return ended,
            other => other.unwrap(),
        };
        let go_on = |pid, signal: Option<Signal>| match ptrace::syscall(pid, signal) {
            Ok(()) | Err(Errno::ESRCH) => {}
            Err(errno) => panic!("ptrace: {errno}"),
        };
        match status {
            WaitStatus::PtraceSyscall(pid) => {
                changes += usize::from(ended == Ended::ByItself && changes_the_kernel(pid));
                if changes == point && ended == Ended::ByItself {
                    ended = Ended::Killed;
                    kill(leader, Signal::SIGKILL).unwrap();
                }
                go_on(pid, None);
            }
            WaitStatus::Stopped(pid, Signal::SIGSTOP) => {
                let options =
                    Options::PTRACE_O_TRACESYSGOOD | Options::PTRACE_O_TRACECLONE | Options::PTRACE_O_EXITKILL;
                match ptrace::setoptions(pid, options) {
                    Ok(()) | Err(Errno::ESRCH) => {}
                    Err(errno) => panic!("ptrace: {errno}"),
                }
                go_on(pid, None);
            }
            WaitStatus::Stopped(pid, signal) => go_on(pid, Some(signal)),
            WaitStatus::PtraceEvent(pid, ..) => go_on(pid, None),
            WaitStatus::Exited(pid, code) if pid == leader => {
                assert_eq!(code, 0, "the agent that nobody killed does not end well");
            }
            _ => {}
        }
    }
}

/// Whether the system call that the stopped thread is about to make sends a request that changes something, or binds or unbinds a
/// namespace.
fn changes_the_kernel(thread: Pid) -> bool {
    if ptrace::syscall_info(thread).map(|info| info.op) != Ok(libc::PTRACE_SYSCALL_INFO_ENTRY) {
        return false;
    }
    // Number and arguments, in hexadecimal but for the number (proc_pid_syscall(5)).
    let text = fs::read_to_string(format!("/proc/{thread}/syscall")).unwrap_or_default();
    let mut words = text.split_whitespace();
    let number: libc::c_long = words.next().and_then(|word| word.parse().ok()).unwrap_or(-1);
    let arguments: Vec<u64> =
        words.map(|word| u64::from_str_radix(word.trim_start_matches("0x"), 16).unwrap()).collect();
    match number {
        libc::SYS_mount | libc::SYS_umount2 | libc::SYS_unlink | libc::SYS_unlinkat => true,
        libc::SYS_sendto => is_request_to_change(thread, arguments[1]),
        _ => false,
    }
}

/// Whether what is sent is a message of rtnetlink that makes, removes or sets something, or a batch of nf_tables.
fn is_request_to_change(thread: Pid, buffer: u64) -> bool {
    let mut header = [0; 8];
    let memory = fs::File::open(format!("/proc/{thread}/mem")).unwrap();
    if memory.read_exact_at(&mut header, buffer).is_err() {
        return false;
    }
    let kind = u16::from_ne_bytes([header[4], header[5]]);
    // Of four kinds in a row the third asks (`RTM_GET…`); a batch begins with the least kind of all (`NFNL_MSG_BATCH_BEGIN`).
    (libc::RTM_NEWLINK..0x100).contains(&kind) && kind % 4 != 2
}
