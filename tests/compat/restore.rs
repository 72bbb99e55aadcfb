//! Server loss: a backup made while others write, restored into an empty folder, and the cluster goes on.

use crate::harness::{self, Board};
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

fn create(board: &Board, name: &str) -> bool {
    let manifest =
        format!("{{apiVersion: v1, kind: ConfigMap, metadata: {{name: {name}}}, data: {{text: {}}}}}", "x".repeat(200));
    let file = board.directory.join(format!("{name}.yaml"));
    fs::write(&file, manifest).unwrap();
    board.edgelet(&["apply", "-f", file.to_str().unwrap()]).status.success()
}

fn authority(board: &Board) -> String {
    let kubeconfig = fs::read_to_string(board.kubeconfig()).unwrap();
    let line = kubeconfig.lines().find(|line| line.contains("certificate-authority-data")).unwrap();
    line.to_owned()
}

fn holds(folder: &Path, needle: &[u8]) -> bool {
    let files = fs::read_dir(folder).unwrap().flatten().filter(|entry| entry.path().is_file());
    let mut contents = files.map(|entry| fs::read(entry.path()).unwrap());
    contents.any(|content| content.windows(needle.len()).any(|part| part == needle))
}

#[test]
fn a_server_restored_from_a_backup_has_everything_acknowledged_before_it_and_old_watches_list_again() {
    if !harness::can_run() {
        return;
    }
    let Some(kubectl) = harness::tool("kubectl-1.37") else { return };
    let mut board = Board::start("restore");
    let data = board.directory.join("data");
    let secret = "{apiVersion: v1, kind: Secret, metadata: {name: keys}, stringData: {token: very-s3cret}}";
    board.apply(&kubectl, secret);
    for number in 0..5 {
        assert!(create(&board, &format!("before-{number}")));
    }
    assert!(!holds(&data, b"dmVyeS1zM2NyZXQ"), "a Secret lies readable in the database");

    let (file, passphrase) = (board.directory.join("server.backup"), board.directory.join("passphrase"));
    fs::write(&passphrase, "correct horse battery staple\n").unwrap();
    let [data_text, file_text, passphrase_text] =
        [&data, &file, &passphrase].map(|path| path.to_str().unwrap().to_owned());
    let arguments = [&file_text, "--data-dir", &data_text, "--passphrase-file", &passphrase_text];
    let edgelet = |verb: &str| board.edgelet(&[&[verb], &arguments[..]].concat());
    let over = AtomicBool::new(false);
    let during = std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let written = (0..).take_while(|_| !over.load(Ordering::Relaxed));
            written.filter(|number| create(&board, &format!("during-{number}"))).count()
        });
        let made = edgelet("backup");
        over.store(true, Ordering::Relaxed);
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        writer.join().unwrap()
    });
    assert!(create(&board, "after"));
    let revision =
        board.kubectl(&kubectl, &["get", "configmap", "after", "-o", "jsonpath={.metadata.resourceVersion}"]);
    let before = authority(&board);
    assert!(!holds(&board.directory, b"very-s3cret") && !holds(&board.directory, b"dmVyeS1zM2NyZXQ"));

    let refused = edgelet("restore");
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && said.contains("another edgelet uses the folder"), "{said}");
    board.kill();
    let refused = board.edgelet(&[&["restore"], &arguments[..]].concat());
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && said.contains("an empty data folder only"), "{said}");
    fs::remove_dir_all(&data).unwrap();
    let restored = board.edgelet(&[&["restore"], &arguments[..]].concat());
    assert!(restored.status.success(), "{}", String::from_utf8_lossy(&restored.stderr));
    board.boot();

    assert_eq!(authority(&board), before, "the same authority");
    let maps = board.kubectl(&kubectl, &["get", "configmaps", "-o", "name"]);
    for number in 0..5 {
        assert!(maps.contains(&format!("configmap/before-{number}\n")), "{maps}");
    }
    assert!(!maps.contains("configmap/after"), "{maps}");
    eprintln!("{} of {during} written during the backup are in it", maps.matches("configmap/during").count());
    let token = board.kubectl(&kubectl, &["get", "secret", "keys", "-o", "jsonpath={.data.token}"]);
    assert_eq!(token, "dmVyeS1zM2NyZXQ=");
    let watch = format!("/api/v1/namespaces/default/configmaps?watch=1&timeoutSeconds=5&resourceVersion={revision}");
    let told = board.kubectl(&kubectl, &["get", "--raw", &watch]);
    assert!(told.contains("\"ERROR\"") && told.contains("410"), "{told}");
    let list = board.kubectl(&kubectl, &["get", "--raw", "/api/v1/namespaces/default/configmaps?limit=1"]);
    let list: serde_json::Value = serde_json::from_str(&list).unwrap();
    let newest: u64 = list["metadata"]["resourceVersion"].as_str().unwrap().parse().unwrap();
    let revision: u64 = revision.parse().unwrap();
    assert!(newest >= revision + 900_000_000, "{newest} after {revision}");
    assert!(create(&board, "again"));
    board.end();
}
