//! `kubectl exec -it` as a person at a terminal has it: prompt, commands, window size, Ctrl-C, exit code.

use crate::harness::{self, Board};
use nix::pty::{OpenptyResult, Winsize, openpty};
use rustix::termios::tcsetwinsize;
use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Child, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

const POD: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: shell}
spec:
  terminationGracePeriodSeconds: 1
  containers: [{name: main, image: 'localhost/busybox:v1', command: [sleep, '1000']}]
"#;

/// The test's end of a terminal at which kubectl sits.
struct Terminal {
    keyboard: File,
    screen: Arc<Mutex<String>>,
    program: Child,
}

fn size(rows: u16, columns: u16) -> Winsize {
    Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 }
}

impl Terminal {
    fn exec(board: &Board, kubectl: &Path, arguments: &[&str]) -> Self {
        let OpenptyResult { master, slave } = openpty(Some(&size(24, 80)), None).unwrap();
        let (keyboard, slave) = (File::from(master), File::from(slave));
        // A session whose terminal it is: only then does the kernel tell of a new window size.
        let mut command = board.inside("setsid");
        command.args(["--ctty", "--wait", "timeout", "--foreground", "60"]).arg(kubectl).args(arguments);
        command.env("KUBECONFIG", board.kubeconfig()).env("HOME", &board.directory);
        command.stdin(slave.try_clone().unwrap()).stdout(slave.try_clone().unwrap()).stderr(Stdio::from(slave));
        let program = command.spawn().unwrap();
        let (screen, mut output) = (Arc::new(Mutex::new(String::new())), keyboard.try_clone().unwrap());
        let shown = screen.clone();
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            // An error is the end: nobody has the other side open any more.
            while let Ok(length @ 1..) = output.read(&mut buffer) {
                shown.lock().unwrap().push_str(&String::from_utf8_lossy(&buffer[..length]));
            }
        });
        Self { keyboard, screen, program }
    }

    fn screen(&self) -> String {
        self.screen.lock().unwrap().clone()
    }

    fn type_in(&mut self, keys: &str) {
        self.keyboard.write_all(keys.as_bytes()).unwrap();
    }

    fn until(&self, board: &Board, text: &str) {
        let seen = harness::bounded(Duration::from_secs(20), || self.screen().contains(text));
        assert!(seen, "{text:?} does not come; on the screen is\n{}\n{}", self.screen(), board.log());
    }

    /// Types a command until its answer comes: a size travels beside the keys, not before them.
    fn type_until(&mut self, keys: &str, text: &str) {
        for _ in 0..20 {
            self.type_in(keys);
            if harness::bounded(Duration::from_secs(1), || self.screen().contains(text)) {
                return;
            }
        }
        panic!("{text:?} does not come; on the screen is\n{}", self.screen());
    }
}

#[test]
fn kubectl_exec_with_a_terminal_has_prompt_size_interrupt_and_exit_code() {
    if !harness::can_run() {
        return;
    }
    let Some(kubectl) = harness::tool("kubectl-1.37") else { return };
    let board = Board::start("tty");
    board.busybox_image("localhost/busybox:v1");
    board.apply(&kubectl, POD);
    board.kubectl(&kubectl, &["wait", "--for=condition=Ready", "pod/shell", "--timeout=60s"]);

    let mut terminal = Terminal::exec(&board, &kubectl, &["exec", "-it", "shell", "--", "sh"]);
    terminal.until(&board, "# ");
    // The shell puts the answer together, so that the echo of what is typed is not taken for it.
    terminal.type_in("echo user=$(id -u)=\n");
    terminal.until(&board, "user=0=");
    terminal.type_until("echo size=$(stty size)=\n", "size=24 80=");
    tcsetwinsize(&terminal.keyboard, rustix::termios::Winsize { ws_row: 40, ws_col: 132, ws_xpixel: 0, ws_ypixel: 0 })
        .unwrap();
    terminal.type_until("echo size=$(stty size)=\n", "size=40 132=");
    terminal.type_in("sleep 1000\n");
    terminal.type_until("\u{3}echo back=$((6 * 7))=\n", "back=42=");
    terminal.type_in("exit 7\n");
    board.until("kubectl ends with the shell", || terminal.program.try_wait().unwrap().is_some());
    assert_eq!(terminal.program.wait().unwrap().code(), Some(7), "{}", terminal.screen());

    board.kubectl(&kubectl, &["delete", "pod", "shell", "--timeout=60s"]);
    board.until("nothing of it is left", || std::fs::read_dir(board.run.join("pods")).unwrap().count() == 0);
    board.end();
}
