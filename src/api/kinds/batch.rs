//! Rows of batch/v1.

mod job;

use super::Kind;
use super::print;
use super::row::{ALL, GET_PATCH_UPDATE, Row, fields, names, subresources, texts};

macro_rules! kind {
    ($($name:literal)*) => {
        names!("batch" "v1" "io.k8s.api.batch.v1", $($name)*)
    };
}

pub(super) static CRON_JOB: Kind = Row {
    short_names: texts!["cj"],
    categories: ALL,
    subresources: subresources!["status" "CronJob" GET_PATCH_UPDATE;],
    printer: print::CRON_JOB,
    strategy: &job::CronJobStrategy,
    ..Row::namespaced(kind!("CronJob" "cronjobs" "cronjob"))
}
.build();

pub(super) static JOB: Kind = Row {
    categories: ALL,
    subresources: subresources!["status" "Job" GET_PATCH_UPDATE;],
    fields: fields!["status.successful" number ["status" "succeeded"];],
    printer: print::JOB,
    strategy: &job::JobStrategy,
    ..Row::namespaced(kind!("Job" "jobs" "job"))
}
.build();
