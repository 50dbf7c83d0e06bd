//! Watching a run: a bar a stage with the time left on a terminal, a line a change elsewhere.

mod lines;

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use proto::coordinator::{RunStatus, StageStatus, WatchRequest};
use shared::Result;
use tokio::time::Instant;
use tonic::Code;

use super::Client;
use lines::Lines;

/// A coordinator that is away is given so long to come back.
const PATIENCE: Duration = Duration::from_secs(60);
const AGAIN: Duration = Duration::from_millis(300);
/// What is shown also changes with time alone.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Shows a run until it ends; returns its last state. A coordinator that restarts meanwhile is waited for.
///
/// # Errors
/// There is no such run, or the coordinator stays away.
pub(crate) async fn until_end(client: &mut Client, run: &str, json: bool) -> Result<RunStatus> {
    let mut view = View::new(json);
    let mut away = Duration::ZERO;
    let mut last: Option<RunStatus> = None;
    loop {
        let refused = match client.runs.watch(WatchRequest { run: run.to_owned() }).await {
            Ok(stream) => {
                let mut stream = stream.into_inner();
                loop {
                    let message = match tokio::time::timeout(LOOK_EVERY, stream.message()).await {
                        Ok(message) => message,
                        Err(_) => {
                            last.iter().for_each(|status| view.show_again(status));
                            continue;
                        }
                    };
                    match message {
                        Ok(Some(status)) => {
                            away = Duration::ZERO;
                            view.show(&status);
                            if status.ended_ms.is_some() {
                                view.end();
                                return Ok(status);
                            }
                            last = Some(status);
                        }
                        Ok(None) => break None,
                        Err(status) => break Some(status),
                    }
                }
            }
            Err(status) => Some(status),
        };
        if let Some(status) = refused {
            let may_come_back =
                last.is_some() && matches!(status.code(), Code::Unavailable | Code::Unknown | Code::Internal);
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
    Lines {
        said: Lines,
        begun: Instant,
    },
    Bars {
        all: MultiProgress,
        /// Of the run itself.
        said: Lines,
        by_stage: BTreeMap<String, ProgressBar>,
    },
}

impl View {
    fn new(json: bool) -> View {
        if json {
            View::Json
        } else if std::io::stderr().is_terminal() {
            View::Bars { all: MultiProgress::new(), said: Lines::default(), by_stage: BTreeMap::new() }
        } else {
            View::Lines { said: Lines::default(), begun: Instant::now() }
        }
    }

    fn show(&mut self, run: &RunStatus) {
        match self {
            View::Json => println!("{}", serde_json::to_string(run).expect("messages are plain data")),
            View::Lines { said, begun } => {
                for line in said.of(begun.elapsed(), run) {
                    eprintln!("{line}");
                }
            }
            View::Bars { all, said, by_stage } => {
                if let Some(line) = said.run_line(run) {
                    // Where it cannot be written there is nobody to read it.
                    let _ = all.println(line);
                }
                for stage in run.stages.iter().filter(|stage| stage.state != "waiting") {
                    let bar = by_stage.entry(stage.name.clone()).or_insert_with(|| {
                        all.add(ProgressBar::new(1).with_style(style(BEGUN)).with_prefix(stage.name.clone()))
                    });
                    if bar.is_finished() {
                        continue;
                    }
                    // Before the first step nothing is known of the time left.
                    if bar.position() == 0 && stage.done > 0 {
                        bar.set_style(style(GOING_ON));
                    }
                    bar.set_length(stage.total.max(1));
                    bar.set_position(stage.done);
                    bar.set_message(stage.note.clone());
                    if stage.state != "running" {
                        bar.set_style(style(ENDED));
                        bar.finish_with_message(ending(stage));
                    }
                }
            }
        }
    }

    /// Shows what has changed by time alone.
    fn show_again(&mut self, run: &RunStatus) {
        if matches!(self, View::Lines { .. }) {
            self.show(run);
        }
    }

    fn end(&self) {
        if let View::Bars { by_stage, .. } = self {
            by_stage.values().filter(|bar| !bar.is_finished()).for_each(ProgressBar::abandon);
        }
    }
}

const BEGUN: &str = "{prefix:>24} [{bar:30}] {pos}/{len} {msg}";
const GOING_ON: &str = "{prefix:>24} [{bar:30}] {pos}/{len} {msg} eta {eta}";
const ENDED: &str = "{prefix:>24} {msg}";

fn style(template: &str) -> ProgressStyle {
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    style.progress_chars("=> ")
}

fn ending(stage: &StageStatus) -> String {
    match stage.state.as_str() {
        "done" => format!("done in {:.1} s", stage.seconds),
        "skipped" => "done already".to_owned(),
        other if stage.note.is_empty() => other.to_owned(),
        other => format!("{other}: {}", stage.note),
    }
}
