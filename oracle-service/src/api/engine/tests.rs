//! A job against a server in this process that does as it is told and keeps its own bill.

use std::path::Path;

use axum::Json;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use futures::StreamExt;
use serde_json::json;

use super::*;

mod outages;

/// Tokens that the server charges for every request, and what that costs at these prices.
const PROMPT: u64 = 20;
const COMPLETION: u64 = 5;
const PRICES: &str = "as_of = 'x'\nsource = 'y'\n[[model]]\nname = 'm'\nprompt = 30\ncached = 30\ncompletion = 100\n";
const USD: f64 = 0.0011;

/// What the server does with a request.
enum Act {
    Answer,
    /// Charges and cuts the connection.
    Cut,
    Fail(u16, &'static str),
}

type Script = dyn Fn(u64, &HeaderMap, &Value) -> Act + Send + Sync;

struct Server {
    url: String,
    charged: Arc<Mutex<HashMap<String, u64>>>,
}

impl Server {
    /// Starts a server; the script is told the request's number, from 1.
    async fn start(
        latency: Duration,
        script: impl Fn(u64, &HeaderMap, &Value) -> Act + Send + Sync + 'static,
    ) -> Server {
        let charged: Arc<Mutex<HashMap<String, u64>>> = Arc::default();
        let script: Arc<Script> = Arc::new(script);
        let came = Arc::new(std::sync::atomic::AtomicU64::new(0));
        let own = charged.clone();
        let answer = move |headers: HeaderMap, Json(body): Json<Value>| {
            let (script, came, own) = (script.clone(), came.clone(), own.clone());
            async move {
                let number = came.fetch_add(1, std::sync::atomic::Ordering::SeqCst) + 1;
                let act = script(number, &headers, &body);
                tokio::time::sleep(latency).await;
                let charge = || *own.lock().unwrap().entry(body["messages"].to_string()).or_default() += 1;
                match act {
                    Act::Answer => {
                        charge();
                        reply()
                    }
                    Act::Cut => {
                        charge();
                        let parts = [Ok("{"), Err(std::io::Error::other("cut"))];
                        Response::new(axum::body::Body::from_stream(futures::stream::iter(parts)))
                    }
                    Act::Fail(status, code) => {
                        let body = Json(json!({"error": {"message": "as told", "code": code}}));
                        (StatusCode::from_u16(status).unwrap(), body).into_response()
                    }
                }
            }
        };
        let app = axum::Router::new().route("/v1/chat/completions", axum::routing::post(answer));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/v1", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, app).await });
        Server { url, charged }
    }

    fn bill_usd(&self) -> f64 {
        USD * self.charged.lock().unwrap().values().sum::<u64>() as f64
    }

    /// Requests of different content that were charged.
    fn count(&self) -> usize {
        self.charged.lock().unwrap().len()
    }

