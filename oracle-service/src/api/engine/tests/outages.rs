//! Outages, and items that fail alone.

use super::*;

/// A home in which an hour passes in a few seconds, and an outage is waited for so long that no machine is that slow.
fn hurried(folder: &Path) -> Home {
    home(folder).in_time(Time::faster(500.0)).waiting_for(OUTAGE)
}

const OUTAGE: Duration = Duration::from_secs(6 * 3600);

#[tokio::test]
async fn few_items_wait_for_the_end_of_an_outage() {
    let dir = tempfile::tempdir().unwrap();
    // Three items cannot show that it is nobody's fault; that nobody was answered does. The one before had its answer.
    let server = Server::start(Duration::ZERO, |number, _, _| match number {
        2..=28 => Act::Fail(503, "overloaded"),
        _ => Act::Answer,
    })
    .await;
    // Few are waited for for ten minutes, here six seconds; it is over after three.
    let home = home(&dir.path().join("state")).in_time(Time::faster(100.0));
    let engine = Engine::new(&home, setup(dir.path(), at(&server.url))).unwrap();
    assert_eq!(ask(&engine, 0..1).await.unwrap(), 1);
    assert_eq!(ask(&engine, 1..4).await.unwrap(), 3);
    assert_eq!((server.most_often(), engine.bill().lost_usd), (1, 0.0));
}

#[tokio::test]
async fn an_item_that_fails_while_others_are_answered_is_given_up_and_alone_it_waits_for_minutes() {
    let dir = tempfile::tempdir().unwrap();
    let bad = |body: &Value| body["messages"].to_string().contains("item 7\"");
    let server = Server::start(Duration::from_millis(1), move |_, _, body| match bad(body) {
        true => Act::Fail(500, "poison"),
        false => Act::Answer,
    })
    .await;
    let home = hurried(&dir.path().join("state"));
    let engine = Engine::new(&home, Setup { concurrency: 2, ..setup(dir.path(), at(&server.url)) }).unwrap();
    let begun = home.time.now();
    // Others are answered all the while it fails.
    let request = self::request(7);
    let (poison, ()) = futures::join!(engine.ask(&request), async {
        for item in 10..150 {
            ask(&engine, item..item + 1).await.unwrap();
            home.time.sleep(Duration::from_millis(500)).await;
        }
    });
    assert!(matches!(poison.unwrap(), Asked::Dead(reason) if reason.contains("no answer after 8 tries")));
    assert!(home.time.now() - begun < OUTAGE / 2, "it was taken for an outage");
    // Alone it waits for minutes, also where nobody was answered yet: its job ends.
    for engine in
        [engine, Engine::new(&hurried(&dir.path().join("other")), setup(dir.path(), at(&server.url))).unwrap()]
    {
        let begun = home.time.now();
        let asked = engine.ask(&request).await.unwrap();
        assert!(matches!(asked, Asked::Dead(_)), "{asked:?}");
        let waited = home.time.now() - begun;
        assert!(waited >= Duration::from_secs(600) && waited < OUTAGE / 2, "{waited:?}");
    }
}

/// Answers at an address, on a runtime of its own: with that its connections end, too.
fn listens_at(address: std::net::SocketAddr) -> tokio::runtime::Runtime {
    let listener = std::net::TcpListener::bind(address).unwrap();
    listener.set_nonblocking(true).unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    runtime.spawn(async {
        let app = axum::Router::new().route("/v1/chat/completions", axum::routing::post(async || reply()));
        axum::serve(tokio::net::TcpListener::from_std(listener).unwrap(), app).await
    });
    runtime
}

#[tokio::test]
async fn an_address_nobody_listens_at_costs_no_item_its_tries() {
    let dir = tempfile::tempdir().unwrap();
    let address = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mut server = listens_at(address);
    let home = home(&dir.path().join("state"));
    let engine = Arc::new(Engine::new(&home, setup(dir.path(), at(&format!("http://{address}/v1")))).unwrap());
    let handle = engine.handle();
    // It has answered: what comes is an outage, and no wrong address.
    assert_eq!(ask(&engine, 0..1).await.unwrap(), 1);
    // How often an item is sent in a time depends on the machine, so that the outage may have to be longer.
    for (item, seconds) in [(1, 5), (2, 10), (3, 20), (4, 40)] {
        server.shutdown_background();
        let asking = tokio::spawn({
            let engine = engine.clone();
            async move { ask(&engine, item..item + 1).await }
        });
        let is_away = || handle.waits().is_some_and(|said| said.contains(&format!("{address}/v1: cannot be reached")));
        poll_until("the outage is told", || is_away() || asking.is_finished()).await;
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_secs(seconds) {
            // Someone has it look again and again.
            handle.resume();
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        server = listens_at(address);
        assert_eq!(asking.await.unwrap().unwrap(), 1, "it was given up");
        let attempts = home.ledger.answer(&request(item).key()).unwrap().unwrap().attempts;
        if attempts > 1 + retry::TRIES {
            assert_eq!(engine.bill().calls, 1 + item as u64);
            return server.shutdown_background();
        }
    }
    panic!("no item was sent often enough");
}
