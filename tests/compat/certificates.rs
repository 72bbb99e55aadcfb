//! Certificates for people: a signing request that kubectl approves or denies, and what its certificate opens.

use crate::harness::{self, Board};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rcgen::{CertificateParams, DnType, KeyPair};
use std::fs;
use std::path::Path;

fn request(name: &str, user: &str, key: &KeyPair) -> String {
    let mut params = CertificateParams::default();
    params.distinguished_name.remove(DnType::CommonName);
    params.distinguished_name.push(DnType::CommonName, user);
    params.distinguished_name.push(DnType::OrganizationName, "dev");
    let pem = params.serialize_request(key).unwrap().pem().unwrap();
    // JSON: kubectl 1.20 takes whatever begins with a brace for it.
    serde_json::json!({"apiVersion": "certificates.k8s.io/v1", "kind": "CertificateSigningRequest",
        "metadata": {"name": name}, "spec": {"request": STANDARD.encode(pem), "usages": ["client auth"],
            "signerName": "kubernetes.io/kube-apiserver-client"}})
    .to_string()
}

fn approve(board: &Board, kubectl: &Path) {
    let run = |arguments: &[&str]| board.kubectl(kubectl, arguments);
    let key = KeyPair::generate().unwrap();
    board.apply(kubectl, &request("bob", "bob", &key));
    let listed = run(&["get", "csr", "bob"]);
    assert!(listed.contains("kubernetes.io/kube-apiserver-client") && listed.contains("Pending"), "{listed}");
    let approved = run(&["certificate", "approve", "bob"]);
    assert!(approved.contains("certificatesigningrequest.certificates.k8s.io/bob approved"), "{approved}");
    let certificate = || run(&["get", "csr", "bob", "-o", "jsonpath={.status.certificate}"]);
    board.until("the request is signed", || !certificate().is_empty());
    assert!(run(&["get", "csr", "bob"]).contains("Approved,Issued"));
    assert!(run(&["describe", "csr", "bob"]).contains("Approved,Issued"));

    let (crt, pem) = (board.directory.join("bob.crt"), board.directory.join("bob.key"));
    fs::write(&crt, STANDARD.decode(certificate()).unwrap()).unwrap();
    fs::write(&pem, key.serialize_pem()).unwrap();
    // A kubeconfig without the administrator's own certificate, which kubectl would not let go of.
    let bob = board.directory.join("bob.kubeconfig");
    let admin = fs::read_to_string(board.kubeconfig()).unwrap();
    let without = |line: &&str| !line.contains("client-certificate-data") && !line.contains("client-key-data");
    fs::write(&bob, admin.lines().filter(without).map(|line| format!("{line}\n")).collect::<String>()).unwrap();
    let arguments = ["--kubeconfig", "--client-certificate", "--client-key"];
    let values = [&bob, &crt, &pem].map(|path| path.to_str().unwrap().to_owned());
    let credentials: Vec<&str> = arguments.into_iter().zip(&values).flat_map(|(name, value)| [name, value]).collect();
    let as_bob = |what: &[&str]| board.kubectl_output(kubectl, &[&credentials, what].concat(), "");
    let refused = as_bob(&["get", "pods"]);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && said.contains("User \"bob\" cannot list resource \"pods\""), "{said}");
    run(&["create", "rolebinding", "devs", "--clusterrole=view", "--group=dev"]);
    let allowed = as_bob(&["get", "pods"]);
    assert!(allowed.status.success(), "{}", String::from_utf8_lossy(&allowed.stderr));

    board.apply(kubectl, &request("mallory", "mallory", &KeyPair::generate().unwrap()));
    let denied = run(&["certificate", "deny", "mallory"]);
    assert!(denied.contains("certificatesigningrequest.certificates.k8s.io/mallory denied"), "{denied}");
    assert!(run(&["get", "csr", "mallory"]).contains("Denied"));
    assert!(run(&["get", "csr", "mallory", "-o", "jsonpath={.status.certificate}"]).is_empty());
    run(&["delete", "csr", "bob", "mallory"]);
    run(&["delete", "rolebinding", "devs"]);
}

fn story(name: &str, tool: &str) {
    if !harness::can_run() {
        return;
    }
    let Some(kubectl) = harness::tool(tool) else { return };
    let board = Board::start(name);
    approve(&board, &kubectl);
    board.end();
}

#[test]
fn kubectl_1_20_approves_and_denies_certificates() {
    story("certificates-old", "kubectl-1.20");
}

#[test]
fn the_newest_kubectl_approves_and_denies_certificates() {
    story("certificates-new", "kubectl-1.37");
}