    fn most_often(&self) -> u64 {
        self.charged.lock().unwrap().values().copied().max().unwrap_or(0)
    }
}

fn reply() -> Response {
    let choice = json!({"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "COMPLIANT"}});
    let usage = json!({"prompt_tokens": PROMPT, "completion_tokens": COMPLETION});
    Json(json!({"model": "m", "system_fingerprint": "fp", "choices": [choice], "usage": usage})).into_response()
}

fn home(folder: &Path) -> Home {
    Home::new(Ledger::open(folder).unwrap())
}

fn setup(folder: &Path, endpoints: Endpoints) -> Setup {
    let prices = folder.join("prices.toml");
    std::fs::write(&prices, PRICES).unwrap();
    Setup {
        endpoints,
        model: "m".into(),
        concurrency: 8,
        prices: Prices::load(Some(&prices)).unwrap(),
        account: "test".into(),
        bill: None,
        max_cost_usd: None,
        deadline: Duration::from_secs(20),
        is_patient: true,
        fault: None,
    }
}

fn at(url: &str) -> Endpoints {
    Endpoints::single(url, super::super::endpoint::secret("k").unwrap(), Default::default())
}

fn request(item: usize) -> Request {
    let messages = json!([{"role": "user", "content": format!("item {item}")}]);
    Request::new(json!({"model": "m", "messages": messages, "max_tokens": 8}))
}

/// Asks for many items at once; returns how many were answered.
async fn ask(engine: &Engine, items: std::ops::Range<usize>) -> Result<usize> {
    let window = items.len().max(1);
    let asked = futures::stream::iter(items)
        .map(|item| async move { engine.ask(&request(item)).await })
        .buffer_unordered(window);
    let asked: Vec<Result<Asked>> = asked.collect().await;
    let mut answered = 0;
    for asked in asked {
        answered += usize::from(matches!(asked?, Asked::Answered(_)));
    }
    Ok(answered)
}

async fn poll_until(what: &str, check: impl Fn() -> bool) {
    let begun = Instant::now();
    while !check() {
        assert!(begun.elapsed() < Duration::from_secs(60), "{what} did not happen");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cap_holds_under_a_thousand_concurrent_requests_and_the_job_goes_on_when_it_is_raised() {
    let dir = tempfile::tempdir().unwrap();
    // Every fiftieth answer is charged and never arrives.
    let server = Server::start(Duration::from_millis(20), |number, _, _| match number % 50 {
        7 => Act::Cut,
        _ => Act::Answer,
    })
    .await;
    let home = home(&dir.path().join("state"));
    // Beyond the pacer's first careful steps it is only the cap that limits.
    let setup = Setup { concurrency: 1000, max_cost_usd: Some(1.5), ..setup(dir.path(), at(&server.url)) };
    let engine = Arc::new(Engine::new(&home, setup).unwrap());
    let handle = engine.handle();
    let asking = tokio::spawn({
        let engine = engine.clone();
        async move { ask(&engine, 0..2000).await }
    });
    let is_at_cap = || matches!(handle.paused(), Some(Pause::Cap { .. })) && handle.in_flight().0 == 0;
    poll_until("the pause at the cap", is_at_cap).await;
    let (bill, charged) = (handle.bill(), server.bill_usd());
    assert!(charged <= 1.5, "{charged} USD were charged");
    assert!(bill.account_usd + bill.lost_usd >= charged && bill.account_usd + bill.lost_usd <= 1.5, "{bill:?}");
    assert!(charged > 1.0, "the cap is used: {charged}");
    assert!(bill.lost_usd > 0.0);
    assert!(handle.paused().unwrap().to_string().contains("cost limit of $1.5000 is reached"));

    handle.set_cap(Some(100.0));
    assert_eq!(asking.await.unwrap().unwrap(), 2000);
    assert_eq!(server.count(), 2000);
    assert!(handle.paused().is_none());
    let spent = engine.bill().account_usd;
    drop((engine, handle));
    drop(home);
    // What was paid is known after a new start, and a cap below it lets nothing out.
    let again = self::home(&dir.path().join("state"));
    assert!((again.account("test").unwrap().budget().spent.usd() - spent).abs() < 1e-9);
}

#[tokio::test]
async fn a_command_at_its_cap_ends_with_everything_stored_and_goes_on_when_it_is_raised() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(Duration::from_millis(5), |_, _, _| Act::Answer).await;
    let home = home(&dir.path().join("state"));
    let setup = |cap| Setup { max_cost_usd: Some(cap), is_patient: false, ..setup(dir.path(), at(&server.url)) };
    let error = ask(&Engine::new(&home, setup(0.05)).unwrap(), 0..100).await.unwrap_err().to_string();
    assert!(error.contains("cost limit of $0.0500") && error.contains("run again"), "{error}");
    let stored = home.ledger.count().unwrap() as usize;
    assert!(stored > 10 && server.bill_usd() <= 0.05, "{stored} {}", server.bill_usd());
    assert_eq!(stored, server.count(), "what was on its way is stored");
    let engine = Engine::new(&home, setup(1.0)).unwrap();
    assert_eq!(ask(&engine, 0..100).await.unwrap(), 100);
    assert_eq!((engine.bill().reused as usize, server.most_often()), (stored, 1));
}

#[tokio::test]
async fn a_request_that_is_sent_again_is_not_held_up_by_one_that_waits_for_its_money() {
    let dir = tempfile::tempdir().unwrap();
    let home = home(&dir.path().join("state"));
    let reserved = || home.account("test").unwrap().budget().reserved.usd();
    let server = Server::start(Duration::from_millis(300), |_, _, _| Act::Answer).await;
    let engine = Engine::new(&home, setup(dir.path(), at(&server.url))).unwrap();
    let (_, worst) = futures::join!(ask(&engine, 0..1), async {
        while reserved() == 0.0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        reserved()
    });
    drop(engine);
    // Room for one at its worst; the second must wait until the first, which is refused once, has cost less.
    let server = Server::start(Duration::from_millis(50), |number, _, _| match number {
        1 => Act::Fail(429, "rate_limit_exceeded"),
        _ => Act::Answer,
    })
    .await;
    let cap = home.account("test").unwrap().budget().spent.usd() + worst + 1.5 * USD;
    let engine = Engine::new(&home, Setup { max_cost_usd: Some(cap), ..setup(dir.path(), at(&server.url)) }).unwrap();
    let asked = tokio::time::timeout(Duration::from_secs(60), ask(&engine, 1..3)).await;
    assert_eq!(asked.expect("it waits for ever").unwrap(), 2);
    assert!(server.bill_usd() <= cap, "{} over {cap}", server.bill_usd());
}

#[tokio::test]
async fn a_refusal_for_the_quota_pauses_without_spending_tries_and_resuming_looks_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let topped_up = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let seen = topped_up.clone();
    let server = Server::start(Duration::ZERO, move |number, _, _| {
        match number > 3 && !seen.load(std::sync::atomic::Ordering::SeqCst) {
            true => Act::Fail(429, "insufficient_quota"),
            false => Act::Answer,
        }
    })
    .await;
    let home = home(&dir.path().join("state"));
    let engine = Arc::new(Engine::new(&home, setup(dir.path(), at(&server.url))).unwrap());
    let handle = engine.handle();
    let asking = tokio::spawn({
        let engine = engine.clone();
        async move { ask(&engine, 0..30).await }
    });
    let is_refused = || matches!(handle.paused(), Some(Pause::Refused(_))) && handle.in_flight().0 == 0;
    poll_until("the pause", is_refused).await;
    let said = handle.waits().unwrap();
    assert!(said.contains("paused: ") && said.contains("quota") && said.contains(&server.url), "{said}");
    assert!(handle.endpoints()[0].halted.is_some());
    topped_up.store(true, std::sync::atomic::Ordering::SeqCst);
    handle.resume();
    assert_eq!(asking.await.unwrap().unwrap(), 30);
    assert_eq!(server.most_often(), 1);
}

#[tokio::test]
async fn endpoints_share_by_weight_and_one_that_refuses_leaves_the_work_to_the_others() {
    let dir = tempfile::tempdir().unwrap();
    let shares: Arc<Mutex<HashMap<String, u64>>> = Arc::default();
    let seen = shares.clone();
    let server = Server::start(Duration::from_millis(2), move |_, headers, body| {
        let key = headers.get("api-key").or_else(|| headers.get("authorization")).unwrap();
        let key = key.to_str().unwrap().to_owned();
        let is_alias = body["model"] == "deployed";
        *seen.lock().unwrap().entry(key.clone()).or_default() += 1;
        match key.as_str() {
            "azure" if is_alias => Act::Answer,
            "Bearer plain" if !is_alias => Act::Answer,
            _ => Act::Fail(401, "invalid_api_key"),
        }
    })
    .await;
    let url = &server.url;
    let file = dir.path().join("endpoints.toml");
    let text = format!(
        "[[endpoint]]\nname = 'a'\nbase_url = '{url}'\nkey_env = 'A'\nheaders = {{ api-key = '{{key}}' }}\n\
         query = {{ api-version = '1' }}\nweight = 3\nmodel = 'deployed'\n[[endpoint]]\nname = 'b'\nbase_url = '{url}'\n\
         key_env = 'B'\n[[endpoint]]\nname = 'c'\nbase_url = '{url}'\nkey_env = 'C'\n"
    );
    std::fs::write(&file, text).unwrap();
    let key = |name: &str| {
        Some(
            match name {
                "A" => "azure",
                "B" => "plain",
                _ => "stale",
            }
            .to_owned(),
        )
    };
    let home = home(&dir.path().join("state"));
    let engine = Engine::new(&home, setup(dir.path(), Endpoints::load(&file, key).unwrap())).unwrap();
    assert_eq!(ask(&engine, 0..200).await.unwrap(), 200);
    let shares = shares.lock().unwrap().clone();
    assert!(shares["azure"] > 2 * shares["Bearer plain"] && shares["Bearer plain"] > 30, "{shares:?}");
    assert!(shares["Bearer stale"] <= 8, "a refused key is not asked again: {shares:?}");
    let halted: Vec<_> = engine.handle().endpoints().into_iter().map(|view| view.halted.is_some()).collect();
    assert_eq!(halted, [false, false, true]);
    let answer = home.ledger.answer(&request(0).key()).unwrap().unwrap();
    assert!(["a", "b"].contains(&answer.endpoint.as_str()) && answer.attempts >= 1, "{answer:?}");
    assert_eq!((answer.cost_usd, answer.fingerprint.as_deref()), (Some(USD), Some("fp")));
}

#[tokio::test]
async fn limits_are_changed_and_jobs_paused_while_they_run() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(Duration::from_millis(1), |_, _, _| Act::Answer).await;
    let home = home(&dir.path().join("state"));
    let limits = crate::api::pacer::PerMinute { requests: Some(60.0), tokens: None };
    let endpoints = Endpoints::single(&server.url, super::super::endpoint::secret("k").unwrap(), limits);
    let engine = Arc::new(Engine::new(&home, setup(dir.path(), endpoints)).unwrap());
    let handle = engine.handle();
    handle.pause();
    let asking = tokio::spawn({
        let engine = engine.clone();
        async move { ask(&engine, 0..300).await }
    });
    poll_until("the pause", || handle.paused() == Some(Pause::Asked)).await;
    assert_eq!(server.count(), 0);
    handle.resume();
    poll_until("the first answer", || handle.bill().calls > 0).await;
    // At a request a second these would take five minutes.
    assert!(!handle.retune(&Retune { endpoint: Some("other".into()), ..Retune::default() }));
    assert!(handle.retune(&Retune { requests_per_minute: Some(0.0), concurrency: Some(32), ..Retune::default() }));
    assert_eq!(asking.await.unwrap().unwrap(), 300);
    assert_eq!(handle.in_flight(), (0, 32));
}

#[tokio::test]
async fn a_job_does_not_wait_for_what_a_paused_one_has_queued() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(Duration::from_millis(50), |_, _, _| Act::Answer).await;
    let home = home(&dir.path().join("state"));
    let engine = || Arc::new(Engine::new(&home, setup(dir.path(), at(&server.url))).unwrap());
    let (paused, other) = (engine(), engine());
    paused.handle().pause();
    let waiting = tokio::spawn({
        let paused = paused.clone();
        async move { ask(&paused, 0..20).await }
    });
    poll_until("the pause", || paused.handle().paused() == Some(Pause::Asked)).await;
    let asked = tokio::time::timeout(Duration::from_secs(30), ask(&other, 0..10)).await;
    assert_eq!(asked.expect("it waits for the paused job").unwrap(), 10);
    // Both at once: what is out for one is not sent for the other.
    paused.handle().resume();
    assert_eq!(ask(&other, 10..20).await.unwrap(), 10);
    assert_eq!(waiting.await.unwrap().unwrap(), 20);
    assert_eq!((server.count(), server.most_often()), (20, 1));
    let (paused, other) = (paused.bill(), other.bill());
    assert_eq!((paused.calls + other.calls, paused.reused + other.reused), (20, 20));
    assert_eq!(home.account("test").unwrap().budget().reserved, Money::default());
}

#[tokio::test]
async fn a_job_that_is_asked_for_again_has_on_its_bill_what_it_paid_for_answers_moved_aside() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(Duration::ZERO, |_, _, _| Act::Answer).await;
    let folder = dir.path().join("state");
    let calls_and_usd = |home: &Home, name: &str| {
        let setup = Setup { bill: Some(name.into()), ..setup(dir.path(), at(&server.url)) };
        let engine = Engine::new(home, setup).unwrap();
        async move {
            ask(&engine, 0..5).await.unwrap();
            (engine.bill().calls, engine.bill().reused, (engine.bill().cost_usd / USD).round())
        }
    };
    let home = self::home(&folder);
    assert_eq!(calls_and_usd(&home, "run/triage").await, (5, 0, 5.0));
    for again in 1..=2 {
        let ledger = home.ledger.clone();
        let keys = [request(1).key(), request(2).key()].into();
        tokio::task::spawn_blocking(move || ledger.move_aside(&keys).unwrap()).await.unwrap();
        assert_eq!(calls_and_usd(&home, "run/triage").await, (5 + 2 * again, 0, (5 + 2 * again) as f64));
    }
    assert_eq!(calls_and_usd(&home, "run/judge").await, (0, 5, 0.0));
}

