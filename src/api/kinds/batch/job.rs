//! Jobs and CronJobs.

use crate::api::kinds::apps::replicas::{SPEC, default_template, immutable, no_status, reset_status};
use crate::api::kinds::{HookContext, Strategy, pod};
use crate::api::object::{Object, ObjectExt};
use crate::api::status::FieldError;
use crate::api::validation::check::{Errors, flag, non_negative, one_of, optional_one_of, positive, required};
use crate::api::validation::{Path, same};
use serde_json::{Value, json};

const TEMPLATE_SPEC: &[&str] = &["spec", "template", "spec"];

pub(in crate::api::kinds) struct JobStrategy;

impl Strategy for JobStrategy {
    fn default(&self, job: &mut Object) {
        default_template(job, TEMPLATE_SPEC);
        // The job is labelled as its pods are, when it has no labels of its own.
        let labels = job.at(&["spec", "template", "metadata", "labels"]).cloned();
        if job.at(&["metadata", "labels"]).is_none()
            && let Some(labels) = labels
        {
            job.set(&["metadata", "labels"], labels);
        }
    }

    fn prepare_create(&self, _context: &HookContext, job: &mut Object) {
        reset_status(job, no_status());
        if job.get("spec").is_some_and(|spec| flag(spec, "manualSelector")) || job.uid().is_empty() {
            return;
        }
        let (name, uid) = (job.name().to_owned(), job.uid().to_owned());
        let labels = [
            ("batch.kubernetes.io/controller-uid", &uid),
            ("controller-uid", &uid),
            ("batch.kubernetes.io/job-name", &name),
            ("job-name", &name),
        ];
        for (key, value) in labels {
            job.set(&["metadata", "labels", key], value.as_str().into());
            job.set(&["spec", "template", "metadata", "labels", key], value.as_str().into());
        }
        if job.at(&["spec", "selector"]).is_none() {
            job.set(&["spec", "selector"], json!({"matchLabels": {"batch.kubernetes.io/controller-uid": uid}}));
        }
    }

    fn validate(&self, _context: &HookContext, job: &Object) -> Vec<FieldError> {
        let mut errors = Errors::new();
        let none = Value::Null;
        let spec = job.get("spec").unwrap_or(&none);
        if spec.get("selector").is_none_or(Value::is_null) {
            errors.push(FieldError::required("spec.selector", ""));
        }
        job_spec(spec, &SPEC, &mut errors);
        errors
    }

    fn validate_update(&self, _context: &HookContext, new: &Object, old: &Object) -> Vec<FieldError> {
        let mut errors = Errors::new();
        immutable("completionMode", new, old, &mut errors);
        if new.at(&["spec", "completionMode"]).and_then(Value::as_str) != Some("Indexed") {
            immutable("completions", new, old, &mut errors);
        }
        immutable("selector", new, old, &mut errors);
        if !may_change_template(old) || !same_but_scheduling(new, old) {
            immutable("template", new, old, &mut errors);
        }
        immutable("podFailurePolicy", new, old, &mut errors);
        immutable("backoffLimitPerIndex", new, old, &mut errors);
        errors
    }

    fn warnings(&self, job: &Object, _old: Option<&Object>) -> Vec<String> {
        pod::template_warnings(job, TEMPLATE_SPEC)
    }
    fn has_generation(&self) -> bool {
        true
    }
}

/// A job that was suspended before it ever started may still be told where its pods go.
fn may_change_template(old: &Object) -> bool {
    old.get("spec").is_some_and(|spec| flag(spec, "suspend")) && old.str_at(&["status", "startTime"]).is_empty()
}

fn same_but_scheduling(new: &Object, old: &Object) -> bool {
    let fixed = |job: &Object| {
        let mut template = job.at(&["spec", "template"]).cloned().unwrap_or_default();
        for field in ["nodeSelector", "affinity", "tolerations", "schedulingGates"] {
            template.unset(&["spec", field]);
        }
        for field in ["labels", "annotations"] {
            template.unset(&["metadata", field]);
        }
        template
    };
    same(Some(&fixed(new)), Some(&fixed(old)))
}

fn job_spec(spec: &Value, path: &Path, errors: &mut Errors) {
    let counts = [
        "parallelism",
        "completions",
        "activeDeadlineSeconds",
        "backoffLimit",
        "ttlSecondsAfterFinished",
        "backoffLimitPerIndex",
        "maxFailedIndexes",
    ];
    for field in counts {
        non_negative(spec, field, path, errors);
    }
    optional_one_of(spec, "completionMode", &["Indexed", "NonIndexed"], path, errors);
    if spec.str_at(&["completionMode"]) == "Indexed" && spec.int_at(&["completions"]).is_none() {
        let why = "when completion mode is Indexed";
        errors.push(FieldError::required(path.child("completions"), why));
    }
    let none = Value::Null;
    let template = spec.get("template").unwrap_or(&none);
    let template_path = path.child("template");
    pod::validate_template(template, &template_path, errors);
    let policy_path = template_path.child("spec.restartPolicy");
    match template.str_at(&["spec", "restartPolicy"]) {
        "OnFailure" | "Never" => {}
        // What a client leaves out is defaulted to Always, which a job cannot have.
        "" | "Always" => {
            errors.push(FieldError::required(policy_path, "valid values: \"OnFailure\", \"Never\""));
        }
        other => errors.push(FieldError::not_supported(policy_path, other, &["OnFailure", "Never"])),
    }
}

