//! How a job wants its questions answered.

use std::str::FromStr;
use std::time::Duration;

use clap::ValueEnum;

use crate::fault::{self, Fault};

/// Who answers first rounds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Mode {
    /// Each question by itself, at once
    #[default]
    Online,
    /// All questions in batches: half the price, up to a day
    Batch,
    /// Divided by deadline and price
    Auto,
}

/// Batches or not.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct BatchArgs {
    /// Who answers: `online` each question at once; `batch` all questions in batches, at half the price and within a day,
    /// follow-ups to unclear answers in further batches; `auto` by price and --deadline: batches where they are cheaper
    /// and, under 25 hours, no more in batches than the online API could answer in half the time; what they have not
    /// answered in time is cancelled and asked online, and fewer than 100 questions always are
    #[arg(long, value_enum, value_name = "MODE", default_value = "online")]
    pub(crate) mode: Mode,
    /// Time until the job must be done (90m, 12h, 3d), counted from its first start; for --mode auto
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    pub(crate) deadline: Option<Duration>,
    /// Requests a minute that the online API takes, for the division by --deadline
    #[arg(long, value_name = "N", default_value_t = 500, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) online_rpm: u32,
    #[command(flatten)]
    pub(crate) pace: PaceArgs,
}

/// How batches are watched.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct PaceArgs {
    /// Longest time between two looks at a batch
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = parse_duration)]
    pub(crate) batch_poll: Duration,
    /// Planned death, for tests: POINT=N
    #[arg(long, value_name = "POINT=N", env = "TRACE_FAULT", hide = true)]
    pub(crate) fault: Option<Fault>,
}

impl PaceArgs {
    /// Passes a point at which a death may be planned.
    pub(super) fn pass(&self, point: &str) {
        fault::pass(self.fault.as_ref(), point);
    }
}

impl Default for BatchArgs {
    fn default() -> BatchArgs {
        let pace = PaceArgs { batch_poll: Duration::from_secs(60), fault: None };
        BatchArgs { mode: Mode::Online, deadline: None, online_rpm: 500, pace }
    }
}

impl BatchArgs {
    /// Returns what a job of the service wants.
    ///
    /// # Errors
    /// There is no such mode, or no such time.
    pub(crate) fn of_job(mode: &str, deadline_s: f64, online_rpm: u32) -> shared::Result<BatchArgs> {
        let wrong = |problem: String| shared::Error::Config(format!("the job's {problem}"));
        let mode = match mode {
            "" => Mode::Online,
            other => Mode::from_str(other, false)
                .map_err(|_| wrong(format!("mode is {other:?}; expected online, batch or auto")))?,
        };
        let deadline = Duration::try_from_secs_f64(deadline_s);
        let deadline = deadline.map_err(|_| wrong(format!("deadline is {deadline_s} s; expected seconds from 0")))?;
        let default = BatchArgs::default();
        let online_rpm = if online_rpm == 0 { default.online_rpm } else { online_rpm };
        Ok(BatchArgs { mode, deadline: (!deadline.is_zero()).then_some(deadline), online_rpm, ..default })
    }
}

/// Reads a time such as 500ms, 45s, 90m, 12h or 3d.
pub(crate) fn parse_duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is no time; expected a number with ms, s, m, h or d, such as 12h");
    let unit = text.find(|c: char| c.is_ascii_alphabetic()).ok_or_else(wrong)?;
    let number = f64::from_str(text[..unit].trim()).map_err(|_| wrong())?;
    let seconds = match &text[unit..] {
        "ms" => 0.001,
        "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        "d" => 86400.0,
        _ => return Err(wrong()),
    };
    Duration::try_from_secs_f64(number * seconds).map_err(|_| wrong())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_a_number_and_a_unit() {
        for (text, seconds) in [("500ms", 0.5), ("45s", 45.0), ("90m", 5400.0), ("12h", 43200.0), ("1.5d", 129_600.0)] {
            assert_eq!(parse_duration(text), Ok(Duration::from_secs_f64(seconds)), "{text}");
        }
        for text in ["", "12", "h", "12x", "12 hours", "-1h", "1e400d", "NaNs", "12h30m"] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_job_of_the_service_says_the_same() {
        let args = BatchArgs::of_job("auto", 90.0, 0).unwrap();
        assert_eq!((args.mode, args.deadline, args.online_rpm), (Mode::Auto, Some(Duration::from_secs(90)), 500));
        assert_eq!(BatchArgs::of_job("", 0.0, 7).unwrap().mode, Mode::Online);
        for (mode, deadline) in [("later", 0.0), ("batch", -1.0), ("batch", f64::NAN)] {
            assert!(BatchArgs::of_job(mode, deadline, 0).is_err(), "{mode} {deadline}");
        }
    }
}
