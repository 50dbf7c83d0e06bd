use std::path::Path;

use serde_json::json;

use super::*;
use crate::api::ledger::Ledger;

fn request(n: u32) -> Request {
    Request::new(json!({"model": "m", "messages": [{"role": "user", "content": n.to_string()}], "max_tokens": 8}))
}

async fn ask(front: &Front, n: u32) -> Result<()> {
    let request = request(n);
    front.pass(&request.key(), &request).await
}

fn claimed(numbers: impl IntoIterator<Item = u32>) -> HashSet<Key> {
    numbers.into_iter().map(|n| lines::number(&request(n).key()).unwrap()).collect()
}

fn parts(folder: &Path) -> Parts {
    Parts::of(&Ledger::open(folder).unwrap())
}

/// An item with two questions, and one that depends on both.
async fn item(front: &Front, n: u32) -> Result<()> {
    futures::try_join!(ask(front, n), ask(front, n + 1))?;
    ask(front, n + 2).await
}

fn origin() -> Origin {
    Origin { job: "j".into(), base_url: "http://a/v1".into(), account: "a".into(), alias: None }
}

#[tokio::test]
async fn without_a_walk_everything_goes_online() {
    let front = Front::default();
    item(&front, 1).await.unwrap();
    assert!(!front.is_walking());
}

#[tokio::test]
async fn a_walk_reaches_what_depends_on_nothing_and_counts_it() {
    let front = Front::default();
    front.set(Walk::counting(claimed([1])));
    front.visit(item(&front, 1)).await.unwrap();
    front.visit(item(&front, 11)).await.unwrap();
    let counts = front.take().unwrap().counts;
    assert_eq!((counts.requests, counts.worst.completion, counts.model.as_str()), (3, 24, "m"));
}

#[tokio::test]
async fn a_walk_writes_each_request_once_into_parts_of_a_model_each() {
    let dir = tempfile::tempdir().unwrap();
    let parts = parts(dir.path());
    let front = Front::default();
    front.set(Walk::gathering(claimed([2]), &parts, origin(), 5, 3));
    for n in [1, 1, 11, 21] {
        front.visit(item(&front, n)).await.unwrap();
    }
    let mut other = request(31);
    other.body["model"] = "n".into();
    front.visit(front.pass(&other.key(), &other)).await.unwrap();
    let walk = front.take().unwrap();
    assert_eq!(walk.counts.requests, 3, "there was room for three: 1, 11 and 12; not for 21, 22 and 31");
    let made = walk.finish().unwrap();
    assert_eq!(made.iter().map(|part| (part.number, part.requests)).collect::<Vec<_>>(), [(5, 3)]);
    assert_eq!(parts.keys(&made[0]).unwrap(), claimed([1, 11, 12]));

    front.set(Walk::gathering(claimed([]), &parts, origin(), 6, 9));
    front.visit(item(&front, 1)).await.unwrap();
    front.visit(front.pass(&other.key(), &other)).await.unwrap();
    let made = front.take().unwrap().finish().unwrap();
    assert_eq!(made.iter().map(|part| part.model.as_str()).collect::<Vec<_>>(), ["m", "n"]);
    assert_ne!(made[0].id, made[1].id);
    parts.sweep().unwrap();
    assert!(!parts.file(&made[0]).exists(), "a file without a record is the rest of a gathering that died");
}

#[tokio::test]
async fn around_batches_what_waits_ends_its_item_and_the_rest_goes_online() {
    let front = Front::default();
    front.set(Walk::around(claimed([12])));
    assert!(matches!(item(&front, 11).await, Err(Error::Later)));
    front.visit(item(&front, 11)).await.unwrap();
    item(&front, 1).await.unwrap();
    let wrong = front.visit(async { Err::<(), _>(Error::NoKey) }).await;
    assert!(matches!(wrong, Err(Error::NoKey)), "other errors are told");
}
