//! Streams into pods: exec, attach, cp and port-forward by kubectl over SPDY (1.20) and WebSocket (1.37), the
//! WebSocket protocols of other clients, and proxied requests.

use super::{board, harness};
use edgelet::client::Remote;
use edgelet::client::kubeconfig::Access;
use futures_util::{SinkExt, StreamExt};
use harness::{Board, Running};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpStream, ToSocketAddrs};
use std::path::Path;
use std::process::Output;
use std::time::{Duration, Instant};
use tokio_tungstenite::tungstenite::Message;

const MEGABYTE: usize = 1 << 20;
/// Echoes what it is sent on 7000, serves HTTP on 8080; `lines` repeats the lines that it is told.
const PODS: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: net, labels: {app: net}}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: echo
    image: localhost/busybox:v1
    command: [sh, -c, 'exec nc -ll -p 7000 -e cat']
  - name: web
    image: localhost/busybox:v1
    command: [sh, -c, 'cat /etc/tag > /www/index.html; exec httpd -f -p 8080 -h /www']
    ports: [{name: http, containerPort: 8080}]
---
apiVersion: v1
kind: Service
metadata: {name: net}
spec:
  selector: {app: net}
  ports: [{name: http, port: 80, targetPort: http}]
---
apiVersion: v1
kind: Pod
metadata: {name: lines}
spec:
  terminationGracePeriodSeconds: 1
  restartPolicy: Never
  containers:
  - name: lines
    image: localhost/busybox:v1
    stdin: true
    stdinOnce: true
    command: [sh, -c, 'while read line; do echo "got $line"; done; exit 3']
---
apiVersion: v1
kind: Pod
metadata: {name: terminal}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: shell
    image: localhost/busybox:v1
    stdin: true
    tty: true
    command: [sh]
"#;

/// A pattern that no two seeds share and no piece of which repeats.
fn bytes(seed: u64, length: usize) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(seed);
    (0..length).map(|_| random.u8(..)).collect()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A command with standard input; it may stop reading before all is written.
fn fed(board: &Board, program: &Path, arguments: &[&str], input: &[u8]) -> Output {
    let mut running = board.running(Path::new("timeout"), &[&["60", program.to_str().unwrap()], arguments].concat());
    let mut stdin = running.0.stdin.take().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(move || drop(stdin.write_all(input)));
        let mut stderr = running.0.stderr.take().unwrap();
        let errors = scope.spawn(move || {
            let mut errors = Vec::new();
            stderr.read_to_end(&mut errors).unwrap();
            errors
        });
        let mut stdout = Vec::new();
        running.0.stdout.take().unwrap().read_to_end(&mut stdout).unwrap();
        Output { status: running.0.wait().unwrap(), stdout, stderr: errors.join().unwrap() }
    })
}

fn ready(name: &str, kubectl: &Path) -> Board {
    let board = board(name);
    board.apply(kubectl, PODS);
    board.kubectl(kubectl, &["wait", "--for=condition=Ready", "pod", "--all", "--timeout=60s"]);
    board
}

fn end(board: Board, kubectl: &Path) {
    board.kubectl(kubectl, &["delete", "pods", "--all", "--timeout=60s"]);
    board.until("every shim has ended", || board.shims().is_empty());
    board.end();
}

fn exec(board: &Board, program: &Path) {
    let run = |arguments: &[&str], input: &[u8]| {
        fed(board, program, &[&["exec", "-i", "net", "-c", "web", "--"], arguments].concat(), input)
    };
    let failed = run(&["sh", "-c", "echo out; echo err >&2; exit 7"], b"");
    assert_eq!(failed.status.code(), Some(7), "{failed:?}");
    assert_eq!((text(&failed.stdout), text(&failed.stderr).contains("err\n")), ("out\n".to_owned(), true));

    // All of the input arrives, then its end; all of the output comes back.
    let input = bytes(1, 3 * MEGABYTE);
    let echoed = run(&["cat"], &input);
    assert!(echoed.status.success(), "{}", text(&echoed.stderr));
    assert_eq!(echoed.stdout.len(), input.len());
    assert!(echoed.stdout == input, "the bytes differ");

    // A command that ends before its input does: what it said still arrives.
    let first = run(&["head", "-c", "5"], &[b'a'; 3 * MEGABYTE]);
    assert_eq!((first.status.code(), text(&first.stdout)), (Some(0), "aaaaa".to_owned()), "{first:?}");

    let missing = run(&["no-such-program"], b"");
    assert!(!missing.status.success());
    assert!(text(&missing.stderr).contains("error executing command in container"), "{}", text(&missing.stderr));
    let none = fed(board, program, &["exec", "net", "-c", "none", "--", "true"], b"");
    assert!(text(&none.stderr).contains("none"), "{}", text(&none.stderr));
}