pub(in crate::api::kinds) struct CronJobStrategy;

/// Names of its jobs add eleven characters.
const NAME_LIMIT: usize = 52;

impl Strategy for CronJobStrategy {
    fn default(&self, object: &mut Object) {
        default_template(object, &["spec", "jobTemplate", "spec", "template", "spec"]);
    }
    fn prepare_create(&self, _context: &HookContext, object: &mut Object) {
        reset_status(object, no_status());
    }
    fn validate(&self, _context: &HookContext, object: &Object) -> Vec<FieldError> {
        let mut errors = Errors::new();
        if object.name().len() > NAME_LIMIT {
            let why = format!("must be no more than {NAME_LIMIT} characters");
            errors.push(FieldError::invalid("metadata.name", object.name(), why));
        }
        let none = Value::Null;
        let spec = object.get("spec").unwrap_or(&none);
        let schedule = required(spec, "schedule", &SPEC, &mut errors);
        if !schedule.is_empty()
            && let Err(why) = check_schedule(schedule)
        {
            errors.push(FieldError::invalid("spec.schedule", schedule, why));
        }
        positive(spec, "startingDeadlineSeconds", &SPEC, &mut errors);
        one_of(spec, "concurrencyPolicy", &["Allow", "Forbid", "Replace"], &SPEC, &mut errors);
        for field in ["successfulJobsHistoryLimit", "failedJobsHistoryLimit"] {
            non_negative(spec, field, &SPEC, &mut errors);
        }
        let template = spec.at(&["jobTemplate", "spec"]).unwrap_or(&none);
        job_spec(template, &SPEC.child("jobTemplate.spec"), &mut errors);
        errors
    }
    fn warnings(&self, object: &Object, _old: Option<&Object>) -> Vec<String> {
        pod::template_warnings(object, &["spec", "jobTemplate", "spec", "template", "spec"])
    }
    fn has_generation(&self) -> bool {
        true
    }
}

/// Five fields of numbers, names, ranges and steps, or one of the words.
fn check_schedule(schedule: &str) -> Result<(), String> {
    const WORDS: [&str; 7] = ["@yearly", "@annually", "@monthly", "@weekly", "@daily", "@midnight", "@hourly"];
    if WORDS.contains(&schedule) || schedule.starts_with("@every ") {
        return Ok(());
    }
    let fields: Vec<&str> = schedule.split_whitespace().collect();
    if fields.len() != 5 {
        return Err(format!("expected exactly 5 fields, found {}: [{}]", fields.len(), fields.join(" ")));
    }
    let months = ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"];
    let days = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"];
    let bounds: [(u32, u32, &[&str]); 5] = [(0, 59, &[]), (0, 23, &[]), (1, 31, &[]), (1, 12, &months), (0, 6, &days)];
    for (field, (least, greatest, names)) in fields.into_iter().zip(bounds) {
        for part in field.split(',') {
            check_part(part, least, greatest, names)?;
        }
    }
    Ok(())
}

fn check_part(part: &str, least: u32, greatest: u32, names: &[&str]) -> Result<(), String> {
    let (range, step) = part.split_once('/').map_or((part, None), |(range, step)| (range, Some(step)));
    if step.is_some_and(|step| step.parse::<u32>().map_or(true, |step| step == 0)) {
        return Err(format!(
            "failed to parse int from {}: strconv.Atoi: parsing {:?}: invalid syntax",
            step.unwrap_or_default(),
            step.unwrap_or_default()
        ));
    }
    if matches!(range, "*" | "?") {
        return Ok(());
    }
    let number = |text: &str| -> Result<u32, String> {
        if let Some(place) = names.iter().position(|name| name.eq_ignore_ascii_case(text)) {
            return Ok(u32::try_from(place).unwrap_or(0) + least);
        }
        text.parse()
            .map_err(|_| format!("failed to parse int from {text}: strconv.Atoi: parsing {text:?}: invalid syntax"))
    };
    let (from, to) = match range.split_once('-') {
        Some((from, to)) => (number(from)?, number(to)?),
        None => (number(range)?, number(range)?),
    };
    if from < least {
        return Err(format!("beginning of range ({from}) below minimum ({least}): {part}"));
    }
    if to > greatest {
        return Err(format!("end of range ({to}) above maximum ({greatest}): {part}"));
    }
    if from > to {
        return Err(format!("beginning of range ({from}) beyond end of range ({to}): {part}"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::check_schedule;

    #[test]
    fn schedules_are_five_fields_or_a_word() {
        for schedule in ["0 0 1 1 *", "*/5 * * * *", "@daily", "0 9-17 * * mon-fri", "0,30 * ? jan,dec 0"] {
            assert_eq!(check_schedule(schedule), Ok(()), "{schedule}");
        }
        for schedule in ["", "* * * *", "60 * * * *", "*/0 * * * *", "a * * * *", "5-1 * * * *", "* * 0 * *"] {
            assert!(check_schedule(schedule).is_err(), "{schedule}");
        }
    }
}
