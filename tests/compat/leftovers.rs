//! A cluster that forgot everything on a board that still runs its pods.

use crate::harness;
use std::fs;

#[test]
fn pods_of_a_former_database_are_ended_when_the_data_folder_was_emptied() {
    if !harness::can_run() {
        return;
    }
    let Some(kubectl) = harness::tool("kubectl-1.37") else { return };
    let mut board = crate::board("emptied");
    board.apply(&kubectl, crate::MANIFEST);
    board.kubectl(&kubectl, &["rollout", "status", "deployment/web", "--timeout=60s"]);
    let shims = board.shims_by_pod();
    assert_eq!(shims.len(), 3);
    board.kill();
    // One record as a version that nobody reads any more would have left it.
    let record = board.run.join("pods").join(shims.keys().next().unwrap()).join("sandbox.json");
    fs::write(record, r#"{"config": {"pod": "of another version"}}"#).unwrap();
    fs::remove_dir_all(board.directory.join("data")).unwrap();
    board.boot();
    board.until("the shims of the former cluster end", || board.shims().is_empty());
    let log = fs::read_to_string(board.directory.join("server.log")).unwrap();
    assert!(log.contains("the record of a pod cannot be read"), "{log}");
    assert!(log.contains("removing a pod that is no more"), "{log}");
    board.until("their folders are gone", || fs::read_dir(board.run.join("pods")).unwrap().count() == 0);
    board.end();
}