fn attach(board: &Board, kubectl: &Path, program: &Path) {
    // The container ends with its input, and with 3: that is in its status, not in the client's exit code.
    let attached = fed(board, program, &["attach", "-i", "lines"], b"one\ntwo\n");
    assert!(attached.status.success(), "{attached:?}");
    assert_eq!(text(&attached.stdout), "got one\ngot two\n");
    let code = ["get", "pod", "lines", "-o", "jsonpath={.status.containerStatuses[0].state.terminated.exitCode}"];
    board.until("the container has ended", || board.kubectl(kubectl, &code) == "3");

    let terminal = format!("stty rows 41 cols 101; exec {} attach -it terminal", program.display());
    let mut running = board.running(Path::new("timeout"), &["60", "script", "-qefc", &terminal, "/dev/null"]);
    let mut screen = BufReader::new(running.0.stdout.take().unwrap());
    let mut keys = running.0.stdin.take().unwrap();
    let mut seen = String::new();
    // The prompt comes only after a key; what was typed before the client is attached would be lost.
    let mut type_until = |typed: &str, expected: &str| {
        keys.write_all(typed.as_bytes()).unwrap();
        while !seen.contains(expected) {
            let mut line = String::new();
            assert!(screen.read_line(&mut line).unwrap() > 0, "{expected} is not in {seen:?}");
            seen.push_str(&line);
        }
    };
    board.until("the terminal has the client's size", || {
        let size = "stty size < /proc/1/fd/0";
        board.kubectl(kubectl, &["exec", "terminal", "--", "sh", "-c", size]).contains("41 101")
    });
    type_until("echo sum $((40+2))\n", "sum 42");
    type_until("stty size\n", "41 101");
    drop(running);
}

fn run_once(board: &Board, kubectl: &Path) {
    let run = ["run", "once", "-i", "--rm", "--restart=Never", "--image=localhost/busybox:v1", "--quiet", "--"];
    let command = ["sh", "-c", "read line; echo \"read $line\"; exit 5"];
    let once = fed(board, kubectl, &[&run[..], &command].concat(), b"hello\n");
    assert_eq!(once.status.code(), Some(5), "{once:?}");
    assert!(text(&once.stdout).contains("read hello\n"), "{once:?}");
}

/// A container that is added to a pod that runs, looked at by exec and logs.
fn debug(board: &Board, kubectl: &Path) {
    let command = ["sh", "-c", "echo debugging; exec sleep 1000"];
    let debug = ["debug", "net", "-c", "debugger", "--image=localhost/busybox:v1", "--attach=false", "--"];
    board.kubectl(kubectl, &[&debug[..], &command].concat());
    let logs = ["logs", "net", "-c", "debugger"];
    board.until("the debugger runs", || text(&board.kubectl_output(kubectl, &logs, "").stdout) == "debugging\n");
    let page = ["exec", "net", "-c", "debugger", "--", "wget", "-qO-", "http://127.0.0.1:8080/"];
    assert_eq!(board.kubectl(kubectl, &page), "localhost/busybox:v1");
}

fn copy(board: &Board, kubectl: &Path) {
    let (here, back) = (board.directory.join("there"), board.directory.join("back"));
    std::fs::create_dir_all(here.join("folder")).unwrap();
    let content = bytes(2, 2 * MEGABYTE);
    std::fs::write(here.join("folder/blob"), &content).unwrap();
    board.kubectl(kubectl, &["cp", "-c", "web", here.to_str().unwrap(), "net:/tmp/there"]);
    board.kubectl(kubectl, &["cp", "-c", "web", "net:/tmp/there", back.to_str().unwrap()]);
    assert!(std::fs::read(back.join("folder/blob")).unwrap() == content, "the copy differs");
}