#[tokio::test]
async fn a_cap_that_was_retuned_holds_after_a_restart_until_the_job_says_something_new() {
    let dir = tempfile::tempdir().unwrap();
    let engine = async |home: &Home, cap| {
        let setup = Setup { max_cost_usd: cap, ..setup(dir.path(), at("http://127.0.0.1:1/v1")) };
        home.heed_cap("test", cap).await.unwrap();
        Engine::new(home, setup).unwrap()
    };
    let folder = dir.path().join("state");
    let home = self::home(&folder);
    let first = engine(&home, Some(1.0)).await;
    assert_eq!(first.bill().cap_usd, Some(1.0));
    let kept = first.handle().set_cap(Some(5.0));
    home.ledger.store().commit(vec![kept]).await.unwrap();
    // Another stage of the run, and the same one again.
    assert_eq!(engine(&home, Some(1.0)).await.bill().cap_usd, Some(5.0));
    drop((first, home));
    let home = self::home(&folder);
    assert_eq!(engine(&home, Some(1.0)).await.bill().cap_usd, Some(5.0));
    assert_eq!(engine(&home, Some(2.0)).await.bill().cap_usd, Some(2.0), "the run file's later word");
    assert_eq!(engine(&home, Some(1.0)).await.bill().cap_usd, Some(1.0), "what was set before is forgotten");
    let kept = engine(&home, Some(2.0)).await.handle().set_cap(None);
    home.ledger.store().commit(vec![kept]).await.unwrap();
    drop(home);
    assert_eq!(engine(&self::home(&folder), Some(2.0)).await.bill().cap_usd, None);
}

#[tokio::test]
async fn a_cap_without_a_price_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let home = home(&dir.path().join("state"));
    let setup = Setup { max_cost_usd: Some(1.0), ..setup(dir.path(), at("http://127.0.0.1:1/v1")) };
    let engine = Engine::new(&home, setup).unwrap();
    let mut unpriced = request(1);
    unpriced.body["model"] = "unknown".into();
    let error = engine.ask(&unpriced).await.unwrap_err().to_string();
    assert!(error.contains("\"unknown\"") && error.contains("--prices"), "{error}");
}
