//! Jobs from their first pod to their end, and what is left of them.

use crate::world::World;
use edgelet::api::object::ObjectExt;
use edgelet::client::{JOBS, PODS};
use edgelet::registry::DeleteOptions;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::time::Duration;

fn job(spec: Value) -> Value {
    let mut object = json!({"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "work"},
        "spec": {"template": {"spec": {"restartPolicy": "Never", "containers": [{"name": "c", "image": "i:1"}]}}}});
    for (key, value) in spec.as_object().unwrap() {
        object["spec"][key] = value.clone();
    }
    object
}

fn holds(job: &Value, kind: &str) -> bool {
    let conditions = job.pointer("/status/conditions").and_then(Value::as_array);
    conditions.is_some_and(|all| all.iter().any(|one| one["type"] == kind && one["status"] == "True"))
}

fn count(job: &Value, field: &str) -> i64 {
    job.int_at(&["status", field]).unwrap_or(0)
}

fn running(pods: &[Value]) -> Vec<String> {
    let alive = pods.iter().filter(|pod| pod.str_at(&["status", "phase"]) == "Running");
    alive.filter(|pod| pod.deletion_timestamp().is_none()).map(|pod| pod.name().to_owned()).collect()
}

async fn end(world: &World, pod: &str, phase: &str) {
    world.patch(PODS, "default", pod, "status", json!({"status": {"phase": phase}})).await;
}

#[tokio::test(start_paused = true)]
async fn a_job_runs_in_parallel_to_its_completion_and_goes_after_its_time() {
    let world = World::new(&["one", "two"]).await;
    world.keep_alive(&["one", "two"]).await;
    world
        .create(JOBS, "default", job(json!({"parallelism": 2, "completions": 3, "ttlSecondsAfterFinished": 100})))
        .await;
    for round in 0..3_i64 {
        let expected = usize::try_from((3 - round).min(2)).unwrap();
        let pods = world.until("so many run", PODS, |pods| running(pods).len() == expected).await;
        end(&world, &running(&pods)[0], "Succeeded").await;
        world.until("counted", JOBS, |jobs| count(&jobs[0], "succeeded") == round + 1).await;
    }
    let jobs = world.until("complete", JOBS, |jobs| holds(&jobs[0], "Complete")).await;
    assert_eq!((count(&jobs[0], "succeeded"), count(&jobs[0], "active"), count(&jobs[0], "failed")), (3, 0, 0));
    assert!(jobs[0].pointer("/status/completionTime").is_some());
    world.settle().await;
    let pods = world.list(PODS, "default").await;
    assert!(pods.len() == 3 && pods.iter().all(|pod| pod.finalizers().is_empty()), "kept for their logs");
    assert!(world.events("work").await.contains(&"Job completed".to_owned()));
    tokio::time::sleep(Duration::from_secs(110)).await;
    world.until("the job goes", JOBS, <[Value]>::is_empty).await;
    world.until("and its pods", PODS, <[Value]>::is_empty).await;
}

#[tokio::test(start_paused = true)]
async fn failures_are_retried_up_to_the_limit() {
    let world = World::new(&["one"]).await;
    world.keep_alive(&["one"]).await;
    world.create(JOBS, "default", job(json!({"backoffLimit": 1}))).await;
    for _ in 0..2 {
        let pods = world.until("runs", PODS, |pods| running(pods).len() == 1).await;
        end(&world, &running(&pods)[0], "Failed").await;
        world.settle().await;
    }
    let jobs = world.until("failed", JOBS, |jobs| holds(&jobs[0], "Failed")).await;
    assert_eq!(count(&jobs[0], "failed"), 2);
    world.settle().await;
    assert_eq!(world.list(PODS, "default").await.len(), 2, "no third");
    let told = world.events("work").await;
    assert!(told.contains(&"Job has reached the specified backoff limit".to_owned()), "{told:?}");
}

#[tokio::test(start_paused = true)]
async fn an_indexed_job_runs_every_index_once_and_a_lost_pod_again() {
    let world = World::new(&["one"]).await;
    world.keep_alive(&["one"]).await;
    world.create(JOBS, "default", job(json!({"completions": 3, "parallelism": 3, "completionMode": "Indexed"}))).await;
    let pods = world.until("all run", PODS, |pods| running(pods).len() == 3).await;
    let index = |pod: &Value| pod.annotation("batch.kubernetes.io/job-completion-index").unwrap().to_owned();
    assert_eq!(pods.iter().map(index).collect::<BTreeSet<_>>(), ["0", "1", "2"].map(String::from).into());
    let second = pods.iter().find(|pod| index(pod) == "1").unwrap();
    world.delete(PODS, "default", second.name(), DeleteOptions::default()).await;
    let again = |pods: &[Value]| {
        pods.iter()
            .any(|pod| index(pod) == "1" && pod.uid() != second.uid() && pod.str_at(&["status", "phase"]) == "Running")
    };
    tokio::time::sleep(Duration::from_secs(15)).await;
    let pods = world.until("index 1 again", PODS, again).await;
    for name in running(&pods) {
        end(&world, &name, "Succeeded").await;
    }
    let jobs = world.until("complete", JOBS, |jobs| holds(&jobs[0], "Complete")).await;
    assert_eq!(jobs[0].str_at(&["status", "completedIndexes"]), "0-2");
}

#[tokio::test(start_paused = true)]
async fn a_job_is_suspended_resumed_and_cut_off_by_its_deadline() {
    let world = World::new(&["one"]).await;
    world.keep_alive(&["one"]).await;
    world.create(JOBS, "default", job(json!({"activeDeadlineSeconds": 50}))).await;
    world.until("runs", PODS, |pods| running(pods).len() == 1).await;
    world.patch(JOBS, "default", "work", "", json!({"spec": {"suspend": true}})).await;
    world.until("stopped", PODS, <[Value]>::is_empty).await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    let own = world.get(JOBS, "default", "work").await.unwrap();
    assert!(holds(&own, "Suspended") && count(&own, "failed") == 0, "what is suspended has not failed");
    world.patch(JOBS, "default", "work", "", json!({"spec": {"suspend": false}})).await;
    world.until("runs again", PODS, |pods| running(pods).len() == 1).await;
    let jobs = world.until("too late", JOBS, |jobs| holds(&jobs[0], "Failed")).await;
    let reason = jobs[0].pointer("/status/conditions").and_then(Value::as_array).unwrap();
    assert!(reason.iter().any(|one| one["reason"] == "DeadlineExceeded"));
    world.until("nothing runs", PODS, |pods| running(pods).is_empty()).await;
    world.delete(JOBS, "default", "work", DeleteOptions::default()).await;
}
