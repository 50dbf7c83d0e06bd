//! What a worker that is not ours, or not of this release, is told: over real gRPC, by a scripted worker.
#![allow(clippy::unwrap_used)]

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use proto::coordinator::from_worker::Message as Said;
use proto::coordinator::to_worker::Message as Told;
use proto::coordinator::workers_client::WorkersClient;
use proto::coordinator::{FolderSeen, FromWorker, Heartbeat, Hello, TaskEnded, TaskRef};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;

struct Coordinator {
    child: Child,
    url: String,
    _folder: tempfile::TempDir,
}

impl Drop for Coordinator {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn start() -> Coordinator {
    let folder = tempfile::tempdir().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_coordinator"));
    command.args(["serve", "--listen", "127.0.0.1:0", "--heartbeat-ms", "1500"]).current_dir(folder.path());
    let mut child = command.env_remove("TRACE_TOKEN").stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let url = line.trim().strip_prefix("listening on ").unwrap().to_owned();
    Coordinator { child, url, _folder: folder }
}

async fn client(coordinator: &Coordinator) -> WorkersClient<Channel> {
    WorkersClient::connect(coordinator.url.clone()).await.unwrap()
}

fn hello(name: &str) -> Hello {
    Hello {
        name: name.into(),
        instance: "i".into(),
        protocol_version: proto::PROTOCOL_VERSION,
        version: "0".into(),
        ..Hello::default()
    }
}

fn said(message: Said) -> FromWorker {
    FromWorker { message: Some(message) }
}

/// Says one thing and returns the first answer; none if the stream just ends.
async fn first_answer(coordinator: &Coordinator, message: Said) -> Result<Option<Told>, tonic::Status> {
    let (sender, messages) = mpsc::channel(4);
    sender.send(said(message)).await.unwrap();
    let mut answers = client(coordinator).await.link(ReceiverStream::new(messages)).await?.into_inner();
    let answer = tokio::time::timeout(Duration::from_secs(20), answers.message()).await.unwrap()?;
    Ok(answer.and_then(|answer| answer.message))
}

#[tokio::test]
async fn another_protocol_version_is_refused_with_both_versions() {
    let coordinator = start();
    let other = Hello { protocol_version: 99, version: "9.9.9".into(), ..hello("w") };
    let Some(Told::Refused(refused)) = first_answer(&coordinator, Said::Hello(other)).await.unwrap() else {
        panic!("it was not refused");
    };
    for words in ["version 99", "9.9.9", &format!("version {}", proto::PROTOCOL_VERSION), "same release"] {
        assert!(refused.reason.contains(words), "{words}: {}", refused.reason);
    }
    for name in ["", "a/b", "a@b"] {
        let answer = first_answer(&coordinator, Said::Hello(hello(name))).await.unwrap();
        assert!(matches!(answer, Some(Told::Refused(_))), "{name:?}");
    }
}

#[tokio::test]
async fn who_does_not_begin_with_hello_is_told_so_and_nonsense_breaks_nothing() {
    let coordinator = start();
    let status =
        first_answer(&coordinator, Said::Heartbeat(Heartbeat { running: None, still_ms: 0 })).await.unwrap_err();
    assert!(status.message().contains("Hello"), "{status}");

    let (sender, messages) = mpsc::channel(16);
    sender.send(said(Said::Hello(hello("w")))).await.unwrap();
    let mut answers = client(&coordinator).await.link(ReceiverStream::new(messages)).await.unwrap().into_inner();
    let Some(Told::Welcome(welcome)) = answers.message().await.unwrap().unwrap().message else {
        panic!("no welcome");
    };
    assert_eq!(welcome.heartbeat_ms, 1500);
    assert_eq!(std::fs::read_to_string(&welcome.probe_file).unwrap(), welcome.probe_content);
    // An end of a task that never was, and one without a name or a kind of end.
    let task = TaskRef { run: "none".into(), stage: "s".into(), task: "t".into(), attempt: 7, submission: 1 };
    for ended in [TaskEnded { task: Some(task.clone()), how: None }, TaskEnded::default()] {
        sender.send(said(Said::Ended(ended))).await.unwrap();
    }
    sender.send(said(Said::FolderSeen(FolderSeen::default()))).await.unwrap();
    // What nobody waits for any more may be forgotten.
    let Some(Told::EndedStored(stored)) = answers.message().await.unwrap().unwrap().message else {
        panic!("no word about the end");
    };
    assert_eq!(stored.task, Some(task));
    assert!(matches!(first_answer(&coordinator, Said::Hello(hello("w2"))).await.unwrap(), Some(Told::Welcome(_))));
}
