//! Benchmarks: the full path against the mock, and the opening of a large ledger. Programs to be run by hand: what they
//! print depends on the machine and on who else uses it, so no test asks for it.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde::Serialize;
use serde_json::{Value, json};
use shared::output::{LinesWriter, write_atomic};

use crate::api::ledger::Ledger;
use crate::error::{Error, Result};
use crate::{Outcome, table};

/// Measures requests a second and memory against the mock, or the opening of a large ledger
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    Run(RunArgs),
    Open(OpenArgs),
}

/// Triages synthetic pairs by the mock over loopback HTTP, the ledger durable, each server a process of its own
///
/// Prints requests a second, the processor time they took, and the largest resident memory. Fails when a label or a
/// request is lost or paid for twice. With --python the same calls are then made by the official Python client.
#[derive(Debug, clap::Args)]
struct RunArgs {
    /// Pairs to triage; two requests each
    #[arg(long, value_name = "N", default_value_t = 10_000)]
    pairs: usize,
    /// Requests on their way at once
    #[arg(long, value_name = "N", default_value_t = 512)]
    in_flight: usize,
    /// Python interpreter with the openai package, for comparison
    #[arg(long, value_name = "PATH", requires = "script")]
    python: Option<PathBuf>,
    /// The script that makes the same calls: tests/python/bench_async_openai.py
    #[arg(long, value_name = "FILE")]
    script: Option<PathBuf>,
    /// Requests of the Python client; it is slow
    #[arg(long, value_name = "N", default_value_t = 4_000)]
    python_requests: usize,
    /// Folder for pairs, ledger and outputs; emptied first
    #[arg(long, value_name = "DIR", default_value = "oracle-bench")]
    folder: PathBuf,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

/// Opens a ledger and counts its answers
///
/// With --make it is filled first; run it again without for the memory of the opening alone.
#[derive(Debug, clap::Args)]
struct OpenArgs {
    /// Add made-up answers until there are so many
    #[arg(long, value_name = "N")]
    make: Option<u64>,
    /// Folder of the ledger
    #[arg(long, value_name = "DIR", default_value = "oracle-bench-ledger")]
    state: PathBuf,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

/// What a run came to.
#[derive(Debug, Serialize)]
struct Ran {
    pairs: usize,
    requests: u64,
    in_flight: usize,
    seconds: f64,
    requests_per_s: f64,
    /// Processor time of triage and mock together.
    cpu_s: f64,
    /// What two processors without other work would do.
    requests_per_2_cpu_s: f64,
    peak_rss_mb: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    python: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    times_python: Option<f64>,
}

/// What an opening came to.
#[derive(Debug, Serialize)]
struct Opened {
    answers: u64,
    seconds: f64,
    peak_rss_mb: u64,
}

pub(crate) fn run(args: &Args) -> Result<Outcome> {
    match &args.what {
        What::Run(args) => run_jobs(args),
        What::Open(args) => open(args),
    }
}

fn failed(problem: impl Into<String>) -> Error {
    shared::Error::Config(problem.into()).into()
}

const RULES: &str = "default = \"COMPLIANT\"\n[[rule]]\npattern = 'bad'\napplies_to = \"response\"\n\
    verdict = \"NON-COMPLIANT\"\n";
const KEY: &str = "bench";

/// A child of ours, ended with us.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn program(folder: &Path, args: &[&str]) -> Result<Command> {
    let own = std::env::current_exe().map_err(|error| failed(error.to_string()))?;
    let mut command = Command::new(own);
    command.args(args).current_dir(folder).env("OPENAI_API_KEY", KEY);
    Ok(command)
}

fn run_jobs(args: &RunArgs) -> Result<Outcome> {
    let folder = &args.folder;
    if folder.exists() {
        std::fs::remove_dir_all(folder).map_err(|source| shared::Error::io("empty", folder, source))?;
    }
    write_atomic(&folder.join("rules.toml"), RULES.as_bytes())?;
    write_atomic(&folder.join("policy.md"), POLICY.repeat(20).as_bytes())?;
    let mut pairs = LinesWriter::create(&folder.join("pairs.jsonl"))?;
    for n in 0..args.pairs {
        pairs.push(&pair(n))?;
    }
    pairs.finish()?;

    let mock = ["mock", "--listen", "127.0.0.1:0", "--rules", "rules.toml", "--with-parent"];
    let mock = program(folder, &mock)?.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
    let mut mock = Running(mock.map_err(|error| failed(format!("the mock: {error}")))?);
    let mut line = String::new();
    let told = mock.0.stdout.take().map(|told| BufReader::new(told).read_line(&mut line));
    told.transpose().map_err(|error| failed(format!("the mock: {error}")))?;
    let url = line.trim().strip_prefix("listening on ").ok_or_else(|| failed(format!("the mock said {line:?}")))?;
    let api = format!("{url}/v1");
    let mock_before = usage(mock.0.id());

    let in_flight = args.in_flight.to_string();
    let triage = [
        "triage",
        "--input-json",
        "pairs.jsonl",
        "--output-json",
        "gold.json",
        "--policy",
        "policy.md",
        "--oracle-model",
        "mock-oracle",
        "--base-url",
        &api,
        "--state",
        "state",
        "--concurrency",
        &in_flight,
        "--json",
    ];
    let begun = Instant::now();
    let child = program(folder, &triage)?.stdout(Stdio::piped()).spawn();
    let mut child = Running(child.map_err(|error| failed(format!("triage: {error}")))?);
    let mut last = Usage::default();
    let status = loop {
        // Asked for while it lives: a process that has ended has no memory any more.
        last = usage(child.0.id()).unwrap_or(last);
        match child.0.try_wait().map_err(|error| failed(error.to_string()))? {
            Some(status) => break status,
            None => std::thread::sleep(Duration::from_millis(20)),
        }
    };
    let seconds = begun.elapsed().as_secs_f64();
    let mock_cpu = usage(mock.0.id()).unwrap_or_default().cpu_s - mock_before.unwrap_or_default().cpu_s;
    if !status.success() {
        return Err(failed(format!("triage ended with {status}")));
    }
    let summary: Value = serde_json::from_reader(child.0.stdout.take().expect("it was piped"))
        .map_err(|error| failed(format!("triage said no JSON: {error}")))?;
    let requests = summary["bill"]["calls"].as_u64().unwrap_or(0);
    if summary["total"] != args.pairs || requests != 2 * args.pairs as u64 {
        return Err(failed(format!("a label or a request was lost or paid for twice: {summary}")));
    }
    let cpu_s = last.cpu_s + mock_cpu;
    let python = args.python.as_deref().zip(args.script.as_deref());
    let python = python.map(|(python, script)| by_python(python, script, args, &api)).transpose()?;
    let requests_per_s = requests as f64 / seconds;
    let theirs = python.as_ref().and_then(|python| python["requests_per_s"].as_f64());
    let ran = Ran {
        pairs: args.pairs,
        requests,
        in_flight: args.in_flight,
        seconds,
        requests_per_s,
        cpu_s,
        requests_per_2_cpu_s: 2.0 * requests as f64 / cpu_s.max(0.01),
        peak_rss_mb: last.peak_rss_mb,
        python,
        times_python: theirs.map(|theirs| requests_per_s / theirs),
    };
    show(args.json, &ran, || {
        println!(
            "{} requests in {:.1} s: {:.0}/s at {} in flight; {:.1} s of processor time, so {:.0}/s of two free \
             processors; {} MB resident at most",
            ran.requests,
            ran.seconds,
            ran.requests_per_s,
            ran.in_flight,
            ran.cpu_s,
            ran.requests_per_2_cpu_s,
            ran.peak_rss_mb
        );
        if let (Some(python), Some(times)) = (&ran.python, ran.times_python) {
            println!("the Python client: {}/s; ours is {times:.1} times as fast", python["requests_per_s"]);
        }
    })
}

const POLICY: &str = "Replies must be helpful and honest and must say nothing that is bad in the sense of the rules. ";

fn pair(n: usize) -> Value {
    let text = |what: &str, bad: bool| {
        let words = "of the usual length of a reply, in plain words and a few sentences ".repeat(4);
        format!("{what} {n} {words}{}", if bad { "bad" } else { "good" })
    };
    let prompt = format!("Question number {n}: how do I do this and that, and what should I be careful about?");
    json!({"prompt": prompt, "chosen": text("first", n.is_multiple_of(3)), "rejected": text("second", n.is_multiple_of(5))})
}

fn by_python(python: &Path, script: &Path, args: &RunArgs, api: &str) -> Result<Value> {
    let whole = |path: &Path| path.canonicalize().map_err(|source| shared::Error::io("find", path, source));
    let mut command = Command::new(python);
    command.arg(whole(script)?).args(["--base-url", api, "--pairs", "pairs.jsonl", "--policy", "policy.md"]);
    command.arg("--in-flight").arg(args.in_flight.to_string()).arg("--requests").arg(args.python_requests.to_string());
    let output = command.current_dir(&args.folder).env("OPENAI_API_KEY", KEY).stderr(Stdio::inherit()).output();
    let output = output.map_err(|error| failed(format!("{}: {error}", python.display())))?;
    serde_json::from_slice(&output.stdout).map_err(|error| failed(format!("{}: {error}", script.display())))
}

fn open(args: &OpenArgs) -> Result<Outcome> {
    if let Some(answers) = args.make {
        let ledger = Ledger::open(&args.state)?;
        let known = ledger.count()?;
        crate::block_on(async { Ok(ledger.fill(known..answers).await?) })?;
    }
    let begun = Instant::now();
    let ledger = Ledger::open(&args.state)?;
    let answers = ledger.count()?;
    let seconds = begun.elapsed().as_secs_f64();
    let peak_rss_mb = usage(std::process::id()).unwrap_or_default().peak_rss_mb;
    let opened = Opened { answers, seconds, peak_rss_mb };
    show(args.json, &opened, || println!("{answers} answers opened in {seconds:.2} s with {peak_rss_mb} MB at most"))
}

fn show(as_json: bool, result: &impl Serialize, print: impl FnOnce()) -> Result<Outcome> {
    if as_json {
        table::print_json(result)?;
    } else {
        print();
    }
    Ok(Outcome::Complete)
}

#[derive(Debug, Clone, Copy, Default)]
struct Usage {
    cpu_s: f64,
    peak_rss_mb: u64,
}

/// Returns what a living process has used, as the kernel tells it.
fn usage(pid: u32) -> Option<Usage> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let peak_kb: u64 = peak.split_whitespace().next()?.parse().ok()?;
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // After the name in brackets, user and system time are fields 12 and 13, in hundredths of a second.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let ticks: u64 = fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?;
    Some(Usage { cpu_s: ticks as f64 / 100.0, peak_rss_mb: peak_kb >> 10 })
}
