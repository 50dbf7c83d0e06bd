//! The pulls of the gold pairs, computed by the worker that lies beside this program.

use std::process::{Command, Stdio};

use serde_json::Value;
use shared::{Error, Result};

use crate::local;
use crate::stage::scored::Scored;

/// How the worker is run.
#[derive(Debug, Clone, Copy)]
pub(super) struct Worker<'a> {
    pub(super) device: Option<&'a str>,
    pub(super) threads: Option<u32>,
}

impl Worker<'_> {
    /// Returns the worker's explanation of a record's score, as `worker score --explain --json` prints it. Its messages go
    /// to this program's standard error.
    ///
    /// # Errors
    /// There is no worker, something that shaped the scores is gone or changed, or the worker fails.
    pub(super) fn explain(self, scored: &Scored, record: usize) -> Result<Value> {
        let without = |error: Error| Error::Config(format!("{error}; --no-pulls shows the rest"));
        let program = local::beside("worker").map_err(without)?;
        scored.check_inputs().map_err(without)?;
        let mut command = Command::new(&program);
        command.arg("score").args(scored.explain_args(record)).stdin(Stdio::null()).stderr(Stdio::inherit());
        if let Some(device) = self.device {
            command.args(["--device", device]);
        }
        if let Some(threads) = self.threads {
            command.args(["--threads", &threads.to_string()]);
        }
        let output = command.output().map_err(|source| Error::io("start", &program, source))?;
        if !output.status.success() {
            return Err(without(Error::Config(format!(
                "{} could not compute the pulls ({}); its message is above",
                program.display(),
                output.status
            ))));
        }
        serde_json::from_slice(&output.stdout).map_err(|error| {
            let problem = format!("gave no answer that this version reads ({error}); build both anew");
            without(Error::file(&program, problem))
        })
    }
}
