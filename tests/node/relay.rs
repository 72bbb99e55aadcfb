//! Boards that reach each other only through their server, and Services whose endpoints are on another board.

use crate::bed::{Bed, IMAGE, can_run};
use crate::fleet::{join, server_url};
use std::process::Command;

/// Who answers, and whom it sees: a page that a program writes.
pub fn speaker(name: &str, node: &str, app: &str) -> String {
    let page = format!(r##"printf "#!/bin/sh\necho\necho {node} \$REMOTE_ADDR\n" > /tmp/www/cgi-bin/who"##);
    let big = "dd if=/dev/zero of=/tmp/www/big bs=1024 count=4096";
    let serve = "exec httpd -f -p 0.0.0.0:8080 -h /tmp/www";
    let script = format!("mkdir -p /tmp/www/cgi-bin; {page}; chmod +x /tmp/www/cgi-bin/who; {big}; {serve}");
    format!(
        r#"
apiVersion: v1
kind: Pod
metadata: {{name: {name}, labels: {{app: {app}}}}}
spec:
  nodeName: {node}
  terminationGracePeriodSeconds: 1
  containers:
  - name: c
    image: "{IMAGE}"
    command: [sh, -c, '{script}']
    readinessProbe: {{httpGet: {{port: 8080, path: /cgi-bin/who}}, periodSeconds: 1}}
"#
    )
}

fn service(name: &str, app: &str, node_port: u16, policy: &str) -> String {
    format!(
        r#"
apiVersion: v1
kind: Service
metadata: {{name: {name}}}
spec:
  type: NodePort
  externalTrafficPolicy: {policy}
  selector: {{app: {app}}}
  ports: [{{port: 80, targetPort: 8080, nodePort: {node_port}}}]
"#
    )
}

pub fn is_ready(bed: &Bed, pod: &str) -> bool {
    let pod = bed.get(&["pod", pod]);
    pod["status"]["containerStatuses"][0]["ready"] == true
}

pub fn ip(bed: &Bed, pod: &str) -> String {
    bed.get(&["pod", pod])["status"]["podIP"].as_str().unwrap().to_owned()
}

/// What a command in a pod prints; empty when it fails.
fn inside(bed: &Bed, pod: &str, command: &[&str]) -> String {
    let output = bed.edgelet(&[&["exec", pod, "--"], command].concat());
    if output.status.success() { String::from_utf8_lossy(&output.stdout).trim().to_owned() } else { String::new() }
}

/// What a page says, without its head.
pub fn page(bed: &Bed, pod: &str, host: &str, port: u16) -> String {
    let ask = format!(r#"printf "GET /cgi-bin/who HTTP/1.0\r\n\r\n" | nc -w 5 {host} {port}"#);
    inside(bed, pod, &["sh", "-c", &ask]).lines().last().unwrap_or_default().to_owned()
}

fn curl(command: &mut Command, to: &str) -> String {
    let output = command.args(["--silent", "--max-time", "3", &format!("http://{to}/cgi-bin/who")]).output().unwrap();
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

pub fn way(way: &str, state: &str) -> (String, String) {
    (way.to_owned(), state.to_owned())
}

#[test]
fn boards_that_only_the_server_reaches_talk_through_it_until_a_better_way_opens() {
    if !can_run() {
        return;
    }
    let mut bed = Bed::new("relay");
    for (number, name) in [(1, "b"), (2, "c")] {
        bed.add_behind(name, number);
        bed.let_udp_through(false);
        join(&mut bed, name, &server_url());
    }
    for name in ["b", "c"] {
        bed.until(&format!("{name} is Ready"), |bed| bed.ready(name) == "True");
        bed.apply(&speaker(&format!("on-{name}"), name, name));
    }
    bed.apply(&speaker("on-server", "server", "server"));
    for name in ["b", "c", "server"] {
        bed.until(&format!("the pod on {name} is ready"), |bed| is_ready(bed, &format!("on-{name}")));
    }
    for (from, to) in [("b", "c"), ("c", "b"), ("b", "server"), ("c", "server")] {
        let took =
            bed.until(&format!("{from} reaches {to} by relay"), |bed| bed.nodes[from].way(to) == way("relay", "works"));
        eprintln!("{from} → {to} by relay after {took:?}");
    }
    bed.until("the server's board uses it too", |bed| bed.server.way("b") == way("relay", "works"));

    for (from, to) in [("b", "c"), ("c", "b"), ("b", "server"), ("server", "c")] {
        let (from_pod, to_pod) = (format!("on-{from}"), format!("on-{to}"));
        let (from_ip, to_ip) = (ip(&bed, &from_pod), ip(&bed, &to_pod));
        // The largest packet a pod may send, in one piece.
        let ping = ["ping", "-c", "3", "-W", "5", "-s", "1472", &to_ip];
        assert!(inside(&bed, &from_pod, &ping).contains("3 packets received"), "{from} → {to}\n{}", bed.scene());
        assert_eq!(page(&bed, &from_pod, &to_ip, 8080), format!("{to} {from_ip}"), "the pod's own address");
        let much = format!(r#"printf "GET /big HTTP/1.0\r\n\r\n" | nc -w 20 {to_ip} 8080 | wc -c"#);
        let bytes = inside(&bed, &from_pod, &["sh", "-c", &much]).parse::<u32>().unwrap_or_default();
        assert!((4_194_304..4_195_304).contains(&bytes), "{from} → {to}: {bytes} bytes\n{}", bed.scene());
    }

    bed.let_udp_through(true);
    let c = ip(&bed, "on-c");
    let took = bed.until("a better way is taken while packets pass", |bed| {
        inside(bed, "on-b", &["ping", "-c", "1", "-W", "2", &c]);
        bed.nodes["b"].way("c") == way("vxlan", "works") && bed.nodes["c"].way("b") == way("vxlan", "works")
    });
    eprintln!("a better way after {took:?}");
    assert_eq!(page(&bed, "on-b", &c, 8080), format!("c {}", ip(&bed, "on-b")), "{}", bed.scene());
    // Where there is WireGuard, that is the better way to a server with a public address.
    let now = bed.nodes["b"].way("server");
    assert!([way("relay", "works"), way("wireguard", "works")].contains(&now), "{now:?}\n{}", bed.scene());
}

#[test]
fn a_service_is_reached_on_every_board_by_address_name_and_port() {
    if !can_run() {
        return;
    }
    let mut bed = Bed::new("services");
    bed.add("a", "192.0.2.2");
    bed.add_behind_router("n");
    for name in ["a", "n"] {
        join(&mut bed, name, &server_url());
    }
    for name in ["a", "n"] {
        bed.until(&format!("{name} is Ready"), |bed| bed.ready(name) == "True");
        bed.apply(&speaker(&format!("on-{name}"), name, &format!("app-{name}")));
    }
    // Endpoints on one board only, each time the other one than the client's.
    bed.apply(&service("far-n", "app-n", 30081, "Cluster"));
    bed.apply(&service("near-n", "app-n", 30082, "Local"));
    bed.apply(&service("far-a", "app-a", 30083, "Cluster"));
    bed.apply(&service("near-a", "app-a", 30084, "Local"));
    for name in ["a", "n"] {
        bed.until(&format!("the pod on {name} is ready"), |bed| is_ready(bed, &format!("on-{name}")));
    }
    for (from, to) in [("a", "n"), ("n", "a")] {
        let pod = format!("on-{from}");
        let cluster_ip = bed.get(&["service", &format!("far-{to}")])["spec"]["clusterIP"].as_str().unwrap().to_owned();
        let seen = format!("{to} {}", ip(&bed, &pod));
        bed.until(&format!("{from} reaches the Service of {to}"), |bed| page(bed, &pod, &cluster_ip, 80) == seen);
        for host in [format!("far-{to}"), format!("far-{to}.default"), format!("far-{to}.default.svc.cluster.local")] {
            assert_eq!(page(&bed, &pod, &host, 80), seen, "{from} → {host}: the pod's own address\n{}", bed.scene());
        }
        let name = format!("near-{to}.default.svc.cluster.local");
        assert_eq!(page(&bed, &pod, &name, 80), seen, "the policy is for clients outside");
    }

    // From outside: another machine of the LAN, and the router in front of the other board.
    let gateway = |bed: &Bed, node: &str| {
        let cidr = bed.get(&["node", node])["spec"]["podCIDR"].as_str().unwrap().to_owned();
        cidr.replace(".0/24", ".1")
    };
    let outside = |bed: &Bed, to: &str| curl(&mut bed.router.run("curl"), to);
    let cases = [
        ("192.0.2.2:30081", format!("n {}", gateway(&bed, "a")), "by the node port of a board without the pod"),
        ("192.0.2.2:30083", format!("a {}", gateway(&bed, "a")), "hidden behind the board with the pod"),
        ("192.0.2.2:30084", "a 192.0.2.254".to_owned(), "the client's own address"),
        ("192.0.2.2:30082", String::new(), "a balancer tries another node"),
        ("198.51.100.2:30082", "n 198.51.100.1".to_owned(), "the client's own address"),
        ("198.51.100.2:30083", format!("a {}", gateway(&bed, "n")), "by the node port of a board without the pod"),
        ("198.51.100.2:30084", String::new(), "a balancer tries another node"),
    ];
    for (to, expected, why) in cases {
        assert_eq!(outside(&bed, to), expected, "{to}: {why}\n{}", bed.scene());
    }

    // A balancer is told which board to send to, at a port that the server gives.
    bed.apply(&service("balanced", "app-n", 30085, "Local").replace("type: NodePort", "type: LoadBalancer"));
    let port = bed.get(&["service", "balanced"])["spec"]["healthCheckNodePort"].as_u64().unwrap();
    let asked = |bed: &Bed, board: &str| {
        let url = format!("http://{board}:{port}/healthz");
        let arguments = ["--silent", "--max-time", "3", "--output", "/dev/null", "--write-out", "%{http_code}", &url];
        String::from_utf8_lossy(&bed.router.run("curl").args(arguments).output().unwrap().stdout).into_owned()
    };
    bed.until("balancers are told the truth", |bed| {
        asked(bed, "198.51.100.2") == "200" && asked(bed, "192.0.2.2") == "503"
    });
}
