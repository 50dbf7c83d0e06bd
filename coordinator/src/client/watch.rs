//! Watching a run: a bar a stage with the time left on a terminal, a line a change elsewhere.

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use proto::coordinator::{RunStatus, StageStatus, WatchRequest};
use shared::Result;
use tonic::Code;

use super::Client;

/// A coordinator that is away is given so long to come back.
const PATIENCE: Duration = Duration::from_secs(60);
const AGAIN: Duration = Duration::from_millis(300);

/// Shows a run until it ends; returns its last state. A coordinator that restarts meanwhile is waited for.
///
/// # Errors
/// There is no such run, or the coordinator stays away.
pub(crate) async fn until_end(client: &mut Client, run: &str, json: bool) -> Result<RunStatus> {
    let mut view = View::new(json);
    let mut away = Duration::ZERO;
    let mut known = false;
    loop {
        let refused = match client.runs.watch(WatchRequest { run: run.to_owned() }).await {
            Ok(stream) => {
                let mut stream = stream.into_inner();
                loop {
                    match stream.message().await {
                        Ok(Some(status)) => {
                            (away, known) = (Duration::ZERO, true);
                            view.show(&status);
                            if status.ended_ms.is_some() {
                                view.end();
                                return Ok(status);
                            }
                        }
                        Ok(None) => break None,
                        Err(status) => break Some(status),
                    }
                }
            }
            Err(status) => Some(status),
        };
        if let Some(status) = refused {
            let may_come_back = known && matches!(status.code(), Code::Unavailable | Code::Unknown | Code::Internal);
            if !may_come_back || away >= PATIENCE {
                return Err(client.error(&status));
            }
        }
        tokio::time::sleep(AGAIN).await;
        away += AGAIN;
    }
}

/// What is shown.
enum View {
    Json,
    /// By stage: what was said of it last.
    Lines(BTreeMap<String, String>),
    Bars {
        all: MultiProgress,
        by_stage: BTreeMap<String, ProgressBar>,
    },
}

impl View {
    fn new(json: bool) -> View {
        if json {
            View::Json
        } else if std::io::stderr().is_terminal() {
            View::Bars { all: MultiProgress::new(), by_stage: BTreeMap::new() }
        } else {
            View::Lines(BTreeMap::new())
        }
    }

    fn show(&mut self, run: &RunStatus) {
        match self {
            View::Json => println!("{}", serde_json::to_string(run).expect("messages are plain data")),
            View::Lines(said) => {
                for stage in &run.stages {
                    let text = line(stage);
                    let is_news = said.get(&stage.name).is_none_or(|last| *last != text);
                    if is_news && stage.state != "waiting" {
                        eprintln!("{text}");
                    }
                    said.insert(stage.name.clone(), text);
                }
            }
            View::Bars { all, by_stage } => {
                for stage in run.stages.iter().filter(|stage| stage.state != "waiting") {
                    let bar = by_stage.entry(stage.name.clone()).or_insert_with(|| {
                        let template = "{prefix:>24} [{bar:30}] {pos}/{len} {msg} eta {eta}";
                        let style =
                            ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
                        let bar = ProgressBar::new(1).with_style(style.progress_chars("=> "));
                        all.add(bar.with_prefix(stage.name.clone()))
                    });
                    if bar.is_finished() {
                        continue;
                    }
                    bar.set_length(stage.total.max(1));
                    bar.set_position(stage.done);
                    bar.set_message(stage.note.clone());
                    if stage.state != "running" {
                        let template = "{prefix:>24} {msg}";
                        let style =
                            ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
                        bar.set_style(style);
                        bar.finish_with_message(ending(stage));
                    }
                }
            }
        }
    }

    fn end(&self) {
        if let View::Bars { by_stage, .. } = self {
            by_stage.values().filter(|bar| !bar.is_finished()).for_each(ProgressBar::abandon);
        }
    }
}

/// Says what a stage is at, without what changes all the time.
fn line(stage: &StageStatus) -> String {
    match stage.state.as_str() {
        "running" if stage.done == 0 && stage.note.starts_with("waiting") => {
            format!("{:<24} {}", stage.name, stage.note)
        }
        "running" => format!("{:<24} running", stage.name),
        _ => format!("{:<24} {}", stage.name, ending(stage)),
    }
}

fn ending(stage: &StageStatus) -> String {
    match stage.state.as_str() {
        "done" => format!("done in {:.1} s", stage.seconds),
        "skipped" => "done already".to_owned(),
        other if stage.note.is_empty() => other.to_owned(),
        other => format!("{other}: {}", stage.note),
    }
}
