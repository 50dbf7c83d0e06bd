//! A job's shape, from its file, and texts of that shape.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use shared::Error;
use shared::keyed_random::KeyedRandom;

use crate::api::batch::{Mode, parse_duration};
use crate::mock::Plan;
use crate::oracle::read_policy;

/// What marks a response that violates.
pub(super) const VIOLATION: &str = "forbidden";
/// Roughly, as everywhere where no tokenizer is at hand.
const CHARS_OF_A_TOKEN: u64 = 4;
/// As long as the client waits for an answer: its deadline is not scaled, so the server hangs up in its place.
const HANG_S: f64 = 120.0;

/// A job's shape.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Job {
    pub(super) pairs: u64,
    /// Average lengths.
    pub(super) prompt_tokens: u64,
    pub(super) response_tokens: u64,
    #[serde(default = "half")]
    pub(super) violating_share: f64,
    /// Relative to the job's file.
    policy: PathBuf,
    pub(super) model: String,
    #[serde(default = "eight")]
    pub(super) concurrency: usize,
    /// Who answers.
    #[serde(default)]
    pub(super) mode: Mode,
    /// For auto: time until the job must be done, such as 12h, and requests a minute that the online API takes.
    deadline: Option<String>,
    #[serde(default = "five_hundred")]
    online_rpm: u32,
    pub(super) prices: Option<PathBuf>,
    /// What the API is expected to do.
    #[serde(default)]
    pub(super) server: Plan,
    #[serde(skip)]
    pub(super) policy_text: String,
}

fn half() -> f64 {
    0.5
}

fn eight() -> usize {
    8
}

fn five_hundred() -> u32 {
    500
}

impl Job {
    /// Reads a job's shape and its policy.
    pub(super) fn load(file: &Path) -> crate::Result<Job> {
        let text = std::fs::read_to_string(file).map_err(|source| Error::io("read", file, source))?;
        let mut job: Job = toml::from_str(&text).map_err(|error| Error::file(file, error.message().to_owned()))?;
        job.check().map_err(|problem| Error::file(file, problem))?;
        let folder = file.parent().unwrap_or(Path::new(""));
        job.policy_text = read_policy(&folder.join(&job.policy))?;
        job.prices = job.prices.map(|prices| folder.join(prices));
        job.server.hang_s.get_or_insert(HANG_S);
        Ok(job)
    }

    fn check(&self) -> std::result::Result<(), String> {
        for (key, number) in
            [("pairs", self.pairs), ("prompt_tokens", self.prompt_tokens), ("response_tokens", self.response_tokens)]
        {
            if number == 0 {
                return Err(format!("{key} is 0; it must be at least 1"));
            }
        }
        if !(1..=4096).contains(&self.concurrency) {
            return Err(format!("concurrency is {}; expected 1 to 4096", self.concurrency));
        }
        if !(0.0..=1.0).contains(&self.violating_share) {
            return Err("violating_share must be from 0 to 1".into());
        }
        if let Some(deadline) = &self.deadline {
            parse_duration(deadline).map_err(|problem| format!("deadline: {problem}"))?;
        }
        if self.online_rpm == 0 {
            return Err("online_rpm is 0; it must be at least 1".into());
        }
        self.server.check().map_err(|problem| format!("server: {problem}"))
    }

    /// Returns how fast the rehearsal runs: no faster than this machine follows, where requests come one by one.
    pub(super) fn speed(&self, asked_for: f64, ceiling_per_s: Option<f64>, followed_per_s: f64) -> f64 {
        match (self.mode, ceiling_per_s) {
            (Mode::Batch, _) | (_, None) => asked_for,
            (_, Some(ceiling)) => asked_for.min((followed_per_s / ceiling).max(1.0)),
        }
    }

    /// Returns after how long without a sign of life the job has stopped; a batch gives none until its window is over.
    pub(super) fn still(&self, online: Duration, speed: f64) -> Duration {
        let pace = &self.server.batches;
        let batch = Duration::from_secs_f64(pace.validate_s + pace.window_s + pace.finalize_s).div_f64(speed);
        if self.mode == Mode::Online { online } else { online + batch }
    }

    pub(super) fn deadline(&self) -> Option<Duration> {
        self.deadline.as_deref().and_then(|deadline| parse_duration(deadline).ok())
    }

    /// Returns the online pace by which so many of the pairs are divided as all would be.
    pub(super) fn online_rpm_for(&self, sample: u64) -> u32 {
        let share = sample as f64 / self.pairs as f64;
        (f64::from(self.online_rpm) * share).round().max(1.0) as u32
    }

    /// Returns about how many tokens one question has, its answer included.
    pub(super) fn tokens_of_a_question(&self) -> f64 {
        const QUESTION_AND_ANSWER: u64 = 40;
        let policy = self.policy_text.chars().count() as u64 / CHARS_OF_A_TOKEN;
        (policy + self.prompt_tokens + self.response_tokens + QUESTION_AND_ANSWER) as f64
    }