/// `… port-forward …` and the local port that it has chosen.
fn forwarded(board: &Board, program: &Path, what: &str, port: u16) -> (Running, u16) {
    let mut running = board.running(program, &["port-forward", what, &format!(":{port}")]);
    let mut line = String::new();
    BufReader::new(running.0.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
    let local = line.strip_prefix("Forwarding from 127.0.0.1:").and_then(|rest| rest.split_once(" -> "));
    let local = local.unwrap_or_else(|| panic!("{line:?}")).0.parse().unwrap();
    (running, local)
}

/// Sends, ends its side, and gets all of it back.
fn echo(address: impl ToSocketAddrs, sent: &[u8]) -> Duration {
    let begun = Instant::now();
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let mut received = Vec::with_capacity(sent.len());
    std::thread::scope(|scope| {
        let mut writer = stream.try_clone().unwrap();
        scope.spawn(move || {
            writer.write_all(sent).unwrap();
            writer.shutdown(Shutdown::Write).unwrap();
        });
        stream.read_to_end(&mut received).unwrap();
    });
    assert_eq!(received.len(), sent.len());
    assert!(received == sent, "the bytes differ");
    begun.elapsed()
}

fn port_forward(board: &Board, program: &Path) {
    let ip = board.edgelet(&["get", "pod", "net", "-o", "json"]).stdout;
    let ip: serde_json::Value = serde_json::from_slice(&ip).unwrap();
    let ip = ip["status"]["podIP"].as_str().unwrap();
    let (_running, local) = forwarded(board, program, "pod/net", 7000);
    std::thread::scope(|scope| {
        // A namespace is entered by a thread for good.
        let one = scope.spawn(|| {
            board.enter();
            let sent = bytes(3, 10 * MEGABYTE);
            (echo(("127.0.0.1", local), &sent), echo((ip, 7000), &sent))
        });
        let (forwarded, direct) = one.join().unwrap();
        eprintln!("10 MB there and back: port-forward {forwarded:?}, the pod's own address {direct:?}");
        for seed in 10..18 {
            scope.spawn(move || {
                board.enter();
                echo(("127.0.0.1", local), &bytes(seed, MEGABYTE));
            });
        }
    });
    let (mut closed, local) = forwarded(board, program, "pod/net", 9);
    assert_eq!(board.curl(&format!("http://127.0.0.1:{local}/")), "");
    let mut errors = BufReader::new(closed.0.stderr.take().unwrap());
    let mut said = String::new();
    while !said.contains("connection refused") {
        assert!(errors.read_line(&mut said).unwrap() > 0, "{said}");
    }
    assert!(said.contains("error forwarding port 9 to pod net, uid : "), "{said}");
    let (_running, local) = forwarded(board, program, "service/net", 80);
    assert_eq!(board.curl(&format!("http://127.0.0.1:{local}/")), "localhost/busybox:v1");
}

/// Newer clients fall back to SPDY when a WebSocket is refused, and say so only when asked: they must not need to.
fn opens_with(board: &Board, kubectl: &Path, verb: &str) {
    let echoed = fed(board, kubectl, &["exec", "-v=6", "net", "-c", "web", "--", "echo", "hi"], b"");
    let log = text(&echoed.stderr);
    let requests: Vec<&str> = log.lines().filter(|line| line.contains("/exec?")).collect();
    assert!(!requests.is_empty(), "{log}");
    let opened = |line: &&str| line.contains(verb) && line.contains("101 Switching Protocols");
    assert!(requests.iter().all(opened), "{requests:#?}");
}

#[test]
fn kubectl_1_20_streams_over_spdy() {
    if !harness::can_run() {
        return;
    }
    let Some(kubectl) = harness::tool("kubectl-1.20") else { return };
    let board = ready("streams-spdy", &kubectl);
    opens_with(&board, &kubectl, "POST");
    exec(&board, &kubectl);
    attach(&board, &kubectl, &kubectl);
    run_once(&board, &kubectl);
    copy(&board, &kubectl);
    port_forward(&board, &kubectl);
    end(board, &kubectl);
}

#[test]
fn the_newest_kubectl_streams_over_websockets() {
    if !harness::can_run() {
        return;
    }
    let Some(kubectl) = harness::tool("kubectl-1.37") else { return };
    let board = ready("streams-websocket", &kubectl);
    opens_with(&board, &kubectl, "GET");
    exec(&board, &kubectl);
    attach(&board, &kubectl, &kubectl);
    run_once(&board, &kubectl);
    copy(&board, &kubectl);
    port_forward(&board, &kubectl);
    debug(&board, &kubectl);
    other_clients(&board);
    proxied(&board, &kubectl);
    end(board, &kubectl);
}

#[test]
fn edgelet_streams_as_kubectl_does() {
    if !harness::can_run() {
        return;
    }
    let Some(kubectl) = harness::tool("kubectl-1.37") else { return };
    let edgelet = Path::new(env!("CARGO_BIN_EXE_edgelet"));
    let board = ready("streams-edgelet", &kubectl);
    exec(&board, edgelet);
    attach(&board, &kubectl, edgelet);
    port_forward(&board, edgelet);
    end(board, &kubectl);
}

/// Through the API server to a pod, a service and the kubelet.
fn proxied(board: &Board, kubectl: &Path) {
    let raw = |path: &str| board.kubectl(kubectl, &["get", "--raw", path]);
    let namespace = "/api/v1/namespaces/default";
    for target in ["pods/net:8080", "pods/http:net:http", "services/net", "services/net:http"] {
        assert_eq!(raw(&format!("{namespace}/{target}/proxy/")), "localhost/busybox:v1", "{target}");
        // Without the slash it is moved to the one with it.
        assert_eq!(raw(&format!("{namespace}/{target}/proxy")), "localhost/busybox:v1", "{target}");
    }
    assert_eq!(raw("/api/v1/nodes/board/proxy/healthz"), "ok");
}

/// What the Python and JavaScript clients send, message by message.
fn other_clients(board: &Board) {
    std::thread::scope(|scope| {
        scope.spawn(|| {
            board.enter();
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let access = Access::load(&board.kubeconfig(), None).unwrap();
                let remote = Remote::new(access, edgelet::network::resolve::Resolver::default()).unwrap();
                for protocol in ["v5.channel.k8s.io", "v4.channel.k8s.io", "channel.k8s.io"] {
                    exec_channels(&remote, protocol).await;
                }
                exec_in_base64(&remote).await;
                for protocol in ["v5.channel.k8s.io", "v4.channel.k8s.io"] {
                    forward_channels(&remote, protocol).await;
                }
                log_messages(&remote).await;
            });
        });
    });
}

