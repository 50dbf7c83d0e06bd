//! Jobs of the service over gRPC: one that triages the world's pairs, and how it ends.

use std::path::Path;

use proto::oracle::job::Work;
use proto::oracle::job_event::Event;
use proto::oracle::oracle_client::OracleClient;
use proto::oracle::{Ended, Job, Triage};
use shared::net::{SendToken, Token, channel};
use tonic::Status;

use super::Server;

pub type Client = OracleClient<tonic::service::interceptor::InterceptedService<tonic::transport::Channel, SendToken>>;

pub fn client(server: &Server, token: Option<&str>) -> Client {
    let token = Token::load(token, None).unwrap();
    OracleClient::with_interceptor(channel(&server.url).unwrap(), SendToken(token))
}

/// Starts a service on a state folder.
pub fn service(folder: &Path, state: &str) -> Server {
    Server::start(folder, &["serve", "--listen", "127.0.0.1:0", "--state", state])
}

/// A triage of the world's pairs, four requests at a time.
pub fn triage_job(folder: &Path, mock: &Server, output: &str) -> Job {
    let path = |name: &str| folder.join(name).display().to_string();
    let triage = Triage { input: path("pairs.json"), output: path(output), both: true, ..Triage::default() };
    Job {
        run: "r".into(),
        stage: "triage".into(),
        work: Some(Work::Triage(triage)),
        model: "mock-oracle".into(),
        base_url: mock.api(),
        policy: "Answer as the world's new policy says.".into(),
        concurrency: 4,
        ..Job::default()
    }
}

/// Runs a job to its end; counts the progress that was told.
pub async fn finish(client: &mut Client, job: Job) -> Result<(Ended, usize), Status> {
    let mut events = client.run(job).await?.into_inner();
    let mut told = 0;
    while let Some(event) = events.message().await? {
        match event.event.unwrap() {
            Event::Progress(progress) => {
                assert!(progress.done <= progress.total && progress.bill.is_some());
                told += 1;
            }
            Event::Ended(ended) => return Ok((ended, told)),
        }
    }
    panic!("the stream ended without an end");
}

/// As [`finish`], of a service without a token.
pub async fn finish_at(service: &Server, job: Job) -> Result<Ended, Status> {
    Ok(finish(&mut client(service, None), job).await?.0)
}