    /// Returns a pair's prompt and one of its responses: other texts for every pair, always the same ones. Lengths
    /// spread evenly from half the average to one and a half of it.
    pub(super) fn texts(&self, pair: u64, rejected: bool) -> (String, String) {
        let prompt = words(&[pair, 0], self.prompt_tokens);
        let mut random = KeyedRandom::new(&[pair, 7, u64::from(rejected)]);
        let mark = if random.uniform() < self.violating_share { VIOLATION } else { "allowed" };
        (prompt, format!("{mark} {}", words(&[pair, 1 + u64::from(rejected)], self.response_tokens)))
    }
}

fn words(key: &[u64], average_tokens: u64) -> String {
    let mut random = KeyedRandom::new(key);
    let tokens = average_tokens as f64 * (0.5 + random.uniform());
    let chars = (tokens * CHARS_OF_A_TOKEN as f64).max(1.0) as usize;
    let mut text = format!("{} {}", key[0], key[1]);
    while text.len() < chars {
        text += &format!(" {:07x}", random.below(1 << 28));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(text: &str) -> crate::Result<Job> {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("policy.md"), "Be kind.").unwrap();
        let file = dir.path().join("job.toml");
        std::fs::write(&file, text).unwrap();
        Job::load(&file)
    }

    const JOB: &str =
        "pairs = 10\nprompt_tokens = 50\nresponse_tokens = 100\npolicy = \"policy.md\"\nmodel = \"gpt-4o\"\n";

    #[test]
    fn texts_have_the_jobs_shape() {
        let job = load(JOB).unwrap();
        let texts: Vec<_> = (0..2000).map(|pair| job.texts(pair, pair % 2 == 0)).collect();
        let average =
            |of: &dyn Fn(&(String, String)) -> usize| texts.iter().map(of).sum::<usize>() as f64 / 2000.0 / 4.0;
        assert!((average(&|t| t.0.len()) - 50.0).abs() < 3.0, "{}", average(&|t| t.0.len()));
        assert!((average(&|t| t.1.len()) - 102.0).abs() < 5.0, "{}", average(&|t| t.1.len()));
        let violating = texts.iter().filter(|(_, response)| response.contains(VIOLATION)).count();
        assert!((900..1100).contains(&violating), "{violating}");
        assert_eq!(job.texts(3, true), job.texts(3, true));
        assert_ne!(job.texts(3, true).1, job.texts(3, false).1);
        assert_eq!(job.texts(3, true).0, job.texts(3, false).0);
    }

    #[test]
    fn batches_run_at_the_speed_asked_for_and_are_waited_for() {
        let job =
            |mode: &str| load(&format!("{JOB}mode = \"{mode}\"\ndeadline = \"12h\"\nonline_rpm = 600\n")).unwrap();
        assert_eq!(job("online").speed(100.0, Some(10.0), 400.0), 40.0);
        assert_eq!(job("online").speed(100.0, Some(1000.0), 400.0), 1.0);
        assert_eq!(
            (job("batch").speed(100.0, Some(10.0), 400.0), job("auto").speed(100.0, None, 400.0)),
            (100.0, 100.0)
        );
        let still = |mode| job(mode).still(Duration::from_secs(10), 100.0).as_secs();
        assert_eq!((still("online"), still("batch")), (10, 10 + 864));
        assert_eq!((job("auto").online_rpm_for(5), job("auto").deadline()), (300, Some(Duration::from_secs(43_200))));
        assert_eq!(job("auto").online_rpm_for(0), 1);
    }

    #[test]
    fn the_example_can_be_used() {
        let file = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/examples/rehearsal.toml"));
        let job = Job::load(file).unwrap();
        assert_eq!((job.pairs, job.server.hang_s), (1_000_000, Some(HANG_S)));
        assert!(job.policy_text.len() > 100 && job.server.limits.len() == 1 && !job.server.fault.is_empty());
    }

    #[test]
    fn a_shape_that_makes_no_sense_is_refused_by_its_key() {
        for (changed, named) in [
            (JOB.replace("pairs = 10", "pairs = 0"), "pairs"),
            (format!("{JOB}concurrency = 0\n"), "concurrency"),
            (format!("{JOB}violating_share = 2.0\n"), "violating_share"),
            (format!("{JOB}mood = 1\n"), "mood"),
            (format!("{JOB}mode = \"later\"\n"), "online"),
            (format!("{JOB}deadline = \"soon\"\n"), "deadline"),
            (format!("{JOB}online_rpm = 0\n"), "online_rpm"),
            (format!("{JOB}[server]\nburst_s = -1\n"), "server: burst_s"),
        ] {
            let error = load(&changed).unwrap_err().to_string();
            assert!(error.contains("job.toml") && error.contains(named), "{error}");
        }
        let missing = load(&JOB.replace("policy.md", "none.md")).unwrap_err().to_string();
        assert!(missing.contains("none.md"), "{missing}");
    }
}
