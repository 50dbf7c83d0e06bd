//! Tables for people.

use std::fmt::Write;

use proto::coordinator::{RunStatus, StageStatus, WorkerStatus};

/// Returns a date and a clock time in UTC.
pub(super) fn time(at_ms: u64) -> String {
    let seconds = at_ms / 1000;
    let (year, month, day) = date(seconds / 86_400);
    format!("{year}-{month:02}-{day:02} {:02}:{:02}:{:02}", seconds / 3600 % 24, seconds / 60 % 60, seconds % 60)
}

/// Returns the Gregorian date of a day since 1970-01-01, by years that begin with March.
fn date(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let year = era * 400 + year + u64::from(month >= 10);
    (year, if month < 10 { month + 3 } else { month - 9 }, day - (153 * month + 2) / 5 + 1)
}

/// Returns a table of runs.
pub(super) fn runs(runs: &[RunStatus]) -> String {
    if runs.is_empty() {
        return "no runs yet; submit one with `coordinator submit FILE.toml`\n".to_owned();
    }
    let mut text = format!("{:<24} {:<10} {:>9} {:>10}  {}\n", "run", "state", "stages", "cost (USD)", "now");
    for run in runs {
        let done = run.stages.iter().filter(|stage| is_over(stage)).count();
        let stages = format!("{done}/{}", run.stages.len());
        let now = if run.reason.is_empty() { now(run) } else { run.reason.clone() };
        let _ = writeln!(text, "{:<24} {:<10} {stages:>9} {:>10.2}  {now}", run.run, run.state, run.cost_usd);
    }
    text
}

fn is_over(stage: &StageStatus) -> bool {
    matches!(stage.state.as_str(), "done" | "skipped")
}

fn is_listed_in_part(stage: &StageStatus) -> bool {
    (stage.tasks.len() as u64) < stage.tasks_waiting + stage.tasks_running + stage.tasks_done
}

fn now(run: &RunStatus) -> String {
    let running: Vec<&str> =
        run.stages.iter().filter(|stage| stage.state == "running").map(|stage| stage.name.as_str()).collect();
    running.join(", ")
}

/// Returns a table of a run's stages.
pub(super) fn run(run: &RunStatus) -> String {
    let mut text = format!("run {}: {}", run.run, run.state);
    if !run.reason.is_empty() {
        let _ = write!(text, " ({})", run.reason);
    }
    text.push('\n');
    let width = run.stages.iter().map(|stage| stage.name.len()).max().unwrap_or(0).max(5);
    let _ = writeln!(
        text,
        "{:<width$} {:<9} {:>13} {:>9} {:>10}  note",
        "stage", "state", "progress", "seconds", "cost (USD)"
    );
    for stage in &run.stages {
        let progress = if stage.total > 0 { format!("{}/{}", stage.done, stage.total) } else { String::new() };
        let _ = writeln!(
            text,
            "{:<width$} {:<9} {progress:>13} {:>9.1} {:>10.2}  {}",
            stage.name, stage.state, stage.seconds, stage.cost_usd, stage.note
        );
        for task in stage.tasks.iter().filter(|task| task.state != "done" && stage.state == "running") {
            let _ = writeln!(
                text,
                "{:<width$} {:<9} {:>13} attempt {}, lost {}, failed {}  {} {}",
                format!("  {}", task.task),
                task.state,
                format!("{}/{}", task.done, task.total),
                task.attempt,
                task.lost,
                task.failed,
                task.workers.join(", "),
                task.note
            );
        }
    }
    for stage in run.stages.iter().filter(|stage| is_listed_in_part(stage)) {
        let StageStatus { name, tasks_waiting, tasks_running, tasks_done, .. } = stage;
        let _ = writeln!(text, "{name}: {tasks_running} tasks run, {tasks_waiting} wait, {tasks_done} are done");
    }
    if !run.report.is_empty() {
        let _ = writeln!(text, "report: {}/report.html", run.report);
    }
    text
}

/// Returns a table of workers.
pub(super) fn workers(workers: &[WorkerStatus]) -> String {
    if workers.is_empty() {
        return "no workers yet; start some with `worker serve`\n".to_owned();
    }
    let width = workers.iter().map(|worker| worker.name.len()).max().unwrap_or(0).max(6);
    let mut text = format!(
        "{:<width$} {:<9} {:<16} {:>7} {:<8} {:>7} {:>8}  {}\n",
        "worker", "state", "host", "pid", "device", "threads", "memory", "task or note"
    );
    for worker in workers {
        let doing = match &worker.task {
            Some(task) => format!("{}/{}/{} attempt {}", task.run, task.stage, task.task, task.attempt),
            None => worker.note.clone(),
        };
        let _ = writeln!(
            text,
            "{:<width$} {:<9} {:<16} {:>7} {:<8} {:>7} {:>5.0} GB  {doing}",
            worker.name,
            worker.state,
            worker.host,
            worker.pid,
            worker.device,
            worker.threads,
            worker.memory_bytes as f64 / 1e9
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_shows_its_stages_and_why_it_failed() {
        let stage =
            |name: &str, state: &str| StageStatus { name: name.into(), state: state.into(), ..Default::default() };
        let status = RunStatus {
            run: "first".into(),
            state: "failed".into(),
            reason: "stage train: record 7 is NaN".into(),
            stages: vec![stage("triage", "skipped"), stage("train", "failed")],
            ..Default::default()
        };
        let text = run(&status);
        assert!(text.starts_with("run first: failed (stage train: record 7 is NaN)\n"), "{text}");
        assert!(runs(&[status]).contains("1/2"));
        assert_eq!(time(86_400_000 + 3_723_000), "1970-01-02 01:02:03");
        assert_eq!(time(1_795_597_527_000), "2026-11-25 09:05:27");
        assert_eq!([time(951_782_400_000), time(4_107_542_400_000)], ["2000-02-29 00:00:00", "2100-03-01 00:00:00"]);
    }
}