async fn exec_channels(remote: &Remote, protocol: &'static str) {
    let query = "container=web&command=sh&command=-c&command=read+a;echo+$a;exit+3&stdin=true&stdout=true&stderr=true";
    let path = format!("/api/v1/namespaces/default/pods/net/exec?{query}");
    let mut socket = remote.websocket(&path, protocol).await.unwrap();
    socket.send(Message::binary(&b"\x00hi\n"[..])).await.unwrap();
    let mut channels = vec![Vec::new(); 4];
    while let Some(Ok(message)) = socket.next().await {
        let data = message.into_data();
        if let Some((channel, payload)) = data.split_first()
            && let Some(channel) = channels.get_mut(usize::from(*channel))
        {
            channel.extend_from_slice(payload);
        }
    }
    assert_eq!(text(&channels[1]), "hi\n", "{protocol}");
    let end = text(&channels[3]);
    match protocol {
        "channel.k8s.io" => assert_eq!(end, "command terminated with non-zero exit code: exit status 3"),
        _ => assert!(end.contains("\"reason\":\"NonZeroExitCode\""), "{end}"),
    }
}

async fn exec_in_base64(remote: &Remote) {
    let path = "/api/v1/namespaces/default/pods/net/exec?container=web&command=echo&command=hi&stdout=true";
    let mut socket = remote.websocket(path, "base64.channel.k8s.io").await.unwrap();
    let mut messages = Vec::new();
    while let Some(Ok(Message::Text(message))) = socket.next().await {
        messages.push(message.to_string());
    }
    // Empty first; a success says nothing on the error channel.
    assert_eq!(messages, ["1", "1aGkK"]);
}

/// Two ports on one socket: each answers on its own channel, after its number.
async fn forward_channels(remote: &Remote, protocol: &'static str) {
    let path = "/api/v1/namespaces/default/pods/net/portforward?ports=7000,8080";
    let mut socket = remote.websocket(path, protocol).await.unwrap();
    socket.send(Message::binary(&b"\x00echo"[..])).await.unwrap();
    socket.send(Message::binary(&b"\x02GET / HTTP/1.0\r\n\r\n"[..])).await.unwrap();
    let mut channels = vec![Vec::new(); 4];
    let done = |channels: &[Vec<u8>]| channels[0].ends_with(b"echo") && channels[2].ends_with(b"localhost/busybox:v1");
    while !done(&channels) {
        let data = socket.next().await.unwrap().unwrap().into_data();
        if let Some((channel, payload)) = data.split_first() {
            channels[usize::from(*channel)].extend_from_slice(payload);
        }
    }
    for (channel, port) in [(0, 7000u16), (1, 7000), (2, 8080), (3, 8080)] {
        assert_eq!(channels[channel][..2], port.to_le_bytes());
    }
    if protocol == "v5.channel.k8s.io" {
        // The end of the input reaches `cat`, which ends the connection; with the other one the socket ends.
        socket.send(Message::binary(&[255u8, 0][..])).await.unwrap();
        while let Some(Ok(_)) = socket.next().await {}
    }
}

async fn log_messages(remote: &Remote) {
    let path = "/api/v1/namespaces/default/pods/lines/log";
    let mut socket = remote.websocket(path, "binary.k8s.io").await.unwrap();
    let mut log = Vec::new();
    while let Some(Ok(Message::Binary(bytes))) = socket.next().await {
        log.extend_from_slice(&bytes);
    }
    assert_eq!(text(&log), "got one\ngot two\n");
}
